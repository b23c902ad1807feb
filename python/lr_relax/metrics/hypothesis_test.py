"""Tests of calibration: could a calibrated model have made these predictions?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import Tensor

from ._inputs import Array, Bools, Floats, check_choice, top_labels

METHODS = ("spiegelhalter", "ks", "kuiper")
_TERMS = range(1, 12)  # of the series below, which need 5 at most


@dataclass(frozen=True)
class CalibrationTest:
    """What a test of calibration found: the smaller `p_value`, the less the model is calibrated."""

    method: str
    """Which test: "spiegelhalter", "ks" or "kuiper"."""
    statistic: float
    """The normalised statistic. Of "spiegelhalter" a standard normal Z, above 0 where the Brier score is
    worse than the model expects (overconfident) and below 0 where it is better; otherwise at least 0."""
    p_value: float
    """The probability that a calibrated model has a statistic at least as extreme, in [0, 1]."""
    n: int
    """The number of predictions."""

    def __repr__(self) -> str:
        return (
            f"CalibrationTest(method={self.method!r}, statistic={self.statistic:.6g}, "
            f"p_value={self.p_value:.6g}, n={self.n})"
        )


def calibration_test(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    method: str = "spiegelhalter",
    from_logits: bool = False,
    ignore_index: int | None = None,
) -> CalibrationTest:
    """Test whether predictions are as often right as they say: hits are independent Bernoulli(confidence).

    Equivalent to, with the confidence ``p = preds.max(1)`` and ``y = preds.argmax(1) == target``, sorted by
    confidence, and ``sigma = sqrt(sum(p * (1 - p)))``::

        spiegelhalter: sum((y - p) * (1 - 2 * p)) / sqrt(sum((1 - 2 * p) ** 2 * p * (1 - p)))
        ks:            max(abs(cumsum(y - p))) / sigma
        kuiper:        (max(0, *cumsum(y - p)) - min(0, *cumsum(y - p))) / sigma

    The sums of "ks" and "kuiper" are taken after whole groups of tied confidences only, so that the order of
    the rows never matters. No test needs bins, and all are two-sided: under- and overconfidence are both
    found.

    Which one: "spiegelhalter" sees only what shifts the Brier score, and misses deviations that cancel in it:
    those on both sides of a confidence of 0.5 for example, and all at 0.5. The cumulative tests see every
    deviation from calibration, given enough predictions; "kuiper" sees deviations inside a narrow range of
    confidences a little better, "ks" those that are alike for all confidences.

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`; or the probability of a binary
            event, of the shape of `target`. A torch tensor or a NumPy array of 16, 32 or 64 bit floats.
        target: Classes in [0, C), of the shape of `preds` without its last dimension; or 0 and 1.
        method: "spiegelhalter", "ks" (Kolmogorov-Smirnov) or "kuiper".
        from_logits: Whether `preds` holds logits. It is never guessed.
        ignore_index: Rows with this target do not count.

    Returns:
        A :class:`CalibrationTest` with the normalised statistic and its p-value, both Python floats.

        The p-values are asymptotic: of the normal law, and of the laws of the largest distance from 0 and of
        the range of Brownian motion. Those of "spiegelhalter" are good to about 0.02 once the confidences
        leave a variance ``sigma ** 2`` of 4. Those of "ks" and "kuiper" are a little too large, so that the
        tests reject too rarely rather than too often: by at most 0.05 and 0.1 at ``sigma ** 2`` of 20, by
        0.02 and 0.04 at 150, and by more, whatever the size, where there are only few distinct confidences.

        Where the statistic has no variance, it says nothing (all confidences 0.5, for "spiegelhalter") or all
        (certainty that was right, or was not): it is 0 with a p-value of 1, or infinite with a p-value of 0.

    Raises:
        ValueError: no rows, a row that is no distribution (the first one is named), a wrong shape or
            `method`.
        TypeError: an argument is of a wrong type.
        IndexError: a target is no class; names the first one.

    Source: Spiegelhalter, "Probabilistic Prediction in Patient Management and Clinical Trials", Statistics in
    Medicine 5, 1986; Arrieta-Ibarra, Gujral, Tannen, Tygert & Xu, "Metrics of Calibration for Probabilistic
    Predictions", JMLR 23, 2022.

    >>> preds = np.tile([0.9, 0.1], (100, 1))
    >>> calibration_test(preds, (np.arange(100) % 4 == 0).astype(int))  # right in 75 of 100
    CalibrationTest(method='spiegelhalter', statistic=5, p_value=5.73303e-07, n=100)
    """
    check_choice("method", method, METHODS)
    confidence, hit = top_labels(preds, target, from_logits=from_logits, ignore_index=ignore_index)
    if method == "spiegelhalter":
        statistic = _spiegelhalter(confidence, hit)
        p_value = _two_sided_normal(abs(statistic))
    else:
        lowest, highest, sigma = _cumulative_differences(confidence, hit)
        if method == "ks":
            statistic = _ratio(max(-lowest, highest), sigma)
            p_value = _largest_distance_above(statistic)
        else:
            statistic = _ratio(highest - lowest, sigma)
            p_value = _range_above(statistic)
    return CalibrationTest(method, statistic, p_value, len(confidence))


def _spiegelhalter(p: Floats, y: Bools) -> float:
    # Sums by fsum, which rounds once: the order of the rows does not matter.
    tilt = 1 - 2 * p
    excess = math.fsum(((y - p) * tilt).tolist())
    return _ratio(excess, math.sqrt(math.fsum((tilt**2 * (p * (1 - p))).tolist())))


def _cumulative_differences(p: Floats, y: Bools) -> tuple[float, float, float]:
    """The extremes of the sums of hits less confidences, from the least confident on, and its deviation."""
    values, group, sizes = np.unique(p, return_inverse=True, return_counts=True)
    hits = np.bincount(group, weights=y, minlength=len(values))
    sums = np.cumsum(hits - sizes * values)
    variance = math.fsum((sizes * (values * (1 - values))).tolist())
    return min(0.0, float(sums.min())), max(0.0, float(sums.max())), math.sqrt(variance)


def _ratio(difference: float, deviation: float) -> float:
    """Where nothing may differ, any difference is infinitely many deviations."""
    if deviation == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / deviation


# Each law has two series, one that converges at once for large x and one that does for small x. The former
# gives tiny p-values without subtracting; the latter is subtracted from 1 only where the result is large.


def _two_sided_normal(x: float) -> float:
    """P(|Z| > x) of a standard normal Z, erfc(x / sqrt(2)); full relative precision far in the tail."""
    t = x / math.sqrt(2)
    tail = math.erfc(t)
    if x < 2 or tail == 0:
        return tail
    # The rounding of t costs a relative 2 t² epsilon: 1e-13 at p-values of 1e-300. By Taylor it is undone.
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
