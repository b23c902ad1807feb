"""Figures of results: reliability diagrams, and accuracy and ECE against alpha.

The suffix of the path selects the format. Matplotlib is imported when it is needed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import reliability_diagram
from ..plots.reliability import GRID, MARKERS, MODELS
from .files import replaced
from .folder import Result, Statistic, pooled_curve
from .report import METRICS, Method, Setting, by_method, by_setting, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ENDINGS = (".png", ".pdf", ".svg")
COLUMNS = 4  # of reliability diagrams


def reliability(results: Iterable[Result], path: Path) -> None:
    """Save the figure of :func:`draw_reliability` as .png, .pdf or .svg."""
    _save(draw_reliability, results, path)


def against_alpha(results: Iterable[Result], path: Path) -> None:
    """Save the figure of :func:`draw_against_alpha` as .png, .pdf or .svg."""
    _save(draw_against_alpha, results, path)


def draw_reliability(results: Iterable[Result]) -> Figure:
    """Draw a reliability diagram per loss, of the pooled predictions of all seeds.

    A loss with several results of one seed gets one diagram per alpha. Settings, and validation and test
    data, are drawn below each other.
    """
    from matplotlib.figure import Figure

    blocks = []
    for setting, data, group in _by_setting_and_data(results):
        panels = _panels(group)
        seeds = counted([len(runs) for runs in panels.values()], "seed")
        blocks.append((f"{setting.title}: {data} predictions of {seeds}", panels))
    if not blocks:
        raise ValueError("There are no results to draw reliability diagrams of.")
    columns = min(COLUMNS, max(len(panels) for _, panels in blocks))
    rows = [math.ceil(len(panels) / columns) for _, panels in blocks]
    width = max(3.4 * columns, 4.6)
    figure = Figure(figsize=(width, 4.4 * sum(rows) + 0.4 * len(rows)), layout="constrained")
    parts = np.ravel(figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=rows))
    for (title, panels), part, n in zip(blocks, parts, rows, strict=True):
        _head(part, title, width)
        grid = part.subplots(n, columns, squeeze=False).ravel()
        for ax, (name, group) in zip(grid, panels.items(), strict=False):
            reliability_diagram(pooled_curve(group), ax=ax, title=name)
        for unused in grid[len(panels) :]:
            unused.remove()
    return figure


def draw_against_alpha(results: Iterable[Result]) -> Figure:
    """Draw accuracy and ECE against alpha: a line per loss, in a band of ± one standard deviation over seeds.

    Alphas without results of some seeds are hollow markers off the line, because only the best alpha of each
    seed may have been tested. Cross-entropy, which has no alpha, is a horizontal line. Settings, and
    validation and test data, are drawn below each other.
    """
    from matplotlib.figure import Figure

    rows = [
        (f"{setting.title}: {data} data", by_method(group))
        for setting, data, group in _by_setting_and_data(results)
        if any(Method.of(result.config).has_alpha for result in group)
    ]
    if not rows:
        raise ValueError("There are no finished runs of a loss with an alpha to draw.")
    everyone = sorted({method for _, methods in rows for method in methods}, key=lambda method: method.order)
    figure = Figure(figsize=(8, 4 * len(rows)), layout="constrained")
    parts = np.ravel(figure.subfigures(len(rows), 1, squeeze=False))
    for (title, methods), part in zip(rows, parts, strict=True):
        _head(part, title, width=8)
        panels = part.subplots(1, len(METRICS))
        for ax, metric in zip(panels, METRICS, strict=True):
            for method, runs in methods.items():
                which = everyone.index(method)
                look = {"color": MODELS[which % len(MODELS)], "marker": MARKERS[which % len(MARKERS)]}
                _draw_method(ax, method, *_statistics(runs, metric), look)
            alphas = [
                run.config.alpha for method, runs in methods.items() if method.has_alpha for run in runs
            ]
            _draw_axes(ax, metric, alphas)
        lines = [line for line in panels[0].get_lines() if not line.get_label().startswith("_")]
        place = {"loc": "outside lower center", "ncols": min(len(methods), 3)}
        part.legend(handles=lines, frameon=False, fontsize="small", **place)
    return figure


def _by_setting_and_data(items: Iterable[Result]) -> Iterator[tuple[Setting, str, list[Result]]]:
    for setting, group in by_setting(items).items():
        for data in ("validation", "test"):
            if on_these := [item for item in group if item.config.test_run == (data == "test")]:
                yield setting, data, on_these


def _panels(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results to pool, by the title of their diagram."""
    panels: dict[str, list[Result]] = {}
    for method, group in by_method(results).items():
        seeds = [each.config.seed for each in group]
        alphas = sorted({each.config.alpha for each in group})
        together = [alphas] if len(seeds) == len(set(seeds)) else [[alpha] for alpha in alphas]
        for some in together:
            ends = " to ".join(f"{alpha:g}" for alpha in dict.fromkeys((some[0], some[-1])))
            name = method.title(ends if method.has_alpha else "")
            panels[name] = [each for each in group if each.config.alpha in some]
    return panels


