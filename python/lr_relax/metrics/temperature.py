"""Temperature scaling: one number that calibrates the logits of a trained classifier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_relax import _native

from ._inputs import Array, check_choice, check_predictions

PAPER_GRID = (0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.5, 3.0)
"""The temperatures of Lienen & Hüllermeier (2021)."""


class TemperatureScaling(nn.Module):
    """Divides logits by one temperature, fitted on held-out data: ``softmax(logits / temperature)``.

    The predicted classes do not change. The temperature is the module's one parameter (float64, a scalar),
    saved and loaded by `state_dict`.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

    >>> logits, target = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> scaling = TemperatureScaling().fit(logits, target)
    >>> round(scaling.temperature.item(), 6)  # at which softmax gives 2/3
    2.88539
    >>> scaling.transform(logits).softmax(1)[0]
    tensor([0.6667, 0.3333])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not (isinstance(temperature, float | int) and not isinstance(temperature, bool)):
            raise TypeError(f"Expected argument `temperature` to be a number, but got {temperature!r}.")
        if not 0 < temperature < math.inf:
            raise ValueError(f"Expected argument `temperature` to be positive, but got {temperature!r}.")
        self.temperature = nn.Parameter(torch.tensor(float(temperature), dtype=torch.float64))

    def fit(
        self,
        logits: Tensor | Array,
        target: Tensor | Array,
        *,
        method: str = "nll",
        temperatures: Sequence[float] = PAPER_GRID,
        ignore_index: int | None = None,
    ) -> TemperatureScaling:
        """Set the temperature to the best one for these predictions, which should not be training data.

        Args:
            logits: Of shape (..., C); a torch tensor or a NumPy array of 16, 32 or 64 bit floats, any
            strides. target: Classes in [0, C), of the shape of `logits` without its last dimension, any
            integer type. method: "nll": the greatest likelihood, by Newton's method to the precision of
            doubles. "grid": of
                `temperatures` the first with the least expected calibration error over 15 bins, all of them
                in one pass: what the paper's code does.
            temperatures: What "grid" looks through, in [1e-4, 1e4); the paper's 16 by default.
            ignore_index: Rows with this target do not count.

        Returns:
            The module itself.

        Raises:
            ValueError, TypeError, IndexError: as `calibration_error`; also a target class whose logit is
            -inf.

        A RuntimeWarning tells where no temperature is the best one: the likelihood grows until 1e4, because
        the logits are worse than a guess.
        """
        check_choice("method", method, ("nll", "grid"))
        grid = _check_temperatures(temperatures)
        logits, target = check_predictions(logits, target, ignore_index, name="logits")
        if method == "nll":
            best, at_end, _ = _native.fit_temperature(logits, target, ignore_index)
            if at_end:
                warnings.warn(
                    f"The likelihood grows up to the end of the range; the temperature is {best:g}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        else:
            errors = _native.calibration_of_temperatures(logits, target, grid, 15, ignore_index)
            best = grid[int(errors.argmin())]
        with torch.no_grad():
            self.temperature.fill_(best)
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """``logits / temperature``, in the type of `logits`; differentiable."""
        return logits / self.temperature

    @torch.no_grad()
    def transform(self, logits: Tensor | Array) -> Any:
        """``logits / temperature`` of a tensor or an array, of the same kind and type."""
        if isinstance(logits, np.ndarray):
            return logits / logits.dtype.type(self.temperature.item())
        return self(logits)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature.item():g}"


def _check_temperatures(temperatures: Sequence[float]) -> list[float]:
    try:
        grid = [float(t) for t in temperatures]
    except (TypeError, ValueError):
        raise TypeError(
            f"Expected argument `temperatures` to hold numbers, but got {temperatures!r}."
        ) from None
    if not grid or len(grid) > 4096 or not all(1e-4 <= t < 1e4 for t in grid):
        raise ValueError(
            f"Expected argument `temperatures` to hold numbers in [1e-4, 1e4), but got {temperatures!r}."
        )
    return grid
