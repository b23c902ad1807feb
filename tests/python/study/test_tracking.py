"""What MLflow receives from runs that finish, fail and resume. The stores are real."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_are_at_most
from lr_relax.study import tracking
from lr_relax.study.config import RunConfig
from lr_relax.study.folder import Metrics, Result, save_result
from lr_relax.study.tracking import CURVES, Experiment, Tracker, TrackingError
from made_results import epoch, record
from mlflow import MlflowClient
from mlflow.entities import Run

CONFIG = RunConfig(model_name="simple_dense", dataset_name="digits", alpha=0.05, epochs=3)
TEST = replace(CONFIG, test_run=True)
ARTIFACTS = ("result.json", "reliability.png", "predictions.npz")


def result_of(config: RunConfig = CONFIG, **changes: Any) -> Result:
    history = [epoch(step, test_run=config.test_run) for step in range(config.epochs)]
    known = {"config": config, "history": history, "environment": {"commit": "c0ffee"}, "seconds": 12.5}
    return replace(record(0.875, 0.0625), **(known | changes))


def opened(uri: str, name: str = "a study", *, every: int = 1) -> Experiment:
    """As in a new process."""
    experiment = Experiment(uri, name, every=every, command="lr-relax study")
    experiment.open()
    return experiment


def track(where: Experiment, folder: Path, result: Result, *, epochs: int = 3, parent: str = "") -> Tracker:
    """Send a run as the commands do, its files before its end; after fewer epochs it is interrupted."""
    tracker = Tracker.of_run(where, folder, result.config, parent)
    for each in result.history[:epochs]:
        tracker.epoch(each)
    if epochs == 3:
        folder.mkdir(exist_ok=True)
        save_result(result, folder)
        for name in ARTIFACTS[1:]:
            (folder / name).write_bytes(name.encode())
        tracker.finished(result)
    return tracker


def runs(uri: str) -> list[Run]:
    mlflow = MlflowClient(uri)
    found = mlflow.get_experiment_by_name("a study")
    assert found is not None
    return list(mlflow.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def curve(uri: str, run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in MlflowClient(uri).get_metric_history(run_id, name)]


def test_receives_everything_of_a_finished_run(sqlite: str, tmp_path: Path) -> None:
    folder, unscaled = tmp_path / "run", Metrics(accuracy=0.875, ece=0.125, nll=0.75, brier=0.5)
    result = result_of(temperature=1.5, unscaled=unscaled)
    tracker = track(opened(sqlite), folder, result)
    [run] = runs(sqlite)
    assert run.info.run_id == tracker.run_id == json.loads((folder / "tracking.json").read_text())["run_id"]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == tracking.run_name(CONFIG)
    known = CONFIG.to_dict() | {"model_type": "simple_dense", "loss_type": "label_relaxation", "T": 1.5}
    assert run.data.params == {name: str(value) for name, value in known.items()}
    for name in CURVES:
        assert curve(sqlite, tracker.run_id, name) == [(e.epoch, getattr(e, name)) for e in result.history]
    final = {"validation_accuracy": 0.875, "ece": 0.0625, "nll": 0.5, "brier": 0.2, "seconds": 12.5}
    final |= {"unscaled_ece": 0.125, "unscaled_nll": 0.75}
    assert {name: value for name, value in run.data.metrics.items() if name not in CURVES} == final
    tags = run.data.tags
    assert (tags["lr_relax.key"], tags["mlflow.source.git.commit"]) == (CONFIG.key, "c0ffee")
    assert "mlflow.parentRunId" not in tags
    for name in ARTIFACTS:
        path = MlflowClient(sqlite).download_artifacts(tracker.run_id, name, str(tmp_path))
        assert Path(path).read_bytes() == (folder / name).read_bytes()
    assert (Path(sqlite.removeprefix("sqlite:///")).parent / "mlruns").is_dir()


def test_run_names() -> None:
    smoothed = replace(TEST, loss_name="cross_entropy", temp_scaling=True, seed=3)
    name = "label smoothing 0.05 + temperature · simple_dense · digits · seed 3 · test"
    assert tracking.run_name(smoothed) == name
    assert (
        tracking.run_name(CONFIG, search=True) == "label relaxation · simple_dense · digits · seed 0 · search"
    )


@pytest.mark.parametrize("every", [2, 10])
def test_every_nth_epoch_and_the_last(every: int, sqlite: str, tmp_path: Path) -> None:
    tracker = track(opened(sqlite, every=every), tmp_path, result_of())
    assert [step for step, _ in curve(sqlite, tracker.run_id)] == [0, 2]


def test_nested_runs(sqlite: str, tmp_path: Path) -> None:
    """The search is started again, and finds a run that has finished by itself."""
    alone = track(opened(sqlite), tmp_path / "alone", result_of())
    for _ in range(2):
        experiment = opened(sqlite)
        about: dict[str, Any] = {"name": "a search", "params": {"alphas": [0.1, 0.2]}, "kind": "search"}
        parent = Tracker(experiment, tmp_path / "search", **about)
        child = track(experiment, tmp_path / "run", result_of(TEST), parent=parent.run_id)
        track(experiment, tmp_path / "alone", result_of(), parent=parent.run_id)
        parent.end({"alpha": 0.1}, {"test_accuracy": 0.875})
        run = MlflowClient(sqlite).get_run(parent.run_id)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "a search")
        assert run.data.params == {"alphas": "[0.1, 0.2]", "alpha": "0.1"}
        assert run.data.metrics == {"test_accuracy": 0.875}
        parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs(sqlite)}
        assert parents == {parent.run_id: None, child.run_id: parent.run_id, alone.run_id: parent.run_id}


def test_resumed_run_continues_under_its_id(sqlite: str, tmp_path: Path) -> None:
    """Also one that failed. Epochs that are logged again are the same points."""
    first = track(opened(sqlite), tmp_path, result_of(), epochs=2)
    [run] = runs(sqlite)
    assert run.info.status == "RUNNING"
    first.failed("the loss is nan")
    [run] = runs(sqlite)
    assert (run.info.status, run.data.tags["lr_relax.reason"]) == ("FAILED", "the loss is nan")
    again, late = (track(opened(sqlite), tmp_path, result_of()) for _ in range(2))
    [run] = runs(sqlite)
    assert run.info.run_id == first.run_id == again.run_id == late.run_id
    assert (run.info.status, run.data.tags["lr_relax.reason"]) == ("FINISHED", "")
    for name in CURVES:
        assert [step for step, _ in curve(sqlite, first.run_id, name)] == [0, 1, 2]
    assert len(curve(sqlite, first.run_id, "ece")) == 1


@pytest.mark.parametrize("lost", ["deleted", "damaged", "other experiment", "other store"])
def test_sends_everything_anew(lost: str, sqlite: str, database: Path, tmp_path: Path) -> None:
    folder, uri = tmp_path / "run", sqlite
    former = track(opened(sqlite, "old" if lost == "other experiment" else "a study"), folder, result_of())
    if lost == "deleted":
        MlflowClient(sqlite).delete_run(former.run_id)
    elif lost == "damaged":
        (folder / "tracking.json").write_text("{")
    elif lost == "other store":
        shutil.copy(database, tmp_path / "other.db")
        uri = f"sqlite:///{tmp_path}/other.db"
    tracker = track(opened(uri), folder, result_of())
    assert tracker.run_id != former.run_id
    assert runs(uri)[-1].info.status == "FINISHED"
    assert [step for step, _ in curve(uri, tracker.run_id)] == [0, 1, 2]


def test_failing_store_costs_one_warning(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As does a folder that is a file. The same command in a new process sends everything later."""
    (tmp_path / "file").touch()
    Tracker.of_run(opened(sqlite), tmp_path / "file", CONFIG).epoch(epoch(0))
    assert len(caplog.messages) == 1
    caplog.clear()
    store, experiment = Path(sqlite.removeprefix("sqlite:///")), opened(sqlite)
    tracker = track(experiment, tmp_path / "run", result_of(), epochs=1)
    content = store.read_bytes()
    store.write_text("this is text" * 1000)
    tracker.epoch(epoch(1))
    tracker.finished(result_of())
    track(experiment, tmp_path / "other", result_of(TEST))
    [warning] = caplog.messages
    assert "file is not a database; the run continues without tracking" in warning
    assert logging.root.manager.disable == 0
    store.write_bytes(content)
    assert track(opened(sqlite), tmp_path / "run", result_of()).run_id == tracker.run_id
    assert [step for step, _ in curve(sqlite, tracker.run_id)] == [0, 1, 2]


