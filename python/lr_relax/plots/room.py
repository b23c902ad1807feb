"""Room inside the rectangle of axes: for a legend above them and a smaller panel below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

SHARES = 0.27  # the height of the panel below, in that of the axes
GAP = 12  # points between the two, for the labels of their ticks


def make_room(ax: Axes, below: Axes | None) -> None:
    """Place the legend of the axes above them and the panel below them, all inside their rectangle."""
    # The title is placed above all axes, so these make it leave room for the legend.
    above = ax.inset_axes((0, 1, 1, 0), visible=False)
    above.yaxis.set_visible(False)
    above.set_axes_locator(_Above(ax))
    if below is not None:
        below.set_axes_locator(_Below(ax))
    before: Any = ax.get_axes_locator()
    if isinstance(before, _Middle):  # of an earlier diagram in the same axes
        before = before.whole
    ax.set_axes_locator(_Middle(ax, before, below))


def _fraction(ax: Axes, pixels: float) -> float:
    """A height as a fraction of that of the figure."""
    (_, low), (_, high) = ax.figure.transSubfigure.transform([(0, 0), (0, 1)])
    return pixels / float(high - low)


def _gap(ax: Axes) -> float:
    return _fraction(ax, GAP / 72 * ax.figure.dpi)


def _legend_height(ax: Axes, renderer: Any) -> float:
    legend = ax.get_legend()
    return 0.0 if legend is None else _fraction(ax, legend.get_window_extent(renderer).height)


# Locators are asked for the place of axes at each drawing, in fractions of the figure. So the parts fit into
# the rectangle of the axes whatever its size, and a layout moves that rectangle as it does for other axes.


@dataclass(eq=False)
class _Middle:
    """The axes: leave room for the legend above and the panel below, as long as they are there."""

    ax: Axes
    whole: Callable[[Any, Any], Bbox] | None
    below: Axes | None

    def __call__(self, ax: Any, renderer: Any) -> Bbox:
        whole = ax.get_position(original=True) if self.whole is None else self.whole(ax, renderer)
        top = whole.y1 - _legend_height(ax, renderer)
        height = top - whole.y0
        if self.below in ax.child_axes:
            height = (height - _gap(ax)) / (1 + SHARES)
        return _box(whole.x0, top - height, whole.x1, top)

    def get_subplotspec(self) -> Any:  # for tight_layout
        return self.ax.get_subplotspec()


@dataclass(eq=False)
class _Above:
    """The legend."""

    ax: Axes

    def __call__(self, _: Any, renderer: Any) -> Bbox:
        middle = self.ax.get_position()
        return _box(middle.x0, middle.y1, middle.x1, middle.y1 + _legend_height(self.ax, renderer))


@dataclass(eq=False)
class _Below:
    """The panel below."""

    ax: Axes

    def __call__(self, _: Any, renderer: Any) -> Bbox:
        middle = self.ax.get_position()
        top = middle.y0 - _gap(self.ax)
        return _box(middle.x0, top - SHARES * middle.height, middle.x1, top)


def _box(*extents: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(*extents)
