"""Reliability diagrams of one or several models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .figure import check_matplotlib, new_axes, new_figure
from .room import make_room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

ACCURACY = "#3b6ea8"
OVERCONFIDENT = "#d1495b"
UNDERCONFIDENT = "#e0a030"
INK = "#444444"
GRID = "#e6e6e6"
# The palette of Okabe & Ito, which is safe for color blindness, without its yellow.
MODELS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vPX*"

LEGEND: dict[str, Any] = {
    "alignment": "left",
    "fontsize": "x-small",
    "title_fontsize": "small",
    "handlelength": 1.4,
    "handletextpad": 0.5,
    "columnspacing": 1.2,
    "borderpad": 0.2,
    "labelspacing": 0.3,
    "edgecolor": "none",
    "framealpha": 0.85,
}

Histogram = bool | Literal["log"]
DECADES = 6  # of a logarithmic scale, at most


class ReliabilityData(Protocol):
    """The fields of `lr_relax.metrics.ReliabilityCurve`, which holds and describes them."""

    @property
    def edges(self) -> Floats: ...
    @property
    def counts(self) -> npt.NDArray[Any]: ...
    @property
    def confidence(self) -> Floats: ...
    @property
    def accuracy(self) -> Floats: ...
    @property
    def gap(self) -> Floats: ...
    @property
    def lower(self) -> Floats: ...
    @property
    def upper(self) -> Floats: ...
    @property
    def confidence_level(self) -> float: ...
    @property
    def expected_calibration_error(self) -> float: ...


class ChanceRanges(Protocol):
    """The range of accuracies of a calibrated model in each bin."""

    @property
    def lower(self) -> Floats: ...
    @property
    def upper(self) -> Floats: ...


class HasChanceRanges(Protocol):
    @property
    def bins(self) -> ChanceRanges | None: ...


Chance = ChanceRanges | HasChanceRanges | tuple[npt.ArrayLike, npt.ArrayLike]
Curves = Mapping[str, ReliabilityData] | Sequence[ReliabilityData]


def reliability_diagram(
    curve: ReliabilityData,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    histogram: Histogram = True,
    chance: Chance | None = None,
) -> Axes:
    """Draw a reliability diagram: the accuracy as a function of the confidence.

    In each bin, a thick line marks the accuracy, and a hatched bar its difference from the mean confidence:
    red if the model is overconfident, yellow if it is underconfident. On the diagonal, both are equal. The
    thin line is the confidence interval of the accuracy, drawn at the mean confidence: if it crosses the
    diagonal, the difference may be due to chance. The panel below shows each bin's share of the predictions,
    which is its weight in the expected calibration error (ECE). Bins with few predictions are faint. For bins
    of unequal width, the panel shows the density instead, so that the area of a bar is the share.

    Args:
        curve: The result of :func:`lr_relax.metrics.reliability_curve`.
        ax: The axes to draw in; the legend and the panel of shares take their room inside them. By default
            those of a new figure, which pyplot knows in interactive mode only, as in notebooks: for
            ``pyplot.show()`` in a script, pass the axes of ``pyplot.subplots()``. See
            :func:`reliability_diagrams` for several models side by side.
        title: Text above the diagram.
        histogram: Whether to draw the panel of shares; "log" draws it on a logarithmic scale, for small
            shares beside a large one.
        chance: For each bin, the range of accuracies that a calibrated model shows by chance, drawn as a bar
            at the mean confidence: arrays `lower` and `upper` of shape (n_bins,), as a pair, as attributes or
            as attributes of `bins`; NaN for bins without a range. An accuracy outside its bar is evidence
            against calibration.

    Returns:
        The axes with the bars; the figure is ``axes.figure``.

    Raises:
        ValueError: If `histogram` is neither a bool nor "log", or if `chance` does not fit the bins.
        ImportError: If matplotlib is not installed.

    Source of the bars: Bröcker & Smith, "Increasing the Reliability of Reliability Diagrams", Weather and
    Forecasting 22, 2007.
    """
    check_matplotlib()
    _check_histogram(histogram)
    ranges = _ranges(chance, len(curve.counts))
    if ax is None:
        ax = new_axes(3.6, 4.6 if histogram else 3.8)
    _draw_panels(ax, [curve], 0, histogram, ranges)
    if title is not None:
        ax.set_title(title)
    return ax


def reliability_diagrams(
    curves: Curves,
    *,
    n_columns: int | None = None,
    title: str | None = None,
    histogram: Histogram = True,
    chance: Mapping[str, Chance] | Sequence[Chance] | None = None,
) -> Figure:
    """Draw a reliability diagram for each model, side by side and on the same scales.

    Args:
        curves: Maps the name of each model, which is the title of its panel, to its curve; or the list of the
            curves of all classes, as of ``reliability_curve(..., kind="classwise")``.
        n_columns: The number of panels in a row; by default up to 4.
        title: Text above all panels.
        histogram: As in :func:`reliability_diagram`.
        chance: That of each curve, as in :func:`reliability_diagram`, in a mapping or list like `curves`.

    Returns:
        The figure. Its axes are the panels in the order of `curves`, drawn as in :func:`reliability_diagram`,
        with a common legend.

    Raises:
        ValueError: If there are no curves, or if `n_columns` is below 1.
        ImportError: If matplotlib is not installed.

    >>> reliability_diagrams({"before": before, "after": after}).savefig("both.png")  # doctest: +SKIP
    """
    check_matplotlib()
    _check_histogram(histogram)
    curves = _named(curves)
    chances = dict.fromkeys(curves) if chance is None else _by_name(chance)
    if set(chances) != set(curves):
        raise ValueError(
            f"Expected argument `chance` to be for {list(curves)}, as `curves`, but got {list(chances)}."
        )
    ranges = [_ranges(chances[name], len(curve.counts)) for name, curve in curves.items()]
    if n_columns is None:
        n_columns = min(len(curves), 4)
    if not isinstance(n_columns, int | np.integer) or isinstance(n_columns, bool) or n_columns < 1:
        raise ValueError(
            f"Expected argument `n_columns` to be an integer of at least 1, but got {n_columns!r}."
        )
    n_columns = min(int(n_columns), len(curves))
    n_rows = math.ceil(len(curves) / n_columns)
    height = 3.9 if histogram else 3.1
    figure = new_figure(max(2.7 * n_columns + 0.5, 3.8), height * n_rows + 0.4)
    panels: list[Axes] = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for unused in panels[len(curves) :]:
        unused.remove()
    legend: dict[str, Any] = {}
    all_curves = list(curves.values())
    for i, (ax, name) in enumerate(zip(panels, curves, strict=False)):
        for handle in _draw_panels(ax, all_curves, i, histogram, ranges[i], with_legend=False):
            legend.setdefault(handle.get_label(), handle)
        ax.set_title(name, fontsize="medium")
        parts = [part for part in (ax, *ax.child_axes) if part.get_visible()]
        if i % n_columns:
            for part in parts:
                part.tick_params(labelleft=False)
                part.set_ylabel("")
        if i + n_columns < len(curves):
            parts[-1].set_xlabel("")
    for n in range(len(legend), 0, -1):
        look = {**LEGEND, "fontsize": "small", "loc": "outside lower center"}
        common = figure.legend(handles=list(legend.values()), ncols=n, frameon=False, **look)
        if n == 1 or common.get_window_extent().width <= figure.bbox.width:
            break
        common.remove()
    if title is not None:
        figure.suptitle(title)
    return figure


def compare_reliability(curves: Curves, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw accuracy minus confidence of several models in the same axes.

    Each bin is a point at its mean confidence. Its area shows the bin's share of the predictions, and the
    band is the confidence interval of the accuracy. On the dashed line a model is calibrated, below it
    overconfident. The legend shows the expected calibration errors (ECE).

    The scale fits the bins with at least 1 % of a model's predictions. Other bins are mostly noise: their
    lines are faint and may leave the axes, and they have no band.

    Args:
        curves: As in :func:`reliability_diagrams`.
        ax: The axes to draw in; by default those of a new figure.
        title: Text above the axes.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no curves.
        ImportError: If matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.lines import Line2D

    curves = _named(curves)
    if ax is None:
        ax = new_axes(5.6, 3.8)
    handles = []
    extreme, first = 0.0, 1.0
    for i, (name, curve) in enumerate(curves.items()):
        filled = curve.counts > 0
        share = curve.counts[filled] / curve.counts.sum()
        confidence = curve.confidence[filled]
        above = -curve.gap[filled]
        color, marker = MODELS[i % len(MODELS)], MARKERS[i % len(MARKERS)]
        lower, upper = (bound[filled] - confidence for bound in (curve.lower, curve.upper))
        counts = share >= min(0.01, 0.5 / len(share))
        ax.fill_between(confidence, lower, upper, where=counts, color=color, alpha=0.13, lw=0)
        ax.plot(confidence, above, color=color, lw=1, alpha=0.3)
        ax.plot(confidence, np.where(counts, above, np.nan), color=color, lw=1.6)
        look: dict[str, Any] = {"color": color, "marker": marker}
        ax.scatter(confidence, above, s=10 + 110 * share, edgecolor="white", lw=0.5, zorder=3, **look)
        handles.append(Line2D([], [], lw=1.6, ms=4, label=f"{name} ({_error(curve)})", **look))
        extreme = max(extreme, *abs(above[counts]))
        first = min(first, confidence.min())
    reach = min(1.3 * extreme + 0.02, 1.0)
    ax.axhline(0, ls=(0, (4, 3)), lw=1, color=INK, zorder=1.5)
    ax.set(xlim=(math.floor(10 * first) / 10, 1), ylim=(-reach, reach))
    ax.set(xlabel="confidence", ylabel="accuracy \N{MINUS SIGN} confidence")
    beside: dict[str, Any] = {"transform": ax.transAxes, "rotation": 270, "va": "center", "color": INK}
    for y, side in ((0.75, "underconfident"), (0.25, "overconfident")):
        ax.text(1.015, y, side, fontsize="small", **beside)
    ax.legend(handles=handles, loc="best", **LEGEND)
    if title is not None:
        ax.set_title(title)
    tidy(ax)
    return ax


def _draw_panels(
    ax: Axes,
    curves: Sequence[ReliabilityData],
    which: int,
    histogram: Histogram,
    ranges: Floats | None,
    with_legend: bool = True,
) -> list[Any]:
    """Draw one of the curves into the rectangle of the axes; return the handles of the legend."""
    handles = _draw_bins(ax, curves[which])
    if ranges is not None:
        handles.append(_draw_chance(ax, curves[which], ranges))
    shares = None
    if histogram:
        ax.tick_params(labelbottom=False)
        shares = _draw_shares(ax, curves, which, logarithmic=histogram == "log")
    else:
        ax.set_xlabel("confidence")
    # The bars may be anywhere inside the axes, so the legend is above them, in as many columns as fit.
    shown = handles if with_legend else []
    for n in range(max(len(shown), 1), 0, -1):
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        legend = ax.legend(
            handles=shown, title=_error(curves[which]), ncols=n, frameon=False, **place, **LEGEND
        )
        if legend.get_window_extent().width <= ax.bbox.width:
            break
    make_room(ax, shares)
    return handles


def _draw_bins(ax: Axes, curve: ReliabilityData) -> list[Any]:
    """Draw the panel of accuracies; return the handles of its legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    filled = curve.counts > 0
    left, width = curve.edges[:-1][filled], np.diff(curve.edges)[filled]
    share = curve.counts[filled] / curve.counts.sum()
    confidence, accuracy = curve.confidence[filled], curve.accuracy[filled]
    gap = curve.gap[filled]
    # Bars of less than 2 % of the predictions fade: they are mostly noise and hardly count in the ECE. Where
    # the bins are many, 2 % are a lot.
    weight = 0.3 + 0.7 * np.minimum(share / min(0.02, 0.5 / len(share)), 1.0)

    for x, w, acc, over, strength in zip(left, width, accuracy, gap, weight, strict=True):
        color = OVERCONFIDENT if over > 0 else UNDERCONFIDENT
        narrow = w < 0.03  # too narrow for an outline and a hatch
        bar: dict[str, Any] = {"width": w, "align": "edge"}
        ax.bar(
            x,
            min(acc, acc + over),
            facecolor=(ACCURACY, 0.75 * strength),
            edgecolor="none" if narrow else "white",
            lw=0.6,
            **bar,
        )
        ax.bar(
            x,
            abs(over),
            bottom=min(acc, acc + over),
            hatch="/////",
            facecolor=(color, (0.6 if narrow else 0.3) * strength),
            edgecolor=(color, strength),
            lw=0 if narrow else 0.6,
            **bar,
        )
        # At least as long as it is thick.
        middle, half = x + w / 2, max(w, 0.012) / 2
        ax.hlines(acc, middle - half, middle + half, color=(ACCURACY, strength), lw=2)
    lower, upper = curve.lower[filled], curve.upper[filled]
    known = np.isfinite(lower) & np.isfinite(upper)
    colors = [(INK, 0.8 * strength) for strength in weight[known]]
    ax.vlines(confidence[known], lower[known], upper[known], colors=colors, lw=0.9, zorder=2.5)
    ax.plot([0, 1], [0, 1], ls=(0, (4, 3)), lw=1, color=INK, zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    tidy(ax)
    handles: list[Any] = [
        Patch(fc=(color, 0.35), ec=color, hatch="/////", label=label)
        for color, label in [(OVERCONFIDENT, "overconfident"), (UNDERCONFIDENT, "underconfident")]
    ]
    if known.any():
        level = f"{100 * curve.confidence_level:.4g} % interval"
        handles.append(Line2D([], [], marker="|", ls="", ms=7, mew=0.9, label=level, color=INK))
    return handles


def _draw_chance(ax: Axes, curve: ReliabilityData, ranges: Floats) -> Any:
    """Draw the ranges of accuracies of a calibrated model; return the handle of the legend."""
    known = np.isfinite(ranges).all(0) & (curve.counts > 0)
    lower, upper = ranges[:, known]
    width = np.diff(curve.edges)[known]
    look: dict[str, Any] = {"facecolor": ("#e0e0e0", 0.75), "edgecolor": INK, "zorder": 1.5}
    look["lw"] = np.where(width < 0.03, 0, 0.6)  # an outline would fill a narrow bar
    bars = ax.bar(curve.confidence[known], upper - lower, np.clip(0.4 * width, 0.004, 0.03), lower, **look)
    bars.set_label("range by chance")
    return bars


def _draw_shares(ax: Axes, curves: Sequence[ReliabilityData], which: int, logarithmic: bool) -> Axes:
    """Draw the lower panel of one of the curves, on a scale that fits all of them."""
    shares = [curve.counts / curve.counts.sum() for curve in curves]
    widths = [np.diff(curve.edges) for curve in curves]
    equal = all(np.allclose(width, width[0], rtol=1e-6, atol=0) for width in widths)
    histogram: Axes = ax.inset_axes((0, 0, 1, 1), sharex=ax)
    histogram.set(xlabel="confidence", ylabel="share" if equal else "density")
    if equal:
        heights = shares
    else:
        # A minimum width, because the density of a bin without width is infinite.
        widths = [np.maximum(width, 0.003) for width in widths]
        heights = [share / width for share, width in zip(shares, widths, strict=True)]
    low, high = 0.0, max(height.max() for height in heights)
    if logarithmic:
        positive = np.concatenate(heights)[np.concatenate(heights) > 0]
        first, last = math.floor(math.log10(positive.min())), math.ceil(math.log10(high))
        # Rounding up to the next power of ten gives at least one.
        low, high = 10.0 ** max(min(first, last - 1), last - DECADES), 10.0**last
        histogram.set_yscale("log")
        histogram.set_yticks([], minor=True)
    labels = [f"{100 * tick:.3g}%" if logarithmic else f"{tick:.0%}" for tick in (low, high)]
    if not equal:
        labels = [f"{tick:.2g}" for tick in (low, high)]
    histogram.set(ylim=(low, high), yticks=(low, high), yticklabels=labels)
    bar: dict[str, Any] = {"align": "edge", "color": INK, "alpha": 0.6, "lw": 0}
    histogram.bar(curves[which].edges[:-1], heights[which], widths[which], **bar)
    tidy(histogram)
    return histogram


def tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=GRID, lw=0.6)


