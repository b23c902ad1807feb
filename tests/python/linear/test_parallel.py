"""Classes that are split over processes, against one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_relax import (
    linear_confidence_penalty_loss,
    linear_cross_entropy_loss,
    linear_focal_loss,
    linear_label_relaxation_loss,
)
from torch import Tensor, distributed, multiprocessing

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")

N, D, C = 40, 8, 19  # slices of different sizes
CASES: list[tuple[Any, dict[str, Any]]] = [
    (linear_label_relaxation_loss, {}),
    (linear_label_relaxation_loss, {"alpha": 0.5, "weight": True}),
    (linear_label_relaxation_loss, {"alpha": 0.0}),
    (linear_cross_entropy_loss, {"weight": True}),
    (linear_cross_entropy_loss, {"label_smoothing": 0.1, "weight": True}),
    (linear_cross_entropy_loss, {"label_smoothing": 0.1}),
    (linear_cross_entropy_loss, {"label_smoothing": 1.0}),
    (linear_focal_loss, {"gamma": 1.5}),
    (linear_focal_loss, {"gamma": 0.0, "weight": True}),
    (linear_confidence_penalty_loss, {"beta": 0.3, "weight": True}),
]


def tensors() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    # Multiples of 1/8, whose products are exact: every process has the bits of the logits of one.
    x, w, b = (torch.randint(-12, 13, shape, generator=generator) / 8 for shape in ((N, D), (C, D), (C,)))
    y = torch.randint(C, (N,), generator=generator)
    x[::3] = 3 * w[y][::3]  # some rows are all but certain
    y[::7] = -100
    return x, w, b, y, torch.rand(C, generator=generator) + 0.5, torch.rand(N, generator=generator)


def gradients(loss: Tensor, tensors: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors, upstream if loss.dim() else None)


def check(group: Any, rank: int, size: int, dtype: torch.dtype) -> None:
    x, w, b, y, weight, upstream = tensors()
    slices = [range(C)[i * C // size : (i + 1) * C // size] for i in range(size)]
    own = slice(slices[rank].start, slices[rank].stop)
    x, w, b = (tensor.to(dtype).requires_grad_() for tensor in (x, w, b))
    w_own, b_own = (tensor.detach()[own].clone().requires_grad_() for tensor in (w, b))
    eps = torch.finfo(dtype).eps
    # All is computed in float64: within 1 ulp in float32.
    rtol, atol = (eps, 0.0) if dtype == torch.float32 else (8 * eps, eps)
    for function, given in CASES:
        options = {name: weight if name == "weight" else value for name, value in given.items()}
        for reduction in ("mean", "sum", "none"):
            expected = function(x, w, y, reduction=reduction, linear_bias=b, **options)
            options.update(chunk_size=7, process_group=group)
            loss = function(x, w_own, y, reduction=reduction, linear_bias=b_own, **options)
            torch.testing.assert_close(loss, expected, rtol=rtol, atol=atol)
            right = gradients(expected, (x, w, b), upstream.to(dtype))
            got = gradients(loss, (x, w_own, b_own), upstream.to(dtype))
            for one, other in zip(got, (right[0], right[1][own], right[2][own]), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))
            for name in ("chunk_size", "process_group"):
                del options[name]


def check_errors(group: Any) -> None:
    x, w, _, y, *_ = tensors()
    w.requires_grad_()
    for wrong, message in (
        ({"target": torch.ones(N, C, dtype=torch.bool)}, "`target` to hold class indices"),
        ({"target": y, "alpha": torch.tensor(0.1)}, "`alpha` to be a number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            linear_label_relaxation_loss(x, w, process_group=group, **wrong)
    loss = linear_label_relaxation_loss(x, w, y, process_group=group)
    with pytest.raises(RuntimeError, match="no gradient itself"):
        torch.autograd.grad(loss, w, create_graph=True)


def work(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), 4)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=4)
    for size in (1, 2, 4):
        group = distributed.new_group(list(range(size)))
        if rank < size:
            for dtype in (torch.float64, torch.float32):
                check(group, rank, size, dtype)
            if size == 1:
                check_errors(group)
    distributed.barrier()
    distributed.destroy_process_group()


def test_one_two_and_four_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path,), 4)
