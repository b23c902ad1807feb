"""``lr-relax compare``: its runs, its table and its diagrams."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from lr_relax.study import cli, compare
from lr_relax.study.folder import load_results

pytestmark = pytest.mark.usefixtures("one_thread")


def lr_relax(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["compare", *arguments], prog_name="lr-relax")


def test_plan_has_every_loss_for_every_seed() -> None:
    def plan(**options: Any) -> list[tuple[str, float, int]]:
        configs = compare.plan("digits", alpha=0.1, **options)
        assert all(config.test_run and not config.data_augmentation for config in configs)
        return [(config.loss_name, config.alpha, config.seed) for config in configs]

    losses = [("cross_entropy", 0.0), ("cross_entropy", 0.2), ("label_relaxation", 0.1)]
    assert plan(seeds=[0, 1], smoothing=0.2) == [(*loss, seed) for seed in (0, 1) for loss in losses]
    assert plan(seeds=[7], smoothing=0) == [("cross_entropy", 0.0, 7), ("label_relaxation", 0.1, 7)]
    assert len(plan()) == 30


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A comparison of one epoch over two seeds."""
    out = tmp_path_factory.mktemp("compare") / "a new" / "folder"
    ran = lr_relax("--epochs", "1", "--seeds", "0-1", "--threads", "1", "--out", str(out))
    assert ran.exit_code == 0, ran.output
    return out, ran


def test_prints_the_table_and_saves_runs_and_diagrams(finished: tuple[Path, Result]) -> None:
    out, ran = finished
    results = load_results(out)
    assert len(results) == 6
    assert {(each.config.initial_lr, each.config.test_run, each.n_eval) for each in results} == {
        (0.2, True, 899)
    }
    assert {each.environment["threads"] for each in results} == {"1"}
    eces = [each.ece for each in results if each.config.loss_name == "label_relaxation"]
    [row] = [line for line in ran.stdout.splitlines() if "label relaxation 0.05" in line]
    assert f"{np.mean(eces):.4f} ± {np.std(eces, ddof=1):.4f}" in row
    assert "digits, 899 test images, mean ± standard deviation over 2 seeds" in ran.stdout
    assert (out / "reliability-digits.png").read_bytes().startswith(b"\x89PNG")
    assert not [*out.rglob("tracking.json")]
    assert ran.stderr.splitlines()[:2] == ["digits: 6 runs: preparing", "run 1/6  cross-entropy, seed 0"]


def test_validation_data_and_options_of_the_study(tmp_path: Path) -> None:
    options = ["--dataset_name", "digits", "--seeds", "3", "--epochs", "1", "--initial_lr", "0.05"]
    ran = lr_relax(*options, "--test_run", "False", "--n-bins", "7", "--out", str(tmp_path))
    assert ran.exit_code == 0, ran.output
    assert "digits, 225 validation images, mean" in ran.stdout
    assert "ECE (7 bins)" in ran.stdout
    assert {(each.config.seed, each.config.initial_lr) for each in load_results(tmp_path)} == {(3, 0.05)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset mnist", "'mnist' is not one of digits, fashion_mnist"),
        ("--alpha 1", "`alpha` to be a number in [0, 1)"),
        ("--smoothing 2", "`smoothing` to be a number in [0, 1), but got 2.0"),
        ("--out {file}/below", "Not a directory: '{file}/below'"),
        ("--dataset fashion_mnist --data-dir {file}", "fashion_mnist cannot be read from {file}"),
    ],
)
@pytest.mark.usefixtures("no_other_source")
def test_invalid_arguments(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.chdir(tmp_path)
    ran = lr_relax(*[word.format(file=tmp_path / "file") for word in arguments.split()])
    assert ran.exit_code == 2
    assert message.format(file=tmp_path / "file") in ran.stderr.splitlines()[-1]
    assert not [*tmp_path.rglob("config.json")]


def test_help_names_every_default() -> None:
    text = " ".join(lr_relax("--help").stdout.split())
    for dataset, preset in compare.PRESETS.items():
        for field in ("epochs", "initial_lr", "alpha", "smoothing"):
            assert f"{preset[field]:g} on {dataset}" in text
    groups = ["Task", "Training", "Evaluation", "Execution", "Files", "Tracking", "Options"]
    assert re.findall(r"([A-Z]\w+): --", text) == groups
