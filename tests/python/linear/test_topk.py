"""Soft targets that name a few classes, against dense ones."""

from collections.abc import Callable
from typing import Any

import lr_relax
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import TopK, label_relaxation_loss
from torch import Tensor

N, D, C, K = 12, 5, 9, 3
LOSSES: dict[str, dict[str, Any]] = {
    "label_relaxation": {"alpha": 0.2},
    "cross_entropy": {"label_smoothing": 0.1},
    "focal": {"gamma": 1.5},
    "confidence_penalty": {"beta": 0.3},
}
EACH_LOSS = pytest.mark.parametrize(("name", "given"), LOSSES.items(), ids=list(LOSSES))


def topk(rest: Any, seed: int = 0, shape: tuple[int, ...] = (N,), ignored: bool = False) -> TopK:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(*shape, C, generator=generator).topk(K).indices
    shares = torch.rand(*shape, K, generator=generator, dtype=torch.float64)
    shares = shares / shares.sum(-1, keepdim=True) * (0.8 if rest else 1)
    if ignored:
        indices[::4] = -100
    return TopK(indices, shares, rest)


def dense(target: TopK) -> Tensor:
    """As the docstring defines it."""
    shares = target.shares
    others = 0 if target.rest is None else (1 - shares.sum(-1, keepdim=True)) / (C - K)
    zeros = torch.zeros(*shares.shape[:-1], C, dtype=shares.dtype)
    return (zeros + others).scatter(-1, target.indices.clamp_min(0), shares)


def results(loss: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, tensors, upstream)


def close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], eps: float) -> None:
    for one, other in zip(got, expected, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double(), other.double(), rtol=30 * eps, atol=30 * eps * scale)


@EACH_LOSS
@pytest.mark.parametrize("rest", ["uniform", None])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_the_loss_of_the_dense_target(
    name: str, given: dict[str, Any], rest: Any, reduction: str, dtype: torch.dtype
) -> None:
    target, loss = topk(rest), getattr(lr_relax, f"{name}_loss")
    options = {**given, "reduction": reduction, "weight": torch.linspace(0.5, 2, C)}
    z = torch.randn(N, C, dtype=torch.float64).mul(2).to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    expected = results(loss(exact, dense(target), **options), exact)
    got = results(loss(z, target, **options), z)
    close(got, expected, torch.finfo(dtype).eps)


@EACH_LOSS
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_of_a_linear_layer_with_ignored_rows(name: str, given: dict[str, Any], reduction: str) -> None:
    target = topk("uniform", ignored=True)
    counted = (target.indices != -100).all(1)
    x, w = (torch.randn(n, D, dtype=torch.float64, requires_grad=True) for n in (N, C))
    options = {**given, "weight": torch.linspace(0.5, 2, C), "reduction": reduction}
    loss = getattr(lr_relax, f"linear_{name}_loss")(x, w, target, chunk_size=5, **options)
    other = getattr(lr_relax, f"{name}_loss")(x @ w.T, target, **options)
    whole = getattr(lr_relax, f"{name}_loss")(F.linear(x[counted], w), dense(target)[counted], **options)
    if reduction == "none":
        assert (loss[~counted] == 0).all()
        assert (other[~counted] == 0).all()
        loss, other = loss[counted], other[counted]
    expected = results(whole, x, w)
    close(results(loss, x, w), expected, 1e-14)
    close(results(other, x, w), expected, 1e-14)


