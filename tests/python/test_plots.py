"""The reliability diagram shows what the curve says, and asks for matplotlib only when it is drawn."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from lr_relax.metrics import ReliabilityCurve
from lr_relax.plots import reliability_diagram

matplotlib.use("agg")
from matplotlib import pyplot as plt

NAN = float("nan")
CURVE = ReliabilityCurve(
    edges=np.linspace(0, 1, 5),
    counts=np.array([0, 10, 30, 60]),
    confidence=np.array([NAN, 0.4, 0.6, 0.9]),
    accuracy=np.array([NAN, 0.5, 0.5, 0.8]),
    expected_calibration_error=0.1 * 0.1 + 0.3 * 0.1 + 0.6 * 0.1,
)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_bars_show_accuracy_and_gap_of_the_filled_bins() -> None:
    ax = reliability_diagram(CURVE)
    hatched = [bar for bar in ax.patches if bar.get_hatch()]
    plain = [bar for bar in ax.patches if not bar.get_hatch()]
    for bars in (hatched, plain):
        assert [bar.get_x() for bar in bars] == pytest.approx([0.25, 0.5, 0.75])
        assert [bar.get_width() for bar in bars] == pytest.approx([0.25] * 3)
    # The hatched bar spans from the lower of accuracy and confidence to the higher; the plain one carries it.
    assert [bar.get_y() for bar in hatched] == pytest.approx([0.4, 0.5, 0.8])
    assert [bar.get_height() for bar in hatched] == pytest.approx([0.1, 0.1, 0.1])
    assert [bar.get_height() for bar in plain] == pytest.approx([0.4, 0.5, 0.8])
    marks = np.concatenate([np.array(mark.get_segments()) for mark in ax.collections])
    assert marks[:, :, 1] == pytest.approx(np.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.8]]))


def test_over_and_underconfidence_differ_in_colour_and_are_explained() -> None:
    ax = reliability_diagram(CURVE)
    under, over, also_over = (bar.get_edgecolor()[:3] for bar in ax.patches if bar.get_hatch())
    assert over == also_over != under
    legend = ax.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["overconfident", "underconfident"]
    colours = [patch.get_edgecolor()[:3] for patch in legend.get_patches()]
    assert colours == [over, under]


def test_the_error_the_diagonal_and_the_title_are_there() -> None:
    ax = reliability_diagram(CURVE, title="cross-entropy")
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "ECE 0.1000"
    [diagonal] = ax.lines
    assert np.array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert ax.get_title() == "cross-entropy"


def test_the_histogram_shows_each_bins_share() -> None:
    [histogram] = reliability_diagram(CURVE).child_axes
    assert [bar.get_height() for bar in histogram.patches] == pytest.approx([0, 0.1, 0.3, 0.6])
    assert histogram.get_xlabel() == "confidence"


def test_draws_in_the_given_axes() -> None:
    _, ax = plt.subplots()
    assert reliability_diagram(CURVE, ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_a_row_of_small_diagrams_stays_legible() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.2), layout="constrained")
    for ax in axes:
        reliability_diagram(CURVE, ax=ax, title="label relaxation 0.1")
    figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in axes]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes)), "labels overlap"
    whole = figure.bbox.padded(1)  # pixel: text may round up
    assert all(whole.containsx(box.x0) and whole.containsx(box.x1) for box in boxes), "text is cut off"
    assert all(whole.containsy(box.y0) and whole.containsy(box.y1) for box in boxes), "text is cut off"
    legend = axes[0].get_legend().get_window_extent()
    assert legend.width < 0.6 * axes[0].bbox.width, "the legend covers the bars"
    assert legend.height < 0.4 * axes[0].bbox.height


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, lr_relax.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "lr-relax\[plot\]"'):
        reliability_diagram(CURVE)
