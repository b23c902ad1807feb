"""The reliability diagram: how accurate predictions of each confidence are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..metrics import ReliabilityCurve

ACCURACY = "#3b6ea8"
OVERCONFIDENT = "#d1495b"
UNDERCONFIDENT = "#e0a030"
INK = "#444444"


def reliability_diagram(curve: ReliabilityCurve, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw how accurate predictions of each confidence are, and how many there are of each.

    Per bin, a thick line marks the accuracy of the predictions, and a hatched bar its distance to their mean
    confidence: red where the model is overconfident, yellow where it is underconfident. On the diagonal
    the two agree. The panel below shows each bin's share of the predictions, which is its gap's weight in the
    expected calibration error (ECE); bars that stand for few predictions are faint.

    Args:
        curve: What :func:`lr_relax.metrics.reliability_curve` returns.
        ax: Axes to draw in, for several diagrams side by side; by default those of a new figure.
        title: Text above the diagram.

    Returns:
        The axes with the bars; the figure is ``axes.figure``.
    """
    try:
        from matplotlib import pyplot as plt
        from matplotlib.patches import Patch
        from matplotlib.ticker import PercentFormatter
    except ModuleNotFoundError as missing:
        raise ImportError('reliability_diagram needs matplotlib: pip install "lr-relax[plot]"') from missing

    if ax is None:
        _, ax = plt.subplots(figsize=(3.6, 4.4), layout="constrained")

    left, width = curve.edges[:-1], np.diff(curve.edges)
    share = curve.counts / curve.counts.sum()
    filled = curve.counts > 0
    left, width = left[filled], width[filled]
    accuracy, gap = curve.accuracy[filled], (curve.confidence - curve.accuracy)[filled]
    # Bars of less than 2 % of the predictions fade: they are mostly noise and hardly count in the ECE.
    weight = 0.3 + 0.7 * np.minimum(share[filled] / 0.02, 1.0)

    for x, w, acc, over, strength in zip(left, width, accuracy, gap, weight, strict=True):
        colour = OVERCONFIDENT if over > 0 else UNDERCONFIDENT
        bar = {"width": w, "align": "edge", "lw": 0.6}
        ax.bar(x, min(acc, acc + over), facecolor=(ACCURACY, 0.75 * strength), edgecolor="white", **bar)
        ax.bar(
            x,
            abs(over),
            bottom=min(acc, acc + over),
            hatch="/////",
            facecolor=(colour, 0.3 * strength),
            edgecolor=(colour, strength),
            **bar,
        )
        ax.hlines(acc, x, x + w, color=(ACCURACY, strength), lw=2)
    ax.plot([0, 1], [0, 1], ls=(0, (4, 3)), lw=1, color=INK, zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    handles = [
        Patch(fc=(colour, 0.35), ec=colour, hatch="/////", label=label)
        for colour, label, shown in [
            (OVERCONFIDENT, "overconfident", (gap > 0).any()),
            (UNDERCONFIDENT, "underconfident", (gap < 0).any()),
        ]
        if shown
    ]
    ax.legend(
        handles=handles,
        title=f"ECE {curve.expected_calibration_error:.4f}",
        alignment="left",
        loc="upper left",
        fontsize="x-small",
        title_fontsize="small",
        handlelength=1.4,
        handletextpad=0.5,
        borderpad=0.2,
        labelspacing=0.3,
        edgecolor="none",
        framealpha=0.85,
    )
    if title is not None:
        ax.set_title(title)

    histogram = ax.inset_axes((0, -0.27, 1, 0.21), sharex=ax)
    histogram.bar(curve.edges[:-1], share, np.diff(curve.edges), align="edge", color=INK, alpha=0.6)
    histogram.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    histogram.set(xlabel="confidence", ylabel="share", ylim=(0, share.max()), yticks=(0, share.max()))
    ax.tick_params(labelbottom=False)
    for panel in (ax, histogram):
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        panel.grid(axis="y", color="#e6e6e6", lw=0.6)
    return ax