@given(
    n=st.integers(0, 30),
    k=st.integers(1, 6),
    more=st.integers(0, 5),
    rest=st.sampled_from(["uniform", None]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_number_of_classes(n: int, k: int, more: int, rest: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n_classes = max(k + more, 2)
    indices = torch.rand(n, n_classes, generator=generator).argsort(1)[:, :k]
    shares = torch.rand(n, k, generator=generator, dtype=torch.float64) + 1e-3
    is_part = rest == "uniform" and k < n_classes
    shares /= shares.sum(1, keepdim=True) * (2 if is_part else 1)
    others = 0.5 / (n_classes - k) if is_part else 0.0
    whole = torch.full((n, n_classes), others, dtype=torch.float64).scatter(1, indices, shares)
    z = torch.randn(n, n_classes, generator=generator, dtype=torch.float64).requires_grad_()
    got = results(label_relaxation_loss(z, TopK(indices, shares, rest), 0.2, "none"), z)
    expected = results(label_relaxation_loss(z, whole, 0.2, "none"), z)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_any_layout() -> None:
    target = topk("uniform", shape=(2, 6))
    z = torch.randn(2, 6, C, dtype=torch.float64)
    expected = label_relaxation_loss(z, dense(target), 0.2, "none", dim=-1)
    torch.testing.assert_close(label_relaxation_loss(z, target, 0.2, "none"), expected)
    torch.testing.assert_close(label_relaxation_loss(z.movedim(-1, 1), target, 0.2, "none", dim=1), expected)
    torch.testing.assert_close(label_relaxation_loss(z[0, 0], target[0, 0], 0.2), expected[0, 0])
    torch.testing.assert_close(target.dense(C, torch.float64), dense(target))


@EACH_LOSS
def test_transforms_and_graphs(name: str, given: dict[str, Any]) -> None:
    target, loss = topk("uniform", ignored=True), getattr(lr_relax, f"{name}_loss")
    counted = (target.indices != -100).all(1)
    z = torch.randn(N, C, dtype=torch.float64, requires_grad=True)

    def ours(z: Tensor) -> Tensor:
        return loss(z, target, **given)

    def other(z: Tensor) -> Tensor:
        return loss(z[counted], dense(target)[counted], **given)

    def twice(loss: Callable[[Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(loss(z), z, create_graph=True)
        return torch.autograd.grad(first.square().sum(), z)[0]

    torch.testing.assert_close(torch.func.grad(ours)(z), torch.func.grad(other)(z))
    torch.testing.assert_close(twice(ours), twice(other))
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for one, same in zip(results(compiled(z), z), results(other(z), z), strict=True):
        torch.testing.assert_close(one, same)


def test_a_target_that_changes_before_backward_is_noticed() -> None:
    target = topk("uniform")
    z = torch.randn(N, C, requires_grad=True)
    loss = label_relaxation_loss(z, target, reduction="none")
    target.shares.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


INDICES, SHARES = torch.tensor([[0, 2], [1, 3]]), torch.tensor([[0.6, 0.4], [0.9, 0.1]])


@pytest.mark.parametrize(
    ("indices", "shares", "rest", "error", "message"),
    [
        ([[0]], SHARES, None, TypeError, "`indices` to be a tensor, but got list"),
        (INDICES.float(), SHARES, None, TypeError, "`indices` to be of an integer type"),
        (INDICES, SHARES.long(), None, TypeError, "`shares` to be of a floating-point type"),
        (INDICES, SHARES[:1], None, ValueError, r"same shape .* got \(2, 2\) and \(1, 2\)"),
        (INDICES, SHARES, "even", ValueError, "`rest` to be 'uniform' or None, but got 'even'"),
        (INDICES + 2, SHARES, None, IndexError, r"classes in \[0, 5\), but got 5"),
        (INDICES.clamp(max=0), SHARES, None, ValueError, "different classes"),
        (INDICES, SHARES / 2, None, ValueError, "sum to 1 .* got the sum 0.5. Pass rest='uniform'"),
        (INDICES, SHARES * 2, "uniform", ValueError, "sum to at most 1 .* got the sum 2"),
        (INDICES, SHARES - 0.5, "uniform", ValueError, "shares of at least 0"),
        (INDICES[:1], SHARES[:1], None, ValueError, r"rows of shape \(2,\)"),
        (torch.arange(6).expand(2, 6), torch.full((2, 6), 1 / 6), None, ValueError, "at most 5 classes"),
    ],
)
def test_errors(indices: Any, shares: Any, rest: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        label_relaxation_loss(torch.zeros(2, 5), TopK(indices, shares, rest))


def test_losses_without_soft_targets_refuse_them() -> None:
    target = TopK(INDICES, SHARES)
    for loss in (
        lambda: lr_relax.dual_focal_loss(torch.zeros(2, 5), target),
        lambda: label_relaxation_loss(torch.zeros(2, 5), target, uniform_penalty=1.0),
        lambda: lr_relax.mixup_label_relaxation_loss(torch.zeros(2, 5), target, target, 0.5),
    ):
        with pytest.raises(TypeError, match="Expected argument `target"):
            loss()
    with pytest.raises(ValueError, match="`inplace`"):
        label_relaxation_loss(torch.zeros(2, 5), target, inplace=True)


def test_no_dense_target_is_whole() -> None:
    from lr_relax._chunked import chunks

    sizes = []
    of_logits = chunks.of_logits

    def recorded(logits: Tensor, target: TopK, *others: Any) -> Any:
        sizes.append(target.dense(logits.shape[1]).numel())
        return of_logits(logits, target, *others)

    n, n_classes = 512, 8192
    target = TopK(torch.arange(n)[:, None], torch.ones(n, 1))
    arguments = chunks.Head(torch.zeros(n, n_classes), None, None), target
    options = lr_relax._options.Options("label_relaxation", 0.1, "mean", -1, -100, None)
    chunks.chunks(*arguments, options, (True, False, False), None, None, recorded)
    assert max(sizes) * 4 == 2**20
