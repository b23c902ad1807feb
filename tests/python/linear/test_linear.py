"""Losses of a linear layer, chunk by chunk, against the losses of all its logits."""

import copy
from collections.abc import Callable
from typing import Any

import lr_relax
import pytest
import torch
import torch.nn.functional as F
from head_cases import ALPHAS, CASES, SETS, WEIGHT, C, Case, D, N, Y, layer
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import (
    LinearConfidencePenaltyLoss,
    LinearCrossEntropyLoss,
    LinearFocalLoss,
    LinearLabelRelaxationLoss,
    _fused,
    label_relaxation_loss,
    linear_cross_entropy_loss,
    linear_label_relaxation_loss,
)
from lr_relax._chunked import chunks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
HALVES = (torch.bfloat16, torch.float16)


def results(loss: Tensor, tensors: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, tensors, upstream.to(loss.dtype))


def to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def of_layer(case: Case, head: tuple[Tensor, ...], **options: Any) -> Tensor:
    x, w, *b = head
    dtype = torch.float32 if x.dtype in HALVES else x.dtype
    targets, more = [to(t, dtype) for t in case.targets], {k: to(v, dtype) for k, v in case.options.items()}
    return case.of_layer(x, w, *targets, linear_bias=b[0] if b else None, **more, **options)


def of_logits(case: Case, head: tuple[Tensor, ...], **options: Any) -> Tensor:
    targets, more = [to(t, head[0].dtype) for t in case.targets], case.options
    more = {k: to(v, head[0].dtype) for k, v in more.items()}
    return case.of_logits(F.linear(*head), *targets, **more, **options)


@EACH_CASE
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_is_the_loss_of_the_logits(case: Case, reduction: str, dtype: torch.dtype) -> None:
    """Half precision: the logits and their gradients are rounded, sums over rows are not."""
    head = layer(dtype)
    exact = tuple(x.detach().double().requires_grad_() for x in head)
    upstream = torch.rand(N if reduction == "none" else (), dtype=torch.float64) + 0.5
    expected = results(of_logits(case, exact, reduction=reduction), exact, upstream)
    eps = torch.finfo(dtype).eps
    for chunk_size in (None, 1, 5, 100):
        loss = of_layer(case, head, reduction=reduction, chunk_size=chunk_size)
        assert loss.dtype == (torch.float32 if dtype in HALVES else dtype)
        for got, right, x in zip(results(loss, head, upstream), expected, (loss, *head), strict=True):
            assert got.dtype == x.dtype
            scale = float(right.abs().max())
            torch.testing.assert_close(got.double(), right, rtol=30 * eps, atol=30 * eps * scale)


@EACH_CASE
def test_gradcheck(case: Case) -> None:
    torch.autograd.gradcheck(lambda *head: of_layer(case, head, reduction="none", chunk_size=7), layer())
    torch.autograd.gradcheck(lambda *head: of_layer(case, head, chunk_size=7), layer())


