"""Runs the losses on CPU tensors that claim to be on CUDA, with the interpreted kernels.

TRITON_INTERPRET=1 python tests/python/triton_device.py
"""

from collections.abc import Callable

import torch
from loss_cases import CASES, SHARES, C, N, Y
from lr_relax import TopK, _operators, _triton, functional, linear_label_relaxation_loss
from lr_relax._options import Options
from torch import Tensor

calls = 0
W = torch.randint(-8, 9, (C, C), generator=torch.Generator().manual_seed(2)) / 8  # exact in half precision
TARGET = TopK(torch.tensor([[0, 1], [1, 3], [4, 2], [2, 0], [-100, -100], [3, 4]]), SHARES[:, :2], "uniform")
CASES |= {
    "linear": lambda z, **options: linear_label_relaxation_loss(
        z, W.to(z.dtype), Y, 0.4, chunk_size=4, **options
    ),
    "topk": lambda z, **options: functional.label_relaxation_loss(z, TARGET, **options),
}


def results(loss: Callable[[Tensor], Tensor], z: Tensor) -> list[Tensor]:
    """Losses, and gradients for upstreams of 1, of another number and one per row."""
    z = z.clone().requires_grad_()
    value = loss(z)
    rows = torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value.dtype)
    found = [value.detach()]
    for upstream in (torch.ones_like(value), torch.full_like(value, 4096.0), rows):
        found.append(torch.autograd.grad(loss(z), z, upstream)[0])
    return found


def compare(name: str, dtype: torch.dtype, reduction: str, as_operator: bool) -> None:
    def loss(z: Tensor) -> Tensor:
        return CASES[name](z, reduction=reduction)

    def operator(z: Tensor) -> Tensor:
        return _operators.loss(z, Y, Options("label_relaxation", 0.1, reduction, -1, -100, None))  # type: ignore

    z = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    expected = results(loss, z.to(dtype).float())
    before = calls
    claim(True)
    try:
        got = results(operator if as_operator else loss, z.to(dtype))
    finally:
        claim(False)
    assert calls >= before + 3, "the kernels have not been called"
    for value, reference in zip(got, expected, strict=True):
        rounding = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
        most = max(float(reference.abs().max()), 1.0)
        # The gradient of a linear layer sums rounded ones.
        close = {"rtol": rounding, "atol": (rounding if name == "linear" else 1e-6) * most}
        torch.testing.assert_close(value.float(), reference, **close)


IS_CPU, IS_CUDA = torch.Tensor.is_cpu, torch.Tensor.is_cuda


def claim(is_cuda: bool) -> None:
    torch.Tensor.is_cpu = property(lambda _: False) if is_cuda else IS_CPU  # type: ignore
    torch.Tensor.is_cuda = property(lambda _: True) if is_cuda else IS_CUDA  # type: ignore


def counted(*arguments: object) -> object:
    global calls
    calls += 1
    return LAUNCH(*arguments)  # type: ignore[arg-type]


if __name__ == "__main__":
    LAUNCH, _triton.loss = _triton.loss, counted  # type: ignore[assignment]
    cases = 0
    for name in CASES.keys() - {"binary"}:  # which has no kernel
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for reduction in ("mean", "none"):
                compare(name, dtype, reduction, False)
                cases += 1
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        compare("class", dtype, "mean", True)
        compare("class", dtype, "none", True)
    # In place, with a retained graph, and a second derivative.
    claim(True)
    leaf = torch.randn(N, C, requires_grad=True)
    value = functional.label_relaxation_loss(leaf, Y)
    (kept,) = torch.autograd.grad(value, leaf, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, leaf, torch.tensor(2.0))[0], 2 * kept)
    functional.label_relaxation_loss(2 * leaf, Y, inplace=True).backward()
    (first,) = torch.autograd.grad(functional.label_relaxation_loss(leaf, Y), leaf, create_graph=True)
    first.square().sum().backward()
    assert _triton.supports(leaf, Options("focal", 2.0, "mean", -1, -100, None))
    print(f"{cases + 6} cases")
