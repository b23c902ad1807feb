"""The experiments beyond the paper: their targets, what their losses receive, and their records."""

import importlib.util
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import RobustDataAmbiguationLoss
from lr_relax.study.data import Dataset
from lr_relax.study.run import commit

MISC = Path(__file__).parents[2] / "misc"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, MISC / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRAIN, PAGES = script("train"), script("pages")
LABELS = np.random.default_rng(0).integers(10, size=20_000)


def test_symmetric_noise_redraws_from_all_classes() -> None:
    few, many = (TRAIN.noisy_labels(LABELS, share, seed=3) for share in (0.2, 0.4))
    assert (many[few != LABELS] == few[few != LABELS]).all()
    for noisy, share in ((few, 0.2), (many, 0.4)):
        joint = np.zeros((10, 10))
        np.add.at(joint, (LABELS, noisy), 1)
        expected = (1 - share) * np.eye(10) + share / 10
        shares = joint / joint.sum(1, keepdims=True)
        deviation = np.sqrt(expected * (1 - expected) / joint.sum(1, keepdims=True))
        assert (abs(shares - expected) < 5 * deviation).all()
    assert not (few == TRAIN.noisy_labels(LABELS, 0.2, seed=4)).all()


def test_votes_are_confused_within_groups() -> None:
    counts, majority = TRAIN.vote_counts(LABELS, seed=3)
    assert (counts.sum(1) == TRAIN.VOTES).all()
    assert (counts[np.arange(len(LABELS)), majority] == counts.max(1)).all()
    of_class = np.stack([counts[y == LABELS].sum(0) for y in range(10)])
    shares = of_class / of_class.sum(1, keepdims=True)
    wrong = 0.4  # the mean of the rates from 0 to 0.8
    for y in range(10):
        group = next(group for group in TRAIN.GROUPS if y in group)
        others = [k for k in range(10) if k != y]
        within = [k for k in group if k != y]
        expected = np.full(10, wrong / 9 * (0.25 if within else 1.0))
        expected[within] += 0.75 * wrong / max(len(within), 1)
        assert np.allclose(shares[y, others], expected[others], atol=0.015)
        assert math.isclose(shares[y, y], 1 - wrong, abs_tol=0.015)
    # Images differ: with one rate for all of them, 5 votes for the true class would be rarer.
    unanimous = (counts[np.arange(len(LABELS)), LABELS] == TRAIN.VOTES).mean()
    assert math.isclose(unanimous, (1 - 0.2**6) / 6 / 0.8, abs_tol=0.015)


def test_targets_of_annotators_are_of_the_same_votes() -> None:
    counts, majority = TRAIN.vote_counts(LABELS, seed=3)
    made = {kind: TRAIN.make_targets(kind, LABELS, 3)[0] for kind in ("majority", "shares", "sets")}
    assert (made["majority"].numpy() == majority).all()
    assert np.allclose(made["shares"].numpy(), counts / 5)
    assert (made["sets"].numpy() == (counts > 0)).all()


