"""Temperature scaling, which calibrates the logits of a trained classifier by one parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_relax import _native
from lr_relax._arguments import check_number
from lr_relax._warnings import warn

from ._bins import Bins, bin_digits, errors, mean
from ._checks import Array, ArrayLike, as_numpy, check_choice, named, on_device
from ._inputs import Options, read
from ._predictions import Predictions

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        logits: Tensor | ArrayLike,
        target: Tensor | ArrayLike,
        *,
        method: str = "nll",
        temperatures: Sequence[float] = PAPER_GRID,
        **options: Unpack[Options],
    ) -> TemperatureScaling:
        """Fit the temperature to predictions on held-out data.

        Args:
            logits: Logits of shape (..., C), or probabilities with ``from_logits=False``; or, of binary
                events, of the shape of `target`. A tensor or an array of 16, 32 or 64 bit floats.
            target: Classes in [0, C), of the shape of `logits` without its classes.
            method: "nll": maximum likelihood, by Newton's method to double precision. "grid": the first of
                `temperatures` with the smallest expected calibration error over 15 bins, as in the paper's
                code.
            temperatures: The grid, up to 4096 numbers in [1e-4, 1e4). Default: the grid of the paper.
            **options: As in `calibration_error`, but `from_logits` is True by default.

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
        options = {"from_logits": True, **options}
        rows = read(logits, target, name="logits", **options)
        with named("logits"):
            if method == "nll":
                best, at_end = _most_likely(rows)
            else:
                best, at_end = grid[int(_errors(rows, grid).argmin())], False
        if at_end:
            warn(
                f"The likelihood increases up to the end of the range of temperatures; {best:g} is used.",
                RuntimeWarning,
            )
        # In double precision, even after `module.half()`.
        self.temperature.data = on_device(best, self.temperature.device)
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """``logits / temperature``; differentiable. Half precision becomes float32, against overflow."""
        if not (isinstance(logits, Tensor) and logits.is_floating_point()):
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"Expected argument `logits` to be a floating-point tensor, but got {got}.")
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return (wide / self.temperature).to(wide.dtype)

    @torch.no_grad()
    def transform(self, logits: Tensor | ArrayLike) -> Any:
        """``logits / temperature`` of a tensor or an array, as `forward`."""
        if isinstance(logits, Tensor):
            return self(logits)
        array = as_numpy("logits", logits)
        if array.dtype.kind != "f":
            raise TypeError(
                f"Expected argument `logits` to be of a floating-point type, but got {array.dtype}."
            )
        wide = np.promote_types(array.dtype, np.float32)
        divided: Array = (array / np.float64(self.temperature.item())).astype(wide)
        return divided

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except (TypeError, RuntimeError):  # a device without double precision
                return fn(tensor.float())

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"temperature={self.temperature.item():g}"


def _most_likely(rows: Predictions) -> tuple[float, bool]:
    """The temperature of maximum likelihood, and whether it is an end of the range."""
    if rows.elsewhere is not None and rows.from_logits:
        temperature, is_found = rows.elsewhere.temperature()
        if is_found:
            return temperature, False
    z, classes = _log_odds(rows)
    best, at_end, _ = _native.fit_temperature(z, classes, rows.ignore_index)
    return best, at_end


def _log_odds(rows: Predictions) -> tuple[Any, Any]:
    """Logits of all classes; those of an event with logit z are 0 and z."""
    rows = rows.on_cpu
    z = rows.preds
    if rows.from_logits:
        if not rows.n_labels:
            return z, rows.target
        z = np.asarray(z.float() if isinstance(z, Tensor) else z, dtype=np.float64)
        return np.stack([np.zeros_like(z), z], -1), rows.target
    rows.top_labels()  # checks the values
    p = np.asarray(z.double() if isinstance(z, Tensor) else z, dtype=np.float64).clip(0, 1)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([1 - p, p], -1) if rows.n_labels else p), rows.target


def scaled(rows: Predictions, temperature: float) -> Predictions:
    """The predictions as logits divided by a temperature."""
    z, _ = _log_odds(rows)
    z = z.double() if isinstance(z, Tensor) else np.asarray(z, np.float64)
    if rows.n_labels:
        z = z[:, 1] - z[:, 0]
    return replace(rows.on_cpu, preds=z / temperature, from_logits=True, n_labels=min(rows.n_labels, 1))


def _errors(rows: Predictions, grid: list[float]) -> Any:
    """The expected calibration error for each temperature, over 15 bins of the paper's code."""
    z, classes = _log_odds(rows)
    if not rows.n_labels:
        return _native.calibration_errors_of_temperatures(z, classes, grid, 15, rows.ignore_index)

    def error(temperature: float) -> float:
        _, counts, digits = bin_digits(scaled(rows, temperature), 15, "paper", "top_label")
        return mean(errors(Bins.from_digits(counts, digits, 15), "l1", False))

    return np.array([error(temperature) for temperature in grid])


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
