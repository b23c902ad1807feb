"""Reliability diagrams show what the curves say, and ask for matplotlib only when they are drawn."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from lr_relax.metrics import ReliabilityCurve, RiskCoverageCurve, reliability_curve
from lr_relax.plots import (
    compare_reliability,
    compare_risk_coverage,
    reliability_diagram,
    reliability_diagrams,
)

matplotlib.use("agg")
from matplotlib import pyplot as plt

NAN = float("nan")


def curve_of(edges: Any, counts: Any, confidence: Any, accuracy: Any) -> ReliabilityCurve:
    """With intervals from 0.04 below the accuracy to 0.02 above it."""
    counts, confidence, accuracy = np.array(counts), np.array(confidence), np.array(accuracy)
    return ReliabilityCurve(
        edges=np.array(edges),
        counts=counts,
        confidence=confidence,
        accuracy=accuracy,
        gap=confidence - accuracy,
        lower=accuracy - 0.04,
        upper=accuracy + 0.02,
        confidence_level=0.9,
        expected_calibration_error=float(np.nansum(counts * abs(confidence - accuracy)) / counts.sum()),
    )


CURVE = curve_of(np.linspace(0, 1, 5), [0, 10, 30, 60], [NAN, 0.4, 0.6, 0.9], [NAN, 0.5, 0.5, 0.8])
UNEQUAL = curve_of([0, 0.6, 0.9, 0.99, 1], [25] * 4, [0.5, 0.8, 0.95, 0.998], [0.6, 0.7, 0.9, 0.99])


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_bars() -> None:
    ax = reliability_diagram(CURVE)
    hatched = [bar for bar in ax.patches if bar.get_hatch()]
    plain = [bar for bar in ax.patches if not bar.get_hatch()]
    for bars in (hatched, plain):
        assert [bar.get_x() for bar in bars] == pytest.approx([0.25, 0.5, 0.75])
        assert [bar.get_width() for bar in bars] == pytest.approx([0.25] * 3)
    # The hatched bar spans accuracy and confidence; the plain one is below it.
    assert [bar.get_y() for bar in hatched] == pytest.approx([0.4, 0.5, 0.8])
    assert [bar.get_height() for bar in hatched] == pytest.approx([0.1, 0.1, 0.1])
    assert [bar.get_height() for bar in plain] == pytest.approx([0.4, 0.5, 0.8])
    flat = [segment for segment in segments(ax) if segment[0, 1] == segment[1, 1]]
    assert np.array(flat) == pytest.approx(
        np.array([[[0.25, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.75, 0.5]], [[0.75, 0.8], [1, 0.8]]])
    )


def segments(ax: Any) -> list[Any]:
    return [segment for lines in ax.collections for segment in lines.get_segments()]


def test_intervals() -> None:
    ax = reliability_diagram(CURVE)
    upright = [segment for segment in segments(ax) if segment[0, 0] == segment[1, 0]]
    assert np.array(upright) == pytest.approx(
        np.array([[[0.4, 0.46], [0.4, 0.52]], [[0.6, 0.46], [0.6, 0.52]], [[0.9, 0.76], [0.9, 0.82]]])
    )
    assert ax.get_legend().get_texts()[-1].get_text() == "90 % interval"


def test_without_intervals() -> None:
    nothing = np.full(4, NAN)
    ax = reliability_diagram(replace(CURVE, lower=nothing, upper=nothing))
    assert all(segment[0, 1] == segment[1, 1] for segment in segments(ax))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["overconfident", "underconfident"]


def test_colors_and_legend() -> None:
    ax = reliability_diagram(CURVE)
    under, over, also_over = (bar.get_edgecolor()[:3] for bar in ax.patches if bar.get_hatch())
    assert over == also_over != under
    legend = ax.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["overconfident", "underconfident", "90 % interval"]
    colors = [patch.get_edgecolor()[:3] for patch in legend.get_patches()]
    assert colors == [over, under]


def test_title_and_diagonal() -> None:
    ax = reliability_diagram(CURVE, title="cross-entropy")
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "ECE 0.1000"
    [diagonal] = ax.lines
    assert np.array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert ax.get_title() == "cross-entropy"


def test_histogram_of_shares() -> None:
    histogram = reliability_diagram(CURVE).child_axes[0]
    assert [bar.get_height() for bar in histogram.patches] == pytest.approx([0, 0.1, 0.3, 0.6])
    assert histogram.get_xlabel() == "confidence"


def test_histogram_of_densities() -> None:
    ax = reliability_diagram(UNEQUAL)
    histogram = ax.child_axes[0]
    assert histogram.get_ylabel() == "density"
    assert [bar.get_width() * bar.get_height() for bar in histogram.patches] == pytest.approx([0.25] * 4)
    assert [bar.get_width() for bar in histogram.patches] == pytest.approx([0.6, 0.3, 0.09, 0.01])
    plain = [bar for bar in ax.patches if not bar.get_hatch()]
    assert [bar.get_width() for bar in plain] == pytest.approx([0.6, 0.3, 0.09, 0.01])
    assert plain[0].get_linewidth() > 0
    assert plain[-1].get_edgecolor()[3] == 0, "an outline hides a narrow bar"


def test_bin_without_width() -> None:
    point = curve_of([0, 0.5, 1, 1], [10, 30, 60], [0.4, 0.6, 1], [0.5, 0.7, 0.9])
    ax = reliability_diagram(point)
    ax.figure.draw_without_rendering()
    assert np.isfinite([bar.get_height() for bar in ax.child_axes[0].patches]).all()


def test_many_small_bins() -> None:
    n = 200
    c = (np.arange(n) + 0.5) / n
    ax = reliability_diagram(curve_of(np.linspace(0, 1, n + 1), [5] * n, c, c - 0.002))
    assert min(bar.get_edgecolor()[3] for bar in ax.patches if bar.get_hatch()) == 1


@pytest.mark.parametrize(("n_columns", "rows"), [(None, 1), (1, 3), (2, 2), (np.int64(5), 1)])
def test_panels(n_columns: Any, rows: int) -> None:
    curves = {"one": CURVE, "two": UNEQUAL, "three": CURVE}
    figure = reliability_diagrams(curves, n_columns=n_columns, title="digits")
    figure.draw_without_rendering()
    assert [ax.get_title() for ax in figure.axes] == list(curves)
    assert figure.get_suptitle() == "digits"
    assert len({ax.get_subplotspec().rowspan.start for ax in figure.axes}) == rows
    errors = [ax.get_legend().get_title().get_text() for ax in figure.axes]
    assert errors == ["ECE 0.1000", "ECE 0.0645", "ECE 0.1000"]
    histograms = [ax.child_axes[0] for ax in figure.axes]
    assert len({histogram.get_ylim() for histogram in histograms}) == 1
    columns = [ax.get_subplotspec().colspan.start for ax in figure.axes]
    labels = [(ax.get_ylabel(), ax.child_axes[0].get_ylabel()) for ax in figure.axes]
    assert labels == [("", "") if column else ("accuracy", "density") for column in columns], "at the left"
    lowest = [not any(c == column for c in columns[i + 1 :]) for i, column in enumerate(columns)]
    assert [histogram.get_xlabel() for histogram in histograms] == ["confidence" * low for low in lowest]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "overconfident", "underconfident", "90 % interval"
    ]  # fmt: skip
    boxes = [ax.get_tightbbox() for ax in figure.axes] + [legend.get_window_extent()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), "panels overlap"
    whole = figure.bbox.padded(1)
    assert all(whole.contains(x, y) for box in boxes for x, y in box.corners()), "text is cut off"


def test_panels_match_single_diagrams() -> None:
    figure = reliability_diagrams({"one": CURVE, "two": UNEQUAL})
    for ax, curve in zip(figure.axes, (CURVE, UNEQUAL), strict=True):
        alone = reliability_diagram(curve)
        assert [bar.get_bbox().bounds for bar in ax.patches] == [
            bar.get_bbox().bounds for bar in alone.patches
        ]
        assert np.array_equal(segments(ax), segments(alone))


def test_comparison() -> None:
    _, given = plt.subplots()
    ax = compare_reliability({"before": CURVE, "after": UNEQUAL}, ax=given, title="digits")
    assert ax is given
    assert ax.get_title() == "digits"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["before (ECE 0.1000)", "after (ECE 0.0645)"]
    points = [np.array(each.get_offsets()) for each in ax.collections if len(each.get_offsets()) > 1]
    assert points[0] == pytest.approx(np.array([[0.4, 0.1], [0.6, -0.1], [0.9, -0.1]]))
    assert points[1][:, 0] == pytest.approx(UNEQUAL.confidence)
    assert points[1][:, 1] == pytest.approx(UNEQUAL.accuracy - UNEQUAL.confidence)
    bands = [each.get_paths()[0].vertices for each in ax.collections if len(each.get_offsets()) <= 1]
    assert bands[0][:, 1].max() == pytest.approx(0.1 + 0.02)
    assert bands[0][:, 1].min() == pytest.approx(-0.1 - 0.04)
    low, high = ax.get_ylim()
    assert low == -high
    assert high > 0.1
    assert ax.get_xlim() == (0.4, 1)
    colors = [tuple(handle.get_color()) for handle in ax.get_legend().get_lines()]
    assert colors[0] != colors[1]


def test_comparison_scale() -> None:
    noisy = curve_of([0, 0.5, 0.8, 1], [1, 500, 500], [0.4, 0.7, 0.9], [1.0, 0.68, 0.91])
    ax = compare_reliability({"model": noisy})
    assert ax.get_ylim()[1] < 0.1
    band, *_ = ax.collections
    assert band.get_paths()[0].vertices[:, 0].min() == pytest.approx(0.7)


def test_comparison_of_many_models() -> None:
    one = curve_of([0, 1], [10], [0.7], [0.6])
    ax = compare_reliability({f"model {i}": one for i in range(20)})
    ax.figure.draw_without_rendering()
    assert len(ax.get_legend().get_texts()) == 20


def test_curves_of_all_classes() -> None:
    p, weight = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0.5, 1.5, 2])
    curves = reliability_curve(p, np.array([0, 1, 0]), kind="classwise", n_bins=5, sample_weight=weight)
    figure = reliability_diagrams(curves)
    assert [ax.get_title() for ax in figure.axes] == ["class 0", "class 1"]
    heights = [bar.get_height() for bar in figure.axes[0].child_axes[0].patches]
    assert heights == pytest.approx([0, 0.375, 0.5, 0, 0.125])
    texts = compare_reliability(curves).get_legend().get_texts()
    assert [text.get_text().split(" (")[0] for text in texts] == ["class 0", "class 1"]


@pytest.mark.parametrize("function", [reliability_diagrams, compare_reliability, compare_risk_coverage])
def test_rejects_curves(function: Any) -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        function({})
    with pytest.raises(TypeError, match=r"`curves`.*ReliabilityCurve"):
        function(CURVE)


@pytest.mark.parametrize("n_columns", [0, -1, 1.5, True, "2"])
def test_rejects_columns(n_columns: Any) -> None:
    with pytest.raises(ValueError, match="`n_columns`"):
        reliability_diagrams({"one": CURVE}, n_columns=n_columns)


def test_given_axes() -> None:
    _, ax = plt.subplots()
    assert reliability_diagram(CURVE, ax=ax) is ax
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("plot", [CURVE.plot, lambda: compare_reliability({"model": CURVE})])
def test_pyplot_keeps_a_new_figure_in_interactive_mode_only(plot: Any) -> None:
    plot()
    assert plt.get_fignums() == []
    with plt.ion():
        ax = plot()
    assert plt.figure(*plt.get_fignums()) is ax.figure


def test_notebooks_show_returned_figures() -> None:
    with plt.ion():
        figure = reliability_diagrams({"model": CURVE})
    assert plt.get_fignums() == [], "shown twice"
    assert pickle.loads(pickle.dumps(figure))._repr_png_().startswith(b"\x89PNG")


HIGH = replace(CURVE, counts=CURVE.counts + 1, accuracy=np.ones(4), confidence=np.linspace(0.1, 0.9, 4))
GRIDS = {
    "wide": ((10, 8), 2, {"layout": "constrained"}),
    "small": ((7.5, 3.2), 1, {"layout": "constrained"}),
    "tight": ((10, 8), 2, {"layout": "tight"}),
    "without a layout": ((12, 11), 2, {"gridspec_kw": {"hspace": 0.4, "wspace": 0.5}}),
}


@pytest.mark.parametrize("histogram", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_own_axes_hold_everything(grid: str, histogram: Any) -> None:
    size, n_rows, options = GRIDS[grid]
    figure, axes = plt.subplots(n_rows, 3, figsize=size, squeeze=False, **options)
    for ax, curve in zip(axes.flat, [CURVE, UNEQUAL, HIGH] * n_rows, strict=True):
        assert reliability_diagram(curve, ax=ax, histogram=histogram) is ax
        ax.set_title("label relaxation 0.1")  # leaves room for what is there
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in axes.flat]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), "panels overlap"
    whole = figure.bbox.padded(1)  # pixel: text may round up
    assert all(whole.contains(x, y) for box in boxes for x, y in box.corners()), "text is cut off"
    for ax in axes.flat:
        legend, title = ax.get_legend().get_window_extent(), ax.title.get_window_extent()
        assert ax.bbox.y1 <= legend.y0 < legend.y1 <= title.y0 + 1, "the legend hides something"
        assert ax.bbox.height > 0.4 * ax.get_tightbbox().height, "too small"
        if histogram:
            shares = ax.child_axes[0]
            assert (shares.bbox.x0, shares.bbox.x1) == pytest.approx((ax.bbox.x0, ax.bbox.x1))
            assert shares.bbox.y0 == pytest.approx(ax.get_position(original=True).y0 * figure.bbox.height)
            labels = [label for label in ax.get_yticklabels() if 0 <= label.get_position()[1] <= 1]
            lowest = min(label.get_window_extent().y0 for label in labels)
            highest = max(label.get_window_extent().y1 for label in shares.get_yticklabels())
            assert highest < lowest, "labels of ticks overlap"


def test_axes_that_are_cleared_are_whole_again() -> None:
    figure, (one, other) = plt.subplots(1, 2)
    for _ in range(2):
        reliability_diagram(CURVE, ax=one)
        figure.draw_without_rendering()
        assert 0.5 * other.bbox.height < one.bbox.height < 0.7 * other.bbox.height
        one.clear()
    figure.draw_without_rendering()
    assert one.bbox.bounds[1:] == pytest.approx(other.bbox.bounds[1:])


def test_aspect_and_inset_axes() -> None:
    figure, outer = plt.subplots(figsize=(6, 6))
    ax = outer.inset_axes((0.1, 0.3, 0.8, 0.6))
    reliability_diagram(CURVE, ax=ax).set_aspect("equal")
    figure.draw_without_rendering()
    assert ax.bbox.width == pytest.approx(ax.bbox.height)
    shares = ax.child_axes[0].bbox
    assert (shares.x0, shares.x1) == pytest.approx((ax.bbox.x0, ax.bbox.x1))
    low, high = outer.transAxes.transform([(0.1, 0.3), (0.9, 0.9)])
    assert shares.y0 > low[1] - 1
    assert ax.get_legend().get_window_extent().y1 < high[1] + 1


def test_without_histogram() -> None:
    ax = CURVE.plot(histogram=False)
    assert ax.get_xlabel() == "confidence"
    assert not any(child.get_visible() for child in ax.child_axes)
    for one in reliability_diagrams({"one": CURVE, "two": CURVE}, histogram=False).axes:
        assert one.get_xlabel() == "confidence"
        assert not any(child.get_visible() for child in one.child_axes)
    with pytest.raises(ValueError, match=r"`histogram`.*'no'"):
        CURVE.plot(histogram="no")  # type: ignore[arg-type]


def risk_coverage_of(wrong: Any) -> RiskCoverageCurve:
    n = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(wrong) / n
    return RiskCoverageCurve(n / len(wrong), risk, 1 - n / len(wrong) / 2, float(risk.mean()))


def test_risk_coverage() -> None:
    _, given = plt.subplots()
    curve = risk_coverage_of([0, 1, 0, 1])
    ax = curve.plot(ax=given, title="digits")
    assert ax is given
    [line] = ax.lines
    assert line.get_xydata() == pytest.approx(np.array([[0.25, 0], [0.5, 1 / 2], [0.75, 1 / 3], [1, 1 / 2]]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["AURC 0.3333"]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("digits", "coverage", "risk")
    assert len(ax.collections) == 1  # the area


def test_comparison_of_risk_coverage() -> None:
    noisy = risk_coverage_of(np.arange(100_000) % 100 == 0)
    ax = compare_risk_coverage({"noisy": noisy, "perfect": risk_coverage_of([0] * 9)})
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"noisy (AURC {noisy.area:.4f})", "perfect (AURC 0.0000)"]
    assert noisy.risk.max() == 1
    assert ax.get_ylim() == pytest.approx((0, 0.011), rel=0.03)  # the first predictions do not set the scale
    assert all(len(line.get_xdata()) <= 2000 for line in ax.lines)
    assert risk_coverage_of([0, 0]).plot().get_ylim() == (0, 1)


RANGES = np.array([[NAN, 0.3, 0.55, 0.84], [NAN, 0.5, 0.65, 0.96]])


RANGES_OF_BINS = SimpleNamespace(lower=RANGES[0], upper=RANGES[1])


@pytest.mark.parametrize("chance", [tuple(RANGES), RANGES_OF_BINS, SimpleNamespace(bins=RANGES_OF_BINS)])
def test_ranges_by_chance(chance: Any) -> None:
    alone = CURVE.plot(chance=chance)
    both = reliability_diagrams({"one": CURVE, "two": CURVE}, chance={"one": chance, "two": chance})
    for ax in (alone, *both.axes):
        [bars] = [bars for bars in ax.containers if bars.get_label() == "range by chance"]
        assert [bar.get_y() for bar in bars] == pytest.approx(RANGES[0, 1:])
        assert [bar.get_y() + bar.get_height() for bar in bars] == pytest.approx(RANGES[1, 1:])
        assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(CURVE.confidence[1:])
    single = reliability_diagrams([CURVE], chance=[chance])
    for legend in (alone.get_legend(), *both.legends, *single.legends):
        legend.figure.draw_without_rendering()
        assert legend.figure.bbox.padded(1).containsx(legend.get_window_extent().x0), "text is cut off"
        assert "range by chance" in [text.get_text() for text in legend.get_texts()]


def test_rejects_ranges() -> None:
    with pytest.raises(ValueError, match=r"`chance`.*\(4,\).*\(3,\)"):
        CURVE.plot(chance=(RANGES[0], RANGES[1, 1:]))
    with pytest.raises(ValueError, match=r"`chance`.*None"):
        CURVE.plot(chance=SimpleNamespace(bins=None))
    with pytest.raises(ValueError, match=r"`chance`.*'one'.*'other'"):
        reliability_diagrams({"one": CURVE}, chance={"other": tuple(RANGES)})
    with pytest.raises(ValueError, match=r"`chance`.*'class 1'"):
        reliability_diagrams([CURVE, CURVE], chance=[tuple(RANGES)])


def test_logarithmic_shares() -> None:
    skewed = replace(CURVE, counts=np.array([0, 2, 98, 9900]))
    shares = CURVE.plot(histogram="log").child_axes[0]
    assert (shares.get_yscale(), shares.get_ylim()) == ("log", (0.1, 1))
    shares = skewed.plot(histogram="log").child_axes[0]
    assert shares.get_ylim() == pytest.approx((1e-4, 1))
    assert [label.get_text() for label in shares.get_yticklabels()] == ["0.01%", "100%"]
    figure = reliability_diagrams({"one": skewed, "two": UNEQUAL}, histogram="log")
    assert {ax.child_axes[0].get_ylim() for ax in figure.axes} == {(1e-4, 100.0)}
    tiny = replace(CURVE, counts=np.array([0, 1e-200, 1, 1]))  # sums of weights
    assert tiny.plot(histogram="log").child_axes[0].get_ylim() == pytest.approx((1e-6, 1))


def test_summaries() -> None:
    assert repr(CURVE) == "ReliabilityCurve(n=100, n_bins=4, expected_calibration_error=0.1)"
    weighted = replace(CURVE, counts=np.array([0, 0.5, 1, 0.75]))
    assert repr(weighted) == "ReliabilityCurve(n=2.25, n_bins=4, expected_calibration_error=0.1)"
    assert repr(risk_coverage_of([0, 1, 0, 1])) == "RiskCoverageCurve(n=4, area=0.333333)"


def test_frames() -> None:
    frame = CURVE.to_frame()
    fields = ["counts", "confidence", "accuracy", "gap", "lower", "upper"]
    assert list(frame) == ["left", "right", *fields]
    assert all(np.array_equal(frame[name], getattr(CURVE, name), equal_nan=True) for name in fields)
    assert np.array_equal(frame[["left", "right"]], [[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]])
    curve = risk_coverage_of([0, 1, 0, 1])
    assert list(curve.to_frame()) == ["coverage", "risk", "threshold"]
    assert all(np.array_equal(column, getattr(curve, name)) for name, column in curve.to_frame().items())


def test_missing_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for curve in (CURVE, risk_coverage_of([0])):
        with pytest.raises(ImportError, match="pip install pandas"):
            curve.to_frame()


def test_matplotlib_is_imported_lazily() -> None:
    code = "import sys, lr_relax.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("function", [reliability_diagram, reliability_diagrams, compare_reliability])
def test_missing_matplotlib(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "lr-relax\[plot\]"'):
        function(CURVE if function is reliability_diagram else {"model": CURVE})
