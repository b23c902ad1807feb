"""The study's pictures show what the tracked runs say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lr_relax.study import figures
from made_results import record, result

SIGNATURES = {".PNG": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def panels(figure: Any) -> list[list[Any]]:
    """The axes of each part of a figure."""
    figure.draw_without_rendering()
    return [part.axes for part in figure.subfigs]


def some_results(**fields: Any) -> list[Any]:
    """Of two seeds: together the second bin has 4 predictions, a half of them right."""
    return [
        result([0, 1], [None, 0.8], [None, 1.0], seed=0, test_run=True, **fields),
        result([0, 3], [None, 0.8], [None, 1 / 3], seed=1, test_run=True, **fields),
    ]


def test_one_diagram_per_loss_and_alpha() -> None:
    results = some_results(loss_name="cross_entropy") + some_results(alpha=0.1)
    figure = figures.reliability(reversed(results))
    [[plain, relaxed]] = panels(figure)
    assert [plain.get_title(), relaxed.get_title()] == ["cross-entropy", "label relaxation 0.1"]
    for ax in (plain, relaxed):
        assert ax.get_legend().get_title().get_text() == "ECE 0.1000"  # what the results say
    [part] = figure.subfigs
    assert part.get_suptitle() == "fashion_mnist, simple_dense, 10 epochs: test predictions of 2 seeds"
    of_both = some_results(alpha=0.1) + some_results(alpha=0.2)
    [axes] = panels(figures.reliability(of_both))
    assert [ax.get_title() for ax in axes] == ["label relaxation 0.1", "label relaxation 0.2"]
    [[ax]] = panels(figures.reliability([of_both[0], of_both[3]]))
    assert ax.get_title() == "label relaxation 0.1 to 0.2"


def test_settings_and_data_are_separate() -> None:
    results = [
        result([1, n], [0.4, 0.8], [0.5, 1.0], test_run=test, epochs=epochs)
        for n, (test, epochs) in enumerate([(True, 10), (False, 10), (True, 50)], 1)
    ]
    figure = figures.reliability(results)
    assert [part.get_suptitle().replace("\n", " ") for part in figure.subfigs] == [
        f"fashion_mnist, simple_dense, {which} predictions of 1 seed"
        for which in ("10 epochs: validation", "10 epochs: test", "50 epochs: test")
    ]
    shares = [axes[0].child_axes[0].patches[-1].get_height() for axes in panels(figure)]
    assert shares == pytest.approx([2 / 3, 1 / 2, 3 / 4])


def test_many_diagrams_form_rows() -> None:
    results = [each for alpha in (0.0, 0.1, 0.2, 0.3, 0.4) for each in some_results(alpha=alpha)]
    [axes] = panels(figures.reliability(results))
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 0, 0, 1]
    boxes = [ax.get_tightbbox() for ax in axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


RECORDS = [
    *(record(0.9, 0.1, loss_name="cross_entropy", seed=seed) for seed in (0, 1)),
    *(record(0.8 + seed / 10, alpha, alpha=alpha, seed=seed) for alpha in (0.1, 0.2) for seed in (0, 1)),
    record(0.7, 0.3, alpha=0.4),
    record(0.7, 0.3, loss_name="focal", alpha=2.0),
]


def test_lines_are_means_and_bands_deviations() -> None:
    figure = figures.against_alpha(reversed(RECORDS))
    [(accuracy, ece)] = panels(figure)
    for ax, means, name in (
        (accuracy, [0.85, 0.85, 0.7], "accuracy"),
        (ece, [0.1, 0.2, 0.3], "expected calibration error"),
    ):
        level, line, lacking, point = ax.lines
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("alpha", name, "log")
        assert line.get_xdata() == pytest.approx([0.1, 0.2])
        assert line.get_ydata() == pytest.approx(means[:2])
        assert [*lacking.get_xdata(), *lacking.get_ydata()] == [0.4, means[2]]  # one seed of two
        assert (lacking.get_fillstyle(), lacking.get_linestyle()) == ("none", "None")
        assert set(level.get_ydata()) == {0.9 if ax is accuracy else 0.1}
        assert [*point.get_xdata(), *point.get_ydata()] == [2.0, 0.7 if ax is accuracy else 0.3]
    band = accuracy.collections[0].get_paths()[0].vertices
    deviation = np.std([0.8, 0.9], ddof=1)
    for alpha in (0.1, 0.2):
        there = band[np.isclose(band[:, 0], alpha), 1]
        assert (there.min(), there.max()) == pytest.approx((0.85 - deviation, 0.85 + deviation))
    [part] = figure.subfigs
    assert part.get_suptitle() == "fashion_mnist, simple_dense, 10 epochs: validation data"
    [legend] = part.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["cross-entropy", "label relaxation", "focal"]
    assert len({line.get_color() for line in accuracy.lines}) == 3


def test_validation_above_test_in_the_same_colors() -> None:
    tested = [record(0.7, 0.3, loss_name="focal", alpha=alpha, test_run=True) for alpha in (0.0, 1.0)]
    figure = figures.against_alpha([*tested, *RECORDS])
    above, below = panels(figure)
    assert [part.get_suptitle().split(": ")[1] for part in figure.subfigs] == ["validation data", "test data"]
    assert below[0].lines[0].get_color() == above[0].lines[3].get_color()
    assert below[0].get_xscale() == "symlog"
    ticks = [text.get_text() for text in below[0].get_xticklabels()]
    assert ticks == ["0", "1"]


@pytest.mark.parametrize("ending", SIGNATURES)
def test_suffix_selects_the_format(tmp_path: Path, ending: str) -> None:
    figures.save(figures.against_alpha(RECORDS), tmp_path / f"a{ending}")
    [path] = tmp_path.iterdir()
    assert path.read_bytes().startswith(SIGNATURES[ending])


def test_rejects_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match=r"^There are no results to draw reliability diagrams of\.$"):
        figures.reliability([])
    with pytest.raises(ValueError, match=r"^There are no finished runs of a loss with an alpha to draw\.$"):
        figures.against_alpha([record(0.9, 0.1, loss_name="cross_entropy")])
