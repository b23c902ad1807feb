"""Metrics as functions of rows, which are called for each resample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import Array, ArrayLike, Floats, as_array, as_number, check_choice
from ._inputs import Task, read
from ._sums import SUMMED, Setting, read_rows
from .calibration import classwise_calibration_error
from .selective import area_under_risk_coverage_curve
from .smooth import smooth_calibration_error
from .soft import soft_calibration_error

Function = Callable[..., Any]

_FUNCTIONS: dict[str, tuple[Function, tuple[str, ...]]] = {
    "classwise_calibration_error": (classwise_calibration_error, ("n_bins", "binning", "norm")),
    "smooth_calibration_error": (smooth_calibration_error, ()),
    "soft_calibration_error": (soft_calibration_error, ("n_bins", "norm")),
    "area_under_risk_coverage_curve": (area_under_risk_coverage_curve, ()),
}
ERRORS = ("classwise_calibration_error", "smooth_calibration_error", "soft_calibration_error")
METRICS = (*SUMMED, *_FUNCTIONS)


@dataclass(frozen=True, eq=False)
class FunctionOfRows:
    """A metric, and the rows that are drawn along the first dimension."""

    metric: Function
    preds: Tensor | Array
    target: Tensor | Array
    from_logits: bool
    estimate: float

    def resample(self, n_resamples: int, seed: int) -> Floats:
        """The metric of each resample; for the same number of rows and seed, these have the same rows."""
        random, n = np.random.default_rng(seed), len(self.target)
        draws = (random.integers(n, size=n) for _ in range(n_resamples))
        return finite(as_number(self.metric(self.preds[rows], self.target[rows])) for rows in draws)

    def resample_targets(self, n_resamples: int, seed: int) -> Floats:
        """The metric for targets that are drawn from the predictions."""
        is_binary = self.preds.ndim == self.target.ndim
        task: Task = "binary" if is_binary else "multiclass"
        checked = read(
            self.preds, self.target, task=task, from_logits=self.from_logits, dim=None if is_binary else -1
        )
        checked.top_labels()  # checks the rows
        random, preds = np.random.default_rng(seed), self.preds
        p: Array
        p = preds.detach().double().cpu().numpy() if isinstance(preds, Tensor) else preds.astype(np.float64)
        if self.from_logits:
            logits = torch.from_numpy(p)
            p = (logits.sigmoid() if is_binary else logits.softmax(-1)).numpy()
        cumulative = p[..., None] if is_binary else p.cumsum(-1)

        def drawn() -> Any:
            u = random.random(cumulative.shape[:-1])
            if is_binary:
                classes = (u < p).astype(np.int64)
            else:
                u *= cumulative[..., -1]
                classes = (cumulative[..., :-1] <= u[..., None]).sum(-1)
            return torch.from_numpy(classes).to(preds.device) if isinstance(preds, Tensor) else classes

        return finite(as_number(self.metric(preds, drawn())) for _ in range(n_resamples))


def function_of_rows(
    metric: str | Function, preds: Tensor | ArrayLike, target: Tensor | ArrayLike, setting: Setting
) -> FunctionOfRows:
    """A function with its rows as they are; a named metric with the rows that count, flattened."""
    if callable(metric):
        preds, target = as_array("preds", preds), as_array("target", target)
        n = len(target) if target.ndim else 0
        if preds.ndim == 0 or len(preds) != n or n == 0:
            raise ValueError(
                "Expected arguments `preds` and `target` to have the same number of rows, at least one, "
                f"but got shapes {tuple(preds.shape)} and {tuple(target.shape)}."
            )
        from_logits = setting.options.get("from_logits", False)
        return FunctionOfRows(metric, preds, target, from_logits, as_number(metric(preds, target)))

    function, names = _FUNCTIONS[metric]
    arguments = {name: getattr(setting, name) for name in names if getattr(setting, name) is not None}
    rows = read_rows(preds, target, setting).on_cpu
    rows.top_labels()  # checks shapes and values, and names the row as the user counts
    flat_preds: Any = rows.preds.reshape((-1,) if rows.n_labels else (-1, rows.preds.shape[-1]))
    flat_target: Any = rows.target.reshape(-1)
    counted = rows.counted()
    if counted is not None:
        numbers = np.flatnonzero(counted)
        flat_preds, flat_target = flat_preds[numbers], flat_target[numbers]

    def of_arrays(preds: Any, target: Any) -> Any:
        return function(preds, target, from_logits=rows.from_logits, **arguments)

    estimate = float(of_arrays(flat_preds, flat_target))
    return FunctionOfRows(of_arrays, flat_preds, flat_target, rows.from_logits, estimate)


def check_metric(metric: object) -> None:
    if not callable(metric):
        check_choice("metric", metric, METRICS)


def finite(values: Iterable[float]) -> Floats:
    numbers: Floats = np.array(list(values))
    if not np.isfinite(numbers).all():
        raise ValueError("Expected argument `metric` to return finite numbers.")
    return numbers
