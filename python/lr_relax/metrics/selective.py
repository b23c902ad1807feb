"""Selective prediction: the error rate of a model that abstains when its confidence is low."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ._checks import ArrayLike, Floats
from ._frame import frame
from ._inputs import Options, read
from ._metric import metric, reads_options
from ._predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from typing_extensions import Unpack


@dataclass(frozen=True, eq=False)
class RiskCoverageCurve:
    """The error rate of the most confident predictions as a function of their number.

    Source: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017, section 2.
    """

    coverage: Floats
    """The fraction of rows that are answered, 1/N, 2/N, ..., 1; shape (N,)."""
    risk: Floats
    """The error rate among them, in [0, 1], averaged over all orders of tied confidences."""
    threshold: Floats
    """The lowest confidence among them: answering from this confidence on gives at least this coverage."""
    area: float
    """The mean of `risk`: the area under the curve (AURC)."""

    def __repr__(self) -> str:
        return f"RiskCoverageCurve(n={len(self.risk)}, area={self.area:.6g})"

    def to_frame(self) -> pd.DataFrame:
        """The curve as a pandas DataFrame, with a row for each coverage and columns named as the fields."""
        return frame({name: getattr(self, name) for name in ("coverage", "risk", "threshold")})

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Draw the risk as a function of the coverage; see :func:`lr_relax.plots.compare_risk_coverage`."""
        from lr_relax.plots import compare_risk_coverage

        return compare_risk_coverage({"": self}, ax=ax, title=title)


@metric
def area_under_risk_coverage_curve(
    preds: Tensor | ArrayLike, target: Tensor | ArrayLike, **options: Unpack[Options]
) -> Any:
    """The area under the risk-coverage curve (AURC): the error rate averaged over all coverages.

    Equivalent to, with ``wrong = preds.argmax(1) != target`` sorted by decreasing confidence
    ``preds.max(1)``::

        mean(wrong[:i].mean() for i in range(1, N + 1))

    For tied confidences, it is the exact mean over all of their orders, so that the order of the rows does
    not matter. The area depends only on the ranking of the confidences: it does not measure calibration, and
    no increasing function of the confidences changes it. It is low if errors are rare and have low
    confidences.

    Arguments and errors are as in `calibration_error`. Of an event with probability p, class 1 is predicted
    if p is above 1/2, and class 0 otherwise, with the confidence ``max(p, 1 - p)``.

    Returns:
        A value in [0, 1], 0 only if every row is correct: a float64 scalar tensor on the device of `preds`,
        or a NumPy float64 for arrays.

    Source: Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
    ICLR 2019, section 3.

    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> round(float(area_under_risk_coverage_curve(preds, np.array([0, 1, 1]))), 6)  # (0 + 1/2 + 1/3) / 3
    0.277778
    """
    rows = read(preds, target, **options)
    return rows.result(_curve(rows).area)


@reads_options
def risk_coverage_curve(
    preds: Tensor | ArrayLike, target: Tensor | ArrayLike, **options: Unpack[Options]
) -> RiskCoverageCurve:
    """Compute the error rate for each coverage.

    Arguments and errors are as in :func:`area_under_risk_coverage_curve`.

    >>> curve = risk_coverage_curve(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    >>> curve.coverage, curve.risk, curve.threshold
    (array([0.5, 1. ]), array([0. , 0.5]), array([0.9, 0.8]))
    """
    return _curve(read(preds, target, **options))


def _curve(rows: Predictions) -> RiskCoverageCurve:
    confidence, correct = rows.top_labels()
    correct = rows.is_correct(confidence, correct)
    if rows.n_labels:  # `confidence` is the probability of class 1
        confidence = np.maximum(confidence, 1 - confidence)

    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    errors = np.bincount(group, weights=~correct, minlength=len(sizes))
    before = np.cumsum(sizes) - sizes
    group = np.repeat(np.arange(len(sizes)), sizes)
    answered = np.arange(1, len(correct) + 1)
    # Each of the first k rows of a group of ties is wrong with the error rate of the group.
    k = answered - before[group]
    expected = (np.cumsum(errors) - errors)[group] + k * errors[group] / sizes[group]
    risk = expected / answered
    return RiskCoverageCurve(
        coverage=answered / len(correct),
        risk=risk,
        threshold=-np.sort(-confidence),
        area=math.fsum(risk.tolist()) / len(correct),
    )