Statistics = dict[float, Statistic]  # by alpha, in ascending order


def _statistics(runs: Iterable[Result], metric: str) -> tuple[Statistics, Statistics]:
    """Statistics over seeds: of the alphas with results of all seeds, and of the others."""
    values: dict[float, dict[int, float]] = {}
    for run in sorted(runs, key=lambda run: run.config.alpha):
        values.setdefault(run.config.alpha, {})[run.config.seed] = getattr(run, metric)
    seeds = {seed for of_alpha in values.values() for seed in of_alpha}
    whole: Statistics = {}
    others: Statistics = {}
    for alpha, of_seeds in values.items():
        (whole if of_seeds.keys() == seeds else others)[alpha] = Statistic.of([*of_seeds.values()])
    return whole, others


def _draw_method(
    ax: Axes, method: Method, whole: Statistics, others: Statistics, look: dict[str, Any]
) -> None:
    alphas, means = list(whole), [each.mean for each in whole.values()]
    deviations = [each.deviation or 0 for each in whole.values()]
    band: dict[str, Any] = {"color": look["color"], "alpha": 0.15, "lw": 0}
    if not method.has_alpha:
        ax.axhline(means[0], color=look["color"], ls="--", lw=1.4, label=method.title())
        ax.axhspan(means[0] - deviations[0], means[0] + deviations[0], **band)
        return
    if whole:
        ax.plot(alphas, means, lw=1.6, ms=4.5, label=method.title(), **look)
    if others:
        partial = [each.mean for each in others.values()]
        label = "_of some seeds" if whole else method.title()
        ax.plot(list(others), partial, ls="none", ms=4.5, fillstyle="none", label=label, **look)
    lower, upper = np.array(means) - deviations, np.array(means) + deviations
    if len(alphas) > 1:
        ax.fill_between(alphas, lower, upper, **band)
    else:
        ax.vlines(alphas, lower, upper, color=look["color"], lw=1)


def _draw_axes(ax: Axes, metric: str, alphas: Sequence[float]) -> None:
    """A logarithmic scale, linear between 0 and the smallest other alpha if 0 is among them."""
    first, last = min((alpha for alpha in alphas if alpha > 0), default=1.0), max(alphas)
    if min(alphas) > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    digits = (1, 2, 5) if last <= 100 * first else (1, 3)
    round_numbers = [digit * 10.0**power for power in range(-6, 4) for digit in digits]
    ticks = [0.0] * (min(alphas) == 0) + [tick for tick in round_numbers if first <= tick <= last]
    ax.set_xticks(ticks or [first], labels=[f"{tick:g}" for tick in ticks or [first]])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="alpha", ylabel={"accuracy": "accuracy", "ece": "expected calibration error"}[metric])
    if metric == "ece":
        ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(color=GRID, lw=0.6)


def _head(part: SubFigure, title: str, width: float) -> None:
    part.suptitle(textwrap.fill(title, int(11 * width)), fontsize="medium")


def _save(draw: Callable[[Iterable[Result]], Figure], results: Iterable[Result], path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"Expected argument `path` to end in {', '.join(ENDINGS)}, but got {path}.")
    figure = draw(results)
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
