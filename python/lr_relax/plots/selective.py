"""Risk-coverage curves of one or several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from .figure import check_matplotlib, new_axes
from .reliability import LEGEND, MODELS, check_curves, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

POINTS = 2000  # of a line, at most


class RiskCoverageData(Protocol):
    """The fields of `lr_relax.metrics.RiskCoverageCurve`, which holds and describes them."""

    @property
    def coverage(self) -> Floats: ...
    @property
    def risk(self) -> Floats: ...
    @property
    def area(self) -> float: ...


def compare_risk_coverage(
    curves: Mapping[str, RiskCoverageData], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the risk-coverage curves of several models in the same axes.

    The risk is the error rate among the most confident predictions, and the coverage their fraction; at the
    right end, it is the error rate of all predictions. The legend shows the areas under the curves (AURC).
    The scale fits coverages of at least 5 %: below, few predictions decide.

    Args:
        curves: Maps the name of each model to the result of :func:`lr_relax.metrics.risk_coverage_curve`.
        ax: The axes to draw in; by default those of a new figure, as in :func:`reliability_diagram`.
        title: Text above the axes.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no curves.
        ImportError: If matplotlib is not installed.
    """
    check_matplotlib()
    check_curves(curves)
    if ax is None:
        ax = new_axes(4.6, 3.4)
    highest = 0.0
    for i, (name, curve) in enumerate(curves.items()):
        points = np.unique(np.linspace(0, len(curve.risk) - 1, POINTS).round().astype(int))
        coverage, risk = curve.coverage[points], curve.risk[points]
        color, area = MODELS[i % len(MODELS)], f"AURC {curve.area:.4f}"
        ax.plot(coverage, risk, color=color, lw=1.6, label=f"{name} ({area})" if name else area)
        if len(curves) == 1:
            ax.fill_between(coverage, risk, color=color, alpha=0.13, lw=0)
        highest = max(highest, risk[coverage >= 0.05].max())
    ax.set(xlim=(0, 1), ylim=(0, min(1.1 * highest, 1.0) or 1.0), xlabel="coverage", ylabel="risk")
    ax.legend(loc="best", **LEGEND)
    if title is not None:
        ax.set_title(title)
    tidy(ax)
    return ax
