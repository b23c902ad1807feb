"""Temperature scaling, which calibrates the logits of a trained classifier by one parameter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_relax import _native
from lr_relax._arguments import check_number

from ._inputs import Array, check_choice, check_predictions, on_cpu

PAPER_GRID = (0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.5, 3.0)
"""The temperatures of Lienen & Hüllermeier (2021)."""


class TemperatureScaling(nn.Module):
    """Divides logits by one temperature, fitted on held-out data: ``softmax(logits / temperature)``.

    The predicted classes do not change. The temperature is the only parameter of the module, a float64
    scalar.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

    >>> logits, target = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> scaling = TemperatureScaling().fit(logits, target)
    >>> round(scaling.temperature.item(), 6)  # softmax(logits / temperature) is 2/3
    2.88539
    >>> scaling.transform(logits).softmax(1)[0]
    tensor([0.6667, 0.3333])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_number("temperature", "a finite number above 0", lambda x: 0 < x < math.inf, temperature)
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
        """Fit the temperature to predictions on held-out data.

        Args:
            logits: Logits of shape (..., C), a tensor or NumPy array of 16, 32 or 64 bit floats.
            target: Classes in [0, C), of the shape of `logits` without its last dimension and any integer
                type.
            method: "nll": maximum likelihood, by Newton's method to double precision. "grid": the first of
                `temperatures` with the smallest expected calibration error over 15 bins, as in the paper's
                code.
            temperatures: The grid, up to 4096 numbers in [1e-4, 1e4). Default: the grid of the paper.
            ignore_index: Rows with this target are ignored.

        Returns:
            The module itself.

        Raises:
            ValueError, TypeError, IndexError: As in `calibration_error`; for "nll" also if the logit of a
                target is -inf.

        If no temperature maximizes the likelihood, an end of [1e-4, 1e4] is used, with a RuntimeWarning. This
        happens if every prediction is correct, or if the logits are worse than uniform predictions. If the
        likelihood is constant, the temperature is 1.
        """
        check_choice("method", method, ("nll", "grid"))
        grid = _check_temperatures(temperatures)
        logits, target = check_predictions(logits, target, ignore_index, name="logits")
        if method == "nll":
            best, at_end, _ = _native.fit_temperature(logits, target, ignore_index)
            if at_end:
                warnings.warn(
                    f"The likelihood increases up to the end of the range of temperatures; {best:g} is used.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        else:
            errors = _native.calibration_errors_of_temperatures(logits, target, grid, 15, ignore_index)
            best = grid[int(errors.argmin())]
        # In double precision, even after `module.half()`.
        self.temperature.data = torch.tensor(best, dtype=torch.float64, device=self.temperature.device)
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """``logits / temperature``, in the type of `logits`; differentiable."""
        if not (isinstance(logits, Tensor) and logits.is_floating_point()):
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"Expected argument `logits` to be a floating-point tensor, but got {got}.")
        return (logits / self.temperature).to(logits.dtype)

    @torch.no_grad()
    def transform(self, logits: Tensor | Array) -> Any:
        """``logits / temperature`` of a tensor or an array, of the same kind and floating-point type."""
        if isinstance(logits, Tensor):
            return self(logits)
        on_cpu("logits", logits)
        if logits.dtype.kind != "f":
            raise TypeError(
                f"Expected argument `logits` to be of a floating-point type, but got {logits.dtype}."
            )
        return (logits / np.float64(self.temperature.item())).astype(logits.dtype)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature.item():g}"


def _check_temperatures(temperatures: Sequence[float]) -> list[float]:
    expected = "Expected argument `temperatures` to hold 1 to 4096 numbers in [1e-4, 1e4)"
    try:
        grid = [float(t) for t in temperatures]
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{expected}, but got {temperatures!r:.200}.") from None
    if not 1 <= len(grid) <= 4096:
        raise ValueError(f"{expected}, but got {len(grid)}.")
    for t in grid:
        if not 1e-4 <= t < 1e4:
            raise ValueError(f"{expected}, but got {t!r}.")
    return grid
