"""Metrics as functions of sums over groups of rows, which can be resampled without moving the rows.

A calibration error is a function of the number of rows and of the sum of confidence - correct in each bin; a
score is a mean, with all rows in one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lr_relax import _native

from ._bins import NORMS, check_bins
from ._checks import Array, ArrayLike, Floats, check_choice, check_not_empty
from ._inputs import Options, read
from ._predictions import Predictions

Groups = npt.NDArray[np.uint32]
OfSums = Callable[[Floats, Floats], Floats]
"""Takes the weights and the sums of the groups, of shape (..., groups)."""

BINNED = (
    "calibration_error",
    "expected_calibration_error",
    "maximum_calibration_error",
    "adaptive_calibration_error",
)
MEANS = ("brier_score", "negative_log_likelihood", "accuracy")
SUMMED = (*BINNED, *MEANS)


@dataclass(frozen=True, eq=False)
class Setting:
    """The arguments of the metrics; those that a metric lacks do not apply to it."""

    n_bins: int | Sequence[float] | Array
    binning: str
    norm: str | None
    options: Options

    def check(self) -> None:
        check_bins(self.n_bins, self.binning)
        if self.norm is not None:
            check_choice("norm", self.norm, NORMS)


@dataclass(frozen=True, eq=False)
class BinnedRows:
    """The confidence of each row that counts, whether it is correct, and its bin; empty bins are left out."""

    confidence: Floats
    correct: Floats
    groups: Groups
    filled: npt.NDArray[np.bool_]
    """Which of all bins hold a row."""

    def sums_over(self, column: Floats | None = None) -> Floats:
        """The number of rows in each bin that is not empty, or the sums of a column."""
        sums: Floats = np.bincount(self.groups, column, int(self.filled.sum())).astype(np.float64)
        return sums


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that count: the value of each and the group it belongs to."""

    values: Floats
    groups: Groups
    n_groups: int
    of_sums: OfSums
    by_bin: BinnedRows | None = None
    """For errors over bins of confidence."""
    norm: str = ""

    @cached_property
    def estimate(self) -> float:
        weight = np.bincount(self.groups, minlength=self.n_groups).astype(np.float64)
        value: Floats = np.bincount(self.groups, self.values, self.n_groups).astype(np.float64)
        return float(self.of_sums(weight, value))

    def resample(self, n_resamples: int, seed: int) -> Floats:
        """The metric of each resample."""
        return self.of_resampled(*resampled_sums(self.values, self.groups, self.n_groups, n_resamples, seed))

    def of_resampled(self, weight: Floats, value: Floats) -> Floats:
        draws = self.of_sums(weight, value)
        # Rounding to single precision must not move a mean outside the range of the values.
        return draws.clip(self.values.min(), self.values.max()) if self.of_sums is mean else draws


def resampled_sums(
    values: Floats, groups: Groups, n_groups: int, n_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """The weights and the sums of the groups; for given groups and seed, all values get the same weights."""
    weight, value = _native.bootstrap_sums(values, groups, n_groups, n_resamples, seed)
    return weight.reshape(n_resamples, n_groups), value.reshape(n_resamples, n_groups)


def read_rows(preds: Tensor | ArrayLike, target: Tensor | ArrayLike, setting: Setting) -> Predictions:
    """Checked predictions whose rows are independent."""
    rows = read(preds, target, **setting.options)
    if rows.n_labels > 1:
        raise ValueError(
            "Expected argument `task` to be 'multiclass' or 'binary', because the events of one row are not "
            "independent, but got 'multilabel'; pass the predictions and targets of one label."
        )
    return rows


def binned_rows(preds: Tensor | ArrayLike, target: Tensor | ArrayLike, setting: Setting) -> BinnedRows:
    n_bins, binning = check_bins(setting.n_bins, setting.binning)
    rows = read_rows(preds, target, setting).binned(binning)
    columns = _native.binned_top_labels(
        rows.preds, rows.target, rows.from_logits, n_bins, binning, rows.ignore_index
    )
    confidence, outcome, bins = (rows.of_rows(column) for column in columns)
    check_not_empty(len(outcome))
    filled = np.bincount(bins, minlength=n_bins) > 0
    groups = (np.cumsum(filled) - 1).astype(np.uint32)[bins]  # there may be many empty bins
    return BinnedRows(confidence, outcome.astype(np.float64), groups, filled)


def rows_of(metric: str, preds: Tensor | ArrayLike, target: Tensor | ArrayLike, setting: Setting) -> Rows:
    """The rows of a score or of an error over bins of confidence."""
    if metric in MEANS:
        return _scored_rows(metric, preds, target, setting)
    norm = norm_of(metric, setting)
    rows = binned_rows(preds, target, binned_as(metric, setting))
    return Rows(
        rows.confidence - rows.correct, rows.groups, int(rows.filled.sum()), OF_SUMS[norm], rows, norm
    )


def norm_of(metric: str, setting: Setting) -> str:
    """The norm of an error over bins."""
    own = {"expected_calibration_error": "l1", "maximum_calibration_error": "max"}.get(metric)
    if own and setting.norm not in (None, own):
        raise ValueError(
            f"Expected argument `norm` to be {own!r} for metric {metric!r}, but got {setting.norm!r}; "
            "use metric 'calibration_error' for other norms."
        )
    return own or setting.norm or "l1"


def binned_as(metric: str, setting: Setting) -> Setting:
    """The same with the binning of the metric."""
    if metric != "adaptive_calibration_error":
        return setting
    if setting.binning == "paper":
        raise ValueError(
            f"Expected argument `binning` to be 'quantile', that of metric {metric!r}, but got 'paper'."
        )
    return replace(setting, binning="quantile")


def _scored_rows(
    metric: str, preds: Tensor | ArrayLike, target: Tensor | ArrayLike, setting: Setting
) -> Rows:
    rows = read_rows(preds, target, setting)
    if metric == "accuracy":
        values = rows.is_correct(*rows.top_labels()).astype(np.float64)
    else:
        name = "brier" if metric == "brier_score" else "log_likelihood"
        values = rows.row_scores(name)
    check_not_empty(len(values))
    if np.isinf(values).any():
        raise ValueError("Expected argument `preds` to give each target a probability above 0.")
    return Rows(values, np.zeros(len(values), np.uint32), 1, mean)


def mean(weight: Floats, value: Floats) -> Floats:
    average: Floats = value.sum(-1) / weight.sum(-1)
    return average


def _mean_gap(weight: Floats, value: Floats) -> Floats:
    return mean(weight, np.abs(value))


def _root_mean_square_gap(weight: Floats, value: Floats) -> Floats:
    root: Floats = np.sqrt(mean(weight, value * _gaps(weight, value)))
    return root


def _largest_gap(weight: Floats, value: Floats) -> Floats:
    largest: Floats = np.abs(_gaps(weight, value)).max(-1)
    return largest


def _gaps(weight: Floats, value: Floats) -> Floats:
    gaps: Floats = np.divide(value, weight, out=np.zeros_like(value), where=weight > 0)
    return gaps


OF_SUMS: dict[str, OfSums] = {"l1": _mean_gap, "l2": _root_mean_square_gap, "max": _largest_gap}
"""The calibration error of each norm, from the number of rows and the sum of the gaps in each bin."""
