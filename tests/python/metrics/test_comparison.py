"""Paired comparisons: of a model with itself, against a direct bootstrap, and their coverage."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.metrics import (
    accuracy,
    bootstrap_ci,
    brier_score,
    calibration_error,
    compare_calibration,
)
from lr_relax.metrics._functions import METRICS
from lr_relax.metrics._sums import BINNED, SUMMED

Array = np.ndarray[Any, Any]


def models(rows: int, classes: int) -> tuple[Array, Array, Array]:
    """A calibrated model and a worse one that is overconfident."""
    rng = np.random.default_rng([rows, classes])
    z = 2 * rng.normal(size=(rows, classes))
    noisy = z + rng.normal(size=z.shape) / 4
    a, b = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (z, 1.5 * noisy))
    return a, b, np.array([rng.choice(classes, p=row) for row in a])


@pytest.mark.parametrize("metric", METRICS)
def test_a_model_and_itself(metric: str) -> None:
    _, b, y = models(200, 3)
    got = compare_calibration(b, b.copy(), y, metric=metric, n_resamples=20)
    assert (got.difference, got.low, got.high, got.p_value) == (0, 0, 0, 1)
    assert not got.distribution.any()


@pytest.mark.parametrize("metric", METRICS)
def test_exchange(metric: str) -> None:
    """The rows of the resamples depend on the order of the models if there are bins, but little else does."""
    a, b, y = models(200, 3)
    n = 200 if metric in SUMMED else 20
    got, other = (compare_calibration(*pair, y, metric=metric, n_resamples=n) for pair in ((a, b), (b, a)))
    assert got.difference == -other.difference != 0
    assert got.estimates == other.estimates[::-1]
    budget = 0.2 * (got.high - got.low) if metric in BINNED else 1e-12
    assert (got.low, got.high) == pytest.approx((-other.high, -other.low), abs=budget)
    assert [*got] == [got.difference, got.low, got.high]
    assert got.low <= got.difference <= got.high
    if metric not in BINNED:
        assert got.distribution == pytest.approx(-other.distribution, abs=1e-12)
        assert got.p_value == other.p_value


@pytest.mark.parametrize("metric", METRICS)
def test_estimates(metric: str) -> None:
    a, b, y = models(100, 3)
    got = compare_calibration(a, b, y, metric=metric, n_resamples=5)
    alone = [bootstrap_ci(p, y, metric=metric, n_resamples=5).estimate for p in (a, b)]
    assert [*got.estimates] == alone
    tensors = [torch.from_numpy(x) for x in (a, b, y)]
    assert compare_calibration(*tensors, metric=metric, n_resamples=5).difference == pytest.approx(
        got.difference, abs=1e-12
    )


@pytest.mark.parametrize("metric", ["brier_score", "expected_calibration_error"])
def test_resamples_are_paired(metric: str) -> None:
    """As resamples in NumPy, in mean and spread, to 4.5 standard errors."""
    a, b, y = models(300, 3)
    n = 2000
    got = compare_calibration(a, b, y, metric=metric, n_resamples=n)
    function = brier_score if metric == "brier_score" else calibration_error
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(n):
        rows = rng.integers(300, size=300)
        draws.append(float(function(a[rows], y[rows]) - function(b[rows], y[rows])))
    error = 4.5 * np.std(draws) / math.sqrt(n)
    assert got.distribution.mean() == pytest.approx(np.mean(draws), abs=error * math.sqrt(2))
    assert got.standard_error == pytest.approx(np.std(draws), abs=error + np.std(draws) / 300)
    assert got.standard_error == got.distribution.std(ddof=1)
    alone = [bootstrap_ci(p, y, metric=metric).standard_error for p in (a, b)]
    assert got.standard_error < 0.95 * math.hypot(*alone)  # what the models have in common cancels


@pytest.mark.parametrize("metric", ["brier_score", brier_score, accuracy])
def test_percentiles_and_p_value(metric: Any) -> None:
    a, b, y = models(100, 4)
    got = compare_calibration(a, b, y, metric=metric, n_resamples=199, confidence_level=0.9, seed=5)
    assert [got.low, got.high] == pytest.approx(np.quantile(got.distribution, [0.05, 0.95]), rel=1e-14)
    sides = (got.distribution <= 0).sum(), (got.distribution >= 0).sum()
    assert got.p_value == min(1, 2 * (min(sides) + 1) / 200)


def test_p_value_is_the_level_at_which_the_interval_holds_0() -> None:
    a, b, y = models(300, 3)
    got = compare_calibration(a, b, y)
    assert 0.001 < got.p_value < 0.9
    for p, holds in ((got.p_value * 0.9, True), (got.p_value * 1.1, False)):
        other = compare_calibration(a, b, y, confidence_level=1 - p)
        assert (other.low <= 0 <= other.high) == holds
        assert other.p_value == got.p_value


LEVELS = np.arange(10) / 10 + 0.05


@pytest.mark.parametrize(
    ("other", "error"), [(LEVELS.reshape(5, 2).mean(1).repeat(2), 0.0), (0.5 + 0.6 * (LEVELS - 0.5), 0.1)]
)
def test_covers_the_difference(other: Array, error: float) -> None:
    """Of a calibrated model and another one; at least 32 of 40 have a probability of 98 % for 90 %."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(40):
        k = rng.integers(10, size=400)
        y = (rng.random(400) < LEVELS[k]).astype(int)
        got = compare_calibration(LEVELS[k], other[k], y, n_bins=10, n_resamples=100, seed=seed)
        held += got.low <= -error <= got.high
    assert held >= 32


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_certain_predictions(norm: str) -> None:
    """Of a model that is always correct, and one that never is."""
    y = np.arange(50) % 2
    got = compare_calibration(1.0 * y, 1.0 - y, y, metric="calibration_error", norm=norm)
    assert got.difference == got.low == -1 < got.high < -0.7
    assert got.p_value == pytest.approx(0.001, rel=0.05)  # the smallest one of 1000 resamples


P, Q, Y = models(10, 3)


@pytest.mark.parametrize(
    ("preds_a", "preds_b", "options", "error", "what"),
    [
        (P, Q[:, :2] / Q[:, :2].sum(1, keepdims=True), {}, (ValueError, IndexError), "`preds_b`|target"),
        (P.max(1), Q, {}, (ValueError, IndexError), "."),
        (P, Q[:9], {}, ValueError, "`preds_b`|`target`"),
        (P + 1, Q, {}, ValueError, "`preds_a`.*row 0"),
        (P, Q + 1, {}, ValueError, "`preds_b`.*row 0"),
        (P, [["a"] * 3] * 10, {}, TypeError, "`preds_b`"),
        (P, Q, {"metric": "ece"}, ValueError, "`metric`"),
        (P, Q, {"norm": "max"}, ValueError, "`norm`"),
        (P, Q, {"n_resamples": 1}, ValueError, "`n_resamples`"),
        (P, Q, {"confidence_level": 0}, ValueError, "`confidence_level`"),
        (P, Q, {"seed": None}, ValueError, "`seed`"),
        (P, Q, {"metric": lambda a, b: math.inf}, ValueError, "`metric`.*finite"),
    ],
)
def test_rejects_arguments(preds_a: Any, preds_b: Any, options: Any, error: Any, what: str) -> None:
    with pytest.raises(error, match=what):
        compare_calibration(preds_a, preds_b, Y, **options)


def test_shapes_must_agree() -> None:
    y = np.zeros(10, int)
    with pytest.raises(ValueError, match=r"`preds_b`.*\(10, 3\).*\(10,\)"):
        compare_calibration(P, Q[:, 0], y)