@given(
    n=st.integers(0, 20),
    n_classes=st.integers(2, 12),
    chunk_size=st.integers(1, 25),
    has_bias=st.booleans(),
    has_weight=st.booleans(),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    n: int, n_classes: int, chunk_size: int, has_bias: bool, has_weight: bool, ignored: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    head = random(n, 3), random(n_classes, 3), *([random(n_classes)] if has_bias else [])
    y = torch.randint(n_classes, (n,), generator=generator)
    y[torch.rand(n, generator=generator) < ignored] = -100
    weight = random(n_classes).detach().exp() if has_weight else None
    x, w, *b = head
    bias = b[0] if b else None
    for reduction in ("mean", "none"):
        loss = linear_label_relaxation_loss(
            x, w, y, 0.3, reduction, linear_bias=bias, weight=weight, chunk_size=chunk_size
        )
        expected = label_relaxation_loss(F.linear(x, w, bias), y, 0.3, reduction, weight=weight)
        for got, right in zip(
            results(loss, head, torch.ones_like(loss)),
            results(expected, head, torch.ones_like(loss)),
            strict=True,
        ):
            torch.testing.assert_close(got, right, equal_nan=True, rtol=1e-12, atol=1e-12)


def test_leading_dimensions() -> None:
    x, w, _ = layer()
    shape = (2, 3)
    x = x.detach()[:6].reshape(*shape, D).requires_grad_()
    for target, alpha in ((Y[:6].view(shape), 0.1), (SETS[:6].view(*shape, C), ALPHAS[:3].double())):
        loss = linear_label_relaxation_loss(x, w, target, alpha, "none", chunk_size=4)
        expected = label_relaxation_loss(F.linear(x, w), target, alpha, "none", dim=-1)
        assert loss.shape == shape
        for got, right in zip(
            results(loss, (x, w), torch.ones(shape)),
            results(expected, (x, w), torch.ones(shape)),
            strict=True,
        ):
            torch.testing.assert_close(got, right)


class Products(TorchDispatchMode):
    """Records the numbers of rows in matrix products, and the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.out, torch.ops.aten.addmm.default):
            self.rows.append(result.shape[0])
        elif func is torch.ops.aten.addmm_.default:
            self.rows.append(args[1].shape[1])
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    """The mode below the choice of what computes, which takes modes for transforms."""
    mode, loop = Products(), chunks._chunks

    def recorded(*arguments: Any) -> Any:
        with mode:
            return loop(*arguments)

    monkeypatch.setattr(chunks, "_chunks", recorded)
    return mode


def test_rows_without_a_gradient_take_part_in_no_product(products: Products) -> None:
    x, w, _ = layer()
    counted = int((Y != -100).sum())
    active = int((label_relaxation_loss(F.linear(x, w), Y, 0.4, "none") > 0).sum())
    assert 0 < active < counted
    linear_label_relaxation_loss(x, w, Y, 0.4)
    assert products.rows == [counted, active, active]
    products.rows.clear()
    linear_cross_entropy_loss(x, w, Y)
    assert products.rows == [counted] * 3


@pytest.mark.parametrize("target", [Y.clamp_min(0), SETS], ids=["class", "set"])
def test_skipped_rows_change_the_order_of_sums_only(target: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    head = layer()
    skipping = results(linear_label_relaxation_loss(*head[:2], target, 0.4, chunk_size=8), head[:2], ONE)
    add = chunks._Sums.add
    monkeypatch.setattr(chunks._Sums, "add", lambda self, *arguments: add(self, *arguments[:-1], None))
    whole = results(linear_label_relaxation_loss(*head[:2], target, 0.4, chunk_size=8), head[:2], ONE)
    assert skipping[0].equal(whole[0])
    for got, right in zip(skipping, whole, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-15, atol=1e-16)


ONE = torch.ones(())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_are_never_whole(reduction: str, products: Products) -> None:
    x, w = torch.randn(4096, 4, requires_grad=True), torch.randn(512, 4, requires_grad=True)
    y = torch.randint(512, (4096,))
    linear_label_relaxation_loss(x, w, y, reduction=reduction, chunk_size=64).sum().backward()
    assert products.largest == 64 * 512 * 4


@EACH_CASE
def test_transforms_and_second_derivatives_take_all_logits(case: Case) -> None:
    x, w, b = layer()

    def ours(*head: Tensor) -> Tensor:
        return of_layer(case, head, reduction="sum")

    def other(*head: Tensor) -> Tensor:
        return of_logits(case, head, reduction="sum")

    def twice(loss: Callable[..., Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(loss(x, w, b), w, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1, 2))(x, w, b),
        lambda f: torch.func.vmap(f)(x[None], w[None], b[None]),
        lambda f: torch.func.jvp(f, (x, w, b), (x, w, b)),
        lambda f: torch.autograd.grad(
            f(x, w, b), w, torch.ones(3, dtype=torch.float64), is_grads_batched=True
        ),
        twice,
    ):
        torch.testing.assert_close(transform(ours), transform(other))


def test_a_retained_graph_gives_the_gradient_again() -> None:
    head = layer(torch.float32)
    for reduction in ("mean", "none"):
        loss = linear_label_relaxation_loss(*head[:2], Y, reduction=reduction).sum()
        first = torch.autograd.grad(loss, head[:2], retain_graph=True)
        kept = [grad.clone() for grad in first]
        for grad in first:
            grad.zero_()
        second = torch.autograd.grad(loss, head[:2], 2 * ONE)
        assert all(grad.equal(2 * known) for grad, known in zip(second, kept, strict=True))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, head[:2])


def test_computes_what_needs_a_gradient_only() -> None:
    x, w, b = (tensor.detach() for tensor in layer())
    for wanted in ((x,), (w,), (b,), (x, b)):
        for tensor in (x, w, b):
            tensor.requires_grad_(any(tensor is other for other in wanted)).grad = None
        linear_label_relaxation_loss(x, w, Y, linear_bias=b).backward()
        assert [t.grad is not None for t in (x, w, b)] == [t.requires_grad for t in (x, w, b)]
    with torch.no_grad():
        assert not linear_label_relaxation_loss(x, w, Y).requires_grad


@EACH_CASE
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_other_devices_take_the_formulas(case: Case, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = layer()
    upstream = torch.rand(N if reduction == "none" else (), dtype=torch.float64)
    expected = results(of_layer(case, head, reduction=reduction, chunk_size=7), head, upstream)
    monkeypatch.setattr(Tensor, "is_cpu", property(lambda _: False))
    monkeypatch.setattr(_fused, "compute", None)
    got = results(of_layer(case, head, reduction=reduction, chunk_size=7), head, upstream)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_alpha_may_want_a_gradient() -> None:
    x, w, _ = layer()
    alpha = torch.full((), 0.1, dtype=torch.float64, requires_grad=True)
    loss, expected = linear_label_relaxation_loss(x, w, Y, alpha), label_relaxation_loss(x @ w.T, Y, alpha)
    for got, right in zip(
        torch.autograd.grad(loss, (x, alpha)), torch.autograd.grad(expected, (x, alpha)), strict=True
    ):
        torch.testing.assert_close(got, right)


def test_float16_keeps_small_gradients_for_the_loss_scale() -> None:
    """Divided by the number of rows, a gradient of 2e-5 would be 0 in float16 before the loss scale comes."""
    n = 4096
    x, w = torch.ones(n, 1).half().requires_grad_(), torch.zeros(2, 1).half().requires_grad_()
    y = torch.zeros(n, dtype=torch.int64)
    with torch.no_grad():
        w[0], w[1] = 4.0, -4.0
    linear_cross_entropy_loss(x, w, y).mul(65536.0).backward()
    p = torch.sigmoid(torch.tensor(-8.0))
    torch.testing.assert_close(x.grad, (-8 * p * 65536 / n).expand(n, 1).half(), rtol=2e-3, atol=0)
    torch.testing.assert_close(w.grad, (p * 65536 * torch.tensor([[-1.0], [1.0]])).half(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    head = layer(torch.float32)
    with torch.autocast("cpu", dtype):
        loss = linear_label_relaxation_loss(*head[:2], Y)
        expected = label_relaxation_loss(F.linear(*head[:2]), Y)
    assert loss.dtype == torch.float32
    for got, right in zip(results(loss, head[:2], ONE), results(expected, head[:2], ONE), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, right, rtol=0.02, atol=0.02 * float(right.abs().max()))


@pytest.mark.parametrize(
    ("module", "function", "options"),
    [
        (LinearLabelRelaxationLoss, "label_relaxation", {"alpha": 0.2}),
        (LinearCrossEntropyLoss, "cross_entropy", {"label_smoothing": 0.2}),
        (LinearFocalLoss, "focal", {"gamma": 1.5}),
        (LinearConfidencePenaltyLoss, "confidence_penalty", {"beta": 0.2}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_modules_own_the_layer(module: Any, function: str, options: dict[str, float]) -> None:
    x = layer(torch.float32)[0]
    criterion = module(D, C, **options, bias=True, weight=WEIGHT, chunk_size=4)
    expected = getattr(lr_relax, f"{function}_loss")(criterion.linear(x), Y, **options, weight=WEIGHT)
    torch.testing.assert_close(criterion(x, Y), expected)
    criterion(x, Y).backward()
    assert criterion.linear.weight.grad.shape == (C, D)
    assert {"linear.weight", "linear.bias"} <= set(criterion.state_dict())
    assert "chunk_size=4" in repr(criterion)
    torch.testing.assert_close(copy.deepcopy(criterion)(x, Y), criterion(x, Y))


def test_modules_take_a_tied_weight() -> None:
    embedding = torch.nn.Embedding(C, D)
    criterion = LinearLabelRelaxationLoss(D, C, linear_weight=embedding.weight)
    assert criterion.linear.weight is embedding.weight
    criterion(embedding(Y.clamp_min(0)), Y).backward()
    for wrong, error in ((embedding.weight.detach(), TypeError), (torch.nn.Parameter(WEIGHT), ValueError)):
        with pytest.raises(error, match="`linear_weight`"):
            LinearLabelRelaxationLoss(D, C, linear_weight=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "`input` to be a tensor, but got list"),
        (
            {"input": torch.zeros(N, D, dtype=torch.int64)},
            TypeError,
            "`input` to be of a floating-point type",
        ),
        ({"input": torch.zeros(N, D + 1)}, ValueError, r"`input` to have shape \(..., 6\)"),
        (
            {"linear_weight": torch.zeros(C, D).double()},
            TypeError,
            "`linear_weight` to be of type torch.float32",
        ),
        ({"linear_weight": torch.zeros(D)}, ValueError, r"`linear_weight` to have shape \(C, d\)"),
        ({"linear_weight": torch.zeros(1, D)}, ValueError, "at least 2 classes"),
        ({"linear_bias": torch.zeros(D)}, ValueError, r"`linear_bias` to have shape \(9,\)"),
        ({"target": Y[1:]}, ValueError, r"`target` .*to have shape \(23,\)"),
        ({"target": SETS[:, 1:]}, ValueError, r"`target` .*to have shape \(23, 9\)"),
        ({"target": Y.clamp_min(0) + 5}, IndexError, r"`target` to hold classes in \[0, 9\)"),
        ({"target": SETS & (torch.arange(N) != 20)[:, None]}, ValueError, "row 20"),
        ({"target": None}, TypeError, "`target` to be a tensor"),
        ({"alpha": 1.0}, ValueError, "`alpha`"),
        ({"reduction": "avg"}, ValueError, "`reduction`"),
        ({"weight": torch.ones(D)}, ValueError, r"`weight` to have shape \(9,\)"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` to be an integer of at least 1, but got 0"),
        ({"process_group": "world"}, TypeError, "`process_group` to be a group of torch.distributed"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors_come_before_anything_is_computed(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_chunks", None)
    arguments = {"input": torch.zeros(N, D), "linear_weight": torch.zeros(C, D), "target": Y, **change}
    with pytest.raises(error, match=message):
        linear_label_relaxation_loss(**arguments)
