"""Plots on the simplex: the loss at each point, the credal set and two projections."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lr_relax import in_credal_set
from lr_relax.plots import loss_on_simplex, relaxation_on_simplex
from lr_relax.plots.simplex import CORNERS
from lr_relax.study.cli import main

matplotlib.use("agg")
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_loss_at_each_point() -> None:
    ax = loss_on_simplex(lambda p: p[:, 2], title="the third class")
    (image,) = ax.images
    shown = np.ma.filled(image.get_array(), np.nan)
    height, width = shown.shape
    for p in ([1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]):
        x, y = np.array(p) @ CORNERS
        got = shown[round(y / CORNERS[0, 1] * (height - 1)), round(x * (width - 1))]
        assert got == pytest.approx(p[2], abs=0.01)
    assert np.isnan(shown[-1, 0])  # outside of the triangle
    assert ax.get_title() == "the third class"


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.6])
def test_credal_set_and_projections(alpha: float) -> None:
    left, right, *_ = relaxation_on_simplex(alpha).axes
    (image,) = right.images
    shown = np.ma.filled(image.get_array(), np.nan)
    height = shown.shape[0]
    inside = shown[int((1 - alpha) * (height - 1)) + 2 :]
    assert np.nanmax(inside) == 0
    assert np.nanmin(shown[: int((1 - alpha) * (height - 1)) - 2]) > 0
    assert np.nanmin(np.ma.filled(left.images[0].get_array(), np.nan)) == pytest.approx(0, abs=1e-3)
    points = {line.get_marker(): [] for line in right.lines}
    for line in right.lines:
        points[line.get_marker()].append([line.get_xdata()[0], line.get_ydata()[0]])
    first = np.array(points["D"])[:, 1] / CORNERS[0, 1]
    third = np.array(points["D"])[:, 0] - first / 2
    q = torch.tensor(np.stack([first, 1 - first - third, third], 1))
    assert first == pytest.approx([1 - alpha] * 2)
    assert in_credal_set(q, torch.tensor([0, 0]), alpha + 1e-9, from_logits=False).all()
    assert len(points["o"]) == 2
    smoothed, relaxed = (hatched(ax) for ax in (left, right))
    assert len(smoothed) == 0
    (start, bottom), (end, top) = relaxed.min(0), relaxed.max(0)
    assert [bottom / CORNERS[0, 1], top / CORNERS[0, 1]] == pytest.approx([1 - alpha, 1], abs=0.01)
    assert end - start == pytest.approx(alpha, abs=0.01)
    assert "credal set: no loss" in [text.get_text() for text in right.texts]


def hatched(ax: Any) -> Any:
    """The corners of the hatched area."""
    [area] = [each for each in ax.collections if getattr(each, "hatches", [None])[0]]
    return np.concatenate([path.vertices for path in area.get_paths()])


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_rejects_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match="`alpha`"):
        relaxation_on_simplex(alpha)


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "simplex.svg"
    run = CliRunner().invoke(main, ["figure", "simplex", "--alpha", "0.1", "--out", str(out)])
    assert (run.exit_code, run.output) == (0, f"{out}\n")
    assert "<svg" in out.read_text()
    for wrong in (
        ["--alpha", "1"],
        ["--out", str(out / "a.png")],  # below a file
        ["--out", str(tmp_path / "a.abc")],
    ):
        run = CliRunner().invoke(main, ["figure", "simplex", *wrong])
        assert run.exit_code == 2
        assert len(run.output.splitlines()) == 1
