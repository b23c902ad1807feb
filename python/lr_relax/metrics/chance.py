"""The chance level of a calibration error: what a calibrated model would show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ._bins import Binning, Norm
from ._checks import Array, ArrayLike, Floats, check_choice, check_resampling
from ._functions import ERRORS, function_of_rows
from ._inputs import Options
from ._metric import reads_options
from ._sums import BINNED, OF_SUMS, BinnedRows, Setting, binned_as, binned_rows, norm_of

METRICS = (*BINNED, *ERRORS)
_CHUNK = 2**20  # random numbers at a time

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, eq=False)
class ChanceLevel:
    """The calibration error that a calibrated model with the same confidences shows by chance."""

    estimate: float
    """The error of the targets as they are."""
    mean: float
    """The mean error of a calibrated model."""
    low: float
    """The lower quantile of that error, (1 - confidence_level) / 2."""
    high: float
    """The upper quantile of that error, (1 + confidence_level) / 2."""
    p_value: float
    """The probability that a calibrated model shows an error of `estimate` or more."""
    confidence_level: float
    """The probability between the quantiles."""
    distribution: Floats = field(repr=False)
    """The error for each draw of the targets, of shape (n_resamples,)."""
    bins: ChanceBins | None = field(repr=False)
    """The accuracies in each bin; None for metrics without bins of confidence."""


@dataclass(frozen=True, eq=False)
class ChanceBins:
    """The accuracy that a calibrated model shows by chance, for the bins of a `ReliabilityCurve`.

    A bar from `lower` to `upper` at the `confidence` of the bin holds the accuracy with the probability
    `confidence_level` if the model is calibrated. All are of shape (n_bins,), and NaN for empty bins.
    """

    counts: npt.NDArray[np.int64]
    """The number of predictions."""
    confidence: Floats
    """The mean confidence."""
    accuracy: Floats
    """The fraction of correct predictions, for the targets as they are."""
    lower: Floats
    """The lower quantile of the accuracy of a calibrated model."""
    upper: Floats
    """The upper quantile of that accuracy."""
    confidence_level: float
    """The probability between the quantiles, for one bin."""


@reads_options
def chance_level(
    preds: Tensor | ArrayLike,
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
) -> ChanceLevel:
    """Compute the calibration error that a calibrated model with these predictions shows by chance.

    Equivalent to, with the confidence ``c = preds.max(1)``::

        draws = [error(c, rng.random(N) < c) for _ in range(n_resamples)]  # correct with probability c
        mean, low, high = draws.mean(), *quantile(draws, [(1 - level) / 2, (1 + level) / 2])

    A calibration error is positive even for a calibrated model, the more so the fewer rows there are in a
    bin. Compare an error with this level, not with 0. The predictions stay the same; Bröcker & Smith draw
    them with replacement as well, which makes little difference.

    Args:
        preds, target, n_bins, binning, **options: As in `calibration_error`. The targets are
            used for `estimate`, `p_value` and the accuracies only.
        metric: A calibration error by its name in `lr_relax.metrics`, or a function of (preds, target). For
            functions, the classwise, the smooth and the soft error, each draw calls the metric, with classes
            that are drawn from the rows of `preds` as targets. `n_bins`, `binning` and `ignore_index` do not
            apply to a function.
        norm: As in `calibration_error`, for metrics that have it.
        n_resamples: The number of draws, at least 2.
        confidence_level: The probability between the quantiles, in (0, 1).
        seed: The seed of the random numbers, in [0, 2^64).

    Raises:
        ValueError, TypeError, IndexError: As in `calibration_error`.

    Source: Bröcker & Smith, "Increasing the Reliability of Reliability Diagrams", Weather and Forecasting 22,
    2007 (consistency resampling).

    >>> p = np.linspace(0.5, 1, 200)
    >>> level = chance_level(p, np.ones(200, int))  # too often correct
    >>> level.low < level.mean < level.high < level.estimate, level.p_value < 0.01
    (True, True)
    """
    if not callable(metric):
        check_choice("metric", metric, METRICS)
    setting = Setting(n_bins, binning, norm, options)
    setting.check()
    n_resamples, level, seed = check_resampling(n_resamples, confidence_level, seed)
    tails = [(1 - level) / 2, (1 + level) / 2]

    bins = None
    if isinstance(metric, str) and metric in BINNED:
        of_sums = OF_SUMS[norm_of(metric, setting)]
        rows = binned_rows(preds, target, binned_as(metric, setting))
        counts, confidence = rows.sums_over(), rows.sums_over(rows.confidence)
        correct = np.stack(list(_drawn_sums(rows, n_resamples, seed)))
        estimate = float(of_sums(counts, confidence - rows.sums_over(rows.correct)))
        draws = of_sums(counts, confidence - correct)
        bins = _bins(rows, np.quantile(correct / counts, tails, axis=0), level)
    else:
        function = function_of_rows(metric, preds, target, setting)
        estimate, draws = function.estimate, function.resample_targets(n_resamples, seed)

    low, high = np.quantile(draws, tails)
    # Rounding must not decide between equal errors.
    reached = int((draws >= estimate * (1 - 1e-12)).sum())
    return ChanceLevel(
        estimate=estimate,
        mean=float(draws.mean()),
        low=float(low),
        high=float(high),
        p_value=(reached + 1) / (n_resamples + 1),
        confidence_level=level,
        distribution=draws,
        bins=bins,
    )


def _drawn_sums(rows: BinnedRows, n_resamples: int, seed: int) -> Iterator[Floats]:
    """The number of correct predictions in each bin, for each draw."""
    order = np.argsort(rows.groups, kind="stable")
    starts = np.searchsorted(rows.groups[order], np.arange(int(rows.filled.sum())))
    confidence = rows.confidence[order].astype(np.float32)
    random, size = np.random.default_rng(seed), max(1, _CHUNK // len(order))
    for start in range(0, n_resamples, size):
        shape = (min(size, n_resamples - start), len(order))
        correct = random.random(shape, dtype=np.float32) < confidence
        yield from np.add.reduceat(correct, starts, axis=1, dtype=np.int64).astype(np.float64)


def _bins(rows: BinnedRows, quantiles: Floats, level: float) -> ChanceBins:
    counts = rows.sums_over()
    means = rows.sums_over(rows.confidence) / counts, rows.sums_over(rows.correct) / counts
    all_counts = np.zeros(len(rows.filled), np.int64)
    all_counts[rows.filled] = counts
    columns = np.full((4, len(rows.filled)), np.nan)
    columns[:, rows.filled] = [*means, *quantiles]
    confidence, accuracy, lower, upper = columns
    return ChanceBins(all_counts, confidence, accuracy, lower, upper, level)
