"""Bins of confidence: their exact sums, as integer digits, and the calibration errors computed from them.

A single call and a stream of batches use the same digits, so that their results are bitwise equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lr_relax import _native

from ._checks import Array, Floats, check_choice, check_flag, check_integer, check_not_empty
from ._predictions import Predictions

Integers = npt.NDArray[np.int64]

MAX_BINS = 2**20
"""The limit of the kernel."""
Norm = Literal["l1", "l2", "max"]
Binning = Literal["uniform", "quantile", "paper"]
Kind = Literal["top_label", "classwise"]
NORMS, BINNINGS, KINDS = get_args(Norm), get_args(Binning), get_args(Kind)


@dataclass(frozen=True)
class Bins:
    """Sums over the predictions in each bin, of shape (groups, n_bins): one group, or one per class."""

    counts: Integers
    weight: Floats
    correct: Floats
    confidence: Floats
    gap: Floats
    """|correct - confidence|, computed exactly and then rounded."""

    @staticmethod
    def from_digits(counts: Integers, digits: Integers, n_bins: int) -> Bins:
        """From the results of `bin_digits`, or from sums of them."""
        weight, correct, confidence = digits.reshape(3, -1)
        sums = [_native.exact_to_float(column) for column in (weight, correct, confidence)]
        gap = _native.exact_distance(correct, confidence)
        weights, corrects, confidences, gaps = (column.reshape(-1, n_bins) for column in (*sums, gap))
        return Bins(counts.reshape(-1, n_bins), weights, corrects, confidences, gaps)


def check_bins(n_bins: int | Sequence[float] | Array, binning: str) -> tuple[int, str | list[float]]:
    """The number of bins, and the name of the binning or the edges."""
    check_choice("binning", binning, BINNINGS)
    if isinstance(n_bins, int | np.integer | str) or not hasattr(n_bins, "__len__"):
        return check_integer("n_bins", n_bins, 1, MAX_BINS), binning
    try:
        edges = [float(edge) for edge in n_bins]
    except (TypeError, ValueError):
        edges = []
    increasing = all(low < high for low, high in pairwise(edges))
    if not (2 <= len(edges) <= MAX_BINS + 1 and edges[0] == 0 and edges[-1] == 1 and increasing):
        raise ValueError(
            "Expected argument `n_bins` to be an integer or edges that increase from 0 to 1, "
            f"but got {n_bins!r:.200}."
        )
    if binning != "uniform":
        raise ValueError(
            f"Expected argument `binning` to be 'uniform', because `n_bins` holds edges, but got {binning!r}."
        )
    return len(edges) - 1, edges


def bin_digits(
    rows: Predictions, n_bins: int, binning: str | list[float], kind: str
) -> tuple[Floats, Integers, Integers]:
    """The edges and the counts of all bins, and the digits of the three sums of each bin."""
    check_choice("kind", kind, KINDS)
    found = digits_elsewhere(rows, n_bins, binning, kind)
    if found is not None:
        sums = found[1].cpu().numpy()
        if not sums[-1]:
            return found[0], sums[:n_bins], sums[n_bins:-2]
        rows = rows.on_cpu
    labels = [
        _native.calibration_bins(
            each.preds,
            each.target,
            None if each.weight is None else each.weight.reshape(tuple(each.target.shape)),
            each.from_logits,
            n_bins,
            binning,
            kind,
            each.ignore_index,
        )
        for each in (rows.binned(binning) if kind == "top_label" else rows.on_cpu).by_label()
    ]
    if len(labels) == 1:
        return labels[0]
    edges, counts, digits = zip(*labels, strict=True)
    columns = np.concatenate([each.reshape(3, -1) for each in digits], axis=1)
    return np.concatenate(edges), np.concatenate(counts), columns.reshape(-1)


def digits_elsewhere(
    rows: Predictions, n_bins: int, binning: str | list[float], kind: str
) -> tuple[Floats, Tensor] | None:
    """The edges, and the sums of `Rows.bin_digits`; None if the kernels have to sum the rows."""
    if rows.elsewhere is None or rows.weight is not None or binning == "quantile" or kind != "top_label":
        return None
    none = torch.empty(0, dtype=rows.elsewhere.scores.dtype), torch.empty(0, dtype=torch.int64)
    edges, _, _ = _native.calibration_bins(*none, None, False, n_bins, binning, kind, None)
    return edges, rows.elsewhere.bin_digits(torch.from_numpy(edges))


def check_norm(norm: str, debias: bool) -> None:
    check_choice("norm", norm, NORMS)
    check_flag("debias", debias)
    if debias and norm != "l2":
        raise ValueError(
            f"Expected argument `norm` to be 'l2', for which `debias` is defined, but got {norm!r}."
        )


def errors(bins: Bins, norm: str, debias: bool) -> Floats:
    """The calibration error of each group, NaN for groups without weight."""
    weight, filled = bins.weight, bins.weight > 0
    total = weight.sum(1)
    check_not_empty(total.max(initial=0))
    # The gap of an empty bin is 0.
    gap = np.divide(bins.gap, weight, out=np.zeros_like(weight), where=filled)
    total = np.where(total > 0, total, np.nan)
    result: Floats
    if norm == "l1":
        result = bins.gap.sum(1) / total
        return result
    if norm == "max":
        result = gap.max(1) + 0 * total
        return result
    squares = gap**2
    if debias:
        accuracy = np.divide(bins.correct, weight, out=np.zeros_like(weight), where=filled)
        several = bins.counts > 1
        variance = accuracy * (1 - accuracy) / np.where(several, bins.counts - 1, 1)
        squares = np.where(several, squares - variance, 0)
    result = np.sqrt(np.maximum((weight * squares).sum(1) / total, 0))
    return result


def mean(errors: Floats) -> float:
    """The mean over the groups that have a value."""
    known = errors[~np.isnan(errors)]
    return math.fsum(known) / len(known)
