"""Proper scores and accuracy: means over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lr_relax import _native

from ._bins import Binning, Bins, bin_digits, check_bins
from ._checks import Array, ArrayLike, check_integer, check_not_empty
from ._device import DIGITS
from ._inputs import Options, read
from ._metric import metric, reads_options
from ._predictions import Predictions

if TYPE_CHECKING:
    from typing_extensions import Unpack

Integers = npt.NDArray[np.int64]


@metric
def brier_score(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The Brier score: the mean squared distance of the probabilities from the one-hot target.

    Equivalent to ``((preds - one_hot(target)) ** 2).sum(-1).mean()``, in [0, 2]; for events, to
    ``((preds - target) ** 2).mean()``, in [0, 1].

    Arguments, result and errors are as in `calibration_error`. The scores of the rows are summed without
    rounding, so that their order does not matter.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    >>> import numpy as np
    >>> round(float(brier_score(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]), np.array([0, 2]))), 6)
    0.5
    """
    rows = read(preds, target, sample_weight, **options)
    return rows.result(mean_score(score_digits("brier", rows)))


@metric
def negative_log_likelihood(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
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
    rows = read(preds, target, sample_weight, **options)
    return rows.result(mean_score(score_digits("log_likelihood", rows)))


@metric
def accuracy(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    top_k: int = 1,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The fraction of rows whose target is the most probable class, or among the `top_k` most probable ones.

    Equivalent to ``(preds.argmax(-1) == target).mean()``; for events, to
    ``((preds > 0.5) == target).mean()``. Of equally probable classes, the first comes first.

    Arguments, result and errors are as in `calibration_error`.
    """
    rows = read(preds, target, sample_weight, **options)
    n_classes = 1 if rows.n_labels or not rows.preds.ndim else max(rows.preds.shape[-1], 1)
    top_k = check_integer("top_k", top_k, 1, n_classes)
    correct = rows.is_correct(*rows.top_labels()) if top_k == 1 else rows.in_top(top_k)
    weights = rows.weights()
    if weights is None:
        return rows.result(correct.mean())
    sums = np.concatenate([_native.exact_sum(weights[correct]), _native.exact_sum(weights), [0]])
    return rows.result(mean_score(sums))


def score_digits(name: str, rows: Predictions) -> Integers:
    """The digits of the sums of the scores and of the weights, and the number of infinite scores."""
    weights = rows.weights()
    scores = rows.row_scores(name)
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


@reads_options
def brier_decomposition(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> BrierDecomposition:
    """Decompose the Brier score into reliability, resolution and uncertainty.

    Equivalent to, summed over the classes, where ``share`` is the fraction of the rows in each bin of a
    class::

        reliability = (share * (confidence - accuracy) ** 2).sum()
        resolution = (share * (accuracy - base_rate) ** 2).sum()
        uncertainty = base_rate * (1 - base_rate)

    Events have a single term instead of the sum. Arguments and
    errors are as in `calibration_error`.

    Source: Murphy, "A New Vector Partition of the Probability Score", 1973; for `within_bins`: Stephenson,
    Coelho & Jolliffe, "Two extra components in the Brier score decomposition", 2008.
    """
    n, name_or_edges = check_bins(n_bins, binning)
    rows = read(preds, target, sample_weight, **options)
    rows = replace(rows, n_labels=min(rows.n_labels, 1))  # the events of all labels together
    score = mean_score(score_digits("brier", rows))
    _, counts, digits = bin_digits(rows, n, name_or_edges, "top_label" if rows.n_labels else "classwise")
    bins = Bins.from_digits(counts, digits, n)
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
