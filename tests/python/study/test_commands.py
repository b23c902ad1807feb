"""The commands study, study-ho, grid, table and figure, from their options to what they leave behind."""

import gzip
import json
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
from hashlib import md5
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from lr_relax.study import cli, tracked
from lr_relax.study.atomic import occupied
from lr_relax.study.cli.grid import KeyValue
from lr_relax.study.cli.options import read_config
from lr_relax.study.config import RunConfig
from mlflow import MlflowClient
from mlflow.entities import Run
from torchvision.datasets import CIFAR10, FashionMNIST

pytestmark = pytest.mark.usefixtures("one_thread")

study = import_module("lr_relax.study.cli.study")  # of that name the package has the command
DIGITS = ["--model_name", "simple_dense", "--dataset_name", "digits", "--short", "--epochs", "1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite: str) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite)


def lr_relax(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="lr-relax")


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path("runs/study").glob("*/result.json"))]


def write_fashion_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty and ten images in idx files, packed as they are downloaded."""
    random = np.random.default_rng(0)
    folder = folder / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for archive, _ in FashionMNIST.resources:
        n = 60 if archive.startswith("train") else 10
        if "images" in archive:
            content = struct.pack(">4i", 2051, n, 28, 28) + random.bytes(n * 28 * 28)
        else:
            content = struct.pack(">2i", 2049, n) + bytes(range(10)) * (n // 10)
        (folder / Path(archive).stem).write_bytes(content)
        (folder / archive).write_bytes(gzip.compress(content))


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images in each of six pickles, with the checksums that torchvision asks for."""
    random = np.random.default_rng(0)
    folder = folder / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> tuple[str, str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return name, md5(data).hexdigest()

    def batch(name: str) -> tuple[str, str]:
        pixels = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": list(range(10))})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(name) for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [batch(name) for name, _ in CIFAR10.test_list])
    name, md5_of_meta = write("batches.meta", {"label_names": list("abcdefghij")})
    meta = {"filename": name, "key": "label_names", "md5": md5_of_meta}
    monkeypatch.setattr(CIFAR10, "meta", meta)


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ("simple_dense", "fashion_mnist"),
        ("vgg", "cifar10"),
        ("resnet", "cifar10"),
        ("densenet", "cifar10"),
    ],
)
def test_an_epoch_of_each_network_on_files_of_the_real_format(
    model: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_cifar10 if dataset == "cifar10" else write_fashion_mnist
    write(tmp_path / "data", monkeypatch)
    ran = lr_relax(
        *("study", "--model_name", model, "--dataset_name", dataset, "--loss_name", "lr", "--alpha", "0.1"),
        *("--load_ext_params", "--epochs", "1", "--batch_size", "16", "--test_run"),
        *("--data-dir", str(tmp_path / "data")),
    )
    assert ran.exit_code == 0, ran.output
    assert f"{model} on {dataset}, label relaxation 0.1, seed 0" in ran.stdout
    [result] = results()
    assert result["n_train"] == (60 if dataset == "fashion_mnist" else 50)
    assert result["n_eval"] == 10


def test_study_tracks_what_it_prints_and_is_not_repeated(sqlite: str) -> None:
    ran = lr_relax("study", *DIGITS, "--alpha", "0.1", "--temp_scaling", "True", "--test-run", "True")
    assert ran.exit_code == 0, ran.output
    assert "epoch 1/1" in ran.stderr
    [record] = tracked.records(sqlite)
    assert f"ECE {record.metrics['ece']:.4f}" in ran.stdout
    assert record.config.temp_scaling
    assert record.config.test_run
    again = lr_relax("study", *DIGITS, "--alpha", "0.1", "--temp_scaling", "--test_run")
    assert again.stdout == ran.stdout
    assert len(tracked.records(sqlite)) == 1
    [first] = results()
    anew = lr_relax("study", *DIGITS, "--alpha", "0.1", "--temp_scaling", "--test_run", "--restart")
    assert anew.stdout.splitlines()[:2] == ran.stdout.splitlines()[:2]
    assert results()[0]["seconds"] != first["seconds"]


@pytest.mark.parametrize(("every", "steps"), [("1", [0, 1, 2, 3]), ("2", [0, 2, 3]), ("10", [0, 3])])
def test_every_nth_epoch_and_the_last_are_tracked(every: str, steps: list[int], sqlite: str) -> None:
    options = ["--epochs", "4", "--autolog_freq", every, "--cluster_job"]
    ran = lr_relax("study", *DIGITS, *options, "--tensorboard", "logs")
    assert ran.exit_code == 0, ran.output
    assert ran.stderr == ""
    assert not Path("logs").exists()
    [record] = tracked.records(sqlite)
    history = MlflowClient(sqlite).get_metric_history(record.run_id, "loss")
    assert sorted(metric.step for metric in history) == steps


def test_what_is_given_wins_over_the_file_and_that_over_the_defaults() -> None:
    file = Path("own.json")
    file.write_text('{"simple_dense_digits": {"epochs": 2, "batch_size": 100, "data_augmentation": "False"}}')
    ran = lr_relax(*("study", *DIGITS[:4], "--hyperparams", "own.json", "--batch-size", "50"))
    assert ran.exit_code == 0, ran.output
    [result] = results()
    config = result["config"]
    assert (config["epochs"], config["batch_size"], config["data_augmentation"]) == (2, 50, False)
    assert config["initial_lr"] == 1e-3


def runs_of_kind(sqlite: str, kind: str) -> list[Run]:
    """All that MLflow has of a kind: "run", "search" or "grid"."""
    mlflow = MlflowClient(sqlite)
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    return list(mlflow.search_runs(experiments, f"tags.`lr_relax.kind` = '{kind}'"))


def test_study_ho_tests_the_best_alpha(sqlite: str) -> None:
    """By accuracy another one than by ECE, and each search is one of its own in MLflow."""
    search = ["study-ho", *DIGITS, "--loss_name", "focal", "--alphas", "1,5"]
    for words, by_ece, alpha in (([], False, 5.0), (["--optimize_ece"], True, 1.0)):
        ran = lr_relax(*search, *words)
        assert ran.exit_code == 0, ran.output
        assert f"focal {alpha:g}, seed 0" in ran.stdout
        validated = [each for each in tracked.records(sqlite) if not each.config.test_run]
        by = [(each.metrics["ece" if by_ece else "validation_accuracy"], each) for each in validated]
        assert len(by) == 2
        assert (min if by_ece else max)(by, key=lambda each: each[0])[1].config.alpha == alpha
        [tested] = [r for r in tracked.records(sqlite) if r.config.test_run and r.config.alpha == alpha]
        [parent] = [
            run for run in runs_of_kind(sqlite, "search") if run.data.params["optimize_ece"] == str(by_ece)
        ]
        assert tested.tags["mlflow.parentRunId"] == parent.info.run_id
        assert parent.data.params["alpha"] == str(alpha)
        assert parent.data.metrics["test_accuracy"] == tested.metrics["test_accuracy"]
    assert len(runs_of_kind(sqlite, "search")) == 2


def test_an_alpha_that_diverges_does_not_end_the_search(sqlite: str) -> None:
    search = ["study-ho", *DIGITS, "--cluster_job", "--loss_name", "confidence_penalty"]
    ran = lr_relax(*search, "--alphas", "0.1,1e38,0.3")
    assert ran.exit_code == 0, ran.output
    assert re.fullmatch(r"Error: confidence penalty 1e\+38, seed 0: the loss is .*\n", ran.stderr)
    assert sorted(result["config"]["alpha"] for result in results()) in ([0.1, 0.1, 0.3], [0.1, 0.3, 0.3])
    [parent] = runs_of_kind(sqlite, "search")
    assert parent.info.status == "FINISHED"


def test_a_search_without_any_result_fails(sqlite: str) -> None:
    ran = lr_relax(
        "study-ho", *DIGITS, "--cluster_job", "--loss_name", "confidence_penalty", "--alphas", "1e38"
    )
    assert ran.exit_code == 1
    assert ran.stderr.endswith("Error: none of the alphas has a result to choose by\n")
    assert ran.stderr.count("\n") == 2
    [parent] = runs_of_kind(sqlite, "search")
    assert parent.info.status == "FAILED"


def test_a_run_that_fails_costs_the_grid_only_itself(sqlite: str) -> None:
    grid = ["grid", "--datasets", "digits", "--short", "--epochs", "1", "--workers", "1", "--seeds", "0"]
    ran = lr_relax(*grid, "--losses", "confidence_penalty:1e38,cross_entropy:0")
    assert ran.exit_code == 1
    assert ran.stdout == "1 run in runs/study, 1 failed\n"
    diverged, done, failed = ran.stderr.splitlines()
    assert re.fullmatch(
        r"simple_dense-.*-confidence_penalty-1e\+38-.*: the loss is .* in epoch 1; .*", diverged
    )
    assert re.fullmatch(r"simple_dense-digits-cross_entropy-0-.*: accuracy 0\.\d{4}  ECE 0\.\d{4}", done)
    assert failed == "Error: 1 run failed; the same command tries again"
    [parent] = runs_of_kind(sqlite, "grid")
    assert parent.data.metrics == {"finished": 1, "failed": 1}
    assert sorted(run.info.status for run in runs_of_kind(sqlite, "run")) == ["FAILED", "FINISHED"]

    [path] = [path.parent for path in Path("runs/study").glob("*/result.json")]
    shutil.rmtree(path)
    path.touch()
    ran = lr_relax(*grid, "--losses", "focal:1,cross_entropy:0")
    assert ran.exit_code == 1
    assert f"{path.name}: [Errno 17] File exists" in ran.stderr
    assert ran.stdout == "1 run in runs/study, 1 failed\n"


def test_legacy_grid_leaves_plain_cross_entropy_out() -> None:
    grid = ["grid", "--datasets", "digits", "--losses", "cross_entropy", "--seeds", "0", "--short"]
    options = ["--epochs", "1", "--legacy_grid", "--tracking_uri", "none", "--workers", "2"]
    ran = lr_relax(*grid, *options)
    assert ran.exit_code == 0, ran.output
    alphas = [result["config"]["alpha"] for result in results()]
    assert sorted(alphas) == [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    "engine",
    [
        ["slurm", "--slurm", "cluster=local", "--slurm", "timeout_min=5", "--slurm", "slurm_setup=true"],
        ["ray"],
    ],
    ids=lambda engine: engine[0],
)
def test_a_grid_on_another_engine(engine: list[str], sqlite: str) -> None:
    grid = ["grid", "--datasets", "digits", "--losses", "lr:0.1,focal:1", "--seeds", "0", "--short"]
    ran = lr_relax(*grid, "--epochs", "1", "--workers", "2", "--engine", *engine)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout == "2 runs in runs/study\n"
    assert len(tracked.records(sqlite)) == len(results()) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mem_gb=1.5", 1.5),
        ("timeout_min=90", 90),
        ("slurm_use_srun=False", False),
        ("slurm_account=007", "007"),
        ("slurm_partition=nan", "nan"),
        ("slurm_time=1:00:00", "1:00:00"),
        ("slurm_setup=true", "true"),
        ("slurm_comment=a=b", "a=b"),
    ],
)
def test_parameters_of_submitit_have_their_types(text: str, value: object) -> None:
    key, converted = KeyValue().convert(text, None, None)
    assert key == text.partition("=")[0]
    assert converted == value
    assert type(converted) is type(value)


