"""In forked children, under several Python threads, and in the workers of a DataLoader."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_relax import _native, label_relaxation_loss
from lr_relax.metrics import expected_calibration_error
from torch import Tensor


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def work(seed: int, rows: int = 500, n_classes: int = 1000) -> tuple[float, float, float]:
    """Large enough to be shared among threads."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, n_classes, generator=generator).requires_grad_()
    y = torch.randint(n_classes, (rows,), generator=generator)
    loss = label_relaxation_loss(z, y)
    loss.backward()
    assert z.grad is not None
    ece = expected_calibration_error(z.detach(), y, from_logits=True)
    return loss.item(), z.grad[0, 0].item(), ece.item()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child() -> None:
    """In a new process: torch refuses a backward in a fork once autograd has started threads."""
    subprocess.run([sys.executable, __file__], check=True, timeout=120)


def compute_in_a_forked_child() -> None:
    torch.set_num_threads(2)
    before = work(0)  # torch's threads run now, and will not in the child
    expected = scaled_losses(fixed(0))
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        # torch's own operators hang in such a child unless they use one thread: only ours run there.
        assert pool.apply_async(scaled_losses, (fixed(0),)).get(timeout=60) == expected
    assert work(0) == before


def fixed(seed: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(500, 1000, generator=generator)
    return z.numpy(), torch.randint(1000, (500,), generator=generator).numpy()


def scaled_losses(arrays: tuple[Any, Any]) -> list[bytes]:
    """Losses and gradients, times 1, times 2 (twice, to keep the graph), and times a number per row."""
    z, y = (torch.from_numpy(a) for a in arrays)
    results, number, numbers = [], torch.tensor(2.0), torch.full((len(z),), 2.0)
    for rows in (z, torch.from_numpy(arrays[0].astype("float16"))):
        for reduction, upstream in [("mean", None), ("mean", number), ("none", numbers)]:
            x = rows.requires_grad_()
            loss = label_relaxation_loss(x, y, reduction=reduction)
            for keep in (True, False):
                (grad,) = torch.autograd.grad(loss, x, upstream, retain_graph=keep)
                results += [loss.detach().numpy().tobytes(), grad.numpy().tobytes()]
    return results


def test_uses_the_threads_of_torch() -> None:
    assert _native.uses_torch_threads()


def test_python_threads() -> None:
    alone = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(work, range(8))) == alone


class Losses(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor(work(i)[0])


def test_data_loader_workers() -> None:
    # A process of its own, whose workers run first: autograd refuses forked processes once it has
    # started threads for a GPU, or for the fake one of another test.
    program = (
        "import torch, test_threads as t\n"
        "loader = torch.utils.data.DataLoader(t.Losses(), batch_size=4, num_workers=2)\n"
        "print(torch.cat(list(loader)).tolist() == [t.work(i)[0] for i in range(8)])\n"
    )
    assert run(program) == (0, "True\n")


def test_clean_exit() -> None:
    program = (
        "import torch, lr_relax\n"
        "torch.set_num_threads(2)\n"
        "z = torch.randn(300, 30_000, requires_grad=True)\n"
        "lr_relax.label_relaxation_loss(z, torch.zeros(300, dtype=torch.int64)).backward()\n"
        "print('done', flush=True)\n"
    )
    assert run(program) == (0, "done\n")


def run(program: str) -> tuple[int, str]:
    """The exit status of a Python program, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    compute_in_a_forked_child()
