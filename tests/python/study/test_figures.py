"""The study's pictures show what the tracked runs say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lr_relax.study import figures
from made_results import record, result
from matplotlib import pyplot

SIGNATURES = {".PNG": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    pyplot.close("all")


def some_results(**fields: Any) -> list[Any]:
    """Of two seeds: together the second bin has 4 predictions, a half of them right."""
    return [
        result([0, 1], [None, 0.8], [None, 1.0], seed=0, **{"test_run": True, **fields}),
        result([0, 3], [None, 0.8], [None, 1 / 3], seed=1, **{"test_run": True, **fields}),
    ]


def test_one_diagram_per_loss_and_alpha() -> None:
    results = some_results(loss_name="cross_entropy")
    results += [each for alpha in (0.1, 0.2, 0.3, 0.4) for each in some_results(alpha=alpha)]
    figure = figures.reliability(reversed(results))
    assert figure.get_suptitle() == "fashion_mnist, simple_dense, 10 epochs: test data"
    titles = ["cross-entropy", *(f"label relaxation {alpha}" for alpha in (0.4, 0.3, 0.2, 0.1))]
    assert [ax.get_title() for ax in figure.axes] == titles
    for ax in figure.axes:
        assert ax.get_legend().get_title().get_text() == "ECE 0.1000"  # what the results say
        assert ax.child_axes[0].patches[-1].get_height() == 1  # of the pooled predictions


def test_settings_and_data_have_diagrams_of_their_own() -> None:
    results = [result([1], [0.4], [0.5], test_run=t, epochs=n) for t, n in ((True, 1), (False, 1), (True, 2))]
    titles = [ax.get_title().replace("\n", " ") for ax in figures.reliability(results).axes]
    assert titles == [
        f"fashion_mnist, simple_dense, {which} data label relaxation 0"
        for which in ("1 epoch: validation", "1 epoch: test", "2 epochs: test")
    ]


RECORDS = [
    *(record(0.9, 0.1, loss_name="cross_entropy", seed=seed) for seed in (0, 1)),
    *(record(0.8 + seed / 10, alpha, alpha=alpha, seed=seed) for alpha in (0.1, 0.2) for seed in (0, 1)),
    record(0.7, 0.3, loss_name="focal", alpha=2.0),
]


def test_lines_are_means_and_bars_deviations() -> None:
    figure = figures.against_alpha(reversed(RECORDS))
    figure.draw_without_rendering()
    for ax, means, name in (
        (figure.axes[0], [0.85, 0.85, 0.9, 0.7], "accuracy"),
        (figure.axes[1], [0.1, 0.2, 0.1, 0.3], "expected calibration error"),
    ):
        relaxed, point = (container.lines[0] for container in ax.containers)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("alpha", name)
        assert relaxed.get_xdata() == pytest.approx([0.1, 0.2])
        assert relaxed.get_ydata() == pytest.approx(means[:2])
        assert {*ax.lines[0].get_ydata()} == {means[2]}
        assert [*point.get_xdata(), *point.get_ydata()] == [2.0, means[3]]
    [bars] = figure.axes[0].containers[0].lines[2]
    deviation = np.std([0.8, 0.9], ddof=1)
    for (_, low), (_, high) in bars.get_segments():
        assert (low, high) == pytest.approx((0.85 - deviation, 0.85 + deviation))
    assert figure.axes[0].get_title(loc="left") == "fashion_mnist, simple_dense, 10 epochs: validation data"
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["cross-entropy", "label relaxation", "focal"]


def test_validation_above_test_in_the_same_colors() -> None:
    tested = [record(0.7, 0.3, loss_name="focal", alpha=alpha, test_run=True) for alpha in (0.0, 1.0)]
    figure = figures.against_alpha([*tested, *RECORDS])
    above, _, below, _ = figure.axes
    titles = [ax.get_title(loc="left").split(": ")[1] for ax in (above, below)]
    assert titles == ["validation data", "test data"]
    assert below.lines[0].get_color() == above.containers[1].lines[0].get_color()
    figure.draw_without_rendering()
    assert {"0", "1"} <= {text.get_text() for text in below.get_xticklabels()}


@pytest.mark.parametrize("ending", SIGNATURES)
def test_suffix_selects_the_format(tmp_path: Path, ending: str) -> None:
    figures.save(figures.against_alpha(RECORDS), tmp_path / f"a{ending}")
    [path] = tmp_path.iterdir()
    assert path.read_bytes().startswith(SIGNATURES[ending])


def test_rejects_no_alphas() -> None:
    with pytest.raises(ValueError, match=r"^There are no finished runs of a loss with an alpha to draw\.$"):
        figures.against_alpha([record(0.9, 0.1, loss_name="cross_entropy")])