def test_no_tracking(tmp_path: Path) -> None:
    tracker = track(opened("none"), tmp_path / "run", result_of())
    assert tracker.run_id == ""
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(ARTIFACTS)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nonsense", r"'nonsense' is not a store: use sqlite:///mlflow\.db or http://host:port"),
        ("sqlite:///", "'sqlite:///' is not a store"),
        ("sqlite:///{folder}/text", "file is not a database"),
        ("sqlite:///{folder}/text/below.db", "Not a directory|File exists"),
        ("sqlite:///{folder}", "unable to open database file"),
        ("http://somebody:secret@127.0.0.1:9", "^MLflow at http://127.0.0.1:9: .*Max retries exceeded"),
        ("gopher://x", "unsupported URI 'gopher://x'"),
        ("postgresql://127.0.0.1:9/x", "postgresql://127.0.0.1:9/x: "),
    ],
)
def test_unusable_store_is_refused_in_one_line(uri: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is text\n" * 100)
    with pytest.raises(TrackingError, match=message) as raised:
        opened(uri.format(folder=tmp_path))
    assert "\n" not in str(raised.value)


def test_deleted_experiment_and_full_disk_are_refused(sqlite: str) -> None:
    MlflowClient(sqlite).delete_experiment(opened(sqlite, "old").id)
    with pytest.raises(TrackingError, match="must be in the 'active' state"):
        opened(sqlite, "old")
    for name in ("a study", "another study"):  # the second one exists
        with (
            files_are_at_most(0),
            pytest.raises(TrackingError, match=r"\) (disk I/O error|.* disk is full)$"),
        ):
            opened(sqlite, name)


def test_without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracking is off by default, and asking for it names the extra."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a-server")
    assert Experiment(None).uri == "http://a-server"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Experiment(None).uri == "sqlite:///mlflow.db"
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert Experiment(None).off
    with pytest.raises(TrackingError, match=r'pip install "lr-relax\[mlflow\]"'):
        Experiment("sqlite:///mlflow.db")


def test_two_processes_create_a_store_at_once(tmp_path: Path) -> None:
    code = "import sys; from lr_relax.study.tracking import Experiment; Experiment(sys.argv[1]).open()"
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    both = [
        subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert MlflowClient(uri).get_experiment_by_name(tracking.EXPERIMENT)
