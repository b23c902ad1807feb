"""Count the operators and the memory of the losses where no kernel computes them, and measure their time.

    nice python misc/benchmarks/formulas.py

The kernels serve eager calls with CPU tensors. On other devices, and in traced code, a loss is a formula in
torch operators: python/lr_relax/_formulas.py. A GPU launches a kernel for each operator, so their number
decides about the time of small inputs, and the memory about the size of large ones. The table has, for a
mean loss and its gradient,

- the operators that reach torch's dispatcher;
- the time on the CPU of the formula for logits of (64, 10), with one thread: the median of rounds in turn;
- the most memory beyond the arguments, in multiples of the memory of the logits, of (64, 1000).

tests/python/test_formulas.py limits what is counted here.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lr_relax import _dispatch, functional
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Loss = Callable[[Tensor], Tensor]


def losses(rows: int, n_classes: int) -> dict[str, Loss]:
    """The losses of lr-relax as functions of the logits."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(n_classes, (2, rows), generator=generator)
    t = torch.randn(rows, n_classes, generator=generator).softmax(1)
    sets = (torch.rand(rows, n_classes, generator=generator) < 0.3) | F.one_hot(a, n_classes).bool()
    relaxation = functional.label_relaxation_loss
    return {
        "label relaxation: classes": lambda z: relaxation(z, a),
        "label relaxation: sets": lambda z: relaxation(z, sets),
        "label relaxation: two classes": lambda z: functional.mixup_label_relaxation_loss(z, a, b, 0.3),
        "label relaxation: distributions": lambda z: relaxation(z, t),
        "cross-entropy": lambda z: functional.cross_entropy_loss(z, a),
        "cross-entropy: label smoothing": lambda z: functional.cross_entropy_loss(z, a, 0.1),
        "cross-entropy: distributions": lambda z: functional.cross_entropy_loss(z, t, 0.1),
        "focal": lambda z: functional.focal_loss(z, a),
        "focal: distributions": lambda z: functional.focal_loss(z, t),
        "dual focal": lambda z: functional.dual_focal_loss(z, a),
        "confidence penalty": lambda z: functional.confidence_penalty_loss(z, a),
        "confidence penalty: distributions": lambda z: functional.confidence_penalty_loss(z, t),
    }


def peers(rows: int, n_classes: int) -> dict[str, Loss]:
    y = torch.randint(n_classes, (rows,), generator=torch.Generator().manual_seed(0))
    found: dict[str, Loss] = {
        "`F.cross_entropy`": lambda z: F.cross_entropy(z, y),
        "`F.cross_entropy` in float32": lambda z: F.cross_entropy(z.float(), y),
        "`F.cross_entropy`, label smoothing": lambda z: F.cross_entropy(z, y, label_smoothing=0.1),
    }
    try:
        import label_relaxation
    except ImportError:
        return found
    return found | {"`label-relaxation`: classes": lambda z: label_relaxation.label_relaxation_loss(z, y)}


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that are called, and the peak of the memory of their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.peak = self.live = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = {address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.operators.append(str(func))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and address(x) not in arguments | self.storages:
                storage, size = x.untyped_storage(), x.untyped_storage().nbytes()
                self.storages.add(address(x))
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, address(x), size)
        return result

    def free(self, address: int, size: int) -> None:
        self.storages.remove(address)
        self.live -= size


def address(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def trace(loss: Loss, rows: int, n_classes: int, dtype: torch.dtype) -> tuple[list[str], float]:
    """The operators of a loss and its gradient, and the peak of the memory over that of the logits."""
    z = torch.randn(rows, n_classes, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with Trace() as traced:
        loss(z).backward()  # type: ignore[no-untyped-call]
    return traced.operators, traced.peak / z.untyped_storage().nbytes()


def milliseconds(contenders: dict[str, Loss], rounds: int = 30, calls: int = 20) -> dict[str, float]:
    z = torch.randn(64, 10, requires_grad=True)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, loss in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                torch.autograd.grad(loss(z), z)
            samples[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    torch.set_num_threads(1)
    _dispatch.runs_natively = lambda input: False
    small, large = (losses(64, n) | peers(64, n) for n in (10, 1000))
    times = milliseconds(small)
    print(f"torch {torch.__version__}\n")
    print("| loss and gradient | operators | ms, (64, 10) | memory / logits, float32 | bfloat16 |")
    print("|---|---|---|---|---|")
    for name in small:
        operators, _ = trace(small[name], 64, 10, torch.float32)
        memory = [trace(large[name], 64, 1000, dtype)[1] for dtype in (torch.float32, torch.bfloat16)]
        print(f"| {name} | {len(operators)} | {times[name]:.2f} | {memory[0]:.1f} | {memory[1]:.1f} |")


if __name__ == "__main__":
    main()
