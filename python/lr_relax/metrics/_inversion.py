"""Confidence intervals of binned calibration errors by inverting a test.

The error of a sample exceeds that of the population: noise adds to gaps of either sign. The excess is largest
if the model is calibrated, and vanishes if all gaps are large. So the interval holds the population errors
for which the observed one is neither too large nor too small, where the sample is simulated for each.

Such a test needs the gaps of the population in all bins, not only their norm, and different gaps of the same
norm have different excess. The gaps therefore follow a path, with the observed gaps in units of their
standard errors z, and each end of the interval has its own path, close to the least favorable one for it:

- Down to 0 for the lower end: gap * max(1 - (t / z)^4, 0). Gaps that may be noise vanish first, which leaves
  the population error in few bins and the excess large. (With 2 for 4 it is the nonnegative garrote; Breiman,
  "Better Subset Regression Using the Nonnegative Garrote", 1995.) For the maximum, the path is min(gap, t).
- Up for the upper end: max(sqrt(z^2 - 1), t) standard errors, which spreads the population error over all
  bins, so that the excess is small. For the maximum, the excess is small if one gap is large, and the upper
  end is the largest gap in the Wilson intervals of the accuracies of all bins.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from ._checks import Floats
from ._sums import Rows

_STEPS = 18  # of each bisection


class Inversion:
    """The test of each population error, with the same random numbers for all of them."""

    def __init__(self, rows: Rows, n_draws: int, seed: int) -> None:
        assert rows.by_bin is not None
        bins, self._norm, self._of_sums, self._estimate = rows.by_bin, rows.norm, rows.of_sums, rows.estimate
        self._counts = counts = bins.sums_over()
        self._confidence = bins.sums_over(bins.confidence) / counts
        correct = bins.sums_over(bins.correct)
        self._accuracy = correct / counts
        gap = self._confidence - self._accuracy
        self._sign, self._size = np.where(gap < 0, -1.0, 1.0), np.abs(gap)
        # Laplace's estimate, so that the standard error is not 0 where all rows are correct.
        share = (correct + 1) / (counts + 2)
        self._unit = np.sqrt(share * (1 - share) / counts)
        self._z = self._size / self._unit
        random = np.random.default_rng(seed)
        self._noise = random.standard_normal((n_draws, len(counts)))
        self._weight = random.poisson(counts, (n_draws, len(counts))).astype(np.float64)
        self._weight[self._weight.sum(1) == 0] = counts
        # The observed error is a multiple of about 1 / N: a correction for continuity.
        self._tolerance = 0.5 / counts.sum()

    def low(self, level: float) -> float:
        """The lower end of the interval of a confidence level in [0, 1)."""
        tail = (1 - level) / 2

        def large_enough(size: Floats) -> bool:
            return bool((self._simulated(size) >= self._estimate - self._tolerance).mean() >= tail)

        end = self._size.max() if self._norm == "max" else self._z.max()
        return self._population(_last(self._down, large_enough, 0.0, float(end)))

    def high(self, level: float) -> float:
        """The upper end, which is below the estimate if chance alone explains most of it."""
        tail = (1 - level) / 2
        if self._norm == "max":
            return self._largest_gap(NormalDist().inv_cdf(1 - tail))

        def small_enough(size: Floats) -> bool:
            return bool((self._simulated(size) <= self._estimate + self._tolerance).mean() >= tail)

        end = 1.0
        while end < (1 / self._unit).max() and small_enough(self._up(end)):
            end *= 2
        return self._population(_last(self._up, small_enough, 0.0, end))

    def _largest_gap(self, z: float) -> float:
        """In the Wilson intervals of all bins, whose ends are z standard errors away."""
        n, accuracy = self._counts, self._accuracy
        middle = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * np.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
        return float((np.abs(self._confidence - middle) + half).max())

    def _down(self, t: float) -> Floats:
        if self._norm == "max":
            capped: Floats = np.minimum(self._size, self._size.max() - t)
            return capped
        ratio = np.divide(t, self._z, out=np.full_like(self._z, np.inf), where=self._z > t)
        shrunken: Floats = self._size * np.maximum(1 - ratio**4, 0)
        return shrunken

    def _up(self, t: float) -> Floats:
        raised: Floats = self._unit * np.maximum(np.sqrt(np.maximum(self._z**2 - 1, 0)), t)
        return raised

    def _error(self, weight: Floats, gap: Floats) -> Floats:
        return self._of_sums(weight, gap * weight)

    def _population(self, size: Floats) -> float:
        return float(self._error(self._counts, self._gap(size)))

    def _gap(self, size: Floats) -> Floats:
        """The gaps that leave the accuracies in [0, 1]."""
        gap: Floats = self._confidence - np.clip(self._confidence - self._sign * size, 0, 1)
        return gap

    def _simulated(self, size: Floats) -> Floats:
        """The errors of samples of a population."""
        gap = self._gap(size)
        accuracy = self._confidence - gap
        error = np.sqrt(np.maximum(accuracy * (1 - accuracy), 0) / self._counts)
        return self._error(self._weight, gap + error * self._noise)


def _last(
    path: Callable[[float], Floats], accepted: Callable[[Floats], bool], t: float, end: float
) -> Floats:
    """The last point of a path, from t to the end, that is accepted; the first one if none is."""
    if accepted(path(end)):
        return path(end)
    for _ in range(_STEPS):
        middle = (t + end) / 2
        if accepted(path(middle)):
            t = middle
        else:
            end = middle
    return path(t)
