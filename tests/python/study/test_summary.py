"""The choice of alpha, and mean and deviation over seeds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.study.files import load_json
from lr_relax.study.report import METRICS, Table, summarize
from made_results import record


def reference(accuracy: float, source: str = "the paper", **fields: Any) -> dict[str, Any]:
    """A row of misc/published.json."""
    row = {"dataset_name": "fashion_mnist", "model_name": "simple_dense", "loss_name": "label_relaxation"}
    row |= dict.fromkeys(("alpha", "chosen_for", "accuracy_std", "ece_std"))
    row |= {"epochs": 10, "seeds": 1, "temp_scaling": False}
    return row | {"accuracy": accuracy, "ece": 0.05, "source": source} | fields


def published(table: Table) -> list[list[tuple[str, float]]]:
    """The accuracies that stand beside each row, by their source."""
    return [[(each["source"], each["accuracy"]) for each in row.published.values()] for row in table.rows]


# Few values, so that there are ties.
LOSSES = [{"loss_name": name} for name in ("label_relaxation", "focal", "cross_entropy")]
METHODS = st.sampled_from([*LOSSES, LOSSES[0] | {"temp_scaling": True}])
RUNS = st.lists(
    st.tuples(
        METHODS,
        st.sampled_from([0.0, 0.1, 0.25]),
        st.integers(0, 3),  # the seed
        st.booleans(),  # on test data?
        st.sampled_from([0.5, 0.6, 0.7]),
        st.sampled_from([0.1, 0.2, 0.3]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda run: (str(run[0]), *run[1:4]),
)


def naive(runs: list[Any], optimized_for: str) -> list[Any]:
    """Title, seeds, alphas, and (mean, deviation) of accuracy and ECE of each row, in plain loops."""
    rows = []
    seeds = sorted({seed for _, _, seed, *_ in runs})
    for title, loss_name, temp_scaling, smoothed in [
        ("cross-entropy", "cross_entropy", False, False),
        ("label smoothing", "cross_entropy", False, True),
        ("label relaxation", "label_relaxation", False, None),
        ("focal", "focal", False, None),
        ("label relaxation + temperature", "label_relaxation", True, None),
    ]:
        own = {
            (alpha, seed, test): (accuracy, ece)
            for method, alpha, seed, test, accuracy, ece in runs
            if method["loss_name"] == loss_name
            and method.get("temp_scaling", False) == temp_scaling
            and (smoothed is None or (alpha > 0) == smoothed)
        }
        alphas = sorted({alpha for alpha, *_ in own})
        on_test = [{seed: alpha for seed in seeds if (alpha, seed, True) in own} for alpha in alphas]
        if smoothed is not False and not all(test for *_, test in own):
            choice = {}
            for seed in seeds:
                grid = [alpha for alpha in alphas if (alpha, seed, False) in own]
                if grid:
                    scores = [own[alpha, seed, False] for alpha in grid]
                    accuracies, errors = np.array(scores).T
                    best = np.argmax(accuracies) if optimized_for == "accuracy" else np.argmin(errors)
                    choice[seed] = grid[best]
            on_test = [{seed: alpha for seed, alpha in choice.items() if (alpha, seed, True) in own}]
        for chosen in on_test if own else []:
            values = np.array([own[alpha, seed, True] for seed, alpha in chosen.items()]).reshape(-1, 2)
            statistics = None
            if len(values):
                deviations = values.std(0, ddof=1) if len(values) > 1 else (None, None)
                statistics = [*zip(values.mean(0), deviations, strict=True)]
            rows.append((title, list(chosen), list(chosen.values()), statistics))
    return rows


@given(RUNS)
def test_rows_agree_with_a_naive_implementation(runs: list[Any]) -> None:
    records = [
        record(accuracy, ece, **method, alpha=alpha, seed=seed, test_run=test)
        for method, alpha, seed, test, accuracy, ece in runs
    ]
    tables = summarize(records)
    # Two tables if and only if some seed has two alphas to choose from.
    pairs = [
        (str(method), seed)
        for method, alpha, seed, test, *_ in runs
        if not test and (method["loss_name"] != "cross_entropy" or alpha > 0)
    ]
    choice = len(pairs) > len(set(pairs))
    assert [table.optimized_for for table in tables] == (["accuracy", "ece"] if choice else [None])
    for table in tables:
        expected = naive(runs, table.optimized_for or "accuracy")
        assert len(table.rows) == len(expected)
        for row, (title, seeds, alphas, statistics) in zip(table.rows, expected, strict=True):
            assert row.method.title() == title
            assert (row.seeds, row.alphas) == (seeds, alphas)
            for i, metric in enumerate(METRICS):
                got = row.statistic(metric)
                if statistics is None:
                    assert got is None
                else:
                    assert got is not None
                    assert got.mean == pytest.approx(statistics[i][0])
                    assert got.deviation == pytest.approx(statistics[i][1])


def grid(seed: int, *scores: tuple[float, float, float]) -> list[Any]:
    """Validation runs, each of an alpha, accuracy and ECE."""
    return [record(accuracy, ece, alpha=alpha, seed=seed) for alpha, accuracy, ece in scores]


def test_order_of_methods() -> None:
    variants: list[dict[str, Any]] = [
        {"loss_name": "cross_entropy", "temp_scaling": True, "temperature": "nll"},
        {"loss_name": "confidence_penalty", "alpha": 0.1, "legacy_confidence_penalty": True},
        {"loss_name": "confidence_penalty", "alpha": 0.1},
        {"loss_name": "focal", "temp_scaling": True, "temperature": "nll", "legacy_temp_scaling": True},
        {"loss_name": "focal", "temp_scaling": True, "legacy_temp_scaling": True},
        {"loss_name": "cross_entropy", "temp_scaling": True},
        {"loss_name": "focal", "alpha": 2.0},
        {"loss_name": "label_relaxation", "alpha": 0.1},
        {"loss_name": "cross_entropy", "alpha": 0.1},
        {"loss_name": "cross_entropy", "legacy_confidence_penalty": True},
        {"loss_name": "cross_entropy", "legacy_clip": True},  # which has no effect
        {"loss_name": "label_relaxation", "alpha": 0.1, "legacy_clip": True},
    ]
    [table] = summarize([record(0.9, 0.1, test_run=True, **variant) for variant in variants])
    assert [row.method.title() for row in table.rows] == [
        "cross-entropy",
        "label smoothing",
        "label relaxation",
        "label relaxation (legacy_clip)",
        "focal",
        "confidence penalty",
        "confidence penalty (legacy_confidence_penalty)",
        "cross-entropy + temperature",
        "cross-entropy + temperature (nll)",
        "focal + temperature (legacy_temp_scaling)",
        "focal + temperature (legacy_temp_scaling, nll)",
    ]
    assert table.rows[3].method.title(2) == "label relaxation 2 (legacy_clip)"


def test_settings_are_not_averaged() -> None:
    runs = [
        record(0.9, 0.1, test_run=True, **fields)
        for fields in (
            {"epochs": 50, "initial_lr": 0.2, "steps": (30, 50), "seed": 1},
            {"epochs": 10, "initial_lr": 0.05},
            {"epochs": 10, "initial_lr": 0.1},
            {"epochs": 10, "initial_lr": 0.05, "seed": 1},
            {"dataset_name": "mnist", "epochs": 1},
        )
    ]
    tables = summarize(runs)
    steps = f"steps ({', '.join(map(str, runs[1].config.steps))})"
    assert [(table.setting.title, table.rows[0].seeds) for table in tables] == [
        (f"fashion_mnist, simple_dense, 10 epochs, initial_lr 0.05, {steps}", [0, 1]),
        (f"fashion_mnist, simple_dense, 10 epochs, initial_lr 0.1, {steps}", [0]),
        ("fashion_mnist, simple_dense, 50 epochs, initial_lr 0.2, steps (30, 50)", [1]),
        ("mnist, simple_dense, 1 epoch", [0]),
    ]


def test_published_numbers_match_loss_and_choice() -> None:
    rows = [
        reference(0.911, chosen_for="ece"),
        reference(0.912, chosen_for="accuracy"),
        *(reference(0.5, chosen_for="accuracy", **o) for o in ({"dataset_name": "mnist"}, {"epochs": 9})),
        reference(0.915, loss_name="cross_entropy", chosen_for="ece"),  # label smoothing
        reference(0.913, loss_name="cross_entropy"),
        reference(0.908, loss_name="cross_entropy", alpha=0.0, temp_scaling=True),
        reference(0.902, "the code", alpha=0.1),
        reference(0.903, "the code", loss_name="focal", alpha=2),
    ]
    runs = [
        *grid(0, (0.1, 0.9, 0.1), (0.2, 0.8, 0.05)),
        *(record(0.9, 0.1, alpha=alpha, test_run=True) for alpha in (0.1, 0.2)),
        *(record(0.9, 0.1, alpha=gamma, loss_name="focal", test_run=True) for gamma in (1.0, 2.0)),
        *(record(0.9, 0.1, loss_name="cross_entropy", temp_scaling=t, test_run=True) for t in (False, True)),
    ]
    by_accuracy, by_ece = summarize(runs, rows)
    same = [[], [("the code", 0.903)], [("the paper", 0.908)]]
    assert published(by_accuracy) == [
        [("the paper", 0.913)],
        [("the paper", 0.912), ("the code", 0.902)],  # alpha .1 was chosen
        *same,
    ]
    assert published(by_ece) == [[("the paper", 0.913)], [("the paper", 0.911)], *same]
    assert by_accuracy.sources == ["the paper, 10 epochs", "the code, 10 epochs"]


def test_first_of_equivalent_runs_counts() -> None:
    runs = [
        record(accuracy, 0.1, test_run=test, legacy_confidence_penalty=legacy, temperature=temperature)
        for accuracy, legacy, temperature in [(0.9, False, "grid"), (0.8, True, "grid"), (0.7, True, "nll")]
        for test in (False, True)
    ]
    [table] = summarize(runs)
    [row] = table.rows
    assert row.runs == [runs[1]]


def test_every_published_number_is_shown() -> None:
    """Beside runs of its data set and epochs, with its alpha or with one chosen for its metric."""
    known = load_json("published.json")["rows"]
    for row in known:
        loss = {name: row[name] for name in ("dataset_name", "epochs", "loss_name", "temp_scaling")}
        if row["chosen_for"] is None:
            runs = [record(0.9, 0.1, **loss, alpha=row["alpha"], test_run=True)]
        else:
            runs = [record(0.9, a, **loss, alpha=a, test_run=t) for a in (0.1, 0.2) for t in (False, True)]
        found = [
            each
            for table in summarize(runs, known)
            if table.optimized_for == row["chosen_for"]
            for each in table.rows[0].published.values()
        ]
        assert row in found
