"""Confidence intervals: their resamples against a multinomial bootstrap, their ends, and their coverage."""

import itertools
import math
from typing import Any

import lr_relax.metrics
import numpy as np
import pytest
import torch
from lr_relax.metrics import (
    _functions,
    _sums,
    accuracy,
    bootstrap_ci,
    brier_score,
    calibration_error,
    classwise_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)

Array = np.ndarray[Any, Any]
ERRORS = {"expected_calibration_error": "l1", "maximum_calibration_error": "max"}
MEANS = {
    "brier_score": brier_score,
    "negative_log_likelihood": negative_log_likelihood,
    "accuracy": accuracy,
}
METRICS = [*ERRORS, *MEANS]
ALL_METRICS = _functions.METRICS


def predictions(rows: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Confident predictions, about 60 % of them correct."""
    rng = np.random.default_rng([rows, classes, seed])
    z = 2 * rng.normal(size=(rows, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, np.where(rng.random(rows) < 0.6, p.argmax(1), rng.integers(classes, size=rows))


def events(rows: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng([rows, seed])
    p = rng.uniform(0.02, 0.98, rows)
    return p, (rng.random(rows) < p).astype(int)


def estimate(metric: str, p: Array, y: Array, **options: Any) -> float:
    if metric in ERRORS:
        return float(calibration_error(p, y, norm=ERRORS[metric], **options))
    return float(MEANS[metric](p, y))


def multinomial(metric: str, p: Array, y: Array, n_resamples: int, n_bins: int = 15) -> Array:
    """Rows drawn with replacement in NumPy, with fixed bins."""
    rng = np.random.default_rng(1)
    c = p if p.ndim == 1 else p.max(1)
    correct = y if p.ndim == 1 else p.argmax(1) == y
    which = np.minimum((c * n_bins).astype(int), n_bins - 1)
    of_rows = {
        "brier_score": (c - y) ** 2 if p.ndim == 1 else ((p - np.eye(p.shape[-1])[y]) ** 2).sum(1),
        "negative_log_likelihood": -np.log(
            np.where(y == 1, c, 1 - c) if p.ndim == 1 else p[np.arange(len(y)), y]
        ),
        "accuracy": (c > 0.5) == y if p.ndim == 1 else correct,
    }
    draws = []
    for _ in range(n_resamples):
        rows = rng.integers(len(y), size=len(y))
        if metric in MEANS:
            draws.append(of_rows[metric][rows].mean())
            continue
        count = np.bincount(which[rows], minlength=n_bins)
        gap = abs(np.bincount(which[rows], (c - correct)[rows], n_bins))
        draws.append(
            gap.sum() / len(y) if metric.startswith("expected") else (gap / np.maximum(count, 1)).max()
        )
    return np.array(draws)


@pytest.mark.parametrize("metric", METRICS)
def test_matches_multinomial_bootstrap(metric: str) -> None:
    """In mean, spread and tails, to 4.5 standard errors of 4000 of each; Poisson weights add 1/(2N)."""
    n = 4000
    for p, y in (predictions(500, 4), events(400)):
        got = bootstrap_ci(p, y, metric=metric, n_resamples=n)
        assert got.distribution.shape == (n,)
        expected = multinomial(metric, p, y, n)
        spread = expected.std(ddof=1)
        mean_error = spread * math.sqrt(2 / n)
        assert got.distribution.mean() == pytest.approx(expected.mean(), abs=4.5 * mean_error)
        fourth = np.mean((expected - expected.mean()) ** 4) / spread**4  # about 3
        spread_error = spread * math.sqrt((fourth - 1) / (2 * n))
        assert got.distribution.std(ddof=1) == pytest.approx(spread, abs=4.5 * spread_error + spread / 800)
        for q in (0.025, 0.5, 0.975):  # of which the errors are largest in the tails: about 2.7 / sqrt(n)
            tail_error = 4.5 * 2.7 * spread * math.sqrt(2 / n)
            assert np.quantile(got.distribution, q) == pytest.approx(np.quantile(expected, q), abs=tail_error)
        assert got.estimate == pytest.approx(estimate(metric, p, y), abs=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_fields(metric: str) -> None:
    p, y = predictions(200, 3)
    got = bootstrap_ci(p, y, metric=metric, n_resamples=500, method="percentile")
    assert got.distribution.shape == (500,)
    assert got.distribution.dtype == np.float64
    assert got.confidence_level == 0.95
    assert got.standard_error == got.distribution.std(ddof=1)
    ends = np.quantile(got.distribution, [0.025, 0.975], method="linear")
    assert [got.low, got.high] == pytest.approx(ends, rel=1e-13)
    assert got.low < got.high
    for level in (0.5, 0.9, np.float64(0.99)):
        other = bootstrap_ci(
            p, y, metric=metric, n_resamples=500, confidence_level=level, method="percentile"
        )
        assert other.confidence_level == level
        assert np.array_equal(other.distribution, got.distribution)
        ends = np.quantile(got.distribution, [(1 - level) / 2, (1 + level) / 2])
        assert [other.low, other.high] == pytest.approx(ends, rel=1e-15)
        basic = bootstrap_ci(p, y, metric=metric, n_resamples=500, confidence_level=level, method="basic")
        assert np.array_equal(basic.distribution, got.distribution)
        reflected = (2 * got.estimate - other.high, 2 * got.estimate - other.low)
        assert (basic.low, basic.high) == pytest.approx(reflected, rel=1e-15)
        assert basic.estimate == got.estimate


def test_seed_and_threads() -> None:
    p, y = predictions(3000, 5)
    before = torch.get_num_threads()
    try:
        for metric in METRICS:
            of_threads = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                got = bootstrap_ci(p, y, metric=metric, n_resamples=50, seed=7)
                of_threads.append((got.estimate, got.low, got.high, got.distribution.tobytes()))
            assert of_threads[0] == of_threads[1] == of_threads[2]
            # A resample does not depend on the number of resamples.
            few = bootstrap_ci(p, y, metric=metric, n_resamples=20, seed=7)
            assert few.distribution.tobytes() == of_threads[0][-1][: 20 * 8]
    finally:
        torch.set_num_threads(before)


def test_seeds_are_independent() -> None:
    p, y = predictions(300, 3)
    seeds = [0, 1, 2, 2**32, 2**63, 2**64 - 1]
    draws = [bootstrap_ci(p, y, metric="brier_score", n_resamples=300, seed=s).distribution for s in seeds]
    everything = np.concatenate(draws)
    assert len(np.unique(everything)) == len(everything)
    correlation = np.corrcoef(draws) - np.eye(len(seeds))
    assert abs(correlation).max() < 5 / math.sqrt(300)
    assert np.array_equal(bootstrap_ci(p, y, metric="brier_score", n_resamples=300).distribution, draws[0])


def test_rows_are_independent() -> None:
    """The share of each half of the rows in a resample has the variance of independent draws."""
    n = 512
    y = np.zeros(n, int)
    for half in (np.arange(n) % 2, np.arange(n) % 32 // 16, np.arange(n) // (n // 2), np.arange(n) % 3 == 0):
        c = np.where(half, 0.75, 0.25)
        draws = bootstrap_ci(c, y, metric="accuracy", n_resamples=4000).distribution  # the share of 0.25
        share = 1 - half.mean()
        assert draws.mean() == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / n / 4000))
        assert draws.std() == pytest.approx(
            math.sqrt(share * (1 - share) / n), rel=4.5 / math.sqrt(8000) + 0.003
        )


@pytest.mark.parametrize("metric", ["brier_score", "accuracy"])
def test_coverage(metric: str) -> None:
    """90 % of 3000 intervals, with a standard deviation of 0.55 %, and 1 % for the finite sample."""
    rng = np.random.default_rng(5)
    levels = rng.uniform(0.05, 0.95, 8)
    of_level = {"brier_score": levels * (1 - levels), "accuracy": np.maximum(levels, 1 - levels)}[metric]
    held = 0
    for seed in range(3000):
        k = rng.integers(8, size=250)
        y = (rng.random(250) < levels[k]).astype(int)
        got = bootstrap_ci(levels[k], y, metric=metric, n_resamples=200, confidence_level=0.9, seed=seed)
        held += got.low <= of_level.mean() <= got.high
    assert held / 3000 == pytest.approx(0.9, abs=0.01 + 3.5 * 0.0055)


def test_bias_and_basic_method() -> None:
    """For calibrated events, the interval may lie above the estimate; "basic" reflects it."""
    p, y = events(3000)
    percentile, basic = (bootstrap_ci(p, y, method=method) for method in ("percentile", "basic"))
    assert percentile.distribution.mean() > percentile.estimate + percentile.standard_error
    assert percentile.low + percentile.high > 2 * percentile.estimate
    assert basic.low + basic.high < 2 * basic.estimate
    assert basic.low == pytest.approx(2 * percentile.estimate - percentile.high, abs=1e-15)


# The intervals of calibration errors.

LEVELS = np.arange(10) / 10 + 0.05  # one in each of ten bins
ACCURACIES = {
    "calibrated": LEVELS,
    "slightly": np.clip(LEVELS - np.where(LEVELS > 0.5, 0.03, -0.03), 0, 1),
    "in one bin": LEVELS - 0.2 * (LEVELS == 0.75),
    "everywhere": 0.5 + 0.5 * (LEVELS - 0.5),
}


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("kind", ACCURACIES)
def test_covers_the_population_error(kind: str, norm: str) -> None:
    """At least 90 % of the intervals of level 0.95; below 81 % in 60 has a probability of 0.6 % for 90 %."""
    gap = abs(LEVELS - ACCURACIES[kind])
    truth = {"l1": gap.mean(), "l2": math.sqrt((gap**2).mean()), "max": gap.max()}[norm]
    rng = np.random.default_rng(3)
    held = above = 0
    for seed in range(60):
        k = rng.integers(10, size=400)
        y = (rng.random(400) < ACCURACIES[kind][k]).astype(int)
        got = bootstrap_ci(
            LEVELS[k], y, metric="calibration_error", norm=norm, n_bins=10, n_resamples=200, seed=seed
        )
        held += got.low <= truth + 1e-12 and truth <= got.high + 1e-12
        above += np.quantile(got.distribution, 0.025) > truth
    assert held > 0.81 * 60
    if kind == "calibrated":  # where no percentile interval holds it
        assert above == 60


@pytest.mark.parametrize("metric", [*ERRORS, "adaptive_calibration_error"])
def test_holds_the_estimate(metric: str) -> None:
    rng = np.random.default_rng(4)
    for seed, rows in enumerate([1, 2, 3, 10, 100, 1000] * 3):
        p = rng.random(rows) ** rng.choice([0.1, 1, 10])
        for y in (rng.random(rows) < p, p > 0.5, p > 2, p < 2):  # calibrated, certain, always 0 or 1
            got = bootstrap_ci(p, y, metric=metric, n_resamples=50, seed=seed)
            assert 0 <= got.low <= got.estimate <= got.high <= 1


def test_calibrated_model_gets_an_interval_from_0() -> None:
    p, y = events(3000)
    for norm in ("l1", "l2", "max"):
        got = bootstrap_ci(p, y, metric="calibration_error", norm=norm)
        assert got.low == 0 < got.estimate <= got.high


def test_certain_and_correct() -> None:
    """The exact upper limit has ``(1 - limit) ** N == 0.025``."""
    got = bootstrap_ci(np.ones(1000), np.ones(1000, int), n_resamples=4000)
    assert (got.estimate, got.low) == (0, 0)
    assert got.high == pytest.approx(1 - 0.025 ** (1 / 1000), rel=0.25)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("n_correct", [300, 600, 980])
def test_one_bin_gives_the_wilson_interval(norm: str, n_correct: int) -> None:
    """A gap that is not noise has the interval of the accuracy, up to the correction for continuity."""
    p, y = np.full(1000, 0.02), (np.arange(1000) < n_correct).astype(int)
    curve = reliability_curve(p, y, n_bins=1)
    got = bootstrap_ci(p, y, metric="calibration_error", norm=norm, n_bins=1, n_resamples=20_000)
    deviation = math.sqrt(n_correct * (1000 - n_correct) / 1e9)
    assert got.low == pytest.approx(curve.lower[0] - 0.02, abs=0.0006 + 0.06 * deviation)
    assert got.high == pytest.approx(curve.upper[0] - 0.02, abs=0.0006 + 0.06 * deviation)


def test_higher_levels_give_wider_intervals() -> None:
    p, y = predictions(500, 4)
    ends = [bootstrap_ci(p, y, confidence_level=level) for level in (0.5, 0.8, 0.95, 0.99)]
    for narrow, wide in itertools.pairwise(ends):
        assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_default_method() -> None:
    p, y = predictions(50, 3)
    for metric in ALL_METRICS:
        binned, error = metric in _sums.BINNED, metric in _functions.ERRORS
        got = bootstrap_ci(p, y, metric=metric, n_resamples=10)
        assert got.method == ("test_inversion" if binned else "chance" if error else "percentile")
        assert [*got] == [got.estimate, got.low, got.high]
        ends = pytest.approx(np.quantile(got.distribution, [0.025, 0.975]), rel=1e-14)
        assert ([got.low, got.high] == ends) == (not binned and not error)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chance_covers_the_classwise_error(temperature: float) -> None:
    """Of a model with few distinct rows, so that the population error is known."""
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(12, 3))
    p, truth = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (z, z / temperature))
    bins = np.minimum((p * 15).astype(int), 14)
    gaps = [np.bincount(bins[:, k], p[:, k] - truth[:, k]) for k in range(3)]
    error = np.mean([abs(gap).sum() / 12 for gap in gaps])
    held = above = 0
    for seed in range(40):
        rows = rng.integers(12, size=300)
        y = (truth[rows].cumsum(1)[:, :2] <= rng.random((300, 1))).sum(1)
        got = bootstrap_ci(
            p[rows], y, metric="classwise_calibration_error", n_resamples=60, confidence_level=0.9, seed=seed
        )
        assert 0 <= got.low <= got.estimate <= got.high
        held += got.low <= error <= got.high
        above += np.quantile(got.distribution, 0.05) > error
    assert held >= 34  # 90 % of 40, less one standard deviation
    assert temperature > 1 or above > 35


@pytest.mark.parametrize("binning", ["uniform", "quantile", "paper"])
def test_bins(binning: str) -> None:
    for p, y in (predictions(300, 4), events(300)):
        for n_bins in (1, 7, 40):
            options = {"n_bins": n_bins, "binning": binning}
            for metric in ERRORS:
                got = bootstrap_ci(p, y, metric=metric, n_resamples=30, **options)
                assert got.estimate == pytest.approx(estimate(metric, p, y, **options), abs=1e-14)
    # One bin: the mean difference of confidence and outcome, whose spread is known.
    got = bootstrap_ci(
        p, y + 0, n_bins=1, binning=binning, n_resamples=4000, metric="maximum_calibration_error"
    )
    differences = p - y
    assert got.standard_error <= differences.std() / math.sqrt(300) * 1.05
    shifted = np.clip(p / 4 + 0.7, 0, 1)  # far off, so that the absolute value does not matter
    got = bootstrap_ci(shifted, y, n_bins=1, binning=binning, n_resamples=4000)
    expected = (shifted - y).std() / math.sqrt(300)
    assert got.standard_error == pytest.approx(expected, rel=4.5 / math.sqrt(8000) + 0.005)


def test_quantile_edges_are_fixed() -> None:
    """Ten confidences in ten bins: moving edges would mix them."""
    c = np.repeat(np.arange(10, 20) / 20 + 0.01, 20)
    y = np.tile(np.repeat([1, 0], 10), 10)
    curve = reliability_curve(c, y, n_bins=10, binning="quantile")
    assert curve.counts.tolist() == [20] * 10
    got = bootstrap_ci(c, y, n_bins=10, binning="quantile", n_resamples=2000)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        rows = rng.integers(200, size=200)
        sums = np.bincount(rows // 20, (c - y)[rows], minlength=10)
        draws.append(abs(sums).sum() / 200)
    error = np.std(draws) * math.sqrt(2 / 2000)
    assert got.distribution.mean() == pytest.approx(np.mean(draws), abs=4.5 * error)


@pytest.mark.parametrize("metric", METRICS)
def test_kinds_of_input(metric: str) -> None:
    p, y = predictions(240, 4)
    options: dict[str, Any] = {"metric": metric, "n_resamples": 25}
    expected = bootstrap_ci(p, y, **options)

    def same(*arguments: Any, budget: float = 0.0, **more: Any) -> None:
        got = bootstrap_ci(*arguments, **options, **more)
        assert got.estimate == pytest.approx(expected.estimate, abs=budget)
        np.testing.assert_allclose(got.distribution, expected.distribution, rtol=0, atol=budget)

    preds, target = torch.from_numpy(p), torch.from_numpy(y)
    same(preds, target)
    same(preds.requires_grad_(), target.to(torch.uint8))
    same(preds.reshape(8, 30, 4), target.reshape(8, 30))
    same(np.asfortranarray(p), y.astype(np.int8))
    same(np.log(p), y, from_logits=True, budget=1e-7)  # differences from the mean have single precision
    invalid = np.insert(p, [0, 100, 240], [[math.nan] * 4, [3] * 4, [-1] * 4], 0)
    same(invalid, np.insert(y, [0, 100, 240], -100), ignore_index=-100)
    same(invalid, np.insert(y, [0, 100, 240], 9), ignore_index=9)


@pytest.mark.parametrize("metric", METRICS)
def test_few_rows(metric: str) -> None:
    """An empty resample is drawn again."""
    p, y = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]), np.array([0, 1, 1])
    for rows in (1, 2, 3):
        for seed in range(8):
            for n in (2, 100):
                got = bootstrap_ci(p[:rows], y[:rows], metric=metric, n_resamples=n, seed=seed)
                assert got.distribution.shape == (n,)
                assert math.isfinite(got.standard_error)
                assert got.low <= got.high
    alone = bootstrap_ci(p[:1], y[:1], metric=metric, method="percentile")
    assert [alone.low, alone.high, alone.standard_error] == pytest.approx(
        [alone.estimate] * 2 + [0], abs=1e-15
    )


def test_equal_rows() -> None:
    p, y = np.full(1000, 0.7), np.ones(1000, int)
    for metric, value in (
        ("expected_calibration_error", 0.3),
        ("maximum_calibration_error", 0.3),
        ("brier_score", 0.09),
        ("negative_log_likelihood", -math.log(0.7)),
        ("accuracy", 1),
    ):
        got = bootstrap_ci(p, y, metric=metric, n_resamples=50, method="percentile")
        assert [got.estimate, got.low, got.high] == pytest.approx([value] * 3, abs=1e-14)
        assert got.standard_error < 1e-14


# Other metrics, which are called for each resample.


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_every_metric_by_name(metric: str) -> None:
    function = getattr(lr_relax.metrics, metric)
    p, y = predictions(60, 3)
    given = {"n_bins": 5} if metric.endswith("calibration_error") and not metric.startswith("smooth") else {}
    got = bootstrap_ci(p, y, metric=metric, n_resamples=10, **given)
    assert got.estimate == pytest.approx(float(function(p, y, **given)), abs=1e-14)
    images = bootstrap_ci(p.reshape(6, 10, 3), y.reshape(6, 10), metric=metric, n_resamples=10, **given)
    assert np.array_equal(images.distribution, got.distribution)
    of_logits = bootstrap_ci(np.log(p), y, metric=metric, n_resamples=10, from_logits=True, **given)
    assert of_logits.distribution == pytest.approx(got.distribution, abs=1e-7)
    tensors = bootstrap_ci(torch.from_numpy(p), torch.from_numpy(y), metric=metric, n_resamples=10, **given)
    assert tensors.distribution == pytest.approx(got.distribution, abs=1e-12)
    rows = np.insert(p, [0, 30], [[math.nan] * 3, [3] * 3], 0), np.insert(y, [0, 30], -100)
    ignored = bootstrap_ci(*rows, metric=metric, n_resamples=10, ignore_index=-100, **given)
    assert np.array_equal(ignored.distribution, got.distribution)
    if metric in _sums.SUMMED:
        return
    called = bootstrap_ci(p, y, metric=lambda a, b: function(a, b, **given), n_resamples=10)
    assert np.array_equal(called.distribution, got.distribution)


def test_norms() -> None:
    p, y = predictions(100, 4)
    for norm in ("l1", "l2", "max"):
        for name, options in (
            ("calibration_error", {"binning": "uniform"}),
            ("calibration_error", {"binning": "quantile"}),
            ("adaptive_calibration_error", {}),
            ("classwise_calibration_error", {}),
        ):
            got = bootstrap_ci(p, y, metric=name, norm=norm, n_resamples=5, **options)
            expected = getattr(lr_relax.metrics, name)(p, y, norm=norm, **options)
            assert got.estimate == pytest.approx(float(expected), abs=1e-14)


# A function as the metric.


def test_function() -> None:
    p, y = predictions(100, 3)
    calls = []

    def metric(preds: Any, target: Any) -> Any:
        calls.append((preds.copy(), target.copy()))
        return accuracy(preds, target)

    got = bootstrap_ci(p, y, metric=metric, n_resamples=10, seed=3)
    drawn = [(a, b) for a, b in calls if not np.array_equal(a, p)]
    assert (len(calls), len(drawn)) == (11, 10)
    assert got.estimate == accuracy(p, y)
    for (preds, target), value in zip(drawn, got.distribution, strict=True):
        assert preds.shape == p.shape
        where = [np.flatnonzero((p == row).all(1))[0] for row in preds]  # rows keep their targets
        assert (y[where] == target).all()
        assert len(set(where)) < 90  # with replacement
        assert value == accuracy(preds, target)


def test_function_matches_named_metric() -> None:
    p, y = predictions(300, 3)
    n = 2000
    of_name = bootstrap_ci(p, y, metric="brier_score", n_resamples=n)
    of_function = bootstrap_ci(
        p, y, metric=lambda a, b: ((a - np.eye(3)[b]) ** 2).sum(1).mean(), n_resamples=n
    )
    assert of_function.estimate == pytest.approx(of_name.estimate, abs=1e-14)
    error = of_name.standard_error * math.sqrt(2 / n)
    assert of_function.distribution.mean() == pytest.approx(of_name.distribution.mean(), abs=4.5 * error)
    ratio = of_function.standard_error / of_name.standard_error
    assert ratio == pytest.approx(1, abs=4.5 / math.sqrt(n) + 1 / 600)


def test_function_of_tensors() -> None:
    p, y = (torch.from_numpy(x) for x in predictions(60, 3))
    draws = {}
    for seed in (0, 0, 1):
        got = bootstrap_ci(p, y, metric=brier_score, n_resamples=20, seed=seed)
        assert draws.setdefault(seed, got.distribution.tobytes()) == got.distribution.tobytes()
        assert got.distribution.shape == (20,)
        assert isinstance(got.estimate, float)
    assert draws[0] != draws[1]
    arrays = bootstrap_ci(p.numpy(), y.numpy(), metric=brier_score, n_resamples=20)
    assert arrays.distribution.tobytes() == draws[0]
    images = bootstrap_ci(p.reshape(6, 10, 3), y.reshape(6, 10), metric=brier_score, n_resamples=20)
    assert images.estimate == pytest.approx(arrays.estimate, abs=1e-15)  # whole images are drawn
    basic = bootstrap_ci(p, y, metric=brier_score, n_resamples=20, method="basic")
    assert basic.low == pytest.approx(2 * arrays.estimate - arrays.high, abs=1e-15)


# Invalid arguments.

P, Y = predictions(10, 3)
NAN = math.nan


@pytest.mark.parametrize("metric", ["soft_calibration_error", "smooth_calibration_error", "brier_score"])
def test_labels(metric: str) -> None:
    labels = [f"class {k}" for k in range(P.shape[1])]
    got = bootstrap_ci(P, np.array(labels)[Y], metric=metric, n_resamples=10, labels=labels)
    assert tuple(got) == tuple(bootstrap_ci(P, Y, metric=metric, n_resamples=10))


INVALID = [
    *((P, Y, {"metric": m}, ValueError, "`metric`.*'accuracy'") for m in ("ece", "", None, 3, ["accuracy"])),
    *((P, Y, {"n_resamples": n}, ValueError, "`n_resamples`") for n in (1, 0, -5, 10.0, True, "9", 2**25)),
    *((P, Y, {"confidence_level": c}, ValueError, "`confidence_level`") for c in (0, 1, -0.5, 1.5, NAN)),
    *((P, Y, {"confidence_level": c}, TypeError, "`confidence_level`") for c in ("0.9", None, True)),
    *((P, Y, {"method": m}, ValueError, "`method`.*'percentile' or 'basic'") for m in ("bca", True, 1)),
    *((P, Y, {"seed": s}, ValueError, "`seed`") for s in (-1, 2**64, 0.5, None, True, "0")),
    *((P, Y, {"n_bins": n}, ValueError, "`n_bins`") for n in (0, 1.5, True, 2**21)),
    *((P, Y, {"method": "test_inversion", "metric": m}, ValueError, "`method`.*'percentile'.*'basic'")
      for m in ("brier_score", "smooth_calibration_error", accuracy)),
    *((P, Y, {"norm": n}, ValueError, "`norm`") for n in ("l3", 1, "l2")),
    (P, Y, {"metric": "maximum_calibration_error", "norm": "l1"}, ValueError, "`norm`.*'max'.*'l1'"),
    *((P, P > 0.5, {"task": "multilabel", "metric": m}, ValueError, "`task`.*one label") for m in
      ("expected_calibration_error", "brier_score", "smooth_calibration_error")),
    (P, Y, {"binning": "mass"}, ValueError, "`binning`"),
    (P, Y, {"from_logits": 1}, TypeError, "`from_logits`"),
    (P, Y, {"ignore_index": 1.5}, ValueError, "`ignore_index`"),
    (np.eye(3)[Y], (Y + 1) % 3, {"metric": "negative_log_likelihood"}, ValueError, "`preds`.*above 0"),
    (P, Y, {"metric": lambda a, b: NAN}, ValueError, "`metric`.*finite"),
    (P, Y, {"metric": lambda a, b: math.inf}, ValueError, "`metric`.*finite"),
    (P, Y[:9], {"metric": accuracy}, ValueError, "number of rows"),
    (P[:0], Y[:0], {"metric": accuracy}, ValueError, "at least one"),
    (P, Y, {"metric": "adaptive_calibration_error", "binning": "paper"}, ValueError, "`binning`.*quantile"),
]  # fmt: skip


@pytest.mark.parametrize(("preds", "target", "options", "error", "what"), INVALID)
def test_rejects_arguments(preds: Any, target: Any, options: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        bootstrap_ci(preds, target, **options)


@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor])
def test_functions_of_several_values(of: Any) -> None:
    p, y = map(of, predictions(20, 3))
    values = [
        (lambda a, b: classwise_calibration_error(a, b, average=None), r"`metric`.*\(3,\).*average='macro'"),
        (reliability_curve, r"`metric`.*ReliabilityCurve"),
    ]
    for function, words in values:
        with pytest.raises(TypeError, match=words):
            bootstrap_ci(p, y, metric=function)


def test_errors_of_the_function() -> None:
    class OwnError(Exception):
        pass

    def metric(preds: Any, target: Any) -> float:
        raise OwnError

    with pytest.raises(OwnError):
        bootstrap_ci(P, Y, metric=metric)
