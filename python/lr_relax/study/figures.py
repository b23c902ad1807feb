"""Figures of results: reliability diagrams, and accuracy and ECE against alpha.

Matplotlib is imported when it is needed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import reliability_diagram
from ..plots.reliability import GRID, MARKERS, MODELS
from .files import replaced
from .folder import Result, Statistic, pooled_curve
from .report import METRICS, Method, by_method, by_setting, counted, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 4  # of reliability diagrams


def save(figure: Figure, path: Path) -> None:
    """Save a figure; the suffix selects the format, as .png, .pdf or .svg."""
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def reliability(results: Iterable[Result]) -> Figure:
    """Draw a reliability diagram per loss, of the pooled predictions of all seeds.

    A loss with several results of one seed gets one diagram per alpha. Settings, and validation and test
    data, are drawn below each other.
    """
    blocks = {}
    for title, group in _by_setting_and_data(results):
        panels = _panels(group)
        seeds = counted([len(runs) for runs in panels.values()], "seed")
        blocks[f"{title} predictions of {seeds}"] = panels
    if not blocks:
        raise ValueError("There are no results to draw reliability diagrams of.")
    columns = min(COLUMNS, max(map(len, blocks.values())))
    rows = [math.ceil(len(panels) / columns) for panels in blocks.values()]
    figure, parts = _stacked(blocks, max(3.4 * columns, 4.6), [4.4 * n + 0.4 for n in rows])
    for part, panels, n in zip(parts, blocks.values(), rows, strict=True):
        grid = part.subplots(n, columns, squeeze=False).ravel()
        for ax, (name, group) in zip(grid, panels.items(), strict=False):
            reliability_diagram(pooled_curve(group), ax=ax, title=name)
        for unused in grid[len(panels) :]:
            unused.remove()
    return figure


def against_alpha(results: Iterable[Result]) -> Figure:
    """Draw accuracy and ECE against alpha: a line per loss, in a band of ± one standard deviation over seeds.

    Alphas without results of some seeds are hollow markers off the line, because only the best alpha of each
    seed may have been tested. Cross-entropy, which has no alpha, is a horizontal line. Settings, and
    validation and test data, are drawn below each other.
    """
    blocks = {f"{title} data": by_method(group) for title, group in _by_setting_and_data(results)}
    blocks = {title: group for title, group in blocks.items() if any(method.has_alpha for method in group)}
    if not blocks:
        raise ValueError("There are no finished runs of a loss with an alpha to draw.")
    everyone = sorted({method for methods in blocks.values() for method in methods})
    figure, parts = _stacked(blocks, 8, [4.0] * len(blocks))
    for part, methods in zip(parts, blocks.values(), strict=True):
        panels = part.subplots(1, len(METRICS))
        for ax, metric in zip(panels, METRICS, strict=True):
            for method, runs in methods.items():
                which = everyone.index(method)
                look = {"color": MODELS[which % len(MODELS)], "marker": MARKERS[which % len(MARKERS)]}
                _draw_method(ax, method, runs, metric, look)
            alphas = {run.config.alpha for each, runs in methods.items() if each.has_alpha for run in runs}
            _draw_axes(ax, metric, sorted(alphas))
        lines = [line for line in panels[0].get_lines() if not line.get_label().startswith("_")]
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(len(methods), 3)}
        part.legend(handles=lines, frameon=False, fontsize="small", **place)
    return figure


def _by_setting_and_data(items: Iterable[Result]) -> Iterator[tuple[str, list[Result]]]:
    for setting, group in by_setting(items).items():
        for data in ("validation", "test"):
            if on_these := [item for item in group if item.config.part == data]:
                yield f"{setting.title}: {data}", on_these


def _stacked(titles: Iterable[str], width: float, heights: list[float]) -> tuple[Figure, list[SubFigure]]:
    """A figure with titled parts below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = list(np.ravel(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)))
    for part, title in zip(parts, titles, strict=True):
        part.suptitle(textwrap.fill(title, int(11 * width)), fontsize="medium")
    return figure, parts


def _panels(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results to pool, by the title of their diagram."""
    panels: dict[str, list[Result]] = {}
    for method, group in by_method(results).items():
        seeds = [each.config.seed for each in group]
        alphas = sorted({each.config.alpha for each in group})
        for some in [alphas] if len(seeds) == len(set(seeds)) else [[alpha] for alpha in alphas]:
            ends = " to ".join(f"{alpha:g}" for alpha in dict.fromkeys((some[0], some[-1])))
            name = method.title(ends if method.has_alpha else "")
            panels[name] = [each for each in group if each.config.alpha in some]
    return panels


def _draw_method(ax: Axes, method: Method, runs: list[Result], metric: str, look: dict[str, Any]) -> None:
    groups = grouped(sorted(runs, key=lambda run: run.config.alpha), lambda run: run.alpha)
    values = {alpha: Statistic.of([getattr(run, metric) for run in each]) for alpha, each in groups.items()}
    n_seeds = len({run.config.seed for run in runs})
    whole = [alpha for alpha, each in groups.items() if len(each) == n_seeds]
    others = [alpha for alpha in groups if alpha not in whole]
    means = np.array([values[alpha].mean for alpha in whole])
    deviations = np.array([values[alpha].deviation or 0 for alpha in whole])
    band: dict[str, Any] = {"color": look["color"], "alpha": 0.15, "lw": 0}
    if not method.has_alpha:
        ax.axhline(means[0], color=look["color"], ls="--", lw=1.4, label=method.title())
        ax.axhspan(means[0] - deviations[0], means[0] + deviations[0], **band)
        return
    if whole:
        ax.plot(whole, means, lw=1.6, ms=4.5, label=method.title(), **look)
    if others:
        hollow = {"ls": "none", "fillstyle": "none", "ms": 4.5, **look}
        label = "_of some seeds" if whole else method.title()
        ax.plot(others, [values[alpha].mean for alpha in others], label=label, **hollow)
    if len(whole) > 1:
        ax.fill_between(whole, means - deviations, means + deviations, **band)
    else:
        ax.vlines(whole, means - deviations, means + deviations, color=look["color"], lw=1)


def _draw_axes(ax: Axes, metric: str, alphas: list[float]) -> None:
    """A logarithmic scale, linear between 0 and the smallest other alpha if 0 is among them."""
    first, last = min((alpha for alpha in alphas if alpha > 0), default=1.0), alphas[-1]
    if alphas[0] > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    digits = (1, 2, 5) if last <= 100 * first else (1, 3)
    round_numbers = [digit * 10.0**power for power in range(-6, 4) for digit in digits]
    ticks = [0.0] * (alphas[0] == 0) + [tick for tick in round_numbers if first <= tick <= last] or [first]
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="alpha", ylabel="accuracy" if metric == "accuracy" else "expected calibration error")
    if metric == "ece":
        ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(color=GRID, lw=0.6)
