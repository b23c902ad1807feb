"""The paired comparison of two models on the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ._bins import Binning, Norm
from ._chance_bound import ChanceBound
from ._checks import Array, ArrayLike, Floats, check_resampling, named
from ._functions import ERRORS, FunctionOfRows, check_metric, function_of_rows
from ._inputs import Options
from ._inversion import Inversion
from ._metric import reads_options
from ._sums import BINNED, SUMMED, Rows, Setting, resampled_sums, rows_of

_STEPS = 10  # of the bisection for a p-value, to 3 %

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, eq=False)
class CalibrationComparison:
    """The difference of a metric between two models: ``difference, low, high = comparison``."""

    difference: float
    """The metric of the first model minus that of the second."""
    low: float
    """The lower end of the confidence interval of the difference."""
    high: float
    """The upper end of that interval."""
    p_value: float
    """The p-value of the hypothesis that the difference is 0, two-sided."""
    estimates: tuple[float, float]
    """The metric of each model."""
    standard_error: float
    """The standard deviation of the difference over the resamples."""
    confidence_level: float
    """The confidence level of the interval."""
    distribution: Floats = field(repr=False)
    """The difference in each resample, of shape (n_resamples,)."""

    def __iter__(self) -> Iterator[float]:
        return iter((self.difference, self.low, self.high))


@reads_options
def compare_calibration(
    preds_a: Tensor | ArrayLike,
    preds_b: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    metric: str | Callable[[Any, Any], Any] = "expected_calibration_error",
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    norm: Norm | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
    **options: Unpack[Options],
) -> CalibrationComparison:
    """Compare a metric of two models on the same data: the difference, its interval and a p-value.

    Equivalent to, for scores and functions::

        draws = [metric(preds_a[i], target[i]) - metric(preds_b[i], target[i]) for i in resamples]
        low, high = quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        p_value = 2 * min(mean(draws <= 0), mean(draws >= 0))  # each with 1 added to both counts

    A resample has the same rows for both models, so that what they have in common cancels.

    The calibration errors of both samples are too large, by different amounts: more so for the better
    calibrated model, so that `difference` is too close to 0. For named calibration errors, the interval is
    therefore computed from those of `bootstrap_ci`, by the method of variance estimates recovery (MOVER) with
    the correlation of the two errors over the resamples, and the p-value is the level at which it begins to
    hold 0. In simulations of the expected calibration error (docs/inside/intervals.md), it covered the
    difference of the population errors in at least 90 % of the samples; for models with similar predictions,
    it is wider than necessary.

    Args:
        preds_a, preds_b: The predictions of the models, of the same shape; otherwise as in
            `calibration_error`.
        target, n_bins, binning, **options: As in `calibration_error`.
        metric, norm, n_resamples, confidence_level, seed: As in `bootstrap_ci`.

    Raises:
        ValueError, TypeError, IndexError: As in `bootstrap_ci`; a ValueError also for different shapes.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993; MOVER: Zou & Donner, "Construction
    of confidence limits about effect measures: A general approach", Statistics in Medicine 27, 2008.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.uniform(size=2000)
    >>> target = (rng.uniform(size=2000) < p).astype(int)
    >>> result = compare_calibration(p, p**2, target)
    >>> result.difference < 0, result.high < 0, result.p_value < 0.01  # p is better calibrated
    (True, True, True)
    """
    check_metric(metric)
    setting = Setting(n_bins, binning, norm, options)
    setting.check()
    n_resamples, level, seed = check_resampling(n_resamples, confidence_level, seed)
    a = _model("preds_a", metric, preds_a, target, setting)
    b = _model("preds_b", metric, preds_b, target, setting)
    shape_a, shape_b = tuple(np.shape(preds_a)), tuple(np.shape(preds_b))
    if shape_a != shape_b:
        raise ValueError(
            f"Expected argument `preds_b` to have shape {shape_a}, that of `preds_a`, but got {shape_b}."
        )
    draws = _paired(a, b, n_resamples, seed)
    difference, differences = a.estimate - b.estimate, draws[0] - draws[1]
    deviation = float(differences.std(ddof=1))
    if metric in (*BINNED, *ERRORS) and (difference or deviation):  # 0 for a model and itself
        single = [
            _single(model, of_model, n_resamples, seed) for model, of_model in zip((a, b), draws, strict=True)
        ]
        ends = _Ends(single[0], single[1], draws)
        low, high = min(ends.low(level), difference), max(ends.high(level), difference)
        p_value = ends.p_value(1 / n_resamples)
    else:
        low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2]).tolist()
        fewer = int(min((differences <= 0).sum(), (differences >= 0).sum()))
        p_value = min(1.0, 2 * (fewer + 1) / (n_resamples + 1))
    return CalibrationComparison(
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        estimates=(a.estimate, b.estimate),
        standard_error=deviation,
        confidence_level=level,
        distribution=differences,
    )


def _model(
    name: str,
    metric: str | Callable[[Any, Any], Any],
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    setting: Setting,
) -> Rows | FunctionOfRows:
    if callable(metric):
        return function_of_rows(metric, preds, target, setting)
    with named(name):
        if metric in SUMMED:
            return rows_of(metric, preds, target, setting)
        return function_of_rows(metric, preds, target, setting)


def _single(
    model: Rows | FunctionOfRows, draws: Floats, n_resamples: int, seed: int
) -> Inversion | ChanceBound:
    """The interval of one model."""
    if isinstance(model, Rows):
        return Inversion(model, n_resamples, seed)
    return ChanceBound(model.estimate, draws, model.resample_targets(n_resamples, seed))


class _Ends:
    """The ends of the interval of a difference a - b, from those of the intervals of a and b."""

    def __init__(self, a: Inversion | ChanceBound, b: Inversion | ChanceBound, draws: Floats) -> None:
        self._a, self._b = a, b
        deviations = draws.std(1)
        covariance = float(np.cov(draws, ddof=0)[0, 1])
        self._correlation = covariance / float(deviations.prod()) if deviations.all() else 0.0
        # The intervals begin at medians without bias; the median depends on the path.
        self._lows, self._highs = (a.low(0), b.low(0)), (a.high(0), b.high(0))

    def low(self, level: float) -> float:
        below, above = self._lows[0] - self._a.low(level), self._b.high(level) - self._highs[1]
        return self._lows[0] - self._highs[1] - self._distance(below, above)

    def high(self, level: float) -> float:
        above, below = self._a.high(level) - self._highs[0], self._lows[1] - self._b.low(level)
        return self._highs[0] - self._lows[1] + self._distance(above, below)

    def p_value(self, smallest: float) -> float:
        """1 minus the level from which on the interval holds 0."""
        if self.low(0) <= 0 <= self.high(0):
            return 1.0

        def excludes(p: float) -> bool:
            return self.low(1 - p) > 0 if is_positive else self.high(1 - p) < 0

        is_positive = self.low(0) > 0
        low, high = math.log(smallest), 0.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if excludes(math.exp(middle)) else (middle, high)
        return math.exp(high)

    def _distance(self, x: float, y: float) -> float:
        return math.sqrt(max(x * x + y * y - 2 * self._correlation * x * y, 0))


def _paired(a: Rows | FunctionOfRows, b: Rows | FunctionOfRows, n_resamples: int, seed: int) -> Floats:
    """The metrics of both models, for resamples with the same rows."""
    if not (isinstance(a, Rows) and isinstance(b, Rows)):
        return np.stack([a.resample(n_resamples, seed), b.resample(n_resamples, seed)])
    pairs = a.groups.astype(np.int64) * b.n_groups + b.groups
    both, groups = np.unique(pairs, return_inverse=True)
    groups = groups.astype(np.uint32)
    draws = []
    for rows, of_both in ((a, both // b.n_groups), (b, both % b.n_groups)):
        sums = resampled_sums(rows.values, groups, len(both), n_resamples, seed)
        order = np.argsort(of_both, kind="stable")
        starts = np.searchsorted(of_both[order], np.arange(rows.n_groups))
        weight, value = (np.add.reduceat(column[:, order], starts, axis=1) for column in sums)
        draws.append(rows.of_resampled(weight, value))
    return np.stack(draws)
