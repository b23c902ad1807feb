"""The chance level of calibration errors, against direct simulations and the binomial distribution."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.metrics import (
    brier_score,
    calibration_error,
    chance_level,
    classwise_calibration_error,
    reliability_curve,
    smooth_calibration_error,
    soft_calibration_error,
)
from scipy.stats import binom

Array = np.ndarray[Any, Any]


def predictions(rows: int, classes: int) -> tuple[Array, Array]:
    """Calibrated predictions."""
    rng = np.random.default_rng([rows, classes])
    z = 2 * rng.normal(size=(rows, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, drawn(p, rng)


def drawn(p: Array, rng: np.random.Generator) -> Array:
    return np.array([rng.choice(len(row), p=row) for row in p])


def assert_same_distribution(got: Array, expected: Array) -> None:
    """To 4.5 standard errors of both."""
    error = math.sqrt(got.var() / len(got) + expected.var() / len(expected))
    assert got.mean() == pytest.approx(expected.mean(), abs=4.5 * error)
    for q in (0.025, 0.975):  # of which the errors are at most 2.7 times as large
        assert np.quantile(got, q) == pytest.approx(np.quantile(expected, q), abs=4.5 * 2.7 * error)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_matches_a_simulation(norm: str, binning: str) -> None:
    p, y = predictions(200, 4)
    confidence = p.max(1)
    options: Any = {"norm": norm, "binning": binning, "n_bins": 8}
    got = chance_level(p, y, metric="calibration_error", n_resamples=4000, **options)
    rng = np.random.default_rng(0)
    outcomes = rng.random((1000, 200)) < confidence
    expected = np.array([calibration_error(confidence, outcome, **options) for outcome in outcomes])
    assert_same_distribution(got.distribution, expected)
    assert got.estimate == pytest.approx(float(calibration_error(p, y, **options)), abs=1e-14)


@pytest.mark.parametrize(
    ("function", "n"),
    [(classwise_calibration_error, 300), (smooth_calibration_error, 40), (soft_calibration_error, 200)],
)
def test_other_metrics_match_a_simulation(function: Any, n: int) -> None:
    p, y = predictions(40, 3)
    rng = np.random.default_rng(0)
    expected = np.array([float(function(p, drawn(p, rng))) for _ in range(n)])
    for preds, target, options in (
        (p, y, {}),
        (torch.from_numpy(p).log(), torch.from_numpy(y), {"from_logits": True}),
        (np.insert(p, 3, math.nan, 0), np.insert(y, 3, 7), {"ignore_index": 7}),
    ):
        got = chance_level(preds, target, metric=function.__name__, n_resamples=n, **options)
        assert_same_distribution(got.distribution, expected)
        assert got.estimate == pytest.approx(float(function(p, y)), abs=1e-12)
        assert got.bins is None
    if function is not classwise_calibration_error:  # which has no binary events
        events = chance_level(p.max(1), p.argmax(1) == y, metric=function.__name__, n_resamples=n)
        assert_same_distribution(events.distribution, expected)


def test_function() -> None:
    """The Brier score has a mean of ``sum(p * (1 - p))`` for a calibrated model."""
    p, y = predictions(100, 3)
    got = chance_level(p, y, metric=brier_score, n_resamples=500)
    expected = (p * (1 - p)).sum(1).mean()
    assert got.mean == pytest.approx(expected, abs=4.5 * got.distribution.std() / math.sqrt(500))


def test_fields() -> None:
    p, y = predictions(300, 3)
    for level in (0.5, 0.95):
        got = chance_level(p, y, confidence_level=level)
        assert got.confidence_level == level
        assert got.mean == pytest.approx(got.distribution.mean(), rel=1e-14)
        ends = np.quantile(got.distribution, [(1 - level) / 2, (1 + level) / 2])
        assert [got.low, got.high] == pytest.approx(ends, rel=1e-14)
        assert got.p_value == (1 + (got.distribution >= got.estimate).sum()) / 1001
    assert got.low < got.mean < got.high
    again, other = chance_level(p, y), chance_level(p, y, seed=1)
    assert np.array_equal(got.distribution, again.distribution)
    assert not np.array_equal(got.distribution, other.distribution)


def test_p_value_is_uniform_for_calibrated_models_and_small_for_others() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(size=(300, 100))
    values = np.array([chance_level(c, rng.random(100) < c, n_resamples=99).p_value for c in p])
    assert values.mean() == pytest.approx(0.5, abs=4.5 / math.sqrt(12 * 300))
    assert (values <= 0.2).mean() == pytest.approx(0.2, abs=4.5 * math.sqrt(0.16 / 300))
    assert chance_level(p[0] ** 3, rng.random(100) < p[0], n_resamples=99).p_value == 0.01


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_bins_are_those_of_the_reliability_curve(binning: str) -> None:
    p, y = predictions(100, 4)
    bins = chance_level(p, y, n_bins=12, binning=binning).bins
    curve = reliability_curve(p, y, n_bins=12, binning=binning)
    assert bins is not None
    np.testing.assert_array_equal(bins.counts, curve.counts)
    for got, expected in ((bins.confidence, curve.confidence), (bins.accuracy, curve.accuracy)):
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    empty = curve.counts == 0
    assert np.isnan(bins.lower[empty]).all()
    assert (bins.lower[~empty] <= bins.confidence[~empty]).all()
    assert (bins.upper[~empty] >= bins.confidence[~empty]).all()


def test_bars_are_quantiles_of_the_binomial_distribution() -> None:
    """If all confidences in a bin are equal."""
    p = np.repeat([0.05, 0.55, 0.85], [20, 50, 100])
    bins = chance_level(p, p > 2, n_bins=10, n_resamples=8000, confidence_level=0.8).bins
    assert bins is not None
    for b, c, n in ((0, 0.05, 20), (5, 0.55, 50), (8, 0.85, 100)):
        for bar, q in ((bins.lower[b], 0.1), (bins.upper[b], 0.9)):
            # Within the quantiles of probabilities 4.5 standard errors of the simulation away.
            error = 4.5 * math.sqrt(0.09 / 8000)
            assert binom.ppf(q - error, n, c) / n - 1e-12 <= bar <= binom.ppf(q + error, n, c) / n + 1e-12


def test_certain_predictions() -> None:
    p = np.array([0.0, 1.0, 1.0])
    got = chance_level(p, p.astype(int))
    assert (got.estimate, got.mean, got.low, got.high, got.p_value) == (0, 0, 0, 0, 1)
    assert chance_level(p, np.ones(3, int), n_resamples=99).p_value == 0.01


P, Y = predictions(10, 3)


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"metric": "brier_score"}, ValueError, "`metric`.*'soft_calibration_error'"),
        ({"metric": None}, ValueError, "`metric`"),
        ({"metric": lambda a, b: math.nan}, ValueError, "`metric`.*finite"),
        ({"n_resamples": 1}, ValueError, "`n_resamples`"),
        ({"confidence_level": 1}, ValueError, "`confidence_level`"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"n_bins": 0}, ValueError, "`n_bins`"),
        ({"binning": "mass"}, ValueError, "`binning`"),
        ({"norm": "l2"}, ValueError, "`norm`.*'l1'"),
    ],
)
def test_rejects_arguments(options: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        chance_level(P, Y, **options)


def test_function_gets_checked_rows() -> None:
    with pytest.raises(ValueError, match="row 0"):
        chance_level(P + 1, Y, metric=brier_score)
