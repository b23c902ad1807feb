"""Hypothesis tests of calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from torch import Tensor

from ._checks import ArrayLike, Bools, Floats, check_choice
from ._inputs import Options, read
from ._metric import reads_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

Method = Literal["spiegelhalter", "ks", "kuiper"]
METHODS = get_args(Method)
_TERMS = range(1, 12)  # of the series below, which need 5 at most


@dataclass(frozen=True)
class CalibrationTest:
    """The result of a calibration test. A small `p_value` is evidence against calibration."""

    method: str
    """The test: "spiegelhalter", "ks" or "kuiper"."""
    statistic: float
    """The normalized statistic. For "spiegelhalter" a standard normal Z, positive if the Brier score is worse
    than the model expects (overconfidence) and negative if it is better; for the others, at least 0."""
    p_value: float
    """The probability of a statistic at least as extreme for a calibrated model, in [0, 1]."""
    n: int
    """The number of predictions."""

    def __repr__(self) -> str:
        return (
            f"CalibrationTest(method={self.method!r}, statistic={self.statistic:.6g}, "
            f"p_value={self.p_value:.6g}, n={self.n})"
        )


@reads_options
def calibration_test(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    method: Method = "spiegelhalter",
    **options: Unpack[Options],
) -> CalibrationTest:
    """Test the hypothesis that predictions are calibrated: correct with the probability of their confidence.

    Equivalent to, with the confidence ``p = preds.max(1)`` and ``y = preds.argmax(1) == target``, sorted by
    confidence, and ``sigma = sqrt(sum(p * (1 - p)))``::

        spiegelhalter: sum((y - p) * (1 - 2 * p)) / sqrt(sum((1 - 2 * p) ** 2 * p * (1 - p)))
        ks:            max(abs(cumsum(y - p))) / sigma
        kuiper:        (max(0, *cumsum(y - p)) - min(0, *cumsum(y - p))) / sigma

    The cumulative sums of "ks" and "kuiper" are evaluated after whole groups of tied confidences, so that the
    result does not depend on the order of the rows. The tests need no bins, and they are two-sided: they
    detect underconfidence and overconfidence.

    Which test to use: "spiegelhalter" detects only deviations that change the Brier score, and misses those
    that cancel in it, for example on both sides of a confidence of 0.5, and all at 0.5. Given enough
    predictions, the cumulative tests detect every deviation from calibration. "kuiper" is slightly better at
    deviations in a narrow range of confidences, and "ks" at deviations in the same direction for all
    confidences.

    Args:
        preds, target, **options: As in `calibration_error`.
        method: "spiegelhalter", "ks" (Kolmogorov-Smirnov) or "kuiper".

    Returns:
        A :class:`CalibrationTest` with the normalized statistic and its p-value, both Python floats.

        The p-values are asymptotic: of the normal distribution, and of the maximum absolute value and the
        range of Brownian motion. Those of "spiegelhalter" are accurate to about 0.02 if ``sigma ** 2`` is at
        least 4. Those of "ks" and "kuiper" are conservative, that is too large: by at most 0.05 and 0.1 for
        ``sigma ** 2`` of 20, by 0.02 and 0.04 for 150, and by more, for any size, if there are only few
        distinct confidences.

        If the statistic has no variance, it is 0 with a p-value of 1 where nothing deviates (for example if
        all confidences are 0.5, for "spiegelhalter"), and infinite with a p-value of 0 where a certain
        prediction is wrong.

    Raises:
        ValueError: If there are no rows, if a row is not a distribution (the first one is named), or if a
            shape or `method` is wrong.
        TypeError: If an argument has a wrong type.
        IndexError: If a target is not in [0, C); the first one is named.

    Source: Spiegelhalter, "Probabilistic Prediction in Patient Management and Clinical Trials", Statistics in
    Medicine 5, 1986; Arrieta-Ibarra, Gujral, Tannen, Tygert & Xu, "Metrics of Calibration for Probabilistic
    Predictions", JMLR 23, 2022.

    >>> preds = np.tile([0.9, 0.1], (100, 1))
    >>> calibration_test(preds, (np.arange(100) % 4 == 0).astype(int))  # correct in 75 of 100
    CalibrationTest(method='spiegelhalter', statistic=5, p_value=5.73303e-07, n=100)
    """
    check_choice("method", method, METHODS)
    confidence, correct = read(preds, target, **options).top_labels()
    if method == "spiegelhalter":
        statistic = _spiegelhalter(confidence, correct)
        p_value = _two_sided_normal(abs(statistic))
    else:
        lowest, highest, sigma = _cumulative_differences(confidence, correct)
        if method == "ks":
            statistic = _ratio(max(-lowest, highest), sigma)
            p_value = _largest_distance_above(statistic)
        else:
            statistic = _ratio(highest - lowest, sigma)
            p_value = _range_above(statistic)
    return CalibrationTest(method, statistic, p_value, len(confidence))


def _spiegelhalter(p: Floats, y: Bools) -> float:
    # fsum rounds once, so that the order of the rows does not matter.
    tilt = 1 - 2 * p
    excess = math.fsum(((y - p) * tilt).tolist())
    return _ratio(excess, math.sqrt(math.fsum((tilt**2 * (p * (1 - p))).tolist())))


def _cumulative_differences(p: Floats, y: Bools) -> tuple[float, float, float]:
    """The minimum and maximum of the cumulative sums of y - p by confidence, and their standard deviation."""
    values, group, sizes = np.unique(p, return_inverse=True, return_counts=True)
    correct = np.bincount(group, weights=y, minlength=len(values))
    sums = np.cumsum(correct - sizes * values)
    variance = math.fsum((sizes * (values * (1 - values))).tolist())
    return min(0.0, float(sums.min())), max(0.0, float(sums.max())), math.sqrt(variance)


def _ratio(difference: float, deviation: float) -> float:
    """difference / deviation; infinite, or 0 if both are 0, for a deviation of 0."""
    if deviation == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / deviation


# Each distribution has two series: one converges fast for large x and gives tiny p-values without
# cancellation; the other converges fast for small x, where the result of 1 minus the series is large.


def _two_sided_normal(x: float) -> float:
    """P(|Z| > x) of a standard normal Z, erfc(x / sqrt(2)); full relative precision far in the tail."""
    t = x / math.sqrt(2)
    tail = math.erfc(t)
    if x < 2 or tail == 0:
        return tail
    # Rounding t causes a relative error of 2 t² epsilon, 1e-13 at p-values of 1e-300: corrected to first
    # order.
    rounding = float(Fraction(x) ** 2 / 2 - Fraction(t) ** 2) / (2 * t)
    return tail - 2 / math.sqrt(math.pi) * math.exp(-t * t) * rounding


def _largest_distance_above(x: float) -> float:
    """P(max |B| > x) of Brownian motion B on [0, 1]."""
    if x >= 1:
        return math.fsum((-1) ** (k + 1) * 2 * _two_sided_normal((2 * k - 1) * x) for k in _TERMS)
    if x < 0.1:
        return 1.0  # less 1e-53
    rate = math.pi**2 / 8 / x / x
    below = math.fsum((-1) ** (k + 1) / (2 * k - 1) * math.exp(-((2 * k - 1) ** 2) * rate) for k in _TERMS)
    return 1 - 4 / math.pi * below


def _range_above(x: float) -> float:
    """P(max B - min B > x) of Brownian motion B on [0, 1]; Feller, Ann. Math. Statist. 22, 1951."""
    if x >= 1.5:
        return math.fsum((-1) ** (k + 1) * 4 * k * _two_sided_normal(k * x) for k in _TERMS)
    if x < 0.1:
        return 1.0  # less 1e-211
    odd = [2 * k - 1 for k in _TERMS]
    rate = math.pi**2 / 2 / x / x
    below = math.fsum((8 / (k * math.pi) ** 2 + 8 / x / x) * math.exp(-(k**2) * rate) for k in odd)
    return 1 - below
