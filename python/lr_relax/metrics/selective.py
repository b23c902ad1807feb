"""Selective prediction: the error rate of a model that answers only where it is confident."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from torch import Tensor

from ._inputs import Array, Floats, is_right, scalar_like, top_labels


@dataclass(frozen=True)
class RiskCoverageCurve:
    """The error rate among the most confident predictions, for each number of them.

    Source: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017, section 2.
    """

    coverage: Floats
    """The fraction of the rows that is answered, 1/N, 2/N, ..., 1; shape (N,)."""
    risk: Floats
    """The error rate among them, in [0, 1]; over tied confidences its mean over all orders."""
    threshold: Floats
    """The lowest confidence among them: who answers from it on has at least this coverage."""
    area: float
    """The mean of `risk`: the area under the curve (AURC)."""


@overload
def area_under_risk_coverage_curve(
    preds: Tensor, target: Tensor, *, from_logits: bool = False, ignore_index: int | None = None
) -> Tensor: ...
@overload
def area_under_risk_coverage_curve(
    preds: Array, target: Array, *, from_logits: bool = False, ignore_index: int | None = None
) -> np.float64: ...
def area_under_risk_coverage_curve(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
) -> Tensor | np.float64:
    """The error rate among the most confident rows, averaged over how many of them are answered (AURC).

    Equivalent to, with ``miss = preds.argmax(1) != target`` sorted by falling confidence ``preds.max(1)``::

        mean(miss[:i].mean() for i in range(1, N + 1))

    For tied confidences it is the mean over all orders that they may come in, exactly: the order of the rows
    never matters. The area depends on how confidences rank and not on their size: it is no measure of
    calibration, and any rising function of all confidences leaves it as it is. It is low where errors are
    rare and come with low confidences.

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`; or the probability of a binary
            event, of the shape of `target`, where the prediction is class 1 above 0.5 and class 0 from there
            down (as `argmax` decides ties), with the confidence ``max(p, 1 - p)``. A torch tensor or a NumPy
            array of 16, 32 or 64 bit floats.
        target: Classes in [0, C), of the shape of `preds` without its last dimension; or 0 and 1.
        from_logits: Whether `preds` holds logits. It is never guessed.
        ignore_index: Rows with this target do not count.

    Returns:
        A value in [0, 1], 0 only where every row is right: a float64 scalar tensor on the device of `preds`,
        or a NumPy float64 for arrays.

    Raises:
        ValueError: no rows, a row that is no distribution (the first one is named) or a wrong shape.
        TypeError: an argument is of a wrong type.
        IndexError: a target is no class; names the first one.

    Source: Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
    ICLR 2019, section 3.

    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> round(float(area_under_risk_coverage_curve(preds, np.array([0, 1, 1]))), 6)  # (0 + 1/2 + 1/3) / 3
    0.277778
    """
    curve = risk_coverage_curve(preds, target, from_logits=from_logits, ignore_index=ignore_index)
    value: Tensor | np.float64 = scalar_like(preds, curve.area)
    return value


def risk_coverage_curve(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
) -> RiskCoverageCurve:
    """The error rate of each coverage; arguments and errors as in :func:`area_under_risk_coverage_curve`.

    >>> curve = risk_coverage_curve(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    >>> curve.coverage, curve.risk, curve.threshold
    (array([0.5, 1. ]), array([0. , 0.5]), array([0.9, 0.8]))
    """
    confidence, hit = top_labels(preds, target, from_logits=from_logits, ignore_index=ignore_index)
    hit = is_right(preds, target, confidence, hit)
    if preds.ndim == target.ndim:  # of a binary event: so far the probability of class 1
        confidence = np.maximum(confidence, 1 - confidence)

    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    misses = np.bincount(group, weights=~hit, minlength=len(sizes))
    before = np.cumsum(sizes) - sizes
    group = np.repeat(np.arange(len(sizes)), sizes)
    answered = np.arange(1, len(hit) + 1)
    # Of the k first in a group of tied rows, each is a miss with the group's rate of misses.
    k = answered - before[group]
    expected = (np.cumsum(misses) - misses)[group] + k * misses[group] / sizes[group]
    risk = expected / answered
    return RiskCoverageCurve(
        coverage=answered / len(hit),
        risk=risk,
        threshold=-np.sort(-confidence),
        area=math.fsum(risk.tolist()) / len(hit),
    )
