"""Bins of confidence: their exact sums, as integer digits, and the calibration errors computed from them.

A single call and a stream of batches use the same digits, so that their results are bitwise equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lr_relax import _native

from ._inputs import (
    Array,
    Floats,
    check_choice,
    check_flag,
    check_integer,
    check_not_empty,
    check_predictions,
    check_weights,
)

Integers = npt.NDArray[np.int64]

MAX_BINS = 2**20
"""The limit of the kernel."""
DIGITS = 8
"""The number of 32-bit digits of an exact sum."""
NORMS = ("l1", "l2", "max")
BINNINGS = ("uniform", "quantile", "paper")
KINDS = ("top_label", "classwise")


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


def bin_digits(
    preds: Tensor | Array,
    target: Tensor | Array,
    sample_weight: Tensor | Array | None,
    *,
    from_logits: bool,
    n_bins: int,
    binning: str,
    kind: str,
    ignore_index: int | None,
) -> tuple[Floats, Integers, Integers]:
    """The edges and the counts of all bins, and the digits of the three sums of each bin."""
    check_flag("from_logits", from_logits)
    n_bins = check_integer("n_bins", n_bins, 1, MAX_BINS)
    check_choice("binning", binning, BINNINGS)
    check_choice("kind", kind, KINDS)
    preds, target = check_predictions(preds, target, ignore_index)
    weight = check_weights(sample_weight, target)
    if weight is not None:
        weight = weight.reshape(tuple(target.shape))
    return _native.calibration_bins(
        preds, target, weight, bool(from_logits), n_bins, binning, kind, ignore_index
    )


def check_norm(norm: str, debias: bool) -> None:
    check_choice("norm", norm, NORMS)
    check_flag("debias", debias)
    if debias and norm != "l2":
        raise ValueError(
            f"Expected argument `norm` to be 'l2', for which `debias` is defined, but got {norm!r}."
        )


def error(bins: Bins, norm: str, debias: bool) -> float:
    """The calibration error, averaged over the groups."""
    weight, filled = bins.weight, bins.weight > 0
    total = weight.sum(1)
    check_not_empty(total.max(initial=0))
    # The gap of an empty bin is 0.
    gap = np.divide(bins.gap, weight, out=np.zeros_like(weight), where=filled)
    if norm == "l1":
        errors = bins.gap.sum(1) / total
    elif norm == "max":
        errors = gap.max(1)
    else:
        squares = gap**2
        if debias:
            accuracy = np.divide(bins.correct, weight, out=np.zeros_like(weight), where=filled)
            several = bins.counts > 1
            variance = accuracy * (1 - accuracy) / np.where(several, bins.counts - 1, 1)
            squares = np.where(several, squares - variance, 0)
        errors = np.sqrt(np.maximum((weight * squares).sum(1) / total, 0))
    return math.fsum(errors) / len(errors)
