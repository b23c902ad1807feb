"""Values and gradients of the relaxation loss: against the paper's code, a 60-digit oracle, and torch."""

import json
import math
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import LabelRelaxationLoss, _formulas, label_relaxation_loss
from lr_relax._options import Options
from option_cases import option_cases

ORACLE = json.loads((Path(__file__).parents[1] / "oracle" / "losses.json").read_text())


def loss_and_grad(
    input: torch.Tensor, target: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = input.detach().clone().requires_grad_()
    loss = label_relaxation_loss(leaf, target, **options)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def formulas(input: torch.Tensor, target: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    defaults = {"parameter": options.pop("alpha", 0.1), "reduction": "mean", "dim": -1, "ignore_index": -100}
    leaf = input.detach().clone().requires_grad_()
    loss = _formulas.loss(
        leaf, target, Options("label_relaxation", **{"weight": None, **defaults, **options})
    )
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


# The values that the paper's own code gave.

CASES = [case for case in ORACLE["cases"] if case["loss"] == "lr"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['input']}-{c['param']}-{c['dtype']}")
def test_original_code(case: dict[str, Any]) -> None:
    from_logits = case["input"] != "probs"
    dtype = getattr(torch, case["dtype"])
    rows = torch.tensor(ORACLE["logits" if from_logits else "probs"], dtype=dtype)
    target = torch.tensor(ORACLE["logits_classes" if from_logits else "probs_classes"])
    loss, grad = loss_and_grad(rows, target, alpha=case["param"], reduction="none", from_logits=from_logits)
    p = rows.double().softmax(1) if from_logits else rows.double() / rows.double().sum(1, keepdim=True)
    p_y = p.gather(1, target[:, None])[:, 0]
    value, slope = (torch.tensor(case[key], dtype=torch.float64) for key in ("value", "grad"))

    # The original clips p and q to at least 1e-7 in sum(q ln(q / p)): each class adds up to 1e-7 ln(1e7) to
    # the value, and 1e-7 / p_k to the slope in p_k. What saturates the clip is left to the next test.
    clip = 1e-7
    unsaturated = (p_y > 10 * clip) & (p_y < 1 - 10 * clip)
    budget = p.shape[1] * clip * math.log(1 / clip) + 1e-6 * value
    assert ((loss.double() - value).abs() <= budget)[unsaturated].all()

    at_border = (p_y - (1 - case["param"])).abs() < 1e-6  # whether inside or outside, rounding decides
    compared = (unsaturated & ~at_border)[:, None] & (p > 10 * clip)
    budget = 4e-6 * (1 + slope.abs()) + (0 if from_logits else clip / p)
    assert ((grad.double() - slope).abs() <= budget)[compared].all()
    assert compared.sum() > p.numel() / 3


def test_gradient_of_saturated_prediction() -> None:
    """Where the original's clip gives 0 (p_y below 1e-7), a row keeps learning."""
    loss, grad = loss_and_grad(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([1]), alpha=0.1)
    assert loss.item() == pytest.approx(0.9 * (math.log(0.9) + 40) + 0.1 * math.log(0.1), rel=1e-6)
    torch.testing.assert_close(grad, torch.tensor([[0.9, -0.9, 0.0]]), atol=1e-6, rtol=0)


def test_uniform_penalty_of_the_original_code() -> None:
    (case,) = [case for case in ORACLE["cases"] if case["loss"] == "lr_uniform_penalty"]
    alpha, rows = case["param"], torch.tensor(ORACLE["probs"], dtype=torch.float64)
    options: dict[str, Any] = {
        "alpha": alpha,
        "reduction": "none",
        "from_logits": False,
        "uniform_penalty": 1.0,
    }
    target = torch.tensor(ORACLE["probs_classes"])
    loss, grad = loss_and_grad(rows, target, **options)
    p = rows / rows.sum(1, keepdim=True)
    value, slope = (torch.tensor(case[key], dtype=torch.float64) for key in ("value", "grad"))
    unclipped = (p > 1e-5).all(1)
    assert unclipped.sum() > 6
    torch.testing.assert_close(loss[unclipped], value[unclipped], rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(grad[unclipped], slope[unclipped], rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_uniform_penalty_formula(reduction: str) -> None:
    z, y = torch.randn(8, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, -100, 1, 0])
    weight = torch.rand(5, dtype=torch.float64)
    z[0, 0] = 9.0  # inside

    def penalized(x: torch.Tensor, **options: Any) -> torch.Tensor:
        return label_relaxation_loss(x, y, 0.2, reduction, weight=weight, **options)

    u = torch.full((8, 5), 0.05, dtype=torch.float64).scatter(1, y.clamp(min=0)[:, None], 0.8)
    p = z.softmax(1).gather(1, y.clamp(min=0)[:, None])[:, 0]
    each = weight[y.clamp(min=0)] * (y >= 0)
    penalty = (0.8 - p).clamp(min=0) * (u * (u.log() - z.log_softmax(1))).sum(1) * each
    total = {"mean": penalty.sum() / each.sum(), "sum": penalty.sum(), "none": penalty}[reduction]
    torch.testing.assert_close(penalized(z, uniform_penalty=0.7), penalized(z) + 0.7 * total)
    assert torch.autograd.gradcheck(lambda x: penalized(x, uniform_penalty=0.7), z.requires_grad_())
    half = z.detach().half().requires_grad_()  # the gradients of both terms are added before they are rounded
    (grad,) = torch.autograd.grad(penalized(half, uniform_penalty=0.7).sum(), half)
    single = half.detach().float().requires_grad_()
    (true,) = torch.autograd.grad(penalized(single, uniform_penalty=0.7).sum(), single)
    assert grad.equal(true.half())
    assert label_relaxation_loss(z, y, 0.0, uniform_penalty=1) == label_relaxation_loss(z, y, 0.0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`uniform_penalty`"):
            penalized(z, uniform_penalty=wrong)
    with pytest.raises(TypeError, match="`target`"):
        label_relaxation_loss(z, z.softmax(1), uniform_penalty=1.0)


# A 60-digit oracle.

mpmath.mp.dps = 60


def exact(e: list[Any], y: int, alpha: float) -> tuple[Any, list[Any]]:
    """The paper's formula, eq. 7, and p - q, from the exponentials of the logits."""
    a = mpmath.mpf(alpha)
    total, others = mpmath.fsum(e), mpmath.fsum(x for k, x in enumerate(e) if k != y)
    if others / total <= a:  # p_y >= 1 - a, without rounding p_y to 1
        return mpmath.mpf(0), [mpmath.mpf(0)] * len(e)
    loss = (1 - a) * (mpmath.log(1 - a) + mpmath.log1p(others / e[y]))
    if alpha:
        loss += a * mpmath.log(a * total / others)
    q = [(1 - a) if k == y else a * x / others for k, x in enumerate(e)]
    grad = [x / total - q_k for x, q_k in zip(e, q, strict=True)]
    grad[y] = a - others / total
    return loss, grad


@pytest.mark.parametrize(("n_classes", "scale"), [(2, 3.0), (3, 1e4), (10, 5.0), (33, 1e4), (1000, 4.0)])
def test_float64_against_60_digits(n_classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(n_classes)
    z = scale * (2 * torch.rand(12, n_classes, generator=generator, dtype=torch.float64) - 1)
    y = torch.randint(n_classes, (12,), generator=generator)
    exponentials = [[mpmath.exp(mpmath.mpf(x)) for x in row] for row in z.tolist()]
    for alpha in (0.0, 0.01, 0.1, 0.25, 0.4, 0.6):
        loss, grad = loss_and_grad(z, y, alpha=alpha, reduction="none")
        for i, e in enumerate(exponentials):
            true_loss, true_grad = exact(e, int(y[i]), alpha)
            # Double precision knows p_y to 1e-16. This limits how well the excess over the bound is known,
            # and with it the loss, which is quadratic in the excess.
            excess = -true_grad[int(y[i])]
            conditioning = 1 + (1e-4 / float(excess) if alpha and excess > 0 else 0)
            case = f"{alpha=}, row {i}"
            assert abs(loss[i].item() - true_loss) <= 1e-12 * conditioning * true_loss + 1e-300, case
            for got, true in zip(grad[i].tolist(), true_grad, strict=True):
                assert abs(got - true) <= 1e-12 * conditioning * abs(true) + 1e-300, case


@pytest.mark.parametrize("n_classes", [2, 10, 100, 1000, 32000])
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_float32_against_cross_entropy_of_torch(n_classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(7)
    rows = max(8, 20_000 // n_classes)
    z = scale * torch.randn(rows, n_classes, generator=generator)
    y = torch.randint(n_classes, (rows,), generator=generator)

    def gradient(function: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        losses = function(leaf)
        (grad,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach().double(), grad.double()

    def exactly(x: torch.Tensor) -> torch.Tensor:
        """-ln p_y = ln(1 + e^-d) with the log-odds d: small losses do not round to 0, as torch's do."""
        others = x.scatter(1, y[:, None], -math.inf).logsumexp(1)
        return torch.logaddexp(x.new_zeros(()), others - x.gather(1, y[:, None])[:, 0])

    true_loss, true_grad = gradient(exactly, z.double())
    loss, grad = gradient(lambda x: label_relaxation_loss(x, y, 0.0, "none"), z)
    torch_loss, torch_grad = gradient(lambda x: F.cross_entropy(x, y, reduction="none"), z)

    def worst(got: torch.Tensor, true: torch.Tensor) -> float:
        return ((got - true).abs() / true.abs().clamp_min(1e-30)).max().item()

    # Half a unit in the last place is what rounding the exact value may cost.
    half = torch.finfo(torch.float32).eps / 2
    assert worst(loss, true_loss) <= max(worst(torch_loss, true_loss), half)
    assert worst(grad, true_grad) <= worst(torch_grad, true_grad) + half
    for got, torchs, true in ((loss, torch_loss, true_loss), (grad, torch_grad, true_grad)):
        assert (got - true).pow(2).mean() <= (torchs - true).pow(2).mean() * 1.05 + 1e-20


def test_exactly_zero_inside_the_set() -> None:
    z = torch.tensor([[5.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 60.0, -60.0]], dtype=torch.float64)
    loss, grad = loss_and_grad(z, torch.tensor([0, 0, 1]), alpha=0.25, reduction="none")
    assert loss.tolist() == [0.0] * 3
    assert grad.eq(0).all()


# Every option against the formulas, as a generated matrix.

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@option_cases(
    dim=[-1, 1, 0],
    ignore_index=[-100, 2],
    weighted=[False, True],
    from_logits=[True, False],
    n_classes=[5, 40],
)
def test_options(
    reduction: str, dim: int, ignore_index: int, weighted: bool, from_logits: bool, n_classes: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(4, 6, n_classes, generator=generator)
    target = torch.randint(n_classes, (4, 6), generator=generator)
    options: dict[str, Any] = {
        "alpha": 0.2,
        "reduction": reduction,
        "dim": dim,
        "ignore_index": ignore_index,
        "weight": (torch.rand(n_classes, generator=generator) + 0.5) if weighted else None,
        "from_logits": from_logits,
    }
    for dtype in DTYPES:
        input = (z if from_logits else z.softmax(-1)).to(dtype).movedim(-1, dim).contiguous()
        loss, grad = loss_and_grad(input, target, **options)
        true_loss, true_grad = formulas(input.double(), target, **options)
        assert loss.dtype == (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)
        assert (loss.shape, grad.dtype) == (true_loss.shape, dtype)
        if dtype == torch.float64:
            tolerance = close = {"rtol": 1e-12, "atol": 1e-14}
        else:
            tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6 if dtype != torch.float32 else 1e-7}
            close = {"rtol": 1e-5, "atol": 1e-6}

        def explain(message: str, dtype: torch.dtype = dtype) -> str:
            return f"{dtype}: {message}"

        torch.testing.assert_close(loss.double(), true_loss, msg=explain, **close)
        # Rounded to the type first: 1 / p_y of a p_y of 1e-5 exceeds what float16 can hold.
        torch.testing.assert_close(grad.double(), true_grad.to(dtype).double(), msg=explain, **tolerance)


@pytest.mark.parametrize(
    "integer",
    [
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ],
    ids=str,
)
def test_integer_types(integer: torch.dtype) -> None:
    z = torch.arange(12.0).reshape(4, 3)
    target = torch.tensor([0, 1, 2, 0])
    assert label_relaxation_loss(z, target.to(integer)).equal(label_relaxation_loss(z, target))


STRIDED = {
    "transposed": lambda: torch.randn(7, 20).t(),
    "every other column": lambda: torch.randn(20, 14)[:, ::2],
    "every other row": lambda: torch.randn(40, 7)[::2],
    "one row, expanded": lambda: torch.randn(1, 7).expand(20, 7),
    "one column, expanded": lambda: torch.randn(20, 1).expand(20, 7),
    "an offset": lambda: torch.randn(23, 9)[3:, 2:],
    "no rows": lambda: torch.randn(0, 7),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_strides(layout: str) -> None:
    torch.manual_seed(0)
    z = STRIDED[layout]()
    target = torch.randint(7, (2 * len(z),))[::2]
    leaf = z.detach().requires_grad_()
    loss = label_relaxation_loss(leaf, target, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    true_loss, true_grad = loss_and_grad(z.contiguous(), target.clone(), reduction="sum")
    assert loss.equal(true_loss)
    assert grad.equal(true_grad)


def test_images() -> None:
    z, target = torch.randn(2, 5, 8, 9), torch.randint(5, (2, 8, 9))
    got = label_relaxation_loss(z, target, 0.0, dim=1)
    torch.testing.assert_close(got, F.cross_entropy(z, target))


def test_single_row() -> None:
    z = torch.randn(6)
    assert label_relaxation_loss(z, torch.tensor(2)).equal(label_relaxation_loss(z[None], torch.tensor([2])))


def test_no_rows() -> None:
    z, target = torch.randn(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    assert label_relaxation_loss(z, target).isnan()
    assert label_relaxation_loss(z, target, reduction="sum").item() == 0
    assert label_relaxation_loss(z, target, reduction="none").shape == (0,)
    label_relaxation_loss(z, target, reduction="sum").backward()
    assert z.grad is not None
    assert z.grad.shape == (0, 4)


def test_all_rows_ignored() -> None:
    z, target = torch.randn(3, 4, requires_grad=True), torch.full((3,), -100)
    loss = label_relaxation_loss(z, target)
    loss.backward()
    assert loss.isnan()
    assert F.cross_entropy(z, target).isnan()
    assert z.grad is not None
    assert z.grad.eq(0).all()


PATHS = pytest.mark.parametrize("compute", [loss_and_grad, formulas], ids=["kernel", "formulas"])


@PATHS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("n_classes", [4, 50, 300])
def test_bad_logits_affect_one_row(compute: Any, bad: float, n_classes: int) -> None:
    z = torch.randn(5, n_classes)
    target = torch.zeros(5, dtype=torch.int64)
    z[1, 0], z[3, n_classes - 1] = bad, bad
    loss, grad = compute(z, target, reduction="none")
    assert loss.isnan().tolist() == [False, True, False, True, False]
    assert grad.isnan().any(1).tolist() == [False, True, False, True, False]
    _, ignored = compute(z, torch.tensor([0, -100, 0, -100, 0]), reduction="sum")
    assert ignored.isfinite().all()


@PATHS
def test_masked_classes(compute: Any) -> None:
    z = torch.randn(5, 40)
    z[:, 7:30] = -math.inf
    z[4, 1:] = -math.inf  # nothing but its own class
    loss, grad = compute(z, torch.tensor([0, 1, 35, 2, 0]))
    assert loss.isfinite()
    assert grad[:, 7:30].eq(0).all()
    assert grad.isfinite().all()


@PATHS
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_common_offset(compute: Any, offset: float, alpha: float) -> None:
    generator = torch.Generator().manual_seed(3)
    z, y = torch.randn(500, 10, generator=generator) + offset, torch.randint(10, (500,), generator=generator)
    loss, grad = compute(z, y, alpha=alpha, reduction="none")
    true_loss, true_grad = loss_and_grad(z.double(), y, alpha=alpha, reduction="none")
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-6, atol=1e-6)
    assert (loss >= 0).all()


@PATHS
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_invalid_probabilities(compute: Any, dtype: torch.dtype, alpha: float) -> None:
    rows = [[2.0, -1.0, 0.0], [-0.1, 0.6, 0.5], [0.0, 0.0, 0.0], [math.inf, 0.0, 0.0], [0.2, math.inf, 0.0],
            [0.2, math.nan, 0.8], [0.2, 0.3, 0.5], [0.0, 0.4, 0.6]]  # fmt: skip
    target = torch.zeros(8, dtype=torch.int64)
    scores = torch.tensor(rows, dtype=dtype)
    loss, grad = compute(scores, target, alpha=alpha, reduction="none", from_logits=False)
    assert loss.isnan().tolist() == [True] * 6 + [False] * 2
    assert grad[:6].isnan().all(1).all()
    assert loss[6] > 0
    assert loss[7] == math.inf
    assert grad[6].isfinite().all()


@PATHS
def test_extremes_of_float64(compute: Any) -> None:
    tiny = torch.tensor([[1e-310, 0.5, 0.5]], dtype=torch.float64)
    loss, _ = compute(tiny, torch.tensor([0]), from_logits=False)
    expected = 0.9 * (math.log(0.9) - math.log(1e-310)) + 0.1 * math.log(0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    z = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    for alpha in (5e-324, 1e-310, 1e-200):
        torch.testing.assert_close(
            compute(z, torch.tensor([0]), alpha=alpha)[0], F.cross_entropy(z, torch.tensor([0]))
        )


def test_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        for rows, n_classes in [(2000, 10), (300, 100), (64, 3000)]:
            z, y = torch.randn(rows, n_classes), torch.randint(n_classes, (rows,))
            torch.set_num_threads(1)
            one = loss_and_grad(z, y)
            for n in (2, 3, 4):
                torch.set_num_threads(n)
                many = loss_and_grad(z, y)
                assert one[0].equal(many[0])
                assert one[1].equal(many[1])
    finally:
        torch.set_num_threads(threads)


def test_cached_buffers() -> None:
    """A gradient above 2 MiB reuses a cached buffer, but never one that is still in use."""
    z, y = torch.randn(300, 2000), torch.randint(2000, (300,))
    _, first = loss_and_grad(z, y)
    _, second = loss_and_grad(2 * z, y)
    _, again = loss_and_grad(z, y)
    assert first.data_ptr() != second.data_ptr() != again.data_ptr()
    assert first.equal(again)
    assert not first.equal(second)
    address = again.data_ptr()
    del again
    _, reused = loss_and_grad(z, y)
    assert reused.data_ptr() == address
    assert reused.equal(first)


def test_module() -> None:
    z, y, weight = torch.randn(6, 4), torch.randint(4, (6,)), torch.rand(4)
    module = LabelRelaxationLoss(0.3, "sum", weight=weight, ignore_index=1)
    assert module(z, y).equal(label_relaxation_loss(z, y, 0.3, "sum", weight=weight, ignore_index=1))
    shown = "alpha=0.3, reduction='sum', ignore_index=1, weight=tensor of shape (4,)"
    assert repr(module) == f"LabelRelaxationLoss({shown})"
    assert list(module.state_dict()) == ["weight"]  # moves with .to()
    assert repr(LabelRelaxationLoss()) == "LabelRelaxationLoss(alpha=0.1, reduction='mean')"


# What holds for all inputs.

logits = st.integers(2, 12).flatmap(
    lambda c: st.lists(st.lists(st.floats(-50, 50), min_size=c, max_size=c), min_size=1, max_size=40)
)


@given(logits, st.floats(0, 0.9), st.data())
def test_projection_properties(rows: list[list[float]], alpha: float, data: st.DataObject) -> None:
    z = torch.tensor(rows, dtype=torch.float64)
    y = torch.tensor(
        data.draw(st.lists(st.integers(0, z.shape[1] - 1), min_size=len(rows), max_size=len(rows)))
    )
    loss, grad = loss_and_grad(z, y, alpha=alpha, reduction="none")
    assert grad.sum(1).abs().max() <= 1e-14
    projection = z.softmax(1) - grad
    assert (projection >= -1e-15).all()
    assert (projection.gather(1, y[:, None]) >= 1 - alpha - 1e-14).all()
    assert (loss >= 0).all()
    assert ((loss == 0) == (grad == 0).all(1)).all()
    # Moving all logits of a row changes nothing.
    moved, _ = loss_and_grad(z + 8.0, y, alpha=alpha, reduction="none")
    torch.testing.assert_close(moved, loss, rtol=1e-9, atol=1e-12)


@given(logits, st.floats(0.001, 0.9))
def test_package_of_the_author(rows: list[list[float]], alpha: float) -> None:
    import label_relaxation

    z = torch.tensor(rows, dtype=torch.float64)
    y = torch.arange(len(rows)) % z.shape[1]
    theirs = label_relaxation.label_relaxation_loss(z, y, alpha, "none")
    torch.testing.assert_close(label_relaxation_loss(z, y, alpha, "none"), theirs, rtol=1e-7, atol=1e-12)
