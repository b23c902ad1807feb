"""Confidence intervals of metrics, by the bootstrap and by inverting a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ._bins import Binning, Norm
from ._chance_bound import ChanceBound
from ._checks import Array, ArrayLike, Floats, check_choice, check_resampling
from ._functions import ERRORS, check_metric, function_of_rows
from ._inputs import Options
from ._inversion import Inversion
from ._metric import reads_options
from ._sums import BINNED, SUMMED, Setting, rows_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, eq=False)
class BootstrapInterval:
    """A confidence interval of a metric: ``estimate, low, high = interval``."""

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
    method: str
    """How the interval was computed."""
    distribution: Floats = field(repr=False)
    """The metric of each resample, of shape (n_resamples,)."""

    def __iter__(self) -> Iterator[float]:
        return iter((self.estimate, self.low, self.high))


@reads_options
def bootstrap_ci(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    metric: str | Callable[[Any, Any], Any] = "expected_calibration_error",
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    norm: Norm | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    method: str | None = None,
    seed: int = 0,
    **options: Unpack[Options],
) -> BootstrapInterval:
    """Compute a confidence interval of a metric.

    Equivalent to, for the method "percentile"::

        draws = [metric(preds[i], target[i]) for i in rng.integers(N, size=(n_resamples, N))]
        low, high = quantile(draws, [(1 - level) / 2, (1 + level) / 2])

    **Calibration errors.** The error of a sample exceeds that of the population, most of all if the model is
    calibrated, and that of a resample exceeds both: the interval "percentile" does not even hold its estimate
    then, and "basic" lies too high as well. The default for errors over bins of confidence is
    "test_inversion": the interval of all population errors for which the observed one is neither too large
    nor too small. It holds the estimate, and it begins at 0 if the model may be calibrated.

    What it covers is the binned error of the population, for the same bins: with the l1 norm, the sum over
    the bins of ``P(bin) * abs(P(correct | bin) - E[confidence | bin])``. With "quantile" binning, these are
    the bins between the edges that the sample gave. In simulations with 2 to 100 classes, 500 to 10,000 rows
    and errors from 0 to 0.1, "test_inversion" at level 0.95 covered it in at least 90 % of the samples in
    each case; docs/inside/intervals.md has the table.

    The default for the classwise, the smooth and the soft calibration error is "chance": from the estimate
    minus the upper quantile of the `chance_level` (or of the deviations of the resamples, if larger) to the
    estimate plus the deviations of the resamples. It is wider than necessary if the error is far above the
    chance level. In simulations with 10 classes, 500 and 2,000 rows and errors from 0 to 0.1, it covered the
    smooth error of the population in at least 92 % of the samples in each case, of 40, and the soft error in
    at least 93 %, of 100; with 2 and 10 classes and 500 rows, the classwise error in at least 96 %, of 50.

    **Resamples.** For scores and errors over bins of confidence, the number of times that a row is drawn is a
    Poisson variable of mean 1 (with probabilities rounded to 16 bits), and the size of a resample is the sum
    of these numbers. Rows are not moved, so that a resample takes less time than reading the logits. The bin
    edges are those of all rows. The result depends on the seed, but not on the number of threads.

    Args:
        preds, target, n_bins, binning, **options: As in `calibration_error`.
        metric: The name of a metric in `lr_relax.metrics` that returns a single value, or a function of
            (preds, target). The function is called with the rows of each resample, drawn with replacement
            along the first dimension; `from_logits`, `n_bins`, `binning` and `ignore_index` do not apply to
            it.
        norm: As in `calibration_error`, for the metrics that have it.
        n_resamples: The number of resamples and of simulated samples, at least 2.
        confidence_level: The confidence level of the interval, in (0, 1).
        method: "percentile", or "basic", which reflects "percentile" at the estimate. For calibration errors
            over bins of confidence also "test_inversion", their default; for the classwise, the smooth and
            the soft error also "chance", their default. Functions may have "chance" if they are calibration
            errors; their default is "percentile".
        seed: The seed of the random numbers, in [0, 2^64).

    Raises:
        ValueError, TypeError, IndexError: As in `calibration_error`. A ValueError also if the metric is the
            negative log-likelihood and a target has probability 0, or if the metric lacks the method.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993; Hanley & MacGibbon, "Creating
    non-parametric bootstrap samples using Poisson frequencies", 2006. On intervals of calibration errors:
    Sun, Chaudhari, Barnett & Dobriban, "A Confidence Interval for the l2 Expected Calibration Error", 2024
    (arXiv:2408.08998), whose interval, from a normal distribution, is for the l2 norm only.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.uniform(size=2000)
    >>> estimate, low, high = bootstrap_ci(p, (rng.uniform(size=2000) < p).astype(int))
    >>> low == 0 < estimate < high  # the model is calibrated
    True
    """
    check_metric(metric)
    setting = Setting(n_bins, binning, norm, options)
    setting.check()
    method = _method(method, metric)
    n_resamples, level, seed = check_resampling(n_resamples, confidence_level, seed)
    ends: Inversion | ChanceBound | None = None
    if isinstance(metric, str) and metric in SUMMED:
        rows = rows_of(metric, preds, target, setting)
        estimate, draws = rows.estimate, rows.resample(n_resamples, seed)
        if method == "test_inversion":
            ends = Inversion(rows, n_resamples, seed)
    else:
        function = function_of_rows(metric, preds, target, setting)
        estimate, draws = function.estimate, function.resample(n_resamples, seed)
        if method == "chance":
            ends = ChanceBound(estimate, draws, function.resample_targets(n_resamples, seed))
    if ends is not None:
        low, high = min(ends.low(level), estimate), max(ends.high(level), estimate)
    else:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
        if method == "basic":
            low, high = 2 * estimate - high, 2 * estimate - low
    return BootstrapInterval(
        estimate=estimate,
        low=low,
        high=high,
        standard_error=float(draws.std(ddof=1)),
        confidence_level=level,
        method=method,
        distribution=draws,
    )


def _method(method: str | None, metric: str | Callable[[Any, Any], Any]) -> str:
    """The method, or the default one of the metric."""
    methods: tuple[str, ...] = ("percentile", "basic")
    if isinstance(metric, str) and metric in BINNED:
        methods = ("test_inversion", *methods)
    elif isinstance(metric, str) and metric in ERRORS:
        methods = ("chance", *methods)
    elif callable(metric):
        methods = (*methods, "chance")
    if method is None:
        return methods[0]
    check_choice("method", method, methods)
    return method
