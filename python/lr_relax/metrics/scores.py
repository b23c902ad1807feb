"""Proper scores and accuracy: means of a score of each row."""

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
    is_right,
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
    """The mean squared distance of prediction and outcome.

    Equivalent to ``((preds - one_hot(target)) ** 2).sum(-1).mean()``, in [0, 2]; for the probability of class
    1 of a binary event, `preds` in the shape of `target`, to ``((preds - target) ** 2).mean()``, in [0, 1].

    Arguments, what is returned and what is raised: as of `calibration_error`. The scores of the rows are
    summed without rounding, so that their order does not matter.

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
    """The mean of -ln of the probability of the target (log loss, cross-entropy).

    Equivalent to ``F.cross_entropy(preds, target)`` for logits, and to ``F.nll_loss(preds.log(), target)``
    for probabilities; computed from the sum of the other classes, so that small losses are exact. Infinite
    where a target has probability 0, which is not clipped away. For a binary event, `preds` in the shape of
    `target` is the probability of class 1.

    Arguments, what is returned and what is raised: as of `calibration_error`.

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
    """The fraction of the rows whose most probable class, of several the first, is the target.

    Equivalent to ``(preds.argmax(-1) == target).mean()``; for the probability of class 1 of a binary event,
    `preds` in the shape of `target`, to ``((preds > 0.5) == target).mean()``.

    Arguments, what is returned and what is raised: as of `calibration_error`.
    """
    check_flag("from_logits", from_logits)
    on_cpu, target = check_predictions(preds, target, ignore_index)
    confidence, hit = _native.top_labels(on_cpu, target, bool(from_logits), ignore_index)
    rows = counted_rows(target, ignore_index)
    right = is_right(on_cpu, target, confidence, hit == 1)
    weights = check_weights(sample_weight, target, rows)
    right = right if rows is None else right[rows]
    if weights is None:
        check_not_empty(len(right))
        return scalar_like(preds, right.mean())
    sums = np.concatenate([_native.sum_digits(weights[right]), _native.sum_digits(weights), [0]])
    return scalar_like(preds, mean_score(sums))


def score_digits(
    name: str,
    preds: Tensor | Array,
    target: Tensor | Array,
    sample_weight: Tensor | Array | None,
    from_logits: bool,
    ignore_index: int | None,
) -> Integers:
    """The digits of the sum of the scores and of that of their weights, and the number of infinite scores."""
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
        total = _native.sum_digits(np.array([float(len(scores))]))
    else:
        total = _native.sum_digits(weights)
        scores = scores * weights
    return np.concatenate([_native.sum_digits(scores), total, [n_infinite]])


def mean_score(digits: Integers) -> float:
    """From what `score_digits` returns, or from sums of it."""
    total, weight = _native.digits_to_float(digits[: 2 * DIGITS])
    check_not_empty(weight)
    return float("inf") if digits[-1] else float(total / weight)


@dataclass(frozen=True)
class BrierDecomposition:
    """What a Brier score is made of: ``reliability - resolution + uncertainty + within_bins``."""

    brier_score: float
    """The score itself."""
    reliability: float
    """The squared distance of confidence and accuracy, the smaller the better calibrated."""
    resolution: float
    """How far the accuracies of the bins lie from the base rates, the larger the better."""
    uncertainty: float
    """The score of a forecast of the base rates: a property of the targets alone."""
    within_bins: float
    """What the bins hide: 0 where all forecasts in a bin are equal, as in Murphy's decomposition."""


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
    """Reliability, resolution and uncertainty of the Brier score, over bins of the probability of each class.

    Equivalent to, summed over the classes, with the weights ``share`` of the bins of each::

        reliability = (share * (confidence - accuracy) ** 2).sum()
        resolution = (share * (accuracy - base_rate) ** 2).sum()
        uncertainty = base_rate * (1 - base_rate)

    A binary event (`preds` in the shape of `target`) has one term in place of a sum. Arguments and what is
    raised: as of `calibration_error`.

    Source: Murphy, "A New Vector Partition of the Probability Score", 1973; for what bins hide: Stephenson,
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
