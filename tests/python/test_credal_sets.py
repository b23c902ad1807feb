"""Projections onto credal sets and membership, which agree with the loss."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import _dispatch, credal_projection, in_credal_set, label_relaxation_loss
from torch import Tensor


def targets(n: int, n_classes: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(n_classes, (n,), generator=generator)
    votes = torch.rand(n, n_classes, generator=generator, dtype=torch.float64)
    votes = votes * (torch.rand(n, n_classes, generator=generator) < 0.5) + 1e-3
    return {
        "classes": y,
        "sets": (votes > 0.4) | F.one_hot(y, n_classes).bool(),
        "distributions": votes / votes.sum(1, keepdim=True),
    }


KINDS = pytest.mark.parametrize("kind", ["classes", "sets", "distributions"])


@KINDS
@pytest.mark.parametrize("n_classes", [2, 3, 50])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("per_row", [False, True])
def test_gradient_is_prediction_minus_projection(
    kind: str, n_classes: int, from_logits: bool, per_row: bool
) -> None:
    z = 3 * torch.randn(40, n_classes, dtype=torch.float64)
    target = targets(40, n_classes)[kind]
    alpha: Any = 0.5 * torch.rand(40, dtype=torch.float64) if per_row else 0.2
    leaf = z.clone().requires_grad_()
    losses = label_relaxation_loss(leaf, target, alpha, "none")
    (grad,) = torch.autograd.grad(losses.sum(), leaf)
    input = z if from_logits else 5 * z.softmax(1)
    q = credal_projection(input, target, alpha, from_logits=from_logits)
    inside = in_credal_set(input, target, alpha, from_logits=from_logits)
    torch.testing.assert_close(z.softmax(1) - q, grad, rtol=1e-10, atol=1e-14)
    assert inside.equal(losses == 0)
    # A member itself, at the distance that the loss tells.
    torch.testing.assert_close(q.sum(1), torch.ones(40, dtype=torch.float64))
    assert in_credal_set(
        q * (1 - 1e-12) + 1e-12 * z.softmax(1), target, alpha + 1e-9, from_logits=False
    ).all()
    distance = (torch.special.xlogy(q, q) - q * z.log_softmax(1)).sum(1)
    torch.testing.assert_close(distance, losses.detach(), rtol=1e-9, atol=1e-13)


@KINDS
def test_dimension_and_type(kind: str) -> None:
    z = torch.randn(24, 5)
    target = targets(24, 5)[kind]
    q, inside = credal_projection(z, target), in_credal_set(z, target)
    assert (q.dtype, inside.dtype, inside.shape) == (torch.float32, torch.bool, (24,))
    images = z.reshape(4, 6, 5).movedim(-1, 1)
    shape = (4, 6) if kind == "classes" else (4, 6, 5)
    of_images = target.reshape(shape) if kind == "classes" else target.reshape(shape).movedim(-1, 1)
    torch.testing.assert_close(credal_projection(images, of_images, dim=1), q.reshape(4, 6, 5).movedim(-1, 1))
    assert in_credal_set(images, of_images, dim=1).equal(inside.reshape(4, 6))
    assert credal_projection(z.bfloat16(), target).dtype == torch.float32


def test_ignored_rows_are_inside() -> None:
    z, y = torch.randn(3, 4), torch.tensor([0, -100, 2])
    assert in_credal_set(z, y, 0.0).tolist() == [False, True, False]
    torch.testing.assert_close(credal_projection(z, y, 0.0)[1], z[1].softmax(0))


def test_impossible_classes_and_invalid_rows() -> None:
    z = torch.tensor([[-math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0]])
    q = credal_projection(z, torch.tensor([0, 0, 0]), 0.1)
    torch.testing.assert_close(q[0], torch.tensor([0.9, 0.05, 0.05]))
    assert q[1:].isnan().all()
    assert in_credal_set(z, torch.tensor([1, 0, 0]), 0.6).tolist() == [True, False, False]
    both = torch.tensor([[True, True, False]])
    q = credal_projection(torch.tensor([[-math.inf, -math.inf, 0.0]]), both, 0.1)
    torch.testing.assert_close(q, torch.tensor([[0.45, 0.45, 0.1]]))


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=12),
    st.floats(0, 0.95),
    st.integers(0, 10_000),
    st.sampled_from(["classes", "sets", "distributions"]),
)
def test_no_member_is_closer(row: list[float], alpha: float, seed: int, kind: str) -> None:
    z = torch.tensor([row], dtype=torch.float64)
    target = targets(1, len(row), seed)[kind]
    q = credal_projection(z, target, alpha)
    loss = label_relaxation_loss(z, target, alpha)
    p = z.softmax(1)
    # Members on the way from the projection to others: by convexity, the nearest ones first.
    generator = torch.Generator().manual_seed(seed)
    others = torch.randn(30, len(row), generator=generator, dtype=torch.float64).softmax(1)
    members = credal_projection(others, target.expand(30, *target.shape[1:]), alpha, from_logits=False)
    for step in (1.0, 1e-2, 1e-4):
        mixed = (1 - step) * q + step * members
        distance = (torch.special.xlogy(mixed, mixed) - mixed * p.log()).sum(1)
        assert (distance >= loss - 1e-10 * (1 + loss)).all()


@KINDS
def test_tracing_and_gradient(kind: str) -> None:
    z, target = torch.randn(6, 5, dtype=torch.float64), targets(6, 5)[kind]

    def project(x: Tensor) -> Tensor:
        return credal_projection(x, target, 0.2)

    compiled = torch.compile(project, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), project(z))
    stacked = torch.func.vmap(project)(torch.stack([z, 2 * z]))
    torch.testing.assert_close(stacked, torch.stack([project(z), project(2 * z)]))
    assert torch.autograd.gradcheck(project, z.requires_grad_())


@KINDS
def test_wrong_arguments(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, target = torch.randn(6, 5), targets(6, 5)[kind]
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "`alpha`", {"alpha": 1.0}),
        (ValueError, "`target`", {"target": target[:3]}),
        (ValueError, "`dim`", {"dim": 2}),
        (TypeError, "`from_logits`", {"from_logits": None}),
        (TypeError, "`input`", {"input": z.long()}),
    ]
    for function in (credal_projection, in_credal_set):
        for error, match, arguments in wrong:
            with pytest.raises(error, match=match):
                function(**{"input": z, "target": target, **arguments})
            with monkeypatch.context() as patch:
                patch.setattr(_dispatch, "runs_natively", lambda input: False)
                with pytest.raises(error, match=match):
                    function(**{"input": z, "target": target, **arguments})
        with pytest.raises(IndexError, match=r"`target`.*got 5 at row 1"):
            function(z, torch.tensor([0, 5, 0, 0, 0, 0]))
        with pytest.raises(ValueError, match=r"distributions.* row 0"):
            function(z, torch.ones(6, 5))
        with pytest.raises(ValueError, match=r"at least one class.* row 0"):
            function(z, torch.zeros(6, 5, dtype=torch.bool))
