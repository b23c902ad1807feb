"""The reliability curve: accuracy as a function of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ._bins import KINDS, Binning, Bins, Kind, bin_digits, check_bins, errors
from ._checks import Array, ArrayLike, Floats, check_choice, check_share
from ._frame import frame
from ._inputs import Options, read
from ._metric import reads_options

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from typing_extensions import Unpack

    from ..plots.reliability import Chance, Histogram


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Accuracy as a function of confidence: the data of a reliability diagram.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """

    edges: Floats
    """The edges of the bins, shape (n_bins + 1,). A bin includes its left edge; the last one includes both.

    With "uniform" binning, they are rounded to the type of the predictions."""
    counts: npt.NDArray[Any]
    """The number of predictions in each bin, shape (n_bins,); with weights, their sum."""
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

    def __repr__(self) -> str:
        return (
            f"ReliabilityCurve(n={self.counts.sum():.15g}, n_bins={len(self.counts)}, "
            f"expected_calibration_error={self.expected_calibration_error:.6g})"
        )

    def to_frame(self) -> pd.DataFrame:
        """The bins as a pandas DataFrame: a row for each, with its edges `left`, `right` and the fields."""
        fields = ("counts", "confidence", "accuracy", "gap", "lower", "upper")
        columns = {name: getattr(self, name) for name in fields}
        return frame({"left": self.edges[:-1], "right": self.edges[1:], **columns})

    def plot(
        self,
        ax: Axes | None = None,
        *,
        title: str | None = None,
        histogram: Histogram = True,
        chance: Chance | None = None,
    ) -> Axes:
        """Draw the reliability diagram; see :func:`lr_relax.plots.reliability_diagram`."""
        from lr_relax.plots import reliability_diagram

        return reliability_diagram(self, ax=ax, title=title, histogram=histogram, chance=chance)


@overload
def reliability_curve(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    kind: Literal["top_label"] = "top_label",
    confidence_level: float = 0.95,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> ReliabilityCurve: ...
@overload
def reliability_curve(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    kind: Literal["classwise"],
    confidence_level: float = 0.95,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> list[ReliabilityCurve]: ...
@reads_options
def reliability_curve(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    kind: Kind = "top_label",
    confidence_level: float = 0.95,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """Compute confidence and accuracy over bins of confidence.

    Args:
        preds, target, n_bins, binning, sample_weight, **options: As in `calibration_error`.
        kind: "top_label" for one curve; "classwise" for a list of curves, one for each class or, with the
            task "multilabel", for each label.
        confidence_level: The confidence level of the intervals of the accuracies, in (0, 1).

    With weights, the interval of a bin is that of ``sum(w) ** 2 / sum(w ** 2)`` predictions, Kish's effective
    sample size.

    Source of the intervals: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 1927; Brown, Cai & DasGupta, "Interval Estimation for a Binomial Proportion", 2001, eq. 4.

    >>> import numpy as np
    >>> curve = reliability_curve(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), n_bins=2)
    >>> curve.counts, curve.accuracy
    (array([0, 2]), array([nan, 0.5]))
    """
    confidence_level = check_share("confidence_level", confidence_level)
    n, name_or_edges = check_bins(n_bins, binning)
    rows = read(preds, target, sample_weight, **options)
    check_choice("kind", kind, KINDS)
    if kind == "top_label":
        rows = replace(rows, n_labels=min(rows.n_labels, 1))  # the events of all labels together
    of_bins = "top_label" if rows.n_labels > 1 else kind
    edges, counts, digits = bin_digits(rows, n, name_or_edges, of_bins)
    bins = Bins.from_digits(counts, digits, n)
    effective = None
    if rows.weight is not None:
        largest = max(float(rows.weight.max(initial=0)), 1e-300)
        squares = replace(rows, weight=(rows.weight / largest) ** 2)
        _, _, digits_of_squares = bin_digits(squares, n, name_or_edges, of_bins)
        sums = Bins.from_digits(counts, digits_of_squares, n).weight
        effective = np.divide((bins.weight / largest) ** 2, sums, out=np.zeros_like(sums), where=sums > 0)
    all_errors = errors(bins, "l1", False)
    all_edges = np.broadcast_to(edges.reshape(-1, n + 1), (len(all_errors), n + 1))
    curves = [
        curve_of_sums(
            all_edges[k],
            bins.counts[k] if rows.weight is None else bins.weight[k],
            bins.confidence[k],
            bins.correct[k],
            float(all_errors[k]),
            confidence_level,
            None if effective is None else effective[k],
        )
        for k in range(len(all_errors))
    ]
    return curves if kind == "classwise" else curves[0]


def curve_of_sums(
    edges: Floats,
    counts: npt.NDArray[Any],
    confidence: Floats,
    correct: Floats,
    expected_calibration_error: float,
    confidence_level: float = 0.95,
    effective: Floats | None = None,
) -> ReliabilityCurve:
    """The curve from sums over each bin: of the weights of all predictions, of the correct ones, and of the
    weighted confidences; `effective` is the effective number of predictions."""
    z2 = NormalDist().inv_cdf((1 - confidence_level) / 2) ** 2
    n = counts if effective is None else effective
    with np.errstate(divide="ignore", invalid="ignore"):
        confidence, accuracy = confidence / counts, correct / counts
        middle = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (accuracy * (1 - accuracy) + z2 / (4 * n)) / n) / (1 + z2 / n)
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
