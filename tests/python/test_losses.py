"""What all losses share, and each loss against its plain formula."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import lr_relax
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import _dispatch, functional
from option_cases import option_cases
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck


@dataclass(frozen=True)
class Loss:
    """A loss, its hyperparameter, and the plain formula: logits of (N, C) and classes to losses of (N,)."""

    name: str
    module: type[torch.nn.Module]
    parameter: str
    values: tuple[float, ...]
    wrong: tuple[float, ...]
    plain: Callable[[Tensor, Tensor, float], Tensor]

    @property
    def function(self) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] = getattr(functional, f"{self.name}_loss")
        return function


def own(x: Tensor, y: Tensor) -> Tensor:
    return x.gather(1, y[:, None])[:, 0]


def relaxed(z: Tensor, y: Tensor, alpha: float) -> Tensor:
    p = own(z.softmax(1), y)
    relaxed = (1 - alpha) * ((1 - alpha) / p).log()
    if alpha:
        relaxed = relaxed + alpha * (alpha / (1 - p)).log()
    return torch.where(p >= 1 - alpha, 0.0, relaxed)


def focal(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    p = own(z.softmax(1), y)
    return -((1 - p) ** gamma) * p.log()


def dual_focal(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    p = z.softmax(1)
    p_y = own(p, y)
    p_j = torch.where(p < p_y[:, None], p, 0.0).max(1).values
    return -((1 - p_y + p_j) ** gamma) * p_y.log()


def penalized(z: Tensor, y: Tensor, beta: float) -> Tensor:
    p = z.softmax(1)
    return -own(p, y).log() + beta * (p * p.log()).sum(1)


def smoothed(z: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(z, y, label_smoothing=label_smoothing, reduction="none")


LOSSES = [
    Loss(
        "label_relaxation", lr_relax.LabelRelaxationLoss, "alpha", (0.0, 0.2), (-0.1, 1.0, math.nan), relaxed
    ),
    Loss(
        "cross_entropy", lr_relax.CrossEntropyLoss, "label_smoothing", (0.0, 0.1, 1.0), (-0.1, 1.1), smoothed
    ),
    Loss("focal", lr_relax.FocalLoss, "gamma", (0.0, 0.5, 2.0), (-1.0, math.inf, math.nan), focal),
    Loss("dual_focal", lr_relax.DualFocalLoss, "gamma", (0.0, 0.5, 5.0), (-1.0, math.inf), dual_focal),
    Loss(
        "confidence_penalty",
        lr_relax.ConfidencePenaltyLoss,
        "beta",
        (0.0, 0.3, 2.0),
        (-1.0, math.inf),
        penalized,
    ),
]
# Those that take distributions, beside label relaxation.
SOFT = [loss for loss in LOSSES if loss.name in ("cross_entropy", "focal", "confidence_penalty")]
EACH_SOFT = pytest.mark.parametrize("loss", SOFT, ids=lambda loss: loss.name)
EACH = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def value_and_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = function(leaf)
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@EACH
@pytest.mark.parametrize("n_classes", [2, 5, 16, 40, 300])
def test_plain_formula(loss: Loss, n_classes: int) -> None:
    generator = torch.Generator().manual_seed(n_classes)
    z = 3 * torch.randn(50, n_classes, generator=generator, dtype=torch.float64)
    y = torch.randint(n_classes, (50,), generator=generator)
    for parameter in loss.values:
        got = value_and_grad(lambda x: loss.function(x, y, parameter, "none"), z)
        true = value_and_grad(lambda x: loss.plain(x, y, parameter), z)
        for a, b in zip(got, true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@EACH
@option_cases(dim=[-1, 1, 0], ignore_index=[-100, 2], weighted=[False, True], n_classes=[5, 40])
def test_options_against_the_formulas(
    loss: Loss,
    reduction: str,
    dim: int,
    ignore_index: int,
    weighted: bool,
    n_classes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(4, 6, n_classes, generator=generator)
    target = torch.randint(n_classes, (4, 6), generator=generator)
    options = {
        "reduction": reduction,
        "dim": dim,
        "ignore_index": ignore_index,
        "weight": (torch.rand(n_classes, generator=generator) + 0.5) if weighted else None,
    }
    for dtype, parameter in product(DTYPES, loss.values):
        input = z.to(dtype).movedim(-1, dim).contiguous()

        def compute(x: Tensor, parameter: float = parameter) -> Tensor:
            return loss.function(x, target, parameter, **options)

        value, grad = value_and_grad(compute, input)
        with monkeypatch.context() as patch:
            patch.setattr(_dispatch, "runs_natively", lambda input: False)
            true_value, true_grad = value_and_grad(compute, input.double())
        assert value.dtype == (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)
        assert (value.shape, grad.dtype) == (true_value.shape, dtype)
        if dtype == torch.float64:
            tolerance = close = {"rtol": 1e-12, "atol": 1e-14}
        else:
            tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6 if dtype != torch.float32 else 2e-7}
            close = {"rtol": 1e-5, "atol": 1e-6}

        def explain(message: str, case: str = f"{dtype}, {loss.parameter}={parameter}") -> str:
            return f"{case}: {message}"

        torch.testing.assert_close(value.double(), true_value, msg=explain, **close)
        torch.testing.assert_close(grad.double(), true_grad.to(dtype).double(), msg=explain, **tolerance)


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_of_gradients(loss: Loss, reduction: str) -> None:
    z = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    y, weight = torch.tensor([0, 3, -100, 4]), torch.rand(5, dtype=torch.float64) + 0.5
    for parameter in loss.values:

        def compute(x: Tensor, parameter: float = parameter) -> Tensor:
            return loss.function(x, y, parameter, reduction, weight=weight)

        assert gradcheck(compute, z)
        assert gradgradcheck(compute, z)


@EACH
def test_tracing(loss: Loss) -> None:
    z, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 3, 1, 2, -100, 4])
    function, parameter = loss.function, loss.values[1]

    def compute(x: Tensor) -> Tensor:
        return function(x, y, parameter)

    value, grad = value_and_grad(compute, z)
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_grad(compiled, z), (value, grad))
    torch.testing.assert_close(torch.func.grad(compute)(z), grad)
    torch.testing.assert_close(torch.func.jacrev(compute)(z), grad)
    tangent = torch.randn_like(z)
    torch.testing.assert_close(torch.func.jvp(compute, (z,), (tangent,))[1], (grad * tangent).sum())
    torch.testing.assert_close(
        torch.func.vmap(compute)(torch.stack([z, 2 * z])), torch.stack([value, compute(2 * z)])
    )
    module = loss.module(**{loss.parameter: loss.values[1]})
    exported = torch.export.export(module, (z, y)).module()
    torch.testing.assert_close(exported(z, y), value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.nn.Linear(5, 5)(z.float()), y).dtype == torch.float32


@EACH
def test_weights_of_ignored_classes_do_not_count(loss: Loss) -> None:
    z, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    with_nan, with_1 = (torch.tensor([0.5, w, 2], dtype=torch.float64) for w in (math.nan, 1))
    for target, ignored in ((y, 1), (torch.where(y == 1, -100, y), -100)):

        def of(x: Tensor, weight: Tensor) -> Tensor:
            return loss.function(x, target, ignore_index=ignored, weight=weight)

        for grad in (lambda x, w: value_and_grad(lambda x: of(x, w), x)[1], torch.func.grad(of)):
            got, expected = grad(z, with_nan), grad(z, with_1)
            assert expected.abs().sum() > 0
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@EACH
def test_module(loss: Loss) -> None:
    z, y, weight = torch.randn(6, 4), torch.randint(4, (6,)), torch.rand(4)
    hyperparameter = {loss.parameter: loss.values[1]}
    module = loss.module(**hyperparameter, reduction="sum", weight=weight, ignore_index=1)
    assert module(z, y).equal(loss.function(z, y, loss.values[1], "sum", weight=weight, ignore_index=1))
    shown = f"{loss.parameter}={loss.values[1]}, reduction='sum', ignore_index=1, weight=tensor of shape (4,)"
    assert repr(module) == f"{loss.module.__name__}({shown})"
    assert list(module.state_dict()) == ["weight"]  # moves with .to()


@EACH
def test_wrong_hyperparameters(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    no_number = () if loss.name == "label_relaxation" else (torch.tensor([0.1, 0.2]),)
    for wrong in (*loss.wrong, 10**400, "0.1", None, True, *no_number):
        error = ValueError if type(wrong) in (float, int) else TypeError
        messages = set()
        with pytest.raises(error, match=f"`{loss.parameter}`") as native:
            loss.function(z, y, wrong)
        messages.add(str(native.value))
        with pytest.raises(error) as module:
            loss.module(**{loss.parameter: wrong})
        messages.add(str(module.value))
        with monkeypatch.context() as patch:
            patch.setattr(_dispatch, "runs_natively", lambda input: False)
            with pytest.raises(error) as traced:
                loss.function(z, y, wrong)
        messages.add(str(traced.value))
        assert len(messages) == 1
    if loss.name != "label_relaxation":
        takes_distributions = loss in SOFT
        for target in (torch.rand(4, 3) > 0.5, *([] if takes_distributions else [torch.rand(4, 3)])):
            with pytest.raises(TypeError, match=r"`target` to hold class indices of an integer type"):
                loss.function(z, target)
    with pytest.raises(IndexError, match=r"`target` to hold classes in \[0, 3\), but got 3 at row 1"):
        loss.function(z, torch.tensor([0, 3, 0, 0]))


@EACH
@pytest.mark.parametrize("n_classes", [4, 50])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_affect_one_row(loss: Loss, n_classes: int, bad: float) -> None:
    z = torch.randn(5, n_classes)
    z[1, 0], z[3, n_classes - 1] = bad, bad
    y = torch.zeros(5, dtype=torch.int64)
    for parameter in loss.values:
        value, grad = value_and_grad(lambda x, p=parameter: loss.function(x, y, p, "none"), z)
        assert value.isnan().tolist() == [False, True, False, True, False]
        assert grad.isnan().any(1).tolist() == [False, True, False, True, False]
        ignoring = torch.tensor([0, -100, 0, -100, 0])
        _, grad = value_and_grad(lambda x, p=parameter: loss.function(x, ignoring, p), z)
        assert grad.isfinite().all()


@pytest.mark.parametrize("loss", [x for x in LOSSES if x.name != "cross_entropy"], ids=lambda loss: loss.name)
@pytest.mark.parametrize("native", [True, False], ids=["kernel", "formulas"])
@pytest.mark.parametrize("n_classes", [12, 40])
def test_impossible_classes(
    loss: Loss, native: bool, n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    z = torch.randn(5, n_classes, dtype=torch.float64)
    z[:, 7:10] = -math.inf
    z[4, 1:] = -math.inf  # nothing but its own class
    y = torch.tensor([0, 1, 11, 2, 0])
    possible = [k for k in range(n_classes) if not 7 <= k < 10]
    position = torch.tensor([0, 1, 8, 2, 0])
    for parameter in loss.values:
        value, grad = value_and_grad(lambda x, p=parameter: loss.function(x, y, p, "none"), z)
        assert grad[:, 7:10].eq(0).all()
        assert grad[4].eq(0).all()
        assert value[4] == 0
        true = value_and_grad(lambda x, p=parameter: loss.plain(x, position[:4], p), z[:4, possible])
        torch.testing.assert_close((value[:4], grad[:4, possible]), true, rtol=1e-11, atol=1e-13)


@EACH
@pytest.mark.parametrize("n_classes", [4, 40])
def test_impossible_targets(loss: Loss, n_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, n_classes, dtype=torch.float64)
    z[0, 0] = -math.inf
    y, p = torch.tensor([0, 0]), z.softmax(1)
    for parameter in loss.values:
        value, grad = value_and_grad(lambda x, p=parameter: loss.function(x, y, p, "none"), z)
        assert value.isinf().tolist() == [True, False]
        if loss.name == "focal":
            torch.testing.assert_close(grad[0], p[0] - F.one_hot(y[0], n_classes))
        if loss.name == "cross_entropy" and parameter < 1:  # where torch has 0 * inf
            true = value_and_grad(
                lambda x, s=parameter: F.cross_entropy(x, y, label_smoothing=s, reduction="none"), z
            )
            torch.testing.assert_close((value, grad), true)
        with monkeypatch.context() as patch:
            patch.setattr(_dispatch, "runs_natively", lambda input: False)
            formulas = value_and_grad(lambda x, p=parameter: loss.function(x, y, p, "none"), z)
        torch.testing.assert_close((value, grad), formulas)


def test_label_smoothing_of_impossible_class() -> None:
    z, y = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([0])
    assert lr_relax.cross_entropy_loss(z, y, 0.1) == F.cross_entropy(z, y, label_smoothing=0.1) == math.inf


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n_classes", [3, 100])
def test_cross_entropy_of_torch(label_smoothing: float, reduction: str, n_classes: int) -> None:
    z, y = torch.randn(20, n_classes, dtype=torch.float64), torch.randint(n_classes, (20,))
    y[3] = -100
    weight = torch.rand(n_classes, dtype=torch.float64)
    for w in (None, weight):
        ours = value_and_grad(
            lambda x, w=w: lr_relax.cross_entropy_loss(x, y, label_smoothing, reduction, weight=w), z
        )
        theirs = value_and_grad(
            lambda x, w=w: F.cross_entropy(x, y, w, label_smoothing=label_smoothing, reduction=reduction), z
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_cross_entropy_takes_the_arguments_of_torch() -> None:
    z, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(4, (20,))
    weight = torch.rand(4, dtype=torch.float64)
    options: dict[str, Any] = {"ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1}
    ours, theirs = lr_relax.CrossEntropyLoss(weight, **options), torch.nn.CrossEntropyLoss(weight, **options)
    torch.testing.assert_close(ours(z, y), theirs(z, y))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with pytest.raises(TypeError, match="`weight` to be a tensor"):
        lr_relax.CrossEntropyLoss(0.1)  # type: ignore[arg-type]


def distributions(n_classes: int, generator: torch.Generator) -> Tensor:
    """Softmaxes, some sharp, some with classes of probability 0, and one class alone."""
    scores = torch.randn(40, n_classes, generator=generator, dtype=torch.float64)
    scores[10:20] *= 8
    scores[20:30, 1::2] = -math.inf
    target = scores.softmax(1)
    target[30:] = F.one_hot(torch.arange(10) % n_classes, n_classes).double()
    return target


@option_cases(label_smoothing=[0.0, 0.1, 1.0], n_classes=[2, 3, 16, 40, 300])
def test_soft_cross_entropy_of_torch(reduction: str, label_smoothing: float, n_classes: int) -> None:
    generator = torch.Generator().manual_seed(n_classes)
    z = 4 * torch.randn(40, n_classes, generator=generator, dtype=torch.float64)
    target = distributions(n_classes, generator)
    for weight in (None, torch.rand(n_classes, generator=generator, dtype=torch.float64)):
        options: dict[str, Any] = {
            "weight": weight,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
        }
        ours = value_and_grad(lambda x, o=options: lr_relax.cross_entropy_loss(x, target, **o), z)
        theirs = value_and_grad(lambda x, o=options: F.cross_entropy(x, target, **o), z)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def soft_formula(loss: Loss, z: Tensor, target: Tensor, parameter: float) -> Tensor:
    ln_p = z.log_softmax(1)
    p = ln_p.exp()
    terms = -target * ln_p
    if loss.name == "focal":
        terms = terms * (1 - p) ** parameter
    if loss.name == "cross_entropy":
        terms = (1 - parameter) * terms - parameter / z.shape[1] * ln_p
    if loss.name == "confidence_penalty":
        terms = terms + parameter * p * ln_p * target.sum(1, keepdim=True)
    return terms.sum(1)


@EACH_SOFT
@pytest.mark.parametrize("native", [True, False], ids=["kernel", "formulas"])
@pytest.mark.parametrize("n_classes", [2, 17, 40, 300])
def test_soft_targets(loss: Loss, native: bool, n_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    generator = torch.Generator().manual_seed(n_classes)
    z = 3 * torch.randn(40, n_classes, generator=generator, dtype=torch.float64)
    target = distributions(n_classes, generator)
    for parameter in loss.values:
        got = value_and_grad(lambda x, p=parameter: loss.function(x, target, p, "none"), z)
        true = value_and_grad(lambda x, p=parameter: soft_formula(loss, x, target, p), z)
        torch.testing.assert_close(got, true, rtol=1e-11, atol=1e-13)
        # As the expected loss of a class: the classes' own losses are computed elsewhere.
        if loss.name != "cross_entropy":
            y = target[30:].argmax(1)
            torch.testing.assert_close(got[0][30:], loss.function(z[30:], y, parameter, "none"))
        weight = torch.rand(n_classes, generator=generator, dtype=torch.float64)
        mean = value_and_grad(lambda x, p=parameter: loss.function(x, target, p, weight=weight), z)
        if loss.name != "cross_entropy":
            weighted = value_and_grad(
                lambda x, p=parameter: soft_formula(loss, x, weight * target, p).mean(), z
            )
            torch.testing.assert_close(mean, weighted, rtol=1e-11, atol=1e-13)


@EACH_SOFT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [1, 2])
def test_soft_targets_of_all_types(loss: Loss, dtype: torch.dtype, dim: int) -> None:
    generator = torch.Generator().manual_seed(7)
    z = 3 * torch.randn(40, 30, generator=generator).to(dtype)
    target = distributions(30, generator)
    eps = torch.finfo(dtype).eps
    for parameter in loss.values:
        true = value_and_grad(lambda x, p=parameter: soft_formula(loss, x, target, p), z.double())
        layout = [x.reshape(4, 10, 30).movedim(2, dim).contiguous() for x in (z, target.float())]
        value, grad = value_and_grad(
            lambda x, p=parameter: loss.function(x, layout[1], p, "none", dim=dim), layout[0]
        )
        assert (value.dtype, grad.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(value.reshape(40).double(), true[0], rtol=2e-6, atol=2e-6)
        grad = grad.movedim(dim, 2).reshape(40, 30)
        torch.testing.assert_close(grad.double(), true[1], rtol=eps, atol=1e-6)


@EACH_SOFT
def test_soft_targets_of_confident_predictions(loss: Loss) -> None:
    """Where 1 - p would cancel: the gradient of the mean loss keeps its relative precision."""
    z = torch.zeros(1, 20)
    z[0, 3] = 25.0
    target = F.one_hot(torch.tensor([3]), 20)
    for parameter in (v for v in loss.values if v < 1):
        got = value_and_grad(lambda x, p=parameter: loss.function(x, target.float(), p), z)
        true = value_and_grad(lambda x, p=parameter: loss.function(x, target.argmax(1), p), z.double())
        torch.testing.assert_close([x.double() for x in got], list(true), rtol=1e-5, atol=0)


@EACH_SOFT
@pytest.mark.parametrize("native", [True, False], ids=["kernel", "formulas"])
def test_soft_targets_of_impossible_classes(
    loss: Loss, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    z = torch.randn(5, 20, dtype=torch.float64)
    z[:, 15:] = -math.inf
    z[2, 1:] = -math.inf
    z[3, 0], z[4, 0] = math.nan, math.inf
    target = torch.zeros(5, 20, dtype=torch.float64)
    target[:, 0] = 1.0
    target[1, 0], target[1, 16] = 0.5, 0.5
    for parameter in (v for v in loss.values if loss.name != "cross_entropy" or v == 0):
        value, grad = value_and_grad(lambda x, p=parameter: loss.function(x, target, p, "none"), z)
        true = loss.function(z[0, :15], torch.tensor(0), parameter)
        torch.testing.assert_close(value[0], true)
        assert value[1] == math.inf
        assert value[2] == 0
        assert value[3:].isnan().all()
        assert grad[:3].isfinite().all()
        assert grad[0, 15:].eq(0).all()
        assert grad[1, 16] == -0.5  # pulled with its full weight
        assert grad[2].eq(0).all()
        assert grad[3:].isnan().all()


@EACH_SOFT
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_soft_gradients(loss: Loss, reduction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    target, weight = distributions(5, generator)[[0, 20, 30]], torch.rand(5, dtype=torch.float64) + 0.5
    for parameter in loss.values:

        def compute(x: Tensor, parameter: float = parameter) -> Tensor:
            return loss.function(x, target, parameter, reduction, weight=weight)

        assert gradcheck(compute, z)
        assert gradgradcheck(compute, z)
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_grad(compiled, z), value_and_grad(compute, z))


@EACH_SOFT
def test_wrong_soft_targets(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"`target` to hold distributions.* row 1 sums to 1\.5\.$"):
        loss.function(z, torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.5]]))
    messages = set()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"`ignore_index` to be negative for distributions.*got 2"):
            loss.function(z, torch.full((2, 3), 1 / 3), ignore_index=2)
        for target, error in ((z > 0, TypeError), (torch.ones(2, 2), ValueError)):
            with pytest.raises(error, match="`target`") as caught:
                loss.function(z, target)
            messages.add(str(caught.value))
        monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    assert len(messages) == 2  # the kernel and the formulas say the same


@given(st.lists(st.floats(-700, 700), min_size=2, max_size=40), st.data())
def test_extreme_logits(row: list[float], data: st.DataObject) -> None:
    z = torch.tensor([row], dtype=torch.float64)
    y = torch.tensor([data.draw(st.integers(0, len(row) - 1))])
    for loss in LOSSES:
        for parameter in loss.values:
            value, grad = value_and_grad(lambda x, p=parameter, f=loss.function: f(x, y, p), z)
            assert value.isfinite()
            # Every one of them is a function of the softmax: moving all logits changes nothing.
            assert grad.sum().abs() <= 1e-12 * (1 + grad.abs().max())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_dispatch, "runs_natively", lambda input: False)
                formulas = value_and_grad(lambda x, p=parameter, f=loss.function: f(x, y, p), z)
            torch.testing.assert_close((value, grad), formulas, rtol=1e-9, atol=1e-11)


def test_class_next_below_where_probabilities_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = torch.tensor([[0.0, -2e-200, -1e-200, -3e-200]], dtype=torch.float64), torch.tensor([0])
    kernel = value_and_grad(lambda x: lr_relax.dual_focal_loss(x, y, 2.0), z)
    monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    formulas = value_and_grad(lambda x: lr_relax.dual_focal_loss(x, y, 2.0), z)
    torch.testing.assert_close(kernel, formulas)
    assert kernel[1][0].argmax() == 2


def test_number_of_threads(one_thread: None) -> None:
    z, y = torch.randn(300, 100), torch.randint(100, (300,))
    for loss in LOSSES:
        one = value_and_grad(lambda x, f=loss.function: f(x, y), z)
        torch.set_num_threads(3)
        many = value_and_grad(lambda x, f=loss.function: f(x, y), z)
        torch.set_num_threads(1)
        assert one[0].equal(many[0])
        assert one[1].equal(many[1])
