"""The benchmark rows of losses of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lr_relax import label_relaxation_loss, linear_cross_entropy_loss, linear_label_relaxation_loss
from torch import Tensor, nn

from row import Contender, Inputs, Row

WIDTH = 512


def layer(
    rows: int, width: int, classes: int, dtype: torch.dtype = torch.float32, inside: bool = False
) -> Inputs:
    """Input, weight and classes; if `inside`, every second row is inside its set for alpha = 0.1."""
    weight = torch.randn(classes, width) / width**0.5
    target = torch.randint(classes, (rows,))
    input = torch.randn(rows, width)
    if inside:
        input[::2] = 30 * weight[target][::2]
    return input.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def step(loss: Callable[..., Tensor]) -> Contender:
    """Forward and backward, whose gradients are freed."""

    def run(x: Tensor, w: Tensor, y: Tensor) -> None:
        loss(x, w, y).backward()  # type: ignore[no-untyped-call]
        x.grad = w.grad = None

    return run


def after_linear(loss: Callable[..., Tensor]) -> Contender:
    return step(lambda x, w, y: loss(F.linear(x, w), y))


def logits(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Memory of the size of the logits, written once."""
    return x.new_zeros(len(x), len(w))


def chunked(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = F.linear_cross_entropy(x, w, y, options=nn.LinearCrossEntropyOptions())
    return loss


OURS = step(linear_label_relaxation_loss)
PEERS: dict[str, Contender] = {
    "F.linear + F.cross_entropy": after_linear(F.cross_entropy),
    "F.linear_cross_entropy in chunks": step(chunked),
}


def head(classes: int, dtype: torch.dtype = torch.float32, **options: Any) -> Row:
    return Row(
        "Linear layer and LR forward + backward",
        (4096, WIDTH, classes),
        partial(layer, dtype=dtype),
        ours=OURS,
        yardstick=("F.linear + our LR", after_linear(label_relaxation_loss)),
        target=1.05,
        peers=PEERS,
        dtype=str(dtype).removeprefix("torch."),
        **options,
    )


def memory(classes: int, dtype: torch.dtype = torch.float32) -> Row:
    gradients = (4096 + classes) * WIDTH * dtype.itemsize / 2**20
    return Row(
        "Linear layer and LR peak memory beyond the gradients",
        (4096, WIDTH, classes),
        partial(layer, dtype=dtype),
        ours=OURS,
        yardstick=("the logits", lambda *inputs: (logits(*inputs), torch.zeros(int(gradients * 2**18)))),
        target=0.08,
        peers=PEERS,
        dtype=str(dtype).removeprefix("torch."),
        unit="MiB",
        not_counted=gradients,
    )


HEAD_ROWS = [
    head(32000),
    head(128000, min_rounds=2),
    head(32000, torch.bfloat16),
    Row(
        "Linear layer and LR forward + backward, half of the rows inside their sets",
        (4096, WIDTH, 32000),
        partial(layer, inside=True),
        ours=OURS,
        yardstick=("linear layer and cross-entropy", step(linear_cross_entropy_loss)),
        target=0.75,
    ),
    memory(32000),
    memory(128000),
    memory(32000, torch.bfloat16),
]
