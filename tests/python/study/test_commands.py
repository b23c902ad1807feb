"""The commands study, study-ho, grid, table and figure, from their options to what they leave behind."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from lr_relax.metrics import expected_calibration_error
from lr_relax.study import cli, engines, figures
from lr_relax.study.cli import execution
from lr_relax.study.cli.options import RUN_OPTIONS, read_config
from lr_relax.study.config import RunConfig
from lr_relax.study.files import locked
from lr_relax.study.folder import load_predictions, load_result
from mlflow import MlflowClient
from mlflow.entities import Run
from test_data_sets import make_files, put

pytestmark = pytest.mark.usefixtures("one_thread")

DIGITS = ["--model_name", "simple_dense", "--dataset_name", "digits", "--short", "--epochs", "1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tracking, unless a test asks for a store."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")


def lr_relax(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="lr-relax")


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path("runs/study").glob("*/result.json"))]


@pytest.mark.parametrize("model", ["simple_dense", "vgg", "resnet", "densenet"])
def test_each_network_trains_on_real_file_formats(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, n_eval = ("fashion_mnist", 11) if model == "simple_dense" else ("cifar10", 12)
    put(dataset, tmp_path, make_files(dataset, monkeypatch))
    words = ["--model_name", model, "--dataset_name", dataset, "--loss_name", "lr", "--alpha", "0.1"]
    words += ["--load_ext_params", "--epochs", "1", "--batch_size", "30", "--test_run"]
    ran = lr_relax("study", *words, "--data-dir", str(tmp_path))
    assert ran.exit_code == 0, ran.output
    assert f"{model} on {dataset}, label relaxation 0.1, seed 0" in ran.stdout
    [result] = results()
    assert (result["n_train"], result["n_eval"]) == (72 - n_eval, n_eval)


def test_study_tracks_what_it_prints_and_is_not_repeated(sqlite: str) -> None:
    options = ["study", *DIGITS, "--alpha", "0.1", "--temp_scaling", "True", "--test-run", "True"]
    ran = lr_relax(*options, "--autolog_freq", "2", "--tensorboard", "logs")
    assert ran.exit_code == 0, ran.output
    assert (
        ran.stderr.splitlines()[0]
        == "label relaxation 0.1 + temperature · simple_dense · digits · seed 0 · test: preparing"
    )
    assert "epoch 1/1" in ran.stderr
    [run] = runs_of_kind(sqlite, "run")
    assert f"ECE {run.data.metrics['ece']:.4f}" in ran.stdout
    assert len([*Path("logs").glob("*/events.*")]) == 1
    again = lr_relax("study", *DIGITS, "--alpha", "0.1", "--temp_scaling", "--test_run")
    assert again.stdout == ran.stdout
    assert len(runs_of_kind(sqlite, "run")) == 1
    [first] = results()
    anew = lr_relax("study", *DIGITS, "--alpha", "0.1", "--temp_scaling", "--test_run", "--restart")
    assert anew.stdout.splitlines()[:2] == ran.stdout.splitlines()[:2]
    assert results()[0]["seconds"] != first["seconds"]


def test_predictions_reproduce_the_reported_metrics() -> None:
    """The logits are not scaled; the temperature is in the result."""
    assert lr_relax("study", *DIGITS, "--temp_scaling").exit_code == 0
    [path] = Path("runs/study").glob("*/predictions.npz")
    result = load_result(path.parent)
    assert result is not None
    assert result.temperature is not None
    assert result.unscaled is not None
    logits, labels = load_predictions(path.parent)
    assert (logits.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert len(logits) == len(labels) == result.n_eval
    for metrics, temperature in ((result, result.temperature), (result.unscaled, 1)):
        scaled = logits.double() / temperature
        known = {"from_logits": True, "n_bins": 15, "binning": "paper"}
        assert float(expected_calibration_error(scaled, labels, **known)) == metrics.ece
        assert torch.nn.functional.cross_entropy(scaled, labels).item() == metrics.nll


def test_ctrl_c_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["study", *DIGITS, "--restart"]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["lr-relax", *words])
    monkeypatch.setattr(execution.runs, "run", interrupt)
    ran = lr_relax(*words)
    assert ran.exit_code == 130
    assert ran.stderr.splitlines()[-1] == (
        f"Interrupted. To resume from the last complete epoch, run: lr-relax {shlex.join(words[:-1])}"
    )


def test_help_and_first_line_come_before_slow_imports() -> None:
    """In one process, which each command leaves at its first line."""
    slow = ("torchvision", "sklearn", "matplotlib", "mlflow", "ray", "submitit", "tensorboard", "pandas")
    commands = [["--help"], ["study", *DIGITS], ["study-ho", *DIGITS], ["compare"]]
    program = (
        "import contextlib, sys, lr_relax.study.cli as cli\n"
        "from lr_relax.study.cli import execution, grid\n"
        f"def stop(*_, **__): print([m for m in {slow} if m in sys.modules]); raise SystemExit\n"
        "execution.click.echo = cli.main.format_help = stop\n"
        f"for words in {commands}:\n"
        "    with contextlib.suppress(SystemExit): cli.main(words)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]"] * 4


def test_precedence_of_options() -> None:
    """The command line, then the file, then the defaults."""
    row = {"epochs": 2, "batch_size": 100, "data_augmentation": "False"}
    Path("own.json").write_text(json.dumps({"simple_dense_digits": row}))
    config = read_config_of([*DIGITS[:4], "--hyperparams", "own.json", "--batch-size", "50"])
    read = (config.epochs, config.batch_size, config.data_augmentation, config.initial_lr)
    assert read == (2, 50, False, 1e-3)


def runs_of_kind(sqlite: str, kind: str) -> list[Run]:
    """All that MLflow has of a kind: "run", "search" or "grid"."""
    mlflow = MlflowClient(sqlite)
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    return list(mlflow.search_runs(experiments, f"tags.`lr_relax.kind` = '{kind}'"))


def test_study_ho_tests_the_best_alpha(sqlite: str) -> None:
    """By accuracy another one than by ECE, and each search is a run in MLflow."""
    search = ["study-ho", *DIGITS, "--loss_name", "focal", "--alphas", "1,5"]
    for words, metric, alpha in (([], "accuracy", 5.0), (["--optimize_ece"], "ece", 1.0)):
        ran = lr_relax(*search, *words)
        assert ran.exit_code == 0, ran.output
        assert f"focal {alpha:g}, seed 0" in ran.stdout
        validated = [each for each in results() if not each["config"]["test_run"]]
        assert len(validated) == 2
        best = (min if metric == "ece" else max)(validated, key=lambda each: each[metric])
        assert best["config"]["alpha"] == alpha
        by_ece = str(metric == "ece")
        [parent] = [
            run for run in runs_of_kind(sqlite, "search") if run.data.params["optimize_ece"] == by_ece
        ]
        assert parent.info.run_name == "focal · simple_dense · digits · seed 0 · search"
        nested = [
            r for r in runs_of_kind(sqlite, "run") if r.data.tags["mlflow.parentRunId"] == parent.info.run_id
        ]
        assert f"focal {alpha:g} · simple_dense · digits · seed 0 · test" in {
            run.info.run_name for run in nested
        }
        assert parent.data.params["alpha"] == str(alpha)
        assert "test_accuracy" in parent.data.metrics
    assert len(runs_of_kind(sqlite, "search")) == 2


def test_search_skips_alphas_that_diverge(sqlite: str) -> None:
    """It fails where all of them do."""
    search = ["study-ho", *DIGITS, "--cluster_job", "--loss_name", "confidence_penalty", "--alphas"]
    skipped = r"Error: confidence penalty 1e\+38, seed 0: the loss is .*\n"
    ran = lr_relax(*search, "1e38")
    assert ran.exit_code == 1
    assert re.fullmatch(skipped + "Error: no alpha has a result to choose by\n", ran.stderr)
    assert [run.info.status for run in runs_of_kind(sqlite, "search")] == ["FAILED"]
    ran = lr_relax(*search, "0.1,1e38,0.3")
    assert ran.exit_code == 0, ran.output
    assert re.fullmatch(skipped, ran.stderr)
    assert sorted(result["config"]["alpha"] for result in results()) in ([0.1, 0.1, 0.3], [0.1, 0.3, 0.3])
    assert sorted(run.info.status for run in runs_of_kind(sqlite, "search")) == ["FAILED", "FINISHED"]


def test_failed_run_does_not_affect_the_grid(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ["grid", "--datasets", "digits", "--short", "--epochs", "1", "--workers", "1", "--seeds", "0"]
    monkeypatch.setattr(engines, "local", lambda jobs, **_: map(engines.work, jobs))
    ran = lr_relax(*grid, "--losses", "confidence_penalty:1e38,cross_entropy:0")
    assert ran.exit_code == 1
    assert ran.stdout == "1 run in runs/study\n"
    _, *lines, failed = ran.stderr.splitlines()
    [done] = [line for line in lines if "cross_entropy" in line]
    [diverged] = [line for line in lines if line != done]
    assert re.fullmatch(
        r"simple_dense-.*-confidence_penalty-1e\+38-.*: the loss is .* in epoch 1; .*", diverged
    )
    assert re.fullmatch(r"simple_dense-digits-cross_entropy-0-.*: accuracy 0\.\d{4}  ECE 0\.\d{4}", done)
    assert failed == "Error: 1 run failed; the same command tries again"
    [parent] = runs_of_kind(sqlite, "grid")
    assert parent.data.metrics == {"finished": 1, "failed": 1}
    assert sorted(run.info.status for run in runs_of_kind(sqlite, "run")) == ["FAILED", "FINISHED"]


def test_run_of_another_process_is_left_alone(sqlite: str) -> None:
    """The command is refused, and nothing of it is told to MLflow."""
    words = [*DIGITS, "--alpha", "0.1"]
    folder = Path("runs/study") / read_config_of(words).key
    with locked(folder):
        ran = lr_relax("study", *words)
        assert ran.exit_code == 1
        assert ran.stderr.endswith(f"another process is using it: {str(folder)!r}\n")
        [run] = runs_of_kind(sqlite, "run")
        assert run.info.status == "RUNNING"
        again = lr_relax("study", *words, "--restart")
        assert again.exit_code == 2
        assert again.stderr.endswith(f"another process is using it: {str(folder)!r}\n")
        grid = ["grid", "--datasets", "digits", "--losses", "lr:0.1", "--seeds", "0", *DIGITS[-3:]]
        assert "another process is using it" in lr_relax(*grid).stderr
        [run] = runs_of_kind(sqlite, "run")
        assert run.info.status == "RUNNING"
    assert lr_relax("study", *words).exit_code == 0
    [run] = runs_of_kind(sqlite, "run")
    assert run.info.status == "FINISHED"


def read_config_of(words: list[str]) -> RunConfig:
    """The run that the command would train."""
    return read_config(cli.study.make_context("study", [*words]).params)


def test_every_option_reaches_the_config() -> None:
    """In both spellings; no value is the default."""
    words = "--model_name resnet --dataset_name CIFAR10 --loss_name focal --alpha 0.25 --seed 7 --epochs 3"
    words += " --batch_size 5 --initial_lr 0.5 --steps 3,5 --lr_sched_multipler 0.5 --decay 0.5 --warmup 3"
    words += " --gradient_clipping 0.5 --reduce_on_plateau --data_augmentation False --test_run True"
    words += " --subtract_pixel_mean False --model_checkpoints --temp_scaling --temperature nll"
    words += " --validation_share 1/6 --n_bins 10"
    task = ("resnet", "cifar10", "focal", 0.25, 7)
    training = (3, 5, 0.5, (3, 5), 0.5, 0.5, 3, 0.5, True, False, False)
    expected = RunConfig(*task, *training, True, True, True, "nll", 1 / 6, 10)
    assert all(getattr(expected, name) != field.default for name, field in RUN_OPTIONS.items())
    for spelling in (words, re.sub(r"--\w+", lambda name: name[0].replace("_", "-"), words)):
        assert read_config_of(spelling.split()) == expected


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--legacy clip", "legacy_clip", True),
        ("--loss_name confidence_penalty --legacy confidence-penalty", "legacy_confidence_penalty", True),
        ("--temp_scaling --legacy temp-scaling", "legacy_temp_scaling", True),
        ("--warmup 3 --legacy schedule", "legacy_schedule", True),
        ("--model_checkpoints --legacy checkpoints", "legacy_checkpoints", True),
        ("--loss_name focal --load_ext_params --legacy hyperparams", "batch_size", 32),
        ("--load_ext_params", "steps", (150, 225)),
        ("--short", "epochs", 3),
    ],
)
def test_legacy_and_hyperparameters(words: str, field: str, value: object) -> None:
    assert getattr(read_config_of(words.split()), field) == value
    assert getattr(RunConfig(), field) != value


def test_result_records_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["study", *DIGITS, "--alpha", "0.1", "--out", "with a space"]
    monkeypatch.setattr(sys, "argv", ["lr-relax", *words])
    assert lr_relax(*words).exit_code == 0
    [result] = Path("with a space").glob("*/result.json")
    command = json.loads(result.read_text())["command"]
    assert shlex.split(command) == ["lr-relax", *words]
    script = [sys.executable, "-m", "lr_relax.study.lr_study", *words[1:-1], "script"]
    subprocess.run(script, check=True, capture_output=True, timeout=120)
    [result] = Path("script").glob("*/result.json")
    assert shlex.split(json.loads(result.read_text())["command"]) == ["python", *script[1:]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Result]:
    """The folder of a finished grid with tests of the best alphas, its command and what that printed."""
    out = tmp_path_factory.mktemp("grid") / "runs"
    arguments = ["grid", "--datasets", "digits", "--losses", "lr:0.05,lr:0.1,cross_entropy:0", "--seeds", "0"]
    arguments += ["--short", "--epochs", "1", "--test_best", "accuracy,ece", "--workers", "2"]
    arguments += ["--tracking_uri", "none", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:  # the workers are tested with the engines
        patch.setattr(engines, "local", lambda jobs, **_: map(engines.work, jobs))
        ran = lr_relax(*arguments)
    assert ran.exit_code == 0, ran.output
    return out, arguments, ran


Finished = tuple[Path, list[str], Result]


def test_grid_is_not_repeated(finished: Finished) -> None:
    out, arguments, ran = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert 5 <= len(before) <= 6  # three validated, two or three tested
    assert lr_relax(*arguments).stdout == ran.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("table", "alpha optimized for ECE"),
        ("table --dataset digits --model_name simple_dense", "alpha optimized for accuracy"),
        ("table --save a/new/folder/table.md", "a/new/folder/table.md"),
        ("figure reliability --loss lr --alpha 0.05,0.1 --dataset digits --save lr.svg", "lr.svg"),
        ("figure alpha --loss lr,cross_entropy", "alpha.png"),
    ],
)
def test_reports_come_from_folders_alone(words: str, shown: str, finished: Finished) -> None:
    """They read no tracker: none of these runs was tracked."""
    ran = lr_relax(*words.split(), "--out", str(finished[0]))
    assert ran.exit_code == 0, ran.output
    assert shown in ran.stdout
    if "table" not in words:
        assert Path(ran.stdout.strip()).stat().st_size > 1000


def test_figure_draws_the_selection_only(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    pooled = figures.pooled_curve
    monkeypatch.setattr(figures, "pooled_curve", lambda runs: drawn.extend(runs) or pooled(runs))
    options = ["--loss", "lr", "--alpha", "1/10", "--dataset", "digits", "--model_name", "simple_dense"]
    assert lr_relax("figure", "reliability", *options, "--out", str(finished[0])).exit_code == 0
    assert {(each.config.loss_name, each.config.alpha) for each in drawn} == {("label_relaxation", 0.1)}


def test_unreadable_results_cost_a_warning(finished: Finished, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(finished[0], "copy")
    next(Path("copy").glob("*cross_entropy*test*/result.json")).write_text("{}")
    ran = lr_relax("table", "--out", "copy")
    assert ran.exit_code == 0, ran.output
    assert re.search(r"cross-entropy +\| +— \| +0 \|", ran.stdout)
    [warning] = caplog.messages
    assert "is not the result of a run" in warning


def test_legacy_names() -> None:
    """Several, or all of those that have an effect."""
    options = shlex.split("--model_name vgg --dataset_name cifar10 --warmup 1 --temp_scaling --legacy")
    some = read_config_of([*options, "clip, schedule"])
    assert (some.legacy_clip, some.legacy_schedule, some.legacy_temp_scaling) == (True, True, False)
    assert read_config_of([*options, "all"]) == replace(some, legacy_temp_scaling=True)
    assert read_config_of(["--short", "--legacy", "all"]).epochs == read_config_of(["--short"]).epochs


def test_legacy_grid_omits_plain_cross_entropy() -> None:
    for words, first in (([], 0.0), (["--legacy", "grid"], 0.01)):
        context = cli.grid.make_context("grid", ["--losses", "cross_entropy", "--seeds", "0", *words])
        configs = import_module("lr_relax.study.cli.grid")._configs(context.params)
        assert configs[0].alpha == first


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mem_gb=1.5", 1.5),
        ("timeout_min=90", 90),
        ("slurm_use_srun=False", False),
        ("slurm_account=007", "007"),
        ("slurm_setup=true", "true"),
        ("slurm_comment=a=b", "a=b"),
    ],
)
def test_types_of_submitits_parameters(text: str, value: object) -> None:
    key, converted = import_module("lr_relax.study.cli.grid")._parameter(text)
    assert (key, converted, type(converted)) == (text.partition("=")[0], value, type(value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("study --model_name lenet", "'lenet' is not one of"),
        ("study --validation_share 1/0", "'1/0' is not a number or a fraction"),
        ("study --device tpu", "tpu is not a device of this machine"),
        ("study {digits} --experiment '' --tracking_uri sqlite:///a.db", "Invalid experiment name"),
        ("study --hyperparams {text} --short", "--hyperparams and --short cannot be combined"),
        (
            "study --model_name vgg --dataset_name mnist",
            "`model_name` to be a network for images of 28 pixels, as those of mnist, but",
        ),
        (
            "study --load_ext_params --model_name simple_dense",
            "row simple_dense_cifar100: there is no such row",
        ),
        ("study --dataset_name cifar10 --data_dir {text}", "cifar10 cannot be read from"),
        ("study {digits} --tensorboard {text}", "File exists: '{text}'"),
        ("study {digits} --tracking_uri http://127.0.0.1:9", "Max retries exceeded"),
        ("study {digits} --tracking_uri sqlite:///{text}", "file is not a database"),
        ("study-ho --alphas 1", "Expected argument `alpha` to be a number in [0, 1)"),
        ("grid --seeds 4-0", "'4-0' is not an increasing range"),
        ("grid --seeds 0-99999999999999999999", "is not an increasing range of at most 10,000"),
        ("grid --slurm mem_gb=", "'mem_gb=' is not of the form key=value"),
        ("grid --slurm workers=2", "'workers' is not a parameter of submitit"),
        ("grid --test_run --test_best ece", "there are no validation runs with --test-run"),
        ("table", "runs/study does not exist"),
        ("table --out .", ". has no finished runs"),
        ("study --legacy old", "'old' is not one of all, confidence-penalty"),
        ("study --legacy hyperparams", "--legacy hyperparams needs --load_ext_params alone"),
    ],
)
@pytest.mark.usefixtures("no_other_source")
def test_rejects_invalid_options_in_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is text\n" * 100)
    words = {"text": str(tmp_path / "text"), "digits": " ".join(DIGITS)}
    ran = lr_relax(*shlex.split(arguments.format(**words)))
    assert ran.exit_code == 2, ran.output
    assert message.format(**words) in ran.stderr
    lines = [line for line in ran.stderr.splitlines() if not line.endswith(": preparing")]
    assert len(lines) == 1
    assert ran.stdout == ""
    assert results() == []
