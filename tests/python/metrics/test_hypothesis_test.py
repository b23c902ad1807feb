"""Calibration tests: their definitions, their null distributions, and their rejection rates."""

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lr_relax.metrics import hypothesis_test
from lr_relax.metrics.hypothesis_test import calibration_test
from scipy import stats

Array = np.ndarray[Any, Any]
METHODS = ("spiegelhalter", "ks", "kuiper")
LAWS = {
    "spiegelhalter": hypothesis_test._two_sided_normal,
    "ks": hypothesis_test._largest_distance_above,
    "kuiper": hypothesis_test._range_above,
}


def law(method: str, x: float) -> mpmath.mpf:
    """The p-value of a statistic by the series for large x, with enough digits for its cancellation."""

    def tail(k: int) -> mpmath.mpf:
        return mpmath.erfc(k * mpmath.mpf(x) / mpmath.sqrt(2))

    with mpmath.workdps(60):
        if method == "spiegelhalter":
            return tail(1)
        terms = range(1, math.ceil(20 / x) + 3)
        if method == "ks":
            return 2 * mpmath.fsum((-1) ** (k + 1) * tail(2 * k - 1) for k in terms)
        return 4 * mpmath.fsum((-1) ** (k + 1) * k * tail(k) for k in terms)


# The p-value of 37 is 1e-299. At 1 and 1.5 the series change.
XS = [0.1, 0.13, 0.2, 0.35, 0.5, 0.7, 0.9, math.nextafter(1, 0), 1.0, 1.1, math.nextafter(1.5, 0), 1.5, 1.96]
XS += np.linspace(2, 37, 71).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_p_values_in_the_tails(method: str) -> None:
    for x in XS:
        got, expected = LAWS[method](x), law(method, x)
        assert abs(got / expected - 1) < 2e-15, x
        assert 0 < got <= 1
    assert law(method, 37) < 1e-298


@pytest.mark.parametrize("method", METHODS)
def test_p_values_at_the_limits(method: str) -> None:
    for x in (0.0, 5e-324, 1e-200, 1e-17):
        assert LAWS[method](x) == 1
    for x in (50.0, 1e200, math.inf):
        assert LAWS[method](x) == 0


@given(st.floats(0, 60), st.floats(0, 60))
@example(math.nextafter(1, 0), 1)
@example(math.nextafter(1.5, 0), 1.5)
@example(math.nextafter(0.1, 0), 0.1)
def test_p_values_decrease(x: float, y: float) -> None:
    low, high = sorted((x, y))
    for method in METHODS:
        assert 0 <= LAWS[method](high) <= LAWS[method](low) * (1 + 1e-15) <= 1 + 1e-15


def test_p_values_match_random_walks() -> None:
    """Walks of 2000 steps of ±1, which miss each extreme of Brownian motion by about 0.6 steps."""
    rng = np.random.default_rng(1)
    walks = np.cumsum(2 * rng.integers(0, 2, (4000, 2000), dtype=np.int8) - 1, axis=1, dtype=np.int16)
    high, low = walks.max(1).clip(min=0), walks.min(1).clip(max=0)
    distance, width = np.maximum(high, -low) + 0.6, high - low + 1.2
    for method, statistic in (("ks", distance), ("kuiper", width)):
        for quantile in (0.05, 0.3, 0.5, 0.8, 0.95, 0.99):
            x = float(np.quantile(statistic, quantile)) / math.sqrt(2000)
            assert LAWS[method](x) == pytest.approx(1 - quantile, abs=0.03), (method, quantile)


def rows(p: Array) -> Array:
    """Predictions of class 0 with the confidence p, at least 1/2."""
    return np.stack([p, 1 - p], 1)


def naive(p: list[float], y: list[int], method: str) -> float:
    """The statistics by their definitions, in fractions."""
    exact = [Fraction(each) for each in p]
    if method == "spiegelhalter":
        excess = sum(((b - a) * (1 - 2 * a) for a, b in zip(exact, y, strict=True)), Fraction())
        variance = sum(((1 - 2 * a) ** 2 * a * (1 - a) for a in exact), Fraction())
        return float(excess) / math.sqrt(variance)
    sums = [Fraction()]
    for value in sorted(set(exact)):
        sums.append(sums[-1] + sum(b - a for a, b in zip(exact, y, strict=True) if a == value))
    width = max(map(abs, sums)) if method == "ks" else max(sums) - min(sums)
    return float(width) / math.sqrt(sum(a * (1 - a) for a in exact))


confidences = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(1e-9, 1 - 1e-9)
events = st.lists(st.tuples(confidences, st.integers(0, 1)), min_size=1, max_size=40)


@pytest.mark.parametrize("method", METHODS)
@given(events=events.filter(lambda e: any(p not in (0, 0.5, 1) for p, _ in e)), random=st.randoms())
def test_definition_and_row_order(method: str, events: list[tuple[float, int]], random: Any) -> None:
    p, y = map(list, zip(*events, strict=True))
    got = calibration_test(np.array(p), np.array(y), method=method)
    expected = naive(p, y, method)
    # Differences have errors of 1e-16, and are divided by a deviation that may be small.
    assert got.statistic == pytest.approx(expected, rel=1e-13, abs=1e-14 * max(1, 1 / scale(p, method)))
    assert got.p_value == pytest.approx(LAWS[method](abs(got.statistic)), rel=1e-14)
    assert (got.method, got.n) == (method, len(p))
    random.shuffle(events)
    p, y = map(list, zip(*events, strict=True))
    assert calibration_test(np.array(p), np.array(y), method=method) == got


def scale(p: list[float], method: str) -> float:
    each = np.array(p)
    return float(np.sqrt((each * (1 - each) * (1 - 2 * each if method == "spiegelhalter" else 1) ** 2).sum()))


