"""Confidence intervals of calibration errors that are called for each resample: bounds of what chance adds.

These errors are norms of the miscalibration: the error of a sample is at most that of the population plus the
norm of the noise, which is the error of a calibrated model. The lower end subtracts a quantile of that error.
If the model is far from calibrated, this is more than necessary. But then its noise may be larger than that
of a calibrated model, so the deviations of the bootstrap are subtracted if they are larger. The upper end
needs no correction: on average, the noise makes the error of a sample too large, not too small.
"""

from __future__ import annotations

import numpy as np

from ._checks import Floats


class ChanceBound:
    def __init__(self, estimate: float, draws: Floats, chance: Floats) -> None:
        self._estimate, self._chance = estimate, chance
        self._deviations = draws - draws.mean()

    def low(self, level: float) -> float:
        """The lower end of the interval of a confidence level in [0, 1)."""
        q = (1 + level) / 2
        excess = max(np.quantile(self._chance, q), np.quantile(self._deviations, q))
        return max(self._estimate - float(excess), 0.0)

    def high(self, level: float) -> float:
        """The upper end."""
        return self._estimate - float(np.quantile(self._deviations, (1 - level) / 2))
