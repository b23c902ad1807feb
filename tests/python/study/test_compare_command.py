"""The command line: what it prints, saves and refuses."""

import json
import shlex
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Ran
from lr_relax.study import cli, compare
from lr_relax.study.atomic import occupied
from lr_relax.study.config import RunConfig
from lr_relax.study.results import Result

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = ["compare", "--epochs", "1", "--seeds", "1"]


def lr_relax(*arguments: str) -> Ran:
    return CliRunner().invoke(cli.main, arguments, prog_name="lr-relax")


def runs_in(out: Path) -> list[dict[str, Any]]:
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert isinstance(runs, list)
    return runs


def test_compare_prints_the_table_and_saves_runs_and_diagrams(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = lr_relax(
        "compare", "--epochs", "1", "--seeds", "2", "--alpha", "0.05", "--threads", "1", "--out", str(out)
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""  # no progress bar where there is no terminal
    runs = runs_in(out)
    losses = [("cross_entropy", 0.0), ("cross_entropy", 0.01), ("label_relaxation", 0.05)]
    assert [(run["config"]["loss_name"], run["config"]["alpha"]) for run in runs] == losses * 2
    for run in runs:
        config = run["config"]
        assert (config["dataset_name"], config["epochs"], config["batch_size"]) == ("digits", 1, 64)
        assert (config["n_bins"], config["test_run"]) == (15, True)
        assert run["environment"]["threads"] == "1"
        assert {"lr_relax", "torch", "python", "commit"} <= run["environment"].keys()
        assert len(run["history"]) == 1
        assert sum(run["bin_counts"]) == run["n_eval"] == 899
        assert run["seconds"] > 0
        assert run["command"] in result.stdout.replace("\n", " ")
    eces = [run["ece"] for run in runs if run["config"]["loss_name"] == "label_relaxation"]
    [row] = [line for line in result.stdout.splitlines() if "label relaxation 0.05" in line]
    assert f"{np.mean(eces):.4f} ± {np.std(eces, ddof=1):.4f}" in row
    assert "6 runs in" in result.stdout
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["reliability.png", "results.json"]


def test_the_printed_command_gives_the_same_runs(tmp_path: Path) -> None:
    first = lr_relax(*TINY, "--validation", "--n-bins", "7", "--lr", "0.05", "--out", str(tmp_path / "a b"))
    assert first.exit_code == 0, first.output
    runs = runs_in(tmp_path / "a b")
    assert {run["n_eval"] for run in runs} == {225}
    assert {run["n_train"] for run in runs} == {673}
    (tmp_path / "a b" / "results.json").unlink()
    assert lr_relax(*shlex.split(str(runs[0]["command"]))[1:]).exit_code == 0
    again = runs_in(tmp_path / "a b")
    for run in (*runs, *again):
        run["seconds"] = run["history"][0]["seconds"] = 0
    assert again == runs


def test_an_interrupted_job_keeps_its_runs_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = import_module("lr_relax.study.cli.compare")
    train, trained = module.run, []

    def interrupted(config: RunConfig, *args: object, **kwargs: object) -> Result:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(config)
        return train(config, *args, **kwargs)

    monkeypatch.setattr(module, "run", interrupted)
    assert lr_relax(*TINY, "--out", str(tmp_path)).exit_code == 1
    kept = runs_in(tmp_path)
    assert [run["config"]["alpha"] for run in kept] == [0.0, 0.01]
    trained.clear()
    assert lr_relax(*TINY, "--out", str(tmp_path), "--resume").exit_code == 0
    assert [config.loss_name for config in trained] == ["label_relaxation"]
    assert runs_in(tmp_path)[:2] == kept


def test_other_settings_are_trained_anew_and_added(tmp_path: Path) -> None:
    assert lr_relax(*TINY, "--out", str(tmp_path)).exit_code == 0
    result = lr_relax(*TINY, "--out", str(tmp_path), "--resume", "--alpha", "0.4")
    assert "1 run in" in result.stdout
    assert "2 from before" in result.stdout
    assert "label relaxation 0.4" in result.stdout
    assert len(runs_in(tmp_path)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "'mnist' is not one of 'digits', 'fashion_mnist'"),
        (["--alpha", "1"], "'--alpha': 1.0 is not in the range 0<=x<1"),
        (["--alpha", "-0.1"], "'--alpha': -0.1 is not in the range 0<=x<1"),
        (["--alpha", "nan"], "'--alpha': nan is not a finite number"),
        (["--smoothing", "1"], "'--smoothing': 1.0 is not in the range"),
        (["--seeds", "0"], "'--seeds': 0 is not in the range 1<=x<=10000"),
        (["--epochs", "0"], "'--epochs': 0 is not in the range 1<=x<=1000000"),
        (["--epochs", "1.5"], "'--epochs': '1.5' is not a valid integer"),
        (["--batch-size", "0"], "'--batch-size': 0 is not in the range 1<=x<=1000000"),
        (["--lr", "0"], "'--lr': 0.0 is not in the range x>0"),
        (["--lr", "inf"], "'--lr': inf is not a finite number"),
        (["--n-bins", "0"], "'--n-bins': 0 is not in the range 1<=x<=1000."),
        (["--threads", "0"], "'--threads': 0 is not in the range 1<=x<=1024"),
        (["--n-bins", "2000000"], "'--n-bins': 2000000 is not in the range"),
        (["--threads", "3000000000"], "'--threads': 3000000000 is not in the range"),
        (["--batch-size", "9" * 30], "'--batch-size': 9999"),
        (["--seeds", "1000000000"], "'--seeds': 1000000000 is not in the range"),
        (["--out", ""], "'--out': a folder is needed"),
        (["--out", "{file}"], "'--out': {file} cannot be written to"),
        (["--out", "{file}/below"], "'--out': {file}/below cannot be written to"),
        (["--out", "{foreign}"], "results.json is not a results file of lr-relax compare"),
        (["--dataset", "fashion_mnist", "--data-dir", "{file}"], "fashion_mnist cannot be read from {file}"),
        (["--dataset", "fashion_mnist", "--data-dir", "{foreign}"], "or downloaded"),
        (["--no-such-option"], "No such option '--no-such-option'"),
        (["surplus"], "surplus"),
    ],
)
@pytest.mark.usefixtures("no_other_source")
def test_bad_arguments_give_one_line_and_exit_code_2_before_training(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {"file": str(tmp_path / "file"), "foreign": str(tmp_path / "foreign")}
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text('{"something": "else"}')
    module = import_module("lr_relax.study.cli.compare")
    monkeypatch.setattr(module, "run", lambda *args, **kwargs: pytest.fail("training began"))
    monkeypatch.chdir(tmp_path)
    result = lr_relax("compare", *[argument.format(**names) for argument in arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message.format(**names) in result.stderr
    assert result.stdout == ""
    assert (tmp_path / "foreign" / "results.json").read_text() == '{"something": "else"}'


@pytest.mark.parametrize("arguments", [["--bogus"], ["no-such-command"]])
def test_bad_arguments_of_the_group_give_one_line_too(arguments: list[str]) -> None:
    result = lr_relax(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert arguments[0] in result.stderr


def test_diverging_training_ends_in_one_line(tmp_path: Path) -> None:
    result = lr_relax(*TINY, "--lr", "1e9", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cross-entropy, seed 0: the loss is")
    assert result.stderr.count("\n") == 1


def test_help_names_every_default() -> None:
    result = lr_relax("compare", "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for dataset, preset in compare.PRESETS.items():
        for field in ("seeds", "epochs", "learning_rate", "alpha", "smoothing"):
            assert f"{getattr(preset, field):g} on {dataset}" in text
    for default in ("digits]", "64;", "15;", "1;", "data]", "(runs/compare-<dataset>)]"):
        assert f"[default: {default}" in text


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_another_process_in_the_folder(tmp_path: Path) -> None:
    with occupied(tmp_path):
        result = lr_relax(*TINY, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.endswith(f"{tmp_path} cannot be written to: another process is at work there.\n")
    assert result.stderr.count("\n") == 1


def test_a_picture_that_cannot_be_written_costs_one_line_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(runs: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lr_relax.study.figures.reliability", full)
    result = lr_relax(*TINY, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path}/reliability.png cannot be written: No space left on device\n"
    assert json.loads((tmp_path / "results.json").read_text())["runs"]


def test_the_console_script_is_this_command() -> None:
    [script] = entry_points(group="console_scripts", name="lr-relax")
    assert script.load() is cli.main