def _error(curve: ReliabilityData) -> str:
    return f"ECE {curve.expected_calibration_error:.4f}"


def _by_name(items: Any) -> Any:
    return {f"class {k}": item for k, item in enumerate(items)} if isinstance(items, list | tuple) else items


def check_curves(curves: Any, form: str = "map names to curves") -> None:
    if not isinstance(curves, Mapping):
        raise TypeError(f"Expected argument `curves` to {form}, but got {type(curves).__name__}.")
    if not curves:
        raise ValueError("Expected argument `curves` to hold at least one curve, but got none.")


def _named(curves: Curves) -> Mapping[str, ReliabilityData]:
    named: Mapping[str, ReliabilityData] = _by_name(curves)
    check_curves(named, "map names to curves, or to be a list of the curves of all classes")
    return named


def _check_histogram(histogram: Histogram) -> None:
    if not isinstance(histogram, bool) and histogram != "log":
        raise ValueError(f"Expected argument `histogram` to be True, False or 'log', but got {histogram!r}.")


def _ranges(chance: Chance | None, n_bins: int) -> Floats | None:
    """The lower and the upper ends, of shape (2, n_bins)."""
    if chance is None:
        return None
    of_bins: Any = getattr(chance, "bins", chance)
    pair = (of_bins.lower, of_bins.upper) if hasattr(of_bins, "lower") else of_bins
    shapes = None if pair is None else [np.shape(each) for each in pair]
    if shapes != [(n_bins,)] * 2:
        raise ValueError(
            f"Expected argument `chance` to be lower and upper ends of shape ({n_bins},), one for each bin, "
            f"but got {'None' if shapes is None else f'shapes {shapes}'}."
        )
    return np.array(pair, np.float64)