def test_a_run_that_another_process_trains_stays_its_own(sqlite: str) -> None:
    """The command is refused, and nothing of it is told to MLflow."""
    words = [*DIGITS, "--alpha", "0.1"]
    with occupied(Path("runs/study") / read_config_of(words).key):
        ran = lr_relax("study", *words)
        assert ran.exit_code == 1
        assert ran.stderr.endswith(": another process is at work there\n")
        [run] = runs_of_kind(sqlite, "run")
        assert run.info.status == "RUNNING"
        again = lr_relax("study", *words, "--restart")
        assert again.exit_code == 1
        assert again.stderr.endswith("cannot be removed: another process is at work there\n")
        grid = ["grid", "--datasets", "digits", "--losses", "lr:0.1", "--seeds", "0", *DIGITS[-3:]]
        assert "another process is at work there" in lr_relax(*grid).stderr
        [run] = runs_of_kind(sqlite, "run")
        assert run.info.status == "RUNNING"
    assert lr_relax("study", *words).exit_code == 0
    [run] = runs_of_kind(sqlite, "run")
    assert run.info.status == "FINISHED"


def read_config_of(words: list[str]) -> RunConfig:
    """The run that the command would train."""
    return read_config(study.study.make_context("study", [*words]).params)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--dataset_name CIFAR10", "dataset_name", "cifar10"),
        ("--loss_name focal", "loss_name", "focal"),
        ("--alpha 0.25", "alpha", 0.25),
        ("--seed 7", "seed", 7),
        ("--epochs 3", "epochs", 3),
        ("--batch_size 5", "batch_size", 5),
        ("--initial_lr 0.5", "initial_lr", 0.5),
        ("--steps 3,5", "steps", (3, 5)),
        ("--lr_sched_multipler 0.5", "lr_sched_multipler", 0.5),
        ("--decay 0.5", "decay", 0.5),
        ("--warmup 3", "warmup", 3),
        ("--gradient_clipping 0.5", "gradient_clipping", 0.5),
        ("--reduce_on_plateau", "reduce_on_plateau", True),
        ("--data_augmentation False", "data_augmentation", False),
        ("--subtract_pixel_mean False", "subtract_pixel_mean", False),
        ("--model_checkpoints", "model_checkpoints", True),
        ("--test_run", "test_run", True),
        ("--temp_scaling", "temp_scaling", True),
        ("--temp_scaling --temperature nll", "temperature", "nll"),
        ("--validation_share 1/6", "validation_share", 1 / 6),
        ("--n_bins 10", "n_bins", 10),
        ("--legacy_clip", "legacy_clip", True),
        ("--loss_name confidence_penalty --legacy_confidence_penalty", "legacy_confidence_penalty", True),
        ("--temp_scaling --legacy_temp_scaling", "legacy_temp_scaling", True),
        ("--warmup 3 --legacy_schedule", "legacy_schedule", True),
        ("--model_checkpoints --legacy_checkpoints", "legacy_checkpoints", True),
        ("--load_ext_params", "steps", (150, 225)),
        ("--short", "epochs", 3),
        ("--loss_name focal --legacy_hyperparams", "batch_size", 32),
    ],
)
def test_every_option_of_a_run_reaches_it(
    words: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both spellings; each value is none of the defaults."""
    asked: list[RunConfig] = []

    def stop(dataset_name: str, options: dict[str, object]) -> None:
        raise click.ClickException("stopped")

    def read(options: dict[str, object], **fixed: object) -> RunConfig:
        asked.append(read_config(options, **fixed))
        return asked[-1]

    monkeypatch.setattr(study.Execution, "prepare", stop)
    monkeypatch.setattr(study, "read_config", read)
    for spelling in (words, re.sub(r"--\w+", lambda name: name[0].replace("_", "-"), words)):
        assert "stopped" in lr_relax("study", *spelling.split()).stderr
    assert [getattr(config, field) for config in asked] == [value, value]
    assert getattr(RunConfig(), field) != value


def test_runs_of_an_experiment_of_its_own(sqlite: str) -> None:
    ran = lr_relax("study", *DIGITS, "--alpha", "0.1", "--experiment", "mine")
    assert ran.exit_code == 0, ran.output
    assert len(tracked.records(sqlite, "mine")) == 1
    assert "label relaxation" in lr_relax("table", "--experiment", "mine").stdout
    assert "Of this network alone.  [default: (all)]" in lr_relax("table", "--help").stdout
    written = lr_relax("table", "--experiment", "mine", "--out", "a/new/folder/table.md")
    assert written.stdout == "a/new/folder/table.md\n"


def test_logs_for_tensorboard() -> None:
    ran = lr_relax("study", *DIGITS, "--alpha", "0.1", "--tensorboard", "logs")
    assert ran.exit_code == 0, ran.output
    assert len([*Path("logs").glob("*/events.*")]) == 1


def test_a_result_has_the_command_that_gives_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["study", *DIGITS, "--alpha", "0.1", "--out", "with a space"]
    monkeypatch.setattr(sys, "argv", ["lr-relax", *words])
    assert lr_relax(*words).exit_code == 0
    [result] = Path("with a space").glob("*/result.json")
    command = json.loads(result.read_text())["command"]
    assert shlex.split(command) == ["lr-relax", *words]
    script = [
        sys.executable,
        "-m",
        "lr_relax.study.lr_study",
        *words[1:-1],
        "script",
        "--tracking_uri",
        "none",
    ]
    subprocess.run(script, check=True, capture_output=True, timeout=120)
    [result] = Path("script").glob("*/result.json")
    assert shlex.split(json.loads(result.read_text())["command"]) == ["python", *script[1:]]


def test_a_grid_its_tables_and_its_figures() -> None:
    arguments = ["grid", "--datasets", "digits", "--losses", "lr:0.05,lr:0.1,cross_entropy:0", "--seeds", "0"]
    arguments += ["--short", "--epochs", "1", "--test_best", "accuracy,ece", "--workers", "2"]
    ran = lr_relax(*arguments)
    assert ran.exit_code == 0, ran.output
    runs = results()
    assert 5 <= len(runs) <= 6  # three validated, two or three tested
    assert lr_relax(*arguments).stdout == ran.stdout
    assert results() == runs
    table = lr_relax("table")
    assert table.exit_code == 0, table.output
    assert "alpha optimised for ECE" in table.stdout
    written = lr_relax("table", "--format", "csv", "--out", "table.csv")
    assert written.exit_code == 0, written.output
    assert Path("table.csv").read_text().count("label relaxation") == 2
    refused = lr_relax("figure", "alpha", "--out", "alpha.txt")
    assert refused.exit_code == 2
    assert "to end in .png, .pdf, .svg, but got alpha.txt" in refused.stderr
    for figure in ("reliability", "alpha"):
        drawn = lr_relax("figure", figure)
        assert drawn.exit_code == 0, drawn.output
        assert Path(f"{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("study --model_name lenet", "'lenet' is not one of"),
        ("study --loss_name hinge", "'hinge' is not one of"),
        ("study --dataset_name imagenet", "imagenet is not provided"),
        ("study --dataset_name svhn", "'svhn' is not one of"),
        ("study --alpha 1", "Expected `alpha` to be a number in [0, 1) for label_relaxation, but got 1.0"),
        ("study --loss_name focal --alpha -1", "-1.0 is not in the range x>=0"),
        ("study --steps 3,2", "Expected `steps` to be rising epochs"),
        ("study --steps x", "'x' is not a valid integer"),
        ("study --epochs 0", "0 is not in the range"),
        ("study --batch_size 0", "0 is not in the range"),
        ("study --seed -1", "-1 is not in the range"),
        ("study --initial_lr nan", "nan is not a finite number"),
        ("study --decay -1", "-1.0 is not in the range"),
        ("study --warmup -1", "-1 is not in the range"),
        ("study --gradient_clipping -1", "-1.0 is not in the range"),
        ("study --validation_share 1/0", "'1/0' is not a number or a fraction"),
        ("study --validation_share 2", "Expected `validation_share` to be a number in (0, 1)"),
        ("study --temperature newton", "'newton' is not one of"),
        ("study --test_run perhaps", "'perhaps' is not a valid boolean"),
        ("study --n_bins 0", "0 is not in the range"),
        ("study --device tpu", "tpu is not a device of this machine"),
        ("study --threads 0", "0 is not in the range"),
        ("study {digits} --device meta", "meta is not a device of this machine"),
        ("study {digits} --experiment ''", "'--experiment': a name is needed"),
        ("study --n_bins 1001", "1001 is not in the range"),
        ("study --autolog_freq 0", "0 is not in the range"),
        ("study --hyperparams nowhere.json", "'nowhere.json' does not exist"),
        ("study --hyperparams {text}", "is not JSON"),
        ("study --hyperparams {text} --short", "only one can be given"),
        ("study --model_name vgg --dataset_name mnist", "Expected images of at least 32 pixels"),
        ("study --load_ext_params --model_name simple_dense", "has no row simple_dense_cifar100"),
        (
            "study --legacy_hyperparams --model_name densenet --loss_name focal",
            "has no row DenseNetBC_",
        ),
        ("study --dataset_name cifar10 --data_dir {text}", "cifar10 cannot be read from"),
        ("study {digits} --out {text}", "cannot be written to"),
        ("study {digits} --tensorboard {text}", "'--tensorboard': {text} cannot be written to"),
        ("study {digits} --tracking_uri http://127.0.0.1:9", "no server answers"),
        ("study {digits} --tracking_uri sqlite:///{text}", "file is not a database"),
        ("study-ho --alphas 1", "Expected `alpha` to be a number in [0, 1)"),
        ("study-ho --alphas x", "'x' is not a valid float"),
        ("study-ho --alpha 0.1", "No such option"),
        ("grid --losses hinge", "'hinge' is not one of"),
        ("grid --losses lr:x", "'x' is not a number"),
        ("grid --losses lr:1", "Expected `alpha` to be a number in [0, 1)"),
        ("grid --models lenet", "'lenet' is not one of"),
        ("grid --datasets svhn", "'svhn' is not one of"),
        ("grid --seeds 4-0", "'4-0' is not a rising range"),
        ("grid --seeds x", "'x' is not an integer"),
        ("grid --seeds 0-99999999999999999999", "is not a rising range of at most 10,000"),
        ("grid --workers 0", "0 is not in the range"),
        ("grid --gpu_share 2", "2.0 is not in the range"),
        ("grid --datasets digits --epochs 1 --engine slurm --gpu_share 0.5", "whole GPUs"),
        ("grid --engine dask", "'dask' is not one of"),
        ("grid --slurm mem_gb=", "'mem_gb=' is not of the form key=value"),
        ("grid --seeds 1-", "'1-' is not an integer or a range"),
        ("grid --slurm workers=2", "'workers' is not a parameter of submitit"),
        ("grid --slurm partition", "'partition' is not of the form key=value"),
        ("grid --datasets digits --epochs 1 --engine slurm", "sbatch"),
        ("grid --datasets digits --epochs 1 --engine ray --ray_address nowhere", "no Ray at nowhere"),
        ("grid --test_run --test_best ece", "there are no validation runs with --test-run"),
        ("grid --test_best loss", "'loss' is not one of"),
        ("table --format html", "'html' is not one of"),
        ("table", "there is no experiment LabelRelaxationStudy"),
        ("table --tracking_uri sqlite:///nowhere.db", "there is no such file"),
        ("figure reliability --tracking_uri http://127.0.0.1:9", "no server answers"),
    ],
)
@pytest.mark.usefixtures("no_other_source")
def test_a_bad_value_gives_one_line_and_exit_code_2_before_any_training(
    arguments: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("this is text\n" * 100)
    words = {"text": str(tmp_path / "text"), "digits": " ".join(DIGITS)}
    ran = lr_relax(*shlex.split(arguments.format(**words)))
    assert ran.exit_code == 2, ran.output
    assert message.format(**words) in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""
    assert results() == []
