"""Robust data ambiguation: the formula, the schedule, options and invalid arguments."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lr_relax import LabelRelaxationLoss, RobustDataAmbiguationLoss
from lr_relax.ambiguation import ambiguous_target, cosine_threshold
from torch import Tensor


def plain(z: Tensor, y: Tensor, alpha: float, threshold: float) -> Tensor:
    """The loss of the paper."""
    p = z.softmax(1)
    members = (p.detach() > threshold) | F.one_hot(y, z.shape[1]).bool()
    own = p.where(members, 0.0).sum(1, keepdim=True)
    q = torch.where(members, (1 - alpha) * p / own, alpha * p / (1 - own)).detach()
    return F.kl_div(p.log(), q, reduction="none").sum(1).where(own[:, 0] < 1 - alpha, 0.0)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_formula(threshold: float, alpha: float, reduction: str) -> None:
    z, y = 3 * torch.randn(200, 6, dtype=torch.float64), torch.randint(6, (200,))
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    loss = RobustDataAmbiguationLoss(alpha, threshold, reduction)(leaves[0], y)
    true = plain(leaves[1], y, alpha, threshold)
    true = {"mean": true.mean(), "sum": true.sum(), "none": true}[reduction]
    torch.testing.assert_close(loss, true, rtol=1e-10, atol=1e-14)
    grads = [torch.autograd.grad(x.sum(), leaf)[0] for x, leaf in zip((loss, true), leaves, strict=True)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-14)


def test_threshold_of_one() -> None:
    z, y = torch.randn(50, 10), torch.randint(10, (50,))
    assert RobustDataAmbiguationLoss(0.1, 1.0)(z, y) == pytest.approx(LabelRelaxationLoss(0.1)(z, y).item())


def test_confident_predictions_have_no_gradient() -> None:
    z = torch.tensor([[9.0, 0.0, 0.0]]).requires_grad_()
    RobustDataAmbiguationLoss()(z, torch.tensor([1])).backward()
    assert z.grad is not None
    assert z.grad.eq(0).all()


def test_options() -> None:
    z, y = 3 * torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(5, (2, 8))
    y[0, :3] = 255
    images = RobustDataAmbiguationLoss(0.1, 0.4, dim=1, ignore_index=255)
    counted = y != 255
    rows = z.movedim(1, -1)[counted]
    assert images(z, y).item() == pytest.approx(plain(rows, y[counted], 0.1, 0.4).mean().item())
    with_probabilities = RobustDataAmbiguationLoss(0.1, 0.4, dim=1, ignore_index=255, from_logits=False)
    assert with_probabilities(2 * z.softmax(1), y).item() == pytest.approx(images(z, y).item())
    shown = "RobustDataAmbiguationLoss(alpha=0.1, threshold=0.4, reduction='mean', dim=1, ignore_index=255)"
    assert repr(images) == shown
    assert RobustDataAmbiguationLoss()(z[:0, :, 0], y[:0, 0]).isnan()  # the mean of no rows, as in torch


def test_transforms() -> None:
    z, y = torch.randn(6, 5), torch.randint(5, (6,))
    module = RobustDataAmbiguationLoss(threshold=0.3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, y), module(z, y))
    torch.testing.assert_close(torch.export.export(module, (z, y)).module()(z, y), module(z, y))

    def compute(x: Tensor) -> Tensor:
        return module(x, y)

    leaf = z.double().requires_grad_()
    (grad,) = torch.autograd.grad(compute(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(compute)(z.double()), grad)
    tangent = torch.randn_like(grad)
    torch.testing.assert_close(torch.func.jvp(compute, (z.double(),), (tangent,))[1], (grad * tangent).sum())
    stacked = torch.func.vmap(compute)(torch.stack([z, 2 * z]))
    torch.testing.assert_close(stacked, torch.stack([compute(z), compute(2 * z)]))
    assert torch.autograd.gradgradcheck(compute, leaf)
    assert module(z.half(), y.to(torch.uint16)).dtype == torch.float32


def test_ignored_rows() -> None:
    z, y = torch.tensor([[math.nan, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([-100, 1])
    module = RobustDataAmbiguationLoss()
    alone = module(z[1:], y[1:])
    assert module(z, y).equal(alone)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(z, y), alone)


def test_schedule() -> None:
    thresholds = [cosine_threshold(epoch, 20, 0.9, 0.5) for epoch in range(21)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert (thresholds[0], thresholds[10], thresholds[20]) == pytest.approx((0.9, 0.7, 0.5))
    for epoch, epochs in ((-1, 10), (11, 10), (0, 0), (math.nan, 10)):
        with pytest.raises(ValueError, match="`epoch"):
            cosine_threshold(epoch, epochs)
    with pytest.raises(TypeError, match="`epoch`"):
        cosine_threshold("first", 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`start`"):
        cosine_threshold(1, 10, start=1.5)


INVALID: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "`threshold`.*1.5", {"threshold": 1.5}),
    (TypeError, "`threshold`", {"threshold": "high"}),
    (ValueError, "`alpha`", {"alpha": 1.0}),
    (ValueError, "`reduction`", {"reduction": "all"}),
]


@pytest.mark.parametrize(("error", "match", "arguments"), INVALID)
def test_rejects_hyperparameters(error: type[Exception], match: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        RobustDataAmbiguationLoss(**arguments)


def test_rejects_targets() -> None:
    z = torch.randn(3, 4)
    with pytest.raises(IndexError, match=r"`target` to hold classes in \[0, 4\), but got -1 at row 2"):
        ambiguous_target(z, torch.tensor([0, 3, -1]))
    with pytest.raises(TypeError, match=r"`target`.*integer"):
        ambiguous_target(z, torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"`target` to have shape \(3,\)"):
        ambiguous_target(z, torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="`input`"):
        ambiguous_target(z.long(), torch.zeros(3, dtype=torch.int64))
