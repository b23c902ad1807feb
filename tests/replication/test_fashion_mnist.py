"""Our runs of ten epochs on Fashion-MNIST, in misc/results with their command, against the paper's code.

Training them takes most of an hour, so the runs are read; one command trains them again (misc/README.md).
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import pytest
from lr_relax.study.files import load_json
from lr_relax.study.folder import Result, load_results

ORIGINAL = Path(__file__).parents[1] / "oracle" / "training.json"
RESULTS = Path(__file__).parents[2] / "misc" / "results" / "fashion_mnist.jsonl"


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, float, bool], list[Result]]:
    found = defaultdict(list)
    for result in load_results(RESULTS):
        if result.config.epochs == 10:
            found[result.config.loss_name, result.config.alpha, result.config.temp_scaling].append(result)
    return found


def is_same(ours: list[float], mean: float, deviation: float, n: int) -> bool:
    """Whether two means differ by at most three standard errors, those of the larger deviation."""
    deviation = max(deviation, stdev(ours))
    return abs(fmean(ours) - mean) <= 3 * deviation * (1 / len(ours) + 1 / n) ** 0.5


def test_accuracy_and_ece_are_those_of_the_papers_code(
    runs: dict[tuple[str, float, bool], list[Result]],
) -> None:
    originals = [
        row
        for row in load_json("published.json")["rows"]
        if row["source"].startswith("the paper's code") and row["epochs"] == 10
    ]
    assert len({(row["loss_name"], row["alpha"], row["temp_scaling"]) for row in originals}) == len(runs) == 6
    for original in originals:
        ours = runs[original["loss_name"], original["alpha"], original["temp_scaling"]]
        assert [run.config.seed for run in ours] == list(range(len(ours)))
        assert len(ours) >= 3
        assert {run.n_eval for run in ours} == {10_000}
        for metric in ("accuracy", "ece"):
            values = [getattr(run, metric) for run in ours]
            assert is_same(values, original[metric], original[f"{metric}_std"], original["seeds"])
        for run in ours:
            assert run.command
            assert run.seconds > 0
            assert re.fullmatch("[0-9a-f]{40}", run.environment["commit"])  # no change beside it


def test_twice_the_error_of_relaxation_would_not_be_the_same() -> None:
    values = [0.0111 + x for x in (0.0125, 0.0185, 0.0201)]
    assert not is_same(values, 0.0111, 0.0044, 3)


def test_training_takes_the_course_of_the_papers_code(
    runs: dict[tuple[str, float, bool], list[Result]],
) -> None:
    """Epoch by epoch with the same split, but for initial weights and batches, which are drawn otherwise."""
    originals = json.loads(ORIGINAL.read_text())
    compared = set()
    for original in originals:
        if original["epochs"] != 10:
            continue
        loss = "label_relaxation" if original["loss"] == "lr" else original["loss"]
        key = loss, original["alpha"], original["temp_scaling"]
        ours = runs[key][original["seed"]]
        assert [epoch.loss for epoch in ours.history] == pytest.approx(original["train_loss"], rel=0.04)
        accuracies = [epoch.accuracy for epoch in ours.history]
        assert accuracies == pytest.approx(original["train_accuracy"], abs=0.004)
        compared.add(key)
    assert compared == runs.keys()


def test_relaxation_is_the_best_calibrated_then_focal_cross_entropy_smoothing(
    runs: dict[tuple[str, float, bool], list[Result]],
) -> None:
    losses = [("label_relaxation", 0.1), ("focal", 2.0), ("cross_entropy", 0.0), ("cross_entropy", 0.1)]
    errors = [fmean(run.ece for run in runs[(*loss, False)]) for loss in losses]
    assert errors == sorted(errors)