def test_data_ambiguation_receives_what_its_paper_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noisy labels, the predictions of the same step, and a threshold that falls along half a cosine."""
    alpha, seen = 0.1, []

    class Spy(RobustDataAmbiguationLoss):
        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            loss = super().forward(input, target)
            seen.append((input.detach().double(), target, self.threshold, loss.item()))
            return loss

    monkeypatch.setattr(TRAIN, "EPOCHS", 4)
    monkeypatch.setattr(TRAIN, "assessment", lambda *predictions: {})
    monkeypatch.setitem(TRAIN.LOSSES, "data_ambiguation", lambda: Spy(alpha))
    rng = np.random.default_rng(0)
    labels = np.arange(350) % 10
    pixels = rng.integers(0, 40, (350, 1, 28, 28)).astype(np.uint8)
    pixels[np.arange(350), 0, labels] += 200  # a bright row for each class
    data = Dataset(
        "fashion_mnist", pixels, labels, 255, 10, TRAIN.load.__globals__["FACTS"]["mnist"].test_share
    )
    TRAIN.train("label_noise", "noise-0.4", "data_ambiguation", 0, data)

    added = 0
    for step, (logits, target, threshold, loss) in enumerate(seen):
        epoch = step // (len(seen) // 4)
        assert math.isclose(threshold, 0.6 + 0.075 * (1 + math.cos(math.pi * epoch / 4)))
        p = logits.softmax(1)
        plausible = torch.nn.functional.one_hot(target, 10).bool() | (p > threshold)
        added += int((plausible.sum(1) > 1).sum())
        inside = (p * plausible).sum(1)
        outside = (1 - alpha) * torch.log((1 - alpha) / inside) + alpha * torch.log(alpha / (1 - inside))
        expected = outside.where(inside < 1 - alpha, torch.zeros_like(outside)).mean().item()
        assert math.isclose(loss, expected, rel_tol=1e-4, abs_tol=1e-6)
    targets = torch.cat([target for _, target, _, _ in seen[: len(seen) // 4]])
    assert len(targets) == 300
    noisy = TRAIN.make_targets("noise-0.4", TRAIN.split(data, 0).train_labels.numpy(), 0)[0]
    assert torch.equal(targets.bincount(), noisy.bincount())
    assert added > 50


def runs(study: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MISC / "results" / f"{study}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "study", [each for each in PAGES.PANELS if (PAGES.RESULTS / f"{each}.jsonl").exists()]
)
def test_records_agree_with_their_bins(study: str) -> None:
    seen = set()
    for run in runs(study):
        key = run["target"], run["loss"], run["seed"]
        assert key not in seen
        seen.add(key)
        assert key[:2] in TRAIN.STUDIES[study]
        options = f"--seeds {run['seed']} --targets {run['target']} --losses {run['loss']}"
        assert run["command"] == f"python misc/experiments/train.py {study} {options}"
        for evaluation in run["evaluations"].values():
            bins = zip(
                *(evaluation[f"bin_{name}"] for name in ("counts", "confidence", "accuracy")), strict=True
            )
            filled = [each for each in bins if each[0]]
            assert sum(count for count, *_ in filled) == run["n_test"] == 10_000
            error = sum(count * abs(a - c) for count, c, a in filled) / 10_000
            accuracy = sum(count * a for count, _, a in filled) / 10_000
            assert math.isclose(error, evaluation["ece"], rel_tol=1e-9)
            assert math.isclose(accuracy, evaluation["accuracy"], rel_tol=1e-9)


def test_cross_entropy_with_a_temperature_is_that_of_the_study() -> None:
    """The same bits as the runs of `lr-relax grid`, before and after the temperature of the grid."""
    lines = (MISC / "results" / "fashion_mnist.jsonl").read_text().splitlines()
    study = {run["config"]["seed"]: run for run in map(json.loads, lines) if run["config"]["epochs"] == 10}
    scaled = {s: r for s, r in study.items() if r["config"]["temp_scaling"]}
    compared = 0
    for run in runs("temperature"):
        if run["loss"] == "cross_entropy" and run["seed"] in scaled:
            other = scaled[run["seed"]]
            none, grid = run["evaluations"]["none"], run["evaluations"]["grid"]
            assert grid["temperature"] == other["temperature"]
            for metric in ("accuracy", "ece", "nll", "brier"):
                assert none[metric] == other["unscaled"][metric]
                assert grid[metric] == other[metric]
            compared += 1
    assert compared >= 3


def test_interval_of_paired_differences() -> None:
    from scipy import stats

    values = [0.03, 0.05, 0.01, 0.04]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert np.allclose(PAGES.interval(values), (0.0325, low, high))


def test_a_commit_is_dirty_if_more_than_results_differs(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in ("init -q", "commit -qm a --allow-empty"):
        subprocess.run([*git, *command.split()], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    (tmp_path / "misc" / "results").mkdir(parents=True)
    for file, state in (("misc/results/runs", ""), ("code", "-dirty")):
        (tmp_path / file).write_text("new")
        subprocess.run([*git, "add", "."], check=True)
        commit.cache_clear()
        assert commit(tmp_path) == head + state
