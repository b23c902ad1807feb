"""The gradient over the logits: the same bits, no memory, and wrong use noticed."""

import gc
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_relax import (
    ConfidencePenaltyLoss,
    CrossEntropyLoss,
    FocalLoss,
    LabelRelaxationLoss,
    MixupLabelRelaxationLoss,
    RobustDataAmbiguationLoss,
    focal_loss,
    label_relaxation_loss,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Y = torch.arange(24)


def logits(n_classes: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    """No leaf: what a layer puts out."""
    generator = torch.Generator().manual_seed(n_classes)
    leaf = torch.randn(24, n_classes, generator=generator).to(dtype).requires_grad_()
    return leaf * 2


def targets(n_classes: int) -> dict[str, tuple[type[torch.nn.Module], tuple[Any, ...]]]:
    """Modules, and their arguments after the logits."""
    generator = torch.Generator().manual_seed(1)
    y, other = Y % n_classes, Y.flip(0) % n_classes
    votes = torch.rand(24, n_classes, generator=generator)
    sets = (votes < 0.3).scatter(1, y[:, None], True)
    return {
        "classes": (LabelRelaxationLoss, (y,)),
        "sets": (LabelRelaxationLoss, (sets,)),
        "distributions": (LabelRelaxationLoss, (votes / votes.sum(1, keepdim=True),)),
        "mixtures": (MixupLabelRelaxationLoss, (y, other, 0.3)),
        "cross_entropy": (partial(CrossEntropyLoss, label_smoothing=0.1), (y,)),  # type: ignore[dict-item]
        "plain cross_entropy": (CrossEntropyLoss, (y,)),
        "focal": (FocalLoss, (y,)),
        "soft focal": (FocalLoss, (votes / votes.sum(1, keepdim=True),)),
        "confidence_penalty": (ConfidencePenaltyLoss, (y,)),
        "ambiguation": (RobustDataAmbiguationLoss, (y,)),
    }


@pytest.mark.parametrize("name", targets(3))
def test_same_bits(name: str) -> None:
    types = torch.float64, torch.float32, torch.bfloat16
    for case in product((3, 32, 33, 160, 300), types, ("mean", "none")):
        n_classes, dtype, reduction = case
        make, arguments = targets(n_classes)[name]
        results = []
        for inplace in (False, True):
            module = make(reduction=reduction, inplace=inplace)
            z = logits(n_classes, dtype)
            before = z.detach().clone()
            z.retain_grad()
            loss = module(z, *arguments)
            loss.backward(torch.ones_like(loss))
            assert z.grad is not None
            assert z.detach().equal(z.grad if inplace else before), case
            results.append((loss.detach(), z.grad.clone()))
        assert results[0][0].equal(results[1][0]), case
        assert results[0][1].equal(results[1][1]), case


@pytest.mark.parametrize("dim", [1, 0])
def test_strides(dim: int) -> None:
    """Columns of a wider layer, and classes that are not neighbors; what lies between is left alone."""
    grads = []
    for inplace in (False, True):
        leaf = torch.arange(24.0 * 60).reshape(24, 60).sin().requires_grad_()
        whole = leaf * 2
        part = whole[:, 5:45] if dim == 1 else whole[:, 5:45].t()
        between = whole.detach()[:, :5].clone()
        label_relaxation_loss(part, Y % 40, dim=dim, inplace=inplace).backward()
        assert whole.detach()[:, :5].equal(between)
        assert leaf.grad is not None
        grads.append(leaf.grad)
    assert grads[0].equal(grads[1])


def test_upstream_and_retained_graph() -> None:
    z = logits()
    (expected,) = torch.autograd.grad(label_relaxation_loss(z, Y), z)
    z = logits()
    loss = label_relaxation_loss(z, Y, inplace=True)
    for scale in (3.0, 0.5):
        (grad,) = torch.autograd.grad(scale * loss, z, retain_graph=True)
        torch.testing.assert_close(grad, scale * expected)
    (grad,) = torch.autograd.grad(2 * loss, z)
    torch.testing.assert_close(grad, 2 * expected)


def test_no_grad_keeps_logits() -> None:
    z = logits().detach()
    before = z.clone()
    label_relaxation_loss(z, Y, inplace=True)
    with torch.no_grad():
        label_relaxation_loss(z.requires_grad_(), Y, inplace=True)
    assert z.detach().equal(before)


def test_checkpointed_layer() -> None:
    layer, x = torch.nn.Linear(8, 40), torch.randn(24, 8)
    grads = []
    for inplace in (False, True):
        layer.zero_grad()

        def compute(x: Tensor, inplace: bool = inplace) -> Tensor:
            return label_relaxation_loss(layer(x), Y, inplace=inplace)

        checkpoint(compute, x, use_reentrant=False).backward()
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.clone())
    assert grads[0].equal(grads[1])


def refused(z: Tensor, target: Tensor = Y, **options: Any) -> None:
    before = z.detach().clone()
    with pytest.raises((ValueError, TypeError, IndexError)) as error:
        label_relaxation_loss(z, target, inplace=True, **options)
    assert "inplace" in str(error.value) or "target" in str(error.value)
    assert z.detach().equal(before), "nothing may be lost"


def test_rejected_calls_keep_logits() -> None:
    refused(torch.randn(24, 40).requires_grad_())  # a leaf
    refused(torch.randn(40, 24).requires_grad_().t())  # a view of one
    refused(logits()[:1].expand(24, 40))  # one row for all
    refused(logits(dtype=torch.float16))  # a loss scale comes later
    shared = logits().softmax(1)
    refused(shared, shared.detach(), from_logits=False)
    refused(logits(), Y + 20)  # no such class
    votes = torch.full((24, 40), 1 / 40)
    votes[20] = 1.0
    refused(logits(), votes)  # noticed before the first row is overwritten
    refused(logits(), torch.arange(24)[:, None].expand(24, 40) < 20)
    refused(logits(), uniform_penalty=0.5)
    with pytest.raises(TypeError, match=r"`inplace` to be a bool, but got 1"):
        label_relaxation_loss(logits(), Y, inplace=1)  # type: ignore[arg-type]


def test_no_rows_share_no_memory() -> None:
    z = logits()[:0, :1].expand(0, 40)
    assert z.stride(1) == 0
    assert label_relaxation_loss(z, Y[:0], reduction="sum", inplace=True) == 0.0


def misuse_saved_output() -> None:
    z = logits().exp()  # needs its own result for its gradient
    label_relaxation_loss(z, Y, inplace=True).backward()


def misuse_changed_afterward() -> None:
    z = logits()
    loss = label_relaxation_loss(z, Y, inplace=True)
    with torch.no_grad():
        z.zero_()
    loss.backward()


def misuse_second_derivative() -> None:
    z = logits()
    torch.autograd.grad(label_relaxation_loss(z, Y, inplace=True), z, create_graph=True)


@pytest.mark.parametrize(
    "misuse",
    [misuse_saved_output, misuse_changed_afterward, misuse_second_derivative],
    ids=lambda f: f.__name__,
)
def test_misuse(misuse: Callable[[], None]) -> None:
    with pytest.raises(RuntimeError, match=r"inplace"):
        misuse()


def test_a_second_loss_in_place() -> None:
    z = logits()
    (expected,) = torch.autograd.grad(label_relaxation_loss(z, Y) + focal_loss(z, Y), z)
    (grad,) = torch.autograd.grad(label_relaxation_loss(z, Y) + focal_loss(z, Y, inplace=True), z)
    torch.testing.assert_close(grad, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_peak_memory() -> None:
    """64 MiB of logits: without `inplace` their gradient takes as much again."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

    y = torch.randint(32_000, (512,))
    label_relaxation_loss(logits(), Y).backward()  # warms up
    z = torch.randn(512, 32_000).requires_grad_() * 2
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    (grad,) = torch.autograd.grad(label_relaxation_loss(z, y, inplace=True), z)
    assert status("VmHWM") - before < 16
    assert grad.data_ptr() == z.data_ptr()
