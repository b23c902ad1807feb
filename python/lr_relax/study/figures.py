"""Figures of results: reliability diagrams, and accuracy and ECE against alpha.

Matplotlib is imported when it is needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plots import reliability_diagrams
from ..plots.reliability import GRID, MARKERS, MODELS
from .files import replaced
from .folder import Result, Statistic, pooled_curve
from .report import METRICS, Method, by_method, by_setting, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> None:
    """Save a figure; the suffix selects the format, as .png, .pdf or .svg."""
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def reliability(results: Iterable[Result]) -> Figure:
    """Draw a reliability diagram per loss and alpha, of the pooled predictions of all seeds.

    Settings, and validation and test data, have diagrams of their own.
    """
    parts, curves = _parts(results), {}
    for part, group in parts.items():
        where = textwrap.fill(part, 36) + "\n" if len(parts) > 1 else ""
        for method, runs in by_method(group).items():
            for alpha, alike in grouped(runs, lambda run: run.alpha).items():
                curves[where + textwrap.fill(method.title(alpha), 36)] = pooled_curve(alike)
    return reliability_diagrams(curves, title=None if len(parts) > 1 else "".join(parts))


def against_alpha(results: Iterable[Result]) -> Figure:
    """Draw accuracy and ECE against alpha: a line per loss, with standard deviations over seeds.

    A point is the mean of the seeds that have its alpha; perhaps only the best of each was tested. Without an
    alpha, cross-entropy is a line in a band. Settings, and validation and test data, have rows of their own.
    """
    from matplotlib.figure import Figure

    parts = {title: by_method(group) for title, group in _parts(results).items()}
    parts = {title: methods for title, methods in parts.items() if any(each.has_alpha for each in methods)}
    if not parts:
        raise ValueError("There are no finished runs of a loss with an alpha to draw.")
    everyone = sorted({method for methods in parts.values() for method in methods})
    figure = Figure(figsize=(8, 3.6 * len(parts) + 0.4), layout="constrained")
    rows = figure.subplots(len(parts), len(METRICS), squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (title, methods) in zip(rows, parts.items(), strict=True):
        axes[0].set_title(title, loc="left", fontsize="medium")
        for ax, metric in zip(axes, METRICS, strict=True):
            for method, runs in methods.items():
                which = everyone.index(method)
                look = {"color": MODELS[which % len(MODELS)], "marker": MARKERS[which % len(MARKERS)]}
                handles[method.title()] = _draw_method(ax, method, runs, metric, look)
            alphas = [run.config.alpha for each, runs in methods.items() if each.has_alpha for run in runs]
            _draw_axes(ax, metric, alphas)
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 3}
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize="small", **place)
    return figure


def _parts(items: Iterable[Result]) -> dict[str, list[Result]]:
    """The runs of each setting on validation and on test data, by a title."""
    return {
        f"{setting.title}: {data} data": on_these
        for setting, group in by_setting(items).items()
        for data in ("validation", "test")
        if (on_these := [item for item in group if item.config.part == data])
    }


def _draw_method(ax: Axes, method: Method, runs: list[Result], metric: str, look: dict[str, Any]) -> Any:
    """Draw means and deviations; return what the legend shows."""
    groups = dict(sorted(grouped(runs, lambda run: run.alpha).items()))
    values = [Statistic.of([getattr(run, metric) for run in group]) for group in groups.values()]
    means, deviations = [each.mean for each in values], [each.deviation or 0 for each in values]
    if method.has_alpha:
        return ax.errorbar([*groups], means, deviations, lw=1.6, ms=4.5, capsize=2, **look)
    ax.axhspan(means[0] - deviations[0], means[0] + deviations[0], color=look["color"], alpha=0.15, lw=0)
    return ax.axhline(means[0], color=look["color"], ls="--", lw=1.4)


def _draw_axes(ax: Axes, metric: str, alphas: list[float]) -> None:
    """A logarithmic scale, linear between 0 and the smallest other alpha."""
    first = min((alpha for alpha in alphas if alpha > 0), default=1.0)
    ax.set_xscale("symlog", linthresh=first, linscale=0.4, subs=[2, 5])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.tick_params(which="both", labelsize="small")
    ax.set(xlabel="alpha", ylabel="accuracy" if metric == "accuracy" else "expected calibration error")
    if metric == "ece":
        ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(color=GRID, lw=0.6)
