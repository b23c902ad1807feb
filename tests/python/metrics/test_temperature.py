"""Temperature scaling: the optimum against root finding in float64, the grid of the paper, and the module."""

import copy
import io
import math
import pickle
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.metrics import PAPER_GRID, TemperatureScaling, calibration_error
from scipy.optimize import brentq

Array = np.ndarray[Any, Any]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fit(logits: Any, target: Any, **options: Any) -> float:
    return TemperatureScaling().fit(logits, target, **options).temperature.item()


def slope(z: Array, y: Array, ln_t: float) -> float:
    """The derivative of the negative log-likelihood with respect to 1/T: the sum of E[z] - z_y."""
    own = z[np.arange(len(y)), y]
    d = z - z.max(1, keepdims=True)
    p = np.exp(d * math.exp(-ln_t))
    p /= p.sum(1, keepdims=True)
    # Logits of -inf have p = 0.
    expected = np.where(p > 0, p * np.where(p > 0, d, 0), 0).sum(1)
    return math.fsum(expected - (own - z.max(1)))


def optimum(z: Array, y: Array) -> float:
    """The root of the derivative."""
    return math.exp(brentq(lambda x: slope(z, y, x), math.log(1e-4), math.log(1e4), xtol=1e-14, rtol=1e-15))


def sample(rows: int, classes: int, temperature: float, seed: int = 0) -> tuple[Array, Array]:
    """Logits, and classes drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng([rows, classes, seed])
    z = 2 * rng.normal(size=(rows, classes))
    y = (z + rng.gumbel(size=z.shape)).argmax(1)
    return z * temperature, y


# The optimum.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.3, 1.0, 2.5, 3.0, 50.0])
@pytest.mark.parametrize(("rows", "classes"), [(2000, 2), (1500, 10), (300, 100), (40, 17), (5, 3)])
def test_optimum(rows: int, classes: int, temperature: float, dtype: torch.dtype) -> None:
    """Also far from 1, and in single and half precision."""
    z, y = sample(rows, classes, temperature)
    logits, target = torch.from_numpy(z).to(dtype), torch.from_numpy(y)
    best = optimum(logits.double().numpy(), y)
    if rows > 100:
        assert best == pytest.approx(temperature, rel=0.15)
    assert fit(logits, target) == pytest.approx(best, rel=1e-8)
    if dtype != torch.bfloat16:
        assert fit(logits.numpy(), y) == fit(logits, target)


def test_optimum_in_many_digits() -> None:
    z, y = sample(60, 4, 2.5)
    for values in (z, z.astype(np.float32)):
        with mpmath.workdps(40):
            rows = [[mpmath.mpf(float(x)) for x in row] for row in values]

            def exact(b: mpmath.mpf) -> mpmath.mpf:
                total = mpmath.mpf(0)
                for row, k in zip(rows, y.tolist(), strict=True):
                    e = [mpmath.exp(b * x) for x in row]
                    total += mpmath.fsum(p * x for p, x in zip(e, row, strict=True)) / mpmath.fsum(e) - row[k]
                return total

            best = 1 / mpmath.findroot(exact, 1 / fit(values, y))
        assert fit(values, y) == pytest.approx(float(best), rel=1e-11)


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_converges(classes: int) -> None:
    for temperature in np.geomspace(0.02, 200, 80):
        z, y = sample(100, classes, temperature)
        assert fit(z, y) == pytest.approx(optimum(z, y), rel=1e-8)


@pytest.mark.filterwarnings("ignore:Every row of")  # for a gap of 1
def test_two_classes() -> None:
    """With a fraction q of correct rows and a gap g of the logits, sigmoid(g / T) = q."""
    for correct, wrong, gap in (
        (2, 1, 2.0),
        (9, 1, 5.0),
        (51, 49, 1.0),
        (999, 1, 0.1),
        (2, 1, 30.0),
        (4, 1, 5.0),
        (99, 1, 8.0),
    ):
        y = np.repeat([0, 1], [correct, wrong])
        for dtype in (np.float64, np.float32):
            logits = np.tile(np.array([gap, 0.0], dtype), (len(y), 1))
            best = float(logits[0, 0]) / math.log(correct / wrong)
            assert fit(logits, y) == pytest.approx(best, rel=1e-10)
            assert fit(logits - 7, y) == pytest.approx(best, rel=1e-5)  # rounded when shifted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gap", [100.0, 200.0, 600.0, 1000.0, 6000.0])
def test_large_logits(gap: float, dtype: torch.dtype) -> None:
    """At T = 1, every softmax is 0 or 1, and the likelihood has no curvature."""
    logits = torch.tensor([[gap, 0.0]] * 3, dtype=dtype)
    assert fit(logits, torch.tensor([0, 0, 1])) == pytest.approx(gap / math.log(2), rel=1e-8)
    z, y = sample(200, 5, 2.5)
    z += 30 * (z == z.max(1, keepdims=True))
    scaled = torch.from_numpy(z * gap / 10).to(dtype)
    best = optimum(scaled.double().numpy(), y)
    assert fit(scaled, torch.from_numpy(y)) == pytest.approx(best, rel=1e-8)


@given(st.integers(2, 6), st.integers(1, 20), st.floats(-2, 2), st.integers(0, 2**32 - 1))
def test_scaled_logits(classes: int, rows: int, exponent: float, seed: int) -> None:
    z, y = sample(rows, classes, 1.0, seed)
    z, y = np.concatenate([z, z]), np.concatenate([y, z.argmin(1)])  # not separable
    if slope(z, y, math.log(50)) <= 0 or slope(z, y, math.log(0.02)) >= 0:
        return  # the optimum is near an end of the range
    best = optimum(z, y)
    assert fit(z, y) == pytest.approx(best, rel=1e-8)
    factor = 10**exponent
    assert fit(z * factor, y) == pytest.approx(best * factor, rel=1e-8)


def test_kinds_of_input() -> None:
    z, y = sample(600, 10, 1.7)
    expected = fit(z, y)
    logits, target = torch.from_numpy(z), torch.from_numpy(y)
    wide = torch.zeros(600, 30, dtype=torch.float64)
    wide[:, ::3] = logits
    same = [
        (logits, target),
        (logits.t().contiguous().t(), target.int()),
        (wide[:, ::3], target.to(torch.uint8)),
        (logits.reshape(20, 30, 10), target.reshape(20, 30)),
        (logits.reshape(20, 30, 10).movedim(-1, 0).contiguous().movedim(0, -1), target.reshape(20, 30)),
        (np.asfortranarray(z), y.astype(np.int16)),
        (z, target),
        (logits.clone().requires_grad_(), y),
    ]
    for preds, classes in same:
        assert fit(preds, classes) == expected
        assert fit(preds, classes, method="grid") == fit(z, y, method="grid")
    assert fit(z[::-1], y[::-1]) == pytest.approx(expected, rel=1e-12)
    assert fit(z[:, ::-1], 9 - y) == pytest.approx(expected, rel=1e-12)


def test_ignored_rows() -> None:
    z, y = sample(300, 5, 2.0)
    more = np.insert(z, [0, 100, 300], [[math.nan] * 5, [math.inf] * 5, [-math.inf] * 5], 0)
    for ignore_index in (-100, 5, 2**40):
        target = np.insert(y, [0, 100, 300], ignore_index)
        for method in ("nll", "grid"):
            got = fit(more, target, method=method, ignore_index=ignore_index)
            assert got == pytest.approx(fit(z, y, method=method), rel=1e-12)
    without = y != 3
    assert fit(z, y, ignore_index=3) == pytest.approx(fit(z[without], y[without]), rel=1e-12)


def test_masked_classes() -> None:
    z, y = sample(400, 6, 2.5)
    masked = z.copy()
    rng = np.random.default_rng(0)
    for row, k in zip(masked, y, strict=True):
        row[(np.arange(6) != k) & (rng.random(6) < 0.4)] = -math.inf
    for dtype in FLOATS:
        logits, target = torch.from_numpy(masked).to(dtype), torch.from_numpy(y)
        best = optimum(logits.double().numpy(), y)
        assert fit(logits, target) == pytest.approx(best, rel=1e-8)
    padded = np.concatenate([z, np.full((400, 30), -math.inf)], 1)
    for method in ("nll", "grid"):
        assert fit(padded, y, method=method) == pytest.approx(fit(z, y, method=method), rel=1e-12)


# Data without an optimum.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 100.0, 20_000.0])
def test_warns_if_worse_than_chance(scale: float, dtype: torch.dtype) -> None:
    """The likelihood increases with the temperature."""
    z = sample(200, 4, 1.0)[0]
    logits = torch.from_numpy(z * scale / abs(z).max()).to(dtype)
    target = logits.argmin(1)
    with pytest.warns(RuntimeWarning, match=r"end of the range.*10000") as caught:
        assert fit(logits, target) == pytest.approx(1e4, rel=1e-12)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_warns_if_separable(dtype: torch.dtype) -> None:
    """The likelihood decreases with the temperature."""
    logits = torch.from_numpy(sample(200, 4, 1.0)[0]).to(dtype)
    top = logits.float().topk(2, 1).values
    logits = logits[top[:, 0] - top[:, 1] > 0.25]
    with pytest.warns(RuntimeWarning, match=r"end of the range.*0\.0001") as caught:
        assert fit(logits, logits.argmax(1)) == pytest.approx(1e-4, rel=1e-12)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [0.0, -3.0, 1000.0])
def test_constant_logits(value: float, dtype: torch.dtype) -> None:
    logits = torch.full((50, 7), value, dtype=dtype)
    assert fit(logits, torch.arange(50) % 7) == 1.0


# The grid.


def test_paper_grid() -> None:
    expected = (0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.5, 3.0)
    assert expected == PAPER_GRID


def first_best(logits: Any, target: Any, grid: Any) -> float:
    """Searches the temperatures one by one, by `calibration_error`."""
    errors = [calibration_error(logits / t, target, binning="paper", from_logits=True).item() for t in grid]
    return float(grid[int(np.argmin(errors))])


LONG = np.geomspace(0.1, 10, 37).tolist()
GRIDS = [PAPER_GRID, (1.0,), (3.0, 0.5), LONG, LONG[::-1], [1e-4, 9999.0, 1.5], np.linspace(0.5, 4, 100)]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{len(grid)} from {grid[0]:g}")
def test_grid(grid: Any) -> None:
    for rows, classes, temperature in ((400, 10, 1.3), (300, 3, 0.7), (30, 100, 2.5), (7, 2, 1.0)):
        z, y = sample(rows, classes, temperature)
        expected = first_best(z, y, grid)
        assert fit(z, y, method="grid", temperatures=grid) == expected
        assert fit(torch.from_numpy(z), y, method="grid", temperatures=list(grid)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_grid_in_low_precision(dtype: torch.dtype) -> None:
    """Rounding may change the order of nearly equal errors."""
    for rows, classes, temperature in ((2000, 10, 1.3), (1000, 30, 2.1)):
        z, y = sample(rows, classes, temperature)
        logits, target = torch.from_numpy(z).to(dtype), torch.from_numpy(y)

        def error(t: float) -> float:
            return calibration_error(logits.double() / t, target, binning="paper", from_logits=True).item()

        got = fit(logits, target, method="grid")
        assert got in PAPER_GRID
        assert error(got) <= min(map(error, PAPER_GRID)) + 1e-6


def test_grid_ties() -> None:
    constant = np.zeros((10, 4))
    for grid in (PAPER_GRID, (2.0, 1.0), (5.0,)):
        assert fit(constant, np.arange(10) % 4, method="grid", temperatures=grid) == grid[0]
    z, y = sample(100, 3, 1.5)
    assert fit(z, y, method="grid", temperatures=(1.5, 1.5, 1.5)) == 1.5


def test_grid_with_masked_classes() -> None:
    z, y = sample(200, 4, 1.8)
    z[np.arange(200), (y + 1) % 4] = -math.inf
    assert fit(z, y, method="grid") == first_best(z, y, PAPER_GRID)


def test_threads() -> None:
    z, y = (torch.from_numpy(x) for x in sample(20_000, 10, 1.7))
    invalid = z.clone()
    invalid[[19_000, 5_000, 12_000], 3] = math.nan
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                [fit(x, y, method=m) for m in ("nll", "grid") for x in (z, z.float(), z.bfloat16())]
            )
            for method in ("nll", "grid"):
                with pytest.raises(ValueError, match="row 5000 "):
                    fit(invalid, y, method=method)
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


# The module.


def test_parameter() -> None:
    scaling = TemperatureScaling()
    assert [(name, p.shape, p.dtype) for name, p in scaling.named_parameters()] == [
        ("temperature", (), torch.float64)
    ]
    assert scaling.temperature.item() == 1
    assert TemperatureScaling(2).temperature.item() == 2
    assert TemperatureScaling(0.5).temperature.requires_grad
    assert list(scaling.state_dict()) == ["temperature"]
    assert "1.7" in repr(TemperatureScaling(1.7))


def test_fit_keeps_the_parameter() -> None:
    z, y = sample(100, 3, 2.0)
    scaling = TemperatureScaling(7.0)
    parameter = scaling.temperature
    assert scaling.fit(z, y) is scaling
    assert scaling.temperature is parameter
    assert parameter.requires_grad
    first = parameter.item()
    assert scaling.fit(z, y).temperature.item() == first  # independent of the previous temperature
    with pytest.raises(ValueError, match="row 0"):
        scaling.fit(z * math.nan, y)
    assert parameter.item() == first


def test_save_and_load() -> None:
    z, y = sample(100, 3, 2.0)
    scaling = TemperatureScaling().fit(z, y)
    file = io.BytesIO()
    torch.save(scaling.state_dict(), file)
    file.seek(0)
    loaded = TemperatureScaling()
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(scaling), pickle.loads(pickle.dumps(scaling))):
        assert other.temperature.item() == scaling.temperature.item()
        assert other.temperature.dtype == torch.float64
        assert np.array_equal(other.transform(z), scaling.transform(z))
    scaling.fit(z * 2, y)
    assert loaded.temperature.item() == pytest.approx(scaling.temperature.item() / 2, rel=1e-8)


def test_gradients() -> None:
    scaling = TemperatureScaling(1.7)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def divide(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(scaling, {"temperature": temperature}, logits)

    assert torch.autograd.gradcheck(divide, (logits, scaling.temperature))
    scaling(logits.float()).sum().backward()
    assert logits.grad is not None
    assert logits.grad.numpy() == pytest.approx(np.full((4, 3), 1 / 1.7), rel=1e-6)
    expected = -logits.sum().item() / 1.7**2
    assert scaling.temperature.grad is not None
    assert scaling.temperature.grad.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_forward_and_transform() -> None:
    scaling = TemperatureScaling(2.885390081777927)
    z = np.random.default_rng(0).normal(size=(50, 7))
    for dtype in FLOATS:
        logits = torch.from_numpy(z).to(dtype).requires_grad_()
        got = scaling(logits)
        assert (got.dtype, got.shape) == (torch.promote_types(dtype, torch.float32), logits.shape)
        exact = logits.detach().double() / scaling.temperature.item()
        torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(got.dtype).eps, atol=1e-7)
        transformed = scaling.transform(logits)
        assert transformed.equal(got.detach())
        assert not transformed.requires_grad
    for dtype in (np.float64, np.float32, np.float16):
        arrays = z.astype(dtype)
        transformed = scaling.transform(arrays)
        assert type(transformed) is np.ndarray
        assert transformed.dtype == np.promote_types(dtype, np.float32)
        exact = arrays.astype(float) / scaling.temperature.item()
        np.testing.assert_allclose(transformed, exact, rtol=np.finfo(transformed.dtype).eps, atol=1e-7)
    assert scaling.transform(z.reshape(5, 10, 7)[..., ::-1]).shape == (5, 10, 7)


def test_transform_keeps_double_precision() -> None:
    """In float16, this temperature would be 0."""
    small = TemperatureScaling(1e-9)
    tiny = np.array([6e-8, 0.0], np.float16)
    assert small.transform(torch.from_numpy(tiny)).tolist() == pytest.approx([60, 0], rel=0.01)
    assert small.transform(tiny).tolist() == pytest.approx([60, 0], rel=0.01)


def test_predicted_classes_are_kept() -> None:
    z, y = sample(300, 10, 3.0)
    scaling = TemperatureScaling().fit(z, y)
    assert (scaling.transform(z).argmax(1) == z.argmax(1)).all()
    before = calibration_error(z, y, from_logits=True)
    assert calibration_error(scaling.transform(z), y, from_logits=True) < before / 2


# Invalid arguments.

Z = np.array([[2.0, 0, 1], [2, 1, 0], [0, 0, 5], [1, 2, 3]])
Y = np.array([0, 1, 2, 2])


def put(array: Array, row: int, value: Any) -> Array:
    array = array.copy()
    array[row] = value
    return array


INVALID = [
    *(
        (put(put(Z, 3, math.nan), 1, row), Y, {}, ValueError, "`logits`.* row 1 ")
        for row in ([math.nan, 1, 1], [0, 1, math.nan], [math.inf, 1, 1], [0, math.inf, 0], [-math.inf] * 3)
    ),
    (Z, put(Y, 1, 3), {}, IndexError, "`target`.*3 at row 1"),
    (Z, put(Y, 1, -1), {}, IndexError, "-1 at row 1"),
    (Z[:0], Y[:0], {}, ValueError, "`logits`.*at least one row"),
    (Z, 0 * Y, {"ignore_index": 0}, ValueError, "`logits`.*at least one row"),
    (Z[:, :0], Y, {}, ValueError, "`logits`.*at least 2 classes"),
    (Z[0], np.array(0), {}, ValueError, "`logits`.*shape"),
    (Z, Y[:3], {}, ValueError, "`target`.*shape"),
    (Z, Y[:, None], {}, ValueError, "`target`.*shape"),
    (Z.astype(int), Y, {}, TypeError, "`logits`"),
    (Z, Y + 0.5, {}, TypeError, "`target`"),
    (np.ma.masked_array(Z), Y, {}, TypeError, "`logits`.*MaskedArray"),
    (Z, Y, {"ignore_index": 1.0}, ValueError, "`ignore_index`"),
    *((Z, Y, {"method": m}, ValueError, "`method`.*'nll' or 'grid'") for m in ("NLL", "ece", None, 1)),
]


@pytest.mark.parametrize("method", ["nll", "grid"])
@pytest.mark.parametrize(("logits", "target", "options", "error", "what"), INVALID)
def test_rejects_input(
    logits: Any, target: Any, options: Any, error: type[Exception], what: str, method: str
) -> None:
    with pytest.raises(error, match=what):
        fit(logits, target, **{"method": method} | options)


PROBABILITIES = torch.tensor(Z).softmax(1).numpy()


@pytest.mark.parametrize("method", ["nll", "grid"])
@pytest.mark.parametrize(
    ("logits", "target", "options"),
    [
        (put(PROBABILITIES, 1, [0.9, 0.9, 0.9]), Y, {"from_logits": False}),
        (put(PROBABILITIES, 1, [1.2, -0.1, -0.1]), Y, {"from_logits": False}),
        (put(PROBABILITIES[:, 0], 1, 1.4), Y == 0, {"from_logits": False}),
        (put(Z[:, 0], 1, math.nan), Y == 0, {}),
    ],
    ids=["sum", "sign", "event", "logit of an event"],
)
def test_names_the_argument_of_every_row(logits: Any, target: Any, options: Any, method: str) -> None:
    with pytest.raises(ValueError, match=r"`logits`.* row 1 "):
        fit(logits, target, method=method, **options)


def test_rejects_impossible_targets() -> None:
    z = put(Z, 2, [0, 1, -math.inf])
    for dtype in (np.float64, np.float32, np.float16):
        with pytest.raises(ValueError, match=r"`logits`.*the target class is possible.* row 2 "):
            fit(z.astype(dtype), Y)
    assert fit(z, put(Y, 2, -1), ignore_index=-1) > 0
    assert fit(z, Y, method="grid") in PAPER_GRID  # a wrong prediction at any temperature


@pytest.mark.parametrize(
    ("error", "grids"),
    [
        (ValueError, [[], [0], [-1.0], [1.0, 0.9e-4], [1e4], [math.nan], [1.0, math.inf], [1] * 4097]),
        (TypeError, [None, 1.5, "abc", [None], [[1.0]], [1j]]),
    ],
)
def test_rejects_grids(error: type[Exception], grids: list[Any]) -> None:
    for grid in grids:
        with pytest.raises(error, match="`temperatures`"):
            fit(Z, Y, method="grid", temperatures=grid)


@pytest.mark.parametrize(
    ("error", "temperatures"),
    [(ValueError, [0, 0.0, -1.0, math.inf, -math.inf, math.nan]), (TypeError, ["1", None, 1j, [1.0]])],
)
def test_rejects_temperatures(error: type[Exception], temperatures: list[Any]) -> None:
    for temperature in temperatures:
        with pytest.raises(error, match="`temperature`"):
            TemperatureScaling(temperature)


def test_types_of_temperatures() -> None:
    for temperature in (2, np.float64(2), np.float32(2), np.int64(2)):
        assert TemperatureScaling(temperature).temperature.item() == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("logits", [torch.tensor([[5, 10]]), np.array([[5, 10]]), [[5, 10]], None])
def test_rejects_logits(logits: Any) -> None:
    scaling = TemperatureScaling(2.5)
    for method in (scaling, scaling.transform):
        with pytest.raises(TypeError, match="`logits`"):
            method(logits)
