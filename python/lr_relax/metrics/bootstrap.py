"""Bootstrap confidence intervals of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lr_relax import _native

from ._bins import Binning, check_bins
from ._checks import (
    Array,
    ArrayLike,
    Floats,
    as_array,
    check_choice,
    check_integer,
    check_not_empty,
    check_share,
)
from ._inputs import Options, read, reads_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

METRICS = (
    "expected_calibration_error",
    "maximum_calibration_error",
    "brier_score",
    "negative_log_likelihood",
    "accuracy",
)


@dataclass(frozen=True, eq=False)
class BootstrapInterval:
    """A bootstrap confidence interval of a metric."""

    estimate: float
    """The metric of the original predictions."""
    low: float
    """The lower end of the interval."""
    high: float
    """The upper end of the interval."""
    standard_error: float
    """The standard deviation of the metric over the resamples."""
    confidence_level: float
    """The confidence level of the interval."""
    distribution: Floats = field(repr=False)
    """The metric of each resample, of shape (n_resamples,)."""


@reads_options
def bootstrap_ci(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    metric: str | Callable[[Any, Any], Any] = "expected_calibration_error",
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    method: str = "percentile",
    seed: int = 0,
    **options: Unpack[Options],
) -> BootstrapInterval:
    """Compute a bootstrap confidence interval of a metric.

    Equivalent to, for the method "percentile"::

        draws = [metric(preds[i], target[i]) for i in rng.integers(N, size=(n_resamples, N))]
        low, high = quantile(draws, [(1 - level) / 2, (1 + level) / 2])

    For the named metrics, the number of times that a row is drawn is a Poisson variable of mean 1 (with
    probabilities rounded to 16 bits), and the size of a resample is the sum of these numbers. Rows are not
    moved, so that a resample takes less time than reading the logits. The bin edges are those of all rows.
    The result depends on the seed, but not on the number of threads.

    On average, the calibration error of a resample is larger than that of the original rows, because
    resampling adds noise to the gap of each bin. If the gaps are small, the interval may lie above the
    estimate. The method "basic" reflects the interval at the estimate.

    Args:
        preds, target, n_bins, binning, **options: As in `calibration_error`.
        metric: "expected_calibration_error", "maximum_calibration_error", "brier_score",
            "negative_log_likelihood", "accuracy", or a function of (preds, target). The function is called
            with the rows of each resample, drawn with replacement along the first dimension; the other
            options of predictions do not apply to it.
        n_resamples: The number of resamples, at least 2.
        confidence_level: The confidence level of the interval, in (0, 1).
        method: "percentile" or "basic".
        seed: The seed of the random numbers, in [0, 2^64).

    Raises:
        ValueError, TypeError, IndexError: As in `calibration_error`. A ValueError also if the metric is the
            negative log-likelihood and a target has probability 0.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993; Hanley & MacGibbon, "Creating
    non-parametric bootstrap samples using Poisson frequencies", 2006.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.uniform(size=2000)
    >>> interval = bootstrap_ci(p, (rng.uniform(size=2000) < p).astype(int), metric="brier_score")
    >>> interval.low < interval.estimate < interval.high
    True
    """
    if not callable(metric):
        check_choice("metric", metric, METRICS)
    n, name_or_edges = check_bins(n_bins, binning)
    n_resamples = check_integer("n_resamples", n_resamples, 2, 2**24)
    level = check_share("confidence_level", confidence_level)
    check_choice("method", method, ("percentile", "basic"))
    seed = check_integer("seed", seed, 0, 2**64 - 1)
    if callable(metric):
        estimate, draws = _resample_rows(metric, preds, target, n_resamples, seed)
    else:
        values, groups, n_groups = _rows(metric, preds, target, n, name_or_edges, options)
        statistic = _STATISTICS.get(metric, _mean)
        weight: Floats = np.bincount(groups, minlength=n_groups).astype(np.float64)
        value: Floats = np.bincount(groups, weights=values, minlength=n_groups).astype(np.float64)
        estimate = float(statistic(weight[None], value[None])[0])
        sums = _native.bootstrap_sums(values, groups, n_groups, n_resamples, seed)
        draws = statistic(*(column.reshape(n_resamples, n_groups) for column in sums))
        if statistic is _mean:
            # Rounding to single precision must not move a mean outside the range of the values.
            draws = draws.clip(values.min(), values.max())
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    if method == "basic":
        low, high = 2 * estimate - high, 2 * estimate - low
    return BootstrapInterval(
        estimate=estimate,
        low=float(low),
        high=float(high),
        standard_error=float(draws.std(ddof=1)),
        confidence_level=level,
        distribution=draws,
    )


def _rows(
    metric: str,
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    n_bins: int,
    binning: str | list[float],
    options: Options,
) -> tuple[Floats, Any, int]:
    """A value for each row, the group it belongs to, and the number of groups."""
    rows = read(preds, target, **options)
    if metric.endswith("calibration_error"):
        confidence, outcome, bins = (
            rows.of_rows(column)
            for column in _native.binned_top_labels(
                rows.preds, rows.target, rows.from_logits, n_bins, binning, rows.ignore_index
            )
        )
        check_not_empty(len(outcome))
        # Empty bins are dropped: there may be many.
        filled = np.bincount(bins) > 0
        groups = (np.cumsum(filled) - 1).astype(np.uint32)[bins]
        return confidence - outcome, groups, int(filled.sum())
    if metric == "accuracy":
        values = rows.is_correct(*rows.top_labels()).astype(np.float64)
    else:
        name = "brier" if metric == "brier_score" else "log_likelihood"
        values = rows.of_rows(
            _native.row_scores(rows.preds, rows.target, rows.from_logits, rows.ignore_index, name)
        )
    check_not_empty(len(values))
    if np.isinf(values).any():
        raise ValueError("Expected argument `preds` to give each target a probability above 0.")
    return values, np.zeros(len(values), np.uint32), 1


# The statistics take sums over groups, of shape (resamples, groups).


def _mean(weight: Floats, value: Floats) -> Floats:
    mean: Floats = value.sum(1) / weight.sum(1)
    return mean


def _expected(weight: Floats, value: Floats) -> Floats:
    return _mean(weight, np.abs(value))


def _maximum(weight: Floats, value: Floats) -> Floats:
    gaps = np.divide(np.abs(value), weight, out=np.zeros_like(weight), where=weight > 0)
    maximum: Floats = gaps.max(1)
    return maximum


_STATISTICS = {"expected_calibration_error": _expected, "maximum_calibration_error": _maximum}


def _resample_rows(
    metric: Callable[[Any, Any], Any],
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    n_resamples: int,
    seed: int,
) -> tuple[float, Floats]:
    preds, target = as_array("preds", preds), as_array("target", target)
    n = len(target) if target.ndim else 0
    if preds.ndim == 0 or len(preds) != n or n == 0:
        raise ValueError(
            "Expected arguments `preds` and `target` to have the same number of rows, at least one, "
            f"but got shapes {tuple(preds.shape)} and {tuple(target.shape)}."
        )
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(n_resamples):
        rows: Any = random.integers(n, size=n)
        draws.append(float(metric(preds[rows], target[rows])))
    if not all(map(math.isfinite, draws)):
        raise ValueError("Expected argument `metric` to return finite numbers.")
    return float(metric(preds, target)), np.array(draws)