def test_spiegelhalter_is_standardized() -> None:
    p = np.array([0.07, 0.3, 0.5, 0.61, 0.8, 0.95, 0.99])
    mean = variance = 0.0
    for outcome in itertools.product((0, 1), repeat=len(p)):
        y = np.array(outcome)
        chance = np.where(y == 1, p, 1 - p).prod()
        z = calibration_test(p, y).statistic
        mean, variance = mean + chance * z, variance + chance * z**2
    assert mean == pytest.approx(0, abs=1e-14)
    assert variance == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("shape", ["uniform", "confident"])
def test_p_values_are_uniform(shape: str) -> None:
    """For 6000 calibrated predictions, where the laws of "ks" and "kuiper" are accurate to 0.01 and 0.02."""
    rng = np.random.default_rng(2)
    p_values: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(1000):
        p = rng.random(6000) if shape == "uniform" else rng.beta(5, 1, 6000)
        y = (rng.random(6000) < p).astype(int)
        for method in METHODS:
            p_values[method].append(calibration_test(p, y, method=method).p_value)
    for method, bias in {"spiegelhalter": 0, "ks": 0.01, "kuiper": 0.02}.items():
        deviation = stats.kstest(p_values[method], "uniform").statistic
        assert deviation < bias + stats.kstwo.isf(0.01, 1000), method


@pytest.mark.parametrize("method", METHODS)
def test_ties_are_conservative(method: str) -> None:
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(1000):
        p = rng.integers(1, 10, 100) / 10
        y = (rng.random(100) < p).astype(int)
        rejected += calibration_test(p, y, method=method).p_value < 0.05
    assert 10 < rejected < 50 + 3 * math.sqrt(50)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_detects_under_and_overconfidence(method: str, shift: float) -> None:
    rng = np.random.default_rng(4)
    p = rng.uniform(0.6, 0.9, 2000)
    y = (rng.random(2000) >= p + shift).astype(int)  # class 0 is right
    got = calibration_test(rows(p), y, method=method)
    assert got.p_value < 1e-9
    if method == "spiegelhalter":
        assert got.statistic * shift < 0, "above 0 is overconfident"
    else:
        assert got.statistic > 0
    calibrated = (rng.random(2000) >= p).astype(int)
    assert calibration_test(rows(p), calibrated, method=method).p_value > 0.01


def test_power_of_each_test() -> None:
    rng = np.random.default_rng(5)
    p = rng.random(20_000)
    too_low = (rng.random(20_000) < p - 0.03).astype(int)  # cancels in the Brier score: on both sides of 1/2
    assert calibration_test(p, too_low).p_value > 0.05
    local = (rng.random(20_000) < np.where(abs(p - 0.3) < 0.03, p + 0.2, p)).astype(int)
    for method in ("ks", "kuiper"):
        assert calibration_test(p, too_low, method=method).p_value < 1e-6
    ks, kuiper = (calibration_test(p, local, method=m).p_value for m in ("ks", "kuiper"))
    assert kuiper < ks < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("p", "y"), [([0.0, 1.0, 1.0], [0, 1, 1]), ([0.5, 0.5], [1, 0])])
def test_no_deviation(method: str, p: list[float], y: list[int]) -> None:
    got = calibration_test(np.array(p), np.array(y), method=method)
    assert (got.statistic, got.p_value) == (0, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("y", [[1, 1, 1], [0, 1, 0]])
def test_certain_and_wrong(method: str, y: list[int]) -> None:
    got = calibration_test(np.array([0.0, 1.0, 1.0]), np.array(y), method=method)
    assert (got.statistic, got.p_value) == (math.inf, 0)


def test_confidences_of_one_half() -> None:
    p, y = np.full(100, 0.5), np.ones(100, int)
    assert calibration_test(p, y).p_value == 1
    assert calibration_test(np.append(p, 1.0), np.append(y, 0)).p_value == 0
    for method in ("ks", "kuiper"):
        got = calibration_test(p, y, method=method)
        assert got.statistic == pytest.approx(10)
        assert got.p_value < 1e-20


@pytest.mark.parametrize("method", METHODS)
def test_kinds_of_input(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 50, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (4, 50), generator=generator)
    p = z.softmax(-1)
    got = calibration_test(p, y, method=method)
    assert (type(got.statistic), type(got.p_value), got.n) == (float, float, 200)
    assert calibration_test(p.numpy(), y.numpy(), method=method) == got
    assert calibration_test(p.reshape(200, 3), y.reshape(200), method=method) == got
    confidence, correct = p.amax(-1).flatten(), (p.argmax(-1) == y).flatten()
    assert calibration_test(confidence, correct.long(), method=method) == got
    of_logits = calibration_test(z, y, method=method, from_logits=True)
    assert of_logits.statistic == pytest.approx(got.statistic, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_ignored_rows(method: str) -> None:
    p, y = rows(np.array([0.9, 0.8, 0.7, 0.6])), np.array([0, -1, 1, 0])
    counts = y >= 0
    got = calibration_test(p, y, method=method, ignore_index=-1)
    assert got == calibration_test(p[counts], y[counts], method=method)
    assert got.n == 3


def test_repr() -> None:
    y = np.repeat([0, 1], [75, 25])
    assert repr(calibration_test(np.tile([0.9, 0.1], (100, 1)), y)) == (
        "CalibrationTest(method='spiegelhalter', statistic=5, p_value=5.73303e-07, n=100)"
    )


@pytest.mark.parametrize("method", ["hosmer", None])
def test_rejects_methods(method: Any) -> None:
    with pytest.raises(ValueError, match=f"`method`.*'spiegelhalter', 'ks' or 'kuiper'.*{method!r}"):
        calibration_test(np.array([0.5]), np.array([1]), method=method)
