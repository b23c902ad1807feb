"""Plots of losses over three classes in barycentric coordinates, as in the supplement of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._arguments import check_number
from ..functional import credal_projection, label_relaxation_loss
from .figure import new_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INK = "#222222"
CORNERS = np.array([[0.5, np.sqrt(0.75)], [0.0, 0.0], [1.0, 0.0]])  # of class 1 at the top, then 2 and 3
RESOLUTION = 480
ZERO = 1e-6  # smaller losses are rounding errors
LARGEST = 3.0  # larger losses, which are unbounded, are drawn in the same color


def loss_on_simplex(
    loss: Callable[[Tensor], Tensor], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw a loss over all predictions for three classes, in barycentric coordinates.

    Predictions without a loss, if they fill an area, are hatched.

    Args:
        loss: A function of probabilities of shape (N, 3) that returns losses of shape (N,).
        ax: The axes to draw in; by default those of a new figure.
        title: Text above the triangle.

    Returns:
        The axes. Their first image shows the losses; the corners of the triangle are the classes.
    """
    return _draw(loss, ax, title)[0]


def relaxation_on_simplex(alpha: float = 0.25) -> Figure:
    """Draw label smoothing next to label relaxation, for three classes and a target of class 1.

    Label smoothing pulls every prediction toward a single point. Label relaxation has no loss inside the
    credal set, which is hatched, and pulls all other predictions toward it. Two predictions are shown
    with their projections.

    Args:
        alpha: The imprecision, and the weight of smoothing, in (0, 1).

    Source: the supplement of Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021.
    """
    check_number("alpha", "a number in (0, 1)", lambda x: 0 < x < 1, alpha)
    figure = new_figure(8.4, 3.9)
    left, right = figure.subplots(1, 2)

    smoothed = torch.tensor([1 - alpha, 0, 0], dtype=torch.float64) + alpha / 3

    def smoothing(p: Tensor) -> Tensor:
        """The KL divergence from the smoothed target: cross-entropy minus its minimum."""
        losses: Tensor = torch.special.xlogy(smoothed, smoothed).sum() - torch.xlogy(smoothed, p).sum(-1)
        return losses

    def relaxation(p: Tensor) -> Tensor:
        first = torch.zeros(len(p), dtype=torch.int64)
        return label_relaxation_loss(p, first, alpha, "none", from_logits=False)

    _draw(smoothing, left, rf"label smoothing, $\alpha$ = {alpha:g}")
    _, image = _draw(relaxation, right, rf"label relaxation, $\alpha$ = {alpha:g}")
    x, y = _place(smoothed.numpy())
    left.plot(x, y, "o", color="white", markeredgecolor=INK, markersize=6)
    label = {"textcoords": "offset points", "color": INK, "fontsize": "small"}
    offset = (14, -12)  # the upper corner
    left.annotate("smoothed target", CORNERS[0], offset, **label)

    edge = _place(np.array([[1 - alpha, alpha, 0], [1 - alpha, 0, alpha]]))
    right.plot(*edge.T, ls=(0, (4, 3)), lw=1.2, color="white")
    right.annotate("credal set: no loss", CORNERS[0], offset, **label)
    predictions = torch.tensor([[0.25, 0.6, 0.15], [0.12, 0.2, 0.68]], dtype=torch.float64)
    projections = credal_projection(predictions, torch.tensor([0, 0]), alpha, from_logits=False)
    for p, q in zip(_place(predictions.numpy()), _place(projections.numpy()), strict=True):
        right.annotate("", q, p, arrowprops={"arrowstyle": "->", "color": "white", "lw": 1.2})
        right.plot(*p, "o", color="white", markeredgecolor=INK, markersize=6)
        right.plot(*q, "D", color="white", markeredgecolor=INK, markersize=5)
    figure.colorbar(image, ax=[left, right], label="loss (nats)", shrink=0.8, extend="max")
    return figure


def _draw(loss: Callable[[Tensor], Tensor], ax: Axes | None, title: str | None) -> tuple[Axes, AxesImage]:
    if ax is None:
        ax = new_axes(4, 3.8)
    height = CORNERS[0, 1]
    x, y = np.meshgrid(np.linspace(0, 1, RESOLUTION), np.linspace(0, height, RESOLUTION))
    first = y / height
    third = x - first / 2
    p = np.stack([first, 1 - first - third, third], -1)
    inside = (p >= -1e-9).all(-1)
    losses = np.full(x.shape, np.nan)
    losses[inside] = loss(torch.from_numpy(p[inside].clip(1e-9, 1))).numpy()
    shown = np.minimum(losses, LARGEST)
    image = ax.imshow(
        shown, extent=(0, 1, 0, height), origin="lower", cmap="viridis", vmin=0, vmax=LARGEST, aspect="equal"
    )
    levels = np.linspace(0, LARGEST, 11)[1:-1]
    ax.contour(x, y, shown, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    hatched = ax.contourf(x, y, losses, levels=[-ZERO, ZERO], colors="none", hatches=["////"])
    hatched.set(edgecolor=("white", 0.6), linewidth=0)
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color=INK, lw=1)
    for corner, name, where in zip(
        CORNERS, ("class 1", "class 2", "class 3"), ((0, 5), (0, -14), (0, -14)), strict=True
    ):
        ax.annotate(name, corner, where, textcoords="offset points", ha="center", color=INK, fontsize="small")
    ax.set(xlim=(-0.08, 1.08), ylim=(-0.1, height + 0.09))
    ax.axis("off")
    if title is not None:
        ax.set_title(title)
    return ax, image


def _place(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The position of a prediction in the triangle."""
    place: npt.NDArray[np.float64] = p @ CORNERS
    return place
