"""New figures, which are shown in notebooks and need no closing."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as missing:
        raise ImportError('Plots need matplotlib: pip install "lr-relax[plot]"') from missing


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know, for functions that return it.

    A notebook shows the value of a cell: it would show a figure of pyplot a second time.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # IPython has its own way to show figures only after pyplot was used.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure, for functions that return axes.

    In interactive mode, as in notebooks, pyplot makes the figure: a notebook shows it below the cell and then
    closes it, as it does with the plots of other packages; a window opens. Otherwise nobody would close the
    figure, and pyplot would keep it and warn after 20 of them.
    """
    check_matplotlib()
    import matplotlib

    # The backend of notebooks turns on interactive mode, but only when pyplot makes the first figure.
    if not matplotlib.is_interactive() and not matplotlib.get_backend().endswith("inline"):
        return new_figure(width, height).subplots()
    from matplotlib import pyplot

    axes: Axes = pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    return axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
