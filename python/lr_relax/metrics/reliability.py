"""The reliability curve: accuracy as a function of confidence."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ._bins import Bins, bin_digits, error
from ._inputs import Array, Floats, check_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Accuracy as a function of confidence: the data of a reliability diagram.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """

    edges: Floats
    """The edges of the bins, shape (n_bins + 1,). A bin includes its left edge; the last one includes both.

    With "uniform" binning, they are rounded to the type of the predictions."""
    counts: npt.NDArray[np.int64]
    """The number of predictions in each bin, shape (n_bins,)."""
    confidence: Floats
    """The mean confidence in each bin, NaN for empty bins."""
    accuracy: Floats
    """The fraction of correct predictions in each bin, NaN for empty bins."""
    gap: Floats
    """Confidence minus accuracy: positive if the model is overconfident."""
    lower: Floats
    """The lower end of the Wilson score interval of the accuracy."""
    upper: Floats
    """The upper end of that interval."""
    confidence_level: float
    """The confidence level of the intervals."""
    expected_calibration_error: float
    """The mean of ``abs(gap)``, weighted by the counts."""

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Draw the reliability diagram; see :func:`lr_relax.plots.reliability_diagram`."""
        from lr_relax.plots import reliability_diagram

        return reliability_diagram(self, ax=ax, title=title)


def reliability_curve(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    binning: str = "uniform",
    ignore_index: int | None = None,
    confidence_level: float = 0.95,
) -> ReliabilityCurve:
    """Compute confidence and accuracy over bins of confidence.

    Args:
        preds, target, from_logits, n_bins, binning, ignore_index: As in `calibration_error`.
        confidence_level: The confidence level of the intervals of the accuracies, in (0, 1).

    Source of the intervals: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 1927; Brown, Cai & DasGupta, "Interval Estimation for a Binomial Proportion", 2001, eq. 4.

    >>> import numpy as np
    >>> curve = reliability_curve(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), n_bins=2)
    >>> curve.counts, curve.accuracy
    (array([0, 2]), array([nan, 0.5]))
    """
    confidence_level = check_share("confidence_level", confidence_level)
    edges, counts, digits = bin_digits(
        preds,
        target,
        None,
        from_logits=from_logits,
        n_bins=n_bins,
        binning=binning,
        kind="top_label",
        ignore_index=ignore_index,
    )
    bins = Bins.from_digits(counts, digits, int(n_bins))
    return curve_of_sums(
        edges, counts, bins.confidence[0], bins.correct[0], error(bins, "l1", False), confidence_level
    )


def curve_of_sums(
    edges: Floats,
    counts: npt.NDArray[np.int64],
    confidence: Floats,
    correct: Floats,
    expected_calibration_error: float,
    confidence_level: float = 0.95,
) -> ReliabilityCurve:
    """The curve from the number of predictions, of correct ones, and the sum of confidences in each bin."""
    z2 = NormalDist().inv_cdf((1 - confidence_level) / 2) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        confidence, accuracy = confidence / counts, correct / counts
        middle = (accuracy + z2 / (2 * counts)) / (1 + z2 / counts)
        half = np.sqrt(z2 * (accuracy * (1 - accuracy) + z2 / (4 * counts)) / counts) / (1 + z2 / counts)
    return ReliabilityCurve(
        edges=edges,
        counts=counts,
        confidence=confidence,
        accuracy=accuracy,
        gap=confidence - accuracy,
        # Rounding must not exclude accuracies of 0 and 1.
        lower=np.clip(middle - half, 0, accuracy),
        upper=np.clip(middle + half, accuracy, 1),
        confidence_level=confidence_level,
        expected_calibration_error=expected_calibration_error,
    )
