"""Losses of linear layers and of `TopK` with input that is unusual, but right."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lr_relax import (
    LinearCrossEntropyLoss,
    LinearLabelRelaxationLoss,
    TopK,
    credal_projection,
    cross_entropy_loss,
    label_relaxation_loss,
    linear_cross_entropy_loss,
    linear_label_relaxation_loss,
    linear_mixup_label_relaxation_loss,
)
from lr_relax._chunked import chunks
from torch import Tensor, nn
from torch.nn.utils import prune


def gradients(loss: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight", [None, 1e-7, 1e4, 1e5])
def test_sums_over_many_rows_do_not_overflow_half_precision(dtype: torch.dtype, weight: float | None) -> None:
    x = (20 * torch.ones(40_000, 2)).to(dtype).requires_grad_()
    w, b = torch.zeros(6, 2, dtype=dtype, requires_grad=True), torch.zeros(6, dtype=dtype, requires_grad=True)
    y, options = torch.zeros(40_000, dtype=torch.int64), {}
    if weight:
        options["weight"] = torch.full((6,), weight)
    loss = linear_cross_entropy_loss(x, w, y, linear_bias=b, chunk_size=20_000, **options)
    expected = torch.full((6,), 1 / 6)
    expected[0] -= 1
    _, of_weight, of_bias = gradients(loss, x, w, b)
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(loss, torch.tensor(6.0).log())
    torch.testing.assert_close(of_bias, expected.to(dtype), **close)
    torch.testing.assert_close(of_weight, (20 * expected).to(dtype).unsqueeze(1).expand(6, 2), **close)


def test_large_upstreams_of_rows_do_not_overflow_float16() -> None:
    x, w = (
        torch.full((1, 1), 8.0).half().requires_grad_(),
        torch.tensor([[1.0], [-1.0]]).half().requires_grad_(),
    )
    loss = linear_cross_entropy_loss(x, w, torch.tensor([0]), reduction="none")
    (got,) = torch.autograd.grad(loss, w, torch.tensor([1e5]))
    p = torch.sigmoid(torch.tensor(-16.0))
    torch.testing.assert_close(got, (8e5 * p * torch.tensor([[-1.0], [1.0]])).half(), rtol=0.2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_without_any_row_are_zero(dtype: torch.dtype) -> None:
    x, w = (
        torch.randn(3, 2, dtype=dtype, requires_grad=True),
        torch.randn(4, 2, dtype=dtype, requires_grad=True),
    )
    for target in (torch.full((3,), -100), TopK(torch.full((3, 1), -100), torch.ones(3, 1))):
        loss = linear_label_relaxation_loss(x, w, target)
        assert loss.isnan()
        assert all((grad == 0).all() for grad in gradients(loss, x, w))


def test_narrow_integer_types_hold_no_ignore_index() -> None:
    """-100 is 156 in uint8."""
    x, w = torch.randn(4, 5), torch.randn(200, 5)
    y = torch.tensor([156, 3, 156, 7], dtype=torch.uint8)
    z = x @ w.T
    expected = F.cross_entropy(z, y.long())
    torch.testing.assert_close(linear_cross_entropy_loss(x, w, y), expected)
    topk = TopK(y.unsqueeze(1), torch.ones(4, 1))
    torch.testing.assert_close(cross_entropy_loss(z, topk), expected)
    torch.testing.assert_close(credal_projection(z, y), credal_projection(z, y.long()))
    loss = linear_label_relaxation_loss(x, w, torch.zeros(4, dtype=torch.int32), ignore_index=2**40)
    torch.testing.assert_close(loss, label_relaxation_loss(z, torch.zeros(4, dtype=torch.int64)))
    weight = torch.rand(200)
    mixture = linear_mixup_label_relaxation_loss(x, w, y, y.to(torch.uint16), 0.3, weight=weight)
    torch.testing.assert_close(mixture, label_relaxation_loss(z, y.long(), weight=weight))


def test_rows_whose_positive_gradients_round_to_zero_are_not_inside() -> None:
    n_classes = 131_072
    w = torch.zeros(n_classes, 2).half()
    w[0, 0] = 1
    x = torch.tensor([[13.95, 1.0]]).half().requires_grad_()
    sets = torch.zeros(1, n_classes, dtype=torch.bool)
    sets[0, 0] = True
    (of_class,) = gradients(linear_label_relaxation_loss(x, w, torch.tensor([0])), x)
    (of_set,) = gradients(linear_label_relaxation_loss(x, w, sets), x)
    assert of_class[0, 0] < 0
    torch.testing.assert_close(of_set, of_class, rtol=1e-2, atol=0)


def test_class_weights_of_zero_give_nan_as_the_mean_of_nothing() -> None:
    x, w = torch.randn(3, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    y = torch.zeros(3, dtype=torch.int64)
    for loss in (linear_label_relaxation_loss, linear_cross_entropy_loss):
        value = loss(x, w, y, weight=torch.zeros(4))
        assert value.isnan()
        assert gradients(value, w)[0].isnan().any()


def test_weights_of_dense_targets_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, row_weights = [], chunks._formulas.row_weights

    def recorded(target: Tensor, *others: Any) -> Any:
        largest.append(target.numel())
        return row_weights(target, *others)

    monkeypatch.setattr(chunks._formulas, "row_weights", recorded)
    x, w = torch.randn(300, 2), torch.randn(4096, 2)
    sets, weight = torch.rand(300, 4096) < 0.1, torch.rand(4096)
    loss = linear_label_relaxation_loss(x, w, sets, weight=weight)
    torch.testing.assert_close(loss, label_relaxation_loss(x @ w.T, sets, weight=weight))
    assert max(largest) <= 2**18


@pytest.mark.parametrize("total", [0.996, 1.004])
def test_weights_of_topk_are_those_of_the_dense_target(total: float) -> None:
    z, weight = torch.randn(2, 4), torch.rand(4)
    for indices in (torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]), torch.tensor([[0, 1], [3, 2]])):
        shares = torch.rand(indices.shape)
        target = TopK(indices, total * shares / shares.sum(1, keepdim=True), rest="uniform")
        loss = label_relaxation_loss(z, target, weight=weight)
        torch.testing.assert_close(loss, label_relaxation_loss(z, target.dense(4), weight=weight))


def test_ignored_rows_of_probabilities_harm_no_gradient_of_alpha() -> None:
    p, alpha = torch.rand(2, 3).softmax(1), torch.tensor(0.1, requires_grad=True)
    target = TopK(torch.tensor([[-100], [1]]), torch.ones(2, 1))
    loss = label_relaxation_loss(p, target, alpha, from_logits=False)
    expected = label_relaxation_loss(p[1:], torch.tensor([1]), alpha, from_logits=False)
    torch.testing.assert_close(gradients(loss, alpha), gradients(expected, alpha))


def test_ignored_rows_of_topk_may_have_any_index() -> None:
    z, weight = torch.randn(2, 3), torch.rand(3)
    target = TopK(torch.tensor([[2**40], [1]]), torch.ones(2, 1))
    loss = label_relaxation_loss(z, target, weight=weight, ignore_index=2**40)
    torch.testing.assert_close(loss, label_relaxation_loss(z[1:], torch.tensor([1]), weight=weight))
    with pytest.raises(ValueError, match="`ignore_index` to fit in 64 bits"):
        label_relaxation_loss(z, target, ignore_index=2**63)


def test_means_over_topk_do_not_overflow_float16() -> None:
    """Before the division by the rows, the gradient by a small probability would."""
    p = torch.tensor([[1e-5, 0.25, 0.75]]).half().expand(6, 3)
    target = TopK(torch.tensor([[0, 1]]).expand(6, 2), torch.tensor([[0.75, 0.25]]).expand(6, 2))
    grads = []
    for dtype in (torch.float16, torch.float64):
        leaf = p.to(dtype).requires_grad_()
        grads += gradients(label_relaxation_loss(leaf, target, from_logits=False), leaf)
    assert grads[1].min() < -1e4
    torch.testing.assert_close(grads[0], grads[1].half(), rtol=1e-3, atol=0)


def test_an_ambiguous_class_dimension_is_asked_for() -> None:
    target = TopK(torch.zeros(2, 6, 1, dtype=torch.int64), torch.ones(2, 6, 1))
    with pytest.raises(ValueError, match="`dim` to be given"):
        cross_entropy_loss(torch.randn(2, 6, 6), target)


def test_layers_that_the_loss_would_not_call_are_refused() -> None:
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    pruned = LinearLabelRelaxationLoss(3, 5)
    prune.l1_unstructured(pruned.linear, "weight", 0.5)
    wrapped, hooked = LinearLabelRelaxationLoss(3, 5), LinearLabelRelaxationLoss(3, 5)
    wrapped.linear = nn.Sequential(wrapped.linear)  # type: ignore[assignment]
    hooked.linear.register_forward_hook(lambda *_: None)
    for criterion in (pruned, wrapped, hooked):
        with pytest.raises(RuntimeError, match=r"`linear` to be an `nn\.Linear` without hooks"):
            criterion(x, y)
    parametrized = LinearLabelRelaxationLoss(3, 5)
    nn.utils.parametrizations.weight_norm(parametrized.linear)
    torch.testing.assert_close(parametrized(x, y), label_relaxation_loss(parametrized.linear(x), y))


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((3, 5, True), {}, "`label_smoothing` to be"),
        ((3, 1), {}, "`n_classes` to be at least 2"),
        ((3, 5), {"chunk_size": 0}, "`chunk_size`"),
        ((3, 5), {"weight": torch.ones(3)}, r"`weight` to have shape \(5,\)"),
        (
            (3, 5),
            {"linear_weight": nn.Parameter(torch.ones(5, 3)), "dtype": torch.float64},
            "`dtype` to be left out",
        ),
    ],
)
def test_constructors_refuse_what_forward_would(
    arguments: tuple[Any, ...], options: dict[str, Any], error: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        LinearCrossEntropyLoss(*arguments, **options)


def test_unusual_shapes_and_devices() -> None:
    x, w, y = torch.randn(3, 2), torch.randn(5, 2), torch.tensor([0, 4, 2])
    single = linear_mixup_label_relaxation_loss(x[0], w, y[0], y[1], 0.3, reduction="none")
    several = linear_mixup_label_relaxation_loss(x, w, y, y.roll(-1), 0.3, reduction="none")
    torch.testing.assert_close(single, several[0])
    empty = linear_cross_entropy_loss(torch.zeros(3, 0), torch.zeros(5, 0), y)
    torch.testing.assert_close(empty, torch.tensor(5.0).log())
    assert linear_cross_entropy_loss(x.to("meta"), w.to("meta"), y.to("meta")).device.type == "meta"
    sizes = torch.tensor(2).numpy()[()]
    torch.testing.assert_close(
        linear_cross_entropy_loss(x, w, y, chunk_size=sizes), linear_cross_entropy_loss(x, w, y)
    )


def test_compiled_errors_name_the_row_of_the_whole_target() -> None:
    torch.compiler.reset()
    x, w, y = torch.randn(300, 2), torch.randn(50, 2), torch.zeros(300, dtype=torch.int64)
    y[250] = 77
    compiled = torch.compile(linear_label_relaxation_loss, backend="aot_eager", fullgraph=True)
    for weight in (None, torch.ones(50)):
        with pytest.raises(IndexError, match="got 77 at row 250"):
            compiled(x, w, y, weight=weight, chunk_size=100)


def test_topk_under_vmap_and_on_devices() -> None:
    z, shares = torch.randn(3, 2, 6), torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    indices = torch.tensor([[[0, 1], [2, 3]], [[1, 2], [3, 4]], [[5, 0], [1, 3]]])

    def loss(z: Tensor, indices: Tensor) -> Tensor:
        return label_relaxation_loss(z, TopK(indices, shares))

    torch.testing.assert_close(
        torch.func.vmap(loss)(z, indices), torch.stack([loss(*one) for one in zip(z, indices, strict=True)])
    )
    target = TopK(indices[0], shares)
    assert target.to("meta").indices.is_meta
    with pytest.raises(IndexError, match="index of rows"):
        target[:, 0]
    with pytest.raises(TypeError, match="`ignore_index` to be an integer"):
        cross_entropy_loss(z[0], target, ignore_index="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`dim` to be an integer"):
        cross_entropy_loss(z[0], target, dim="a")  # type: ignore[arg-type]
