"""Proper scores and accuracy: means over the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lr_relax import _native

from ._bins import DIGITS, MAX_BINS, Bins, bin_digits
from ._inputs import (
    Array,
    Floats,
    check_flag,
    check_integer,
    check_not_empty,
    check_predictions,
    check_weights,
    counted_rows,
    is_correct,
    scalar_like,
)

Integers = npt.NDArray[np.int64]


def brier_score(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The Brier score: the mean squared distance of the probabilities from the one-hot target.

    Equivalent to ``((preds - one_hot(target)) ** 2).sum(-1).mean()``, in [0, 2]; for the probability of class
    1 of a binary event, `preds` in the shape of `target`, to ``((preds - target) ** 2).mean()``, in [0, 1].

    Arguments, result and errors are as in `calibration_error`. The scores of the rows are summed without
    rounding, so that their order does not matter.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    >>> import numpy as np
    >>> round(float(brier_score(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]), np.array([0, 2]))), 6)
    0.5
    """
    digits = score_digits("brier", preds, target, sample_weight, from_logits, ignore_index)
    return scalar_like(preds, mean_score(digits))


def negative_log_likelihood(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The mean negative log-likelihood of the target (log loss, cross-entropy).

    Equivalent to ``F.cross_entropy(preds, target)`` for logits, and to ``F.nll_loss(preds.log(), target)``
    for probabilities. It is computed from the sum of the other classes, so that small losses keep their
    precision. It is infinite if a target has probability 0: probabilities are not clipped.

    Arguments, result and errors are as in `calibration_error`.

    >>> import numpy as np
    >>> round(float(negative_log_likelihood(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 0]))), 6)
    1.039721
    """
    digits = score_digits("log_likelihood", preds, target, sample_weight, from_logits, ignore_index)
    return scalar_like(preds, mean_score(digits))


def accuracy(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The fraction of rows whose most probable class (the first of several) is the target.

    Equivalent to ``(preds.argmax(-1) == target).mean()``; for the probability of class 1 of a binary event,
    `preds` in the shape of `target`, to ``((preds > 0.5) == target).mean()``.

    Arguments, result and errors are as in `calibration_error`.
    """
    check_flag("from_logits", from_logits)
    on_cpu, target = check_predictions(preds, target, ignore_index)
    confidence, outcome = _native.top_labels(on_cpu, target, bool(from_logits), ignore_index)
    rows = counted_rows(target, ignore_index)
    correct = is_correct(on_cpu, target, confidence, outcome == 1)
    weights = check_weights(sample_weight, target, rows)
    correct = correct if rows is None else correct[rows]
    if weights is None:
        check_not_empty(len(correct))
        return scalar_like(preds, correct.mean())
    sums = np.concatenate([_native.exact_sum(weights[correct]), _native.exact_sum(weights), [0]])
    return scalar_like(preds, mean_score(sums))


def score_digits(
    name: str,
    preds: Tensor | Array,
    target: Tensor | Array,
    sample_weight: Tensor | Array | None,
    from_logits: bool,
    ignore_index: int | None,
) -> Integers:
    """The digits of the sums of the scores and of the weights, and the number of infinite scores."""
    check_flag("from_logits", from_logits)
    preds, target = check_predictions(preds, target, ignore_index)
    rows = counted_rows(target, ignore_index)
    weights = check_weights(sample_weight, target, rows)
    scores: Floats = _native.row_scores(preds, target, bool(from_logits), ignore_index, name)
    scores = scores if rows is None else scores[rows]
    infinite = np.isinf(scores)
    n_infinite = int(infinite.sum() if weights is None else (infinite & (weights > 0)).sum())
    if n_infinite or (weights is not None and infinite.any()):
        scores = np.where(infinite, 0.0, scores)
    if weights is None:
        total = _native.exact_sum(np.array([float(len(scores))]))
    else:
        total = _native.exact_sum(weights)
        scores = scores * weights
    return np.concatenate([_native.exact_sum(scores), total, [n_infinite]])


def mean_score(digits: Integers) -> float:
    """The mean score, from the result of `score_digits`, or from sums of it."""
    total, weight = _native.exact_to_float(digits[: 2 * DIGITS])
    check_not_empty(weight)
    return float("inf") if digits[-1] else float(total / weight)


@dataclass(frozen=True)
class BrierDecomposition:
    """The terms of a Brier score: ``reliability - resolution + uncertainty + within_bins``."""

    brier_score: float
    """The Brier score."""
    reliability: float
    """The mean squared difference of confidence and accuracy; smaller is better."""
    resolution: float
    """The mean squared difference of the accuracies of the bins from the base rates; larger is better."""
    uncertainty: float
    """The score of predicting the base rates; it depends on the targets only."""
    within_bins: float
    """The variation inside the bins: 0 if all predictions in a bin are equal, as assumed by Murphy."""


def brier_decomposition(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    binning: str = "uniform",
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> BrierDecomposition:
    """Decompose the Brier score into reliability, resolution and uncertainty.

    Equivalent to, summed over the classes, where ``share`` is the fraction of the rows in each bin of a
    class::

        reliability = (share * (confidence - accuracy) ** 2).sum()
        resolution = (share * (accuracy - base_rate) ** 2).sum()
        uncertainty = base_rate * (1 - base_rate)

    A binary event (`preds` in the shape of `target`) has a single term instead of the sum. Arguments and
    errors are as in `calibration_error`.

    Source: Murphy, "A New Vector Partition of the Probability Score", 1973; for `within_bins`: Stephenson,
    Coelho & Jolliffe, "Two extra components in the Brier score decomposition", 2008.
    """
    score = float(
        brier_score(
            preds,
            target,
            from_logits=from_logits,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
        )
    )
    is_binary = tuple(preds.shape) == tuple(target.shape)
    _, counts, digits = bin_digits(
        preds,
        target,
        sample_weight,
        from_logits=from_logits,
        n_bins=n_bins,
        binning=binning,
        kind="top_label" if is_binary else "classwise",
        ignore_index=ignore_index,
    )
    bins = Bins.from_digits(counts, digits, check_integer("n_bins", n_bins, 1, MAX_BINS))
    total = bins.weight.sum(1, keepdims=True)
    share = bins.weight / total
    of_bin = np.where(bins.weight > 0, bins.weight, 1.0)
    observed = bins.correct / of_bin
    base_rate = bins.correct.sum(1, keepdims=True) / total
    reliability = float((share * (bins.gap / of_bin) ** 2).sum())
    resolution = float((share * (observed - base_rate) ** 2).sum())
    uncertainty = float((base_rate * (1 - base_rate)).sum())
    return BrierDecomposition(
        brier_score=score,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        within_bins=score - (reliability - resolution + uncertainty),
    )
