"""Label relaxation of one logit for an event, against that of two classes and against torch."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lr_relax import BinaryLabelRelaxationLoss, _dispatch, binary_label_relaxation_loss, label_relaxation_loss
from option_cases import option_cases
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck


def logits(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(shape, generator=generator, dtype=torch.float64)


def labels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3


def value_and_grad(input: Tensor, target: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = input.detach().clone().requires_grad_()
    value = binary_label_relaxation_loss(leaf, target, *arguments, **options)
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.fixture(params=["kernel", "formulas"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "formulas":
        monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)


@option_cases(alpha=[0.0, 0.1, 0.7], shape=[(40,), (30, 7)], from_logits=[True, False])
def test_two_classes(alpha: float, shape: tuple[int, ...], from_logits: bool, reduction: str) -> None:
    z, y = logits(*shape), labels(*shape)
    scores = z if from_logits else z.sigmoid()
    leaf = scores.clone().requires_grad_()
    two = torch.stack([torch.zeros_like(leaf) if from_logits else 1 - leaf, leaf], -1)
    true = label_relaxation_loss(two, y.long(), alpha, reduction, dim=-1, from_logits=from_logits)
    true.sum().backward()
    got = value_and_grad(scores, y, alpha, reduction, from_logits=from_logits)
    torch.testing.assert_close(got, (true.detach(), leaf.grad), rtol=1e-10, atol=1e-13)


@option_cases(pos_weight=[None, (7,), (30, 7)], weight=[None, (30, 1), (1,), (30, 7)])
def test_weights_of_torch(pos_weight: Any, weight: Any, reduction: str) -> None:
    z, y = logits(30, 7).requires_grad_(), labels(30, 7)
    generator = torch.Generator().manual_seed(2)
    pos_weight, weight = (
        shape and torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in (pos_weight, weight)
    )
    true = F.binary_cross_entropy_with_logits(
        z, y.double(), weight=weight, pos_weight=pos_weight, reduction=reduction
    )
    true.sum().backward()
    got = value_and_grad(z, y, 0.0, reduction, pos_weight=pos_weight, weight=weight)
    torch.testing.assert_close(got, (true.detach(), z.grad), rtol=1e-11, atol=1e-13)
    module = BinaryLabelRelaxationLoss(0.0, reduction, pos_weight=pos_weight, weight=weight)  # type: ignore[arg-type]
    torch.testing.assert_close(module(z, y), true)
    torch_module = torch.nn.BCEWithLogitsLoss(weight, pos_weight=pos_weight)
    assert set(module.state_dict()) == set(torch_module.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_types_and_strides(dtype: torch.dtype) -> None:
    z, y = logits(30, 7).to(dtype), labels(30, 7)
    true = value_and_grad(z.double(), y)
    for target in (y, y.long(), y.to(torch.uint8), y.float(), y.to(torch.bfloat16)):
        value, grad = value_and_grad(z.t(), target.t())
        assert (value.dtype, grad.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(value.double(), true[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.t().double(), true[1], rtol=torch.finfo(dtype).eps, atol=6e-8)


def test_inside_the_set() -> None:
    bound = math.log(9.0)
    z = torch.tensor([bound + 1e-9, bound - 1e-9, -bound - 1e-9, -bound + 1e-9], dtype=torch.float64)
    value, grad = value_and_grad(z, torch.tensor([1, 1, 0, 0]), 0.1, "none")
    assert (value > 0).tolist() == (grad != 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_extreme_logits(alpha: float) -> None:
    z = torch.tensor([800.0, -800.0, math.nan, math.inf, -math.inf, -math.inf], dtype=torch.float64)
    value, grad = value_and_grad(z, torch.tensor([0, 1, 1, 1, 0, 1]), alpha, "none")
    far = 0.9 * (math.log(0.9) + 800) + 0.1 * math.log(0.1) if alpha else 800.0
    torch.testing.assert_close(value[:2], torch.tensor([far, far], dtype=torch.float64))
    assert grad[:2].tolist() == [1 - alpha, alpha - 1]
    assert value.isnan().tolist() == grad.isnan().tolist() == [False, False, True, True, False, False]
    assert value[4:].tolist() == [0.0, math.inf]


def test_probabilities_of_zero() -> None:
    """Of either sign: the slope (1 - q / p) / p falls to minus infinity."""
    value, grad = value_and_grad(torch.tensor([0.0, -0.0]), torch.ones(2), 0.1, "none", from_logits=False)
    assert value.tolist() == [math.inf] * 2
    assert grad.tolist() == [-math.inf] * 2


def test_smallest_probabilities() -> None:
    """The slope 1 / (1 - p) is 1, although 1 / p is infinite."""
    assert value_and_grad(torch.tensor([1e-40]), torch.zeros(1), 0.0, from_logits=False)[1].item() == 1


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_invalid_probabilities(alpha: float) -> None:
    wrong = torch.tensor([-0.1, 1.1, math.nan, math.inf])
    for target in (torch.zeros(4), torch.ones(4)):
        value, grad = value_and_grad(wrong, target, alpha, "none", from_logits=False)
        assert value.isnan().all()
        assert grad.isnan().all()


def test_large_alpha_and_logits() -> None:
    """The linear terms of the loss are 100 times as large as their difference."""
    z, y = 700 * torch.linspace(-1, 1, 41), torch.arange(41) % 2
    true = value_and_grad(z.double(), y, 0.99, "none")[0]
    got = value_and_grad(z, y, 0.99, "none")[0].double()
    torch.testing.assert_close(got, true, rtol=1e-6, atol=1e-6)


def test_derivatives_and_tracing() -> None:
    z, y = (logits(5, 3) / 2).requires_grad_(), labels(5, 3)

    def compute(x: Tensor) -> Tensor:
        return binary_label_relaxation_loss(x, y, 0.2)

    assert gradcheck(compute, z)
    assert gradgradcheck(compute, z)
    value, grad = value_and_grad(z, y, 0.2)
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z).detach(), value)
    torch.testing.assert_close(torch.func.grad(compute)(z.detach()), grad)
    torch.testing.assert_close(torch.func.vmap(compute)(z[None]).detach(), value[None])
    exported = torch.export.export(BinaryLabelRelaxationLoss(0.2), (z.detach(), y)).module()
    torch.testing.assert_close(exported(z.detach(), y), value)


def test_dynamic_shapes() -> None:
    module = BinaryLabelRelaxationLoss(0.2, pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 4):
        torch.testing.assert_close(compiled(logits(n, 3), labels(n, 3)), module(logits(n, 3), labels(n, 3)))


def test_repr() -> None:
    module = BinaryLabelRelaxationLoss(pos_weight=torch.ones(3))
    shown = "alpha=0.1, reduction='mean', pos_weight=tensor of shape (3,)"
    assert repr(module) == f"BinaryLabelRelaxationLoss({shown})"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"target": torch.ones(4)}, ValueError, ["`target`", "(4, 3)", "(4,)"]),
        ({"target": torch.ones(4, 3).to(torch.complex64)}, TypeError, ["`target`", "torch.complex64"]),
        ({"target": [1.0]}, TypeError, ["`target`", "list"]),
        ({"input": None}, TypeError, ["`input`", "NoneType"]),
        ({"input": torch.ones(4, 3).long()}, TypeError, ["`input`", "torch.int64"]),
        ({"alpha": 1.0}, ValueError, ["`alpha`", "[0, 1)"]),
        ({"alpha": torch.tensor(0.1)}, TypeError, ["`alpha`"]),
        ({"reduction": "avg"}, ValueError, ["`reduction`", "'avg'"]),
        ({"pos_weight": torch.ones(4)}, ValueError, ["`pos_weight`", "(4, 3)", "(4,)"]),
        ({"pos_weight": 3.0}, TypeError, ["`pos_weight`", "float"]),
        ({"weight": torch.ones(3).long()}, TypeError, ["`weight`", "torch.int64"]),
        ({"weight": torch.ones(3, device="meta")}, TypeError, ["`weight`", "cpu", "meta"]),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    call: dict[str, Any] = {"input": torch.zeros(4, 3), "target": torch.ones(4, 3), **arguments}
    with pytest.raises(error) as caught:
        binary_label_relaxation_loss(**call)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("wrong", [2, -100, 0.5, math.nan])
def test_targets_other_than_0_and_1(wrong: float, request: pytest.FixtureRequest) -> None:
    target = torch.ones(4, 3)
    target[2, 1] = target[3, 0] = wrong
    if request.node.callspec.params["path"] == "formulas":  # traced code reads no values
        losses = binary_label_relaxation_loss(torch.zeros(4, 3), target, reduction="none")
        assert losses.isnan().equal(target != 1)
        return
    with pytest.raises(ValueError, match=r"`target` to hold 0 and 1 only, but got .* at row 7\."):
        binary_label_relaxation_loss(torch.zeros(4, 3), target)
