"""What MLflow holds of runs that end, fail, are killed and resumed. The stores are real."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import lr_relax
import pytest
from lr_relax.study import tracked, tracking
from lr_relax.study.config import RunConfig
from lr_relax.study.results import Metrics, Result, save
from lr_relax.study.tracking import Tracker, TrackingError
from mlflow import MlflowClient
from mlflow.entities import Run
from tracked_runs import CURVES, epoch

EXPERIMENT = "a study"
CONFIG = RunConfig(model_name="simple_dense", dataset_name="digits", alpha=0.1, steps=(2, 3), epochs=5)
TEST = dataclasses.replace(CONFIG, test_run=True)


class Server:
    """``mlflow server``, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store, artifacts = f"sqlite:///{self.folder}/mlflow.db", str(self.folder / "artifacts")
        options = ["--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                *options,
            ],
            env=os.environ
            | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its workers are killed with it
        )
        until = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, "mlflow server ended"
            assert time.monotonic() < until, "mlflow server does not answer"
            with suppress(OSError), urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder)
    running = Server(folder)
    running.start()
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_failed", {})


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test, as all share the server."""
    return f"{EXPERIMENT}: {request.node.name}"


def result_of(config: RunConfig = CONFIG, **changes: object) -> Result:
    result = Result(
        config=config,
        n_train=600,
        n_eval=200,
        accuracy=0.875,
        ece=0.0625,
        nll=0.5,
        brier=0.25,
        temperature=None,
        unscaled=None,
        bin_counts=[0, 200],
        bin_confidence=[None, 0.9375],
        bin_accuracy=[None, 0.875],
        history=[epoch(step, test_run=config.test_run) for step in range(config.epochs)],
        seconds=12.5,
        environment={"commit": "c0ffee", "torch": "2.13.0"},
        command="lr-relax study",
    )
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def finish(tracker: Tracker, folder: Path, result: Result) -> None:
    """As a run does: its files are there before it is told."""
    folder.mkdir(exist_ok=True)
    save(result, folder)
    (folder / "reliability.png").write_bytes(b"\x89PNG and so on")
    tracker.finished(result)


def the_run(uri: str, experiment: str = EXPERIMENT) -> Run:
    [run] = all_runs(uri, experiment)
    return run


def all_runs(uri: str, experiment: str = EXPERIMENT) -> list[Run]:
    mlflow = MlflowClient(uri)
    found = mlflow.get_experiment_by_name(experiment)
    assert found is not None
    return list(mlflow.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def steps(uri: str, run_id: str, name: str = "loss") -> list[int]:
    return sorted(metric.step for metric in MlflowClient(uri).get_metric_history(run_id, name))


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_mlflow_has_all_of_a_finished_run(
    store: str, experiment: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue(store)
    uri = uri if isinstance(uri, str) else uri.uri
    folder, result = (
        tmp_path / "run",
        result_of(temperature=1.5, unscaled=Metrics(accuracy=0.875, ece=0.125, nll=0.75, brier=0.5)),
    )
    tracker = Tracker.of_run(CONFIG, uri, experiment, folder=folder, command="lr-relax study")
    assert the_run(uri, experiment).info.status == "RUNNING"
    for each in result.history:
        tracker.epoch(each)
    finish(tracker, folder, result)

    run, mlflow = the_run(uri, experiment), MlflowClient(uri)
    assert run.info.run_id == tracker.run_id == json.loads((folder / "tracking.json").read_text())["run_id"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", CONFIG.key)
    assert run.data.params == {name: str(value) for name, value in CONFIG.to_dict().items()} | {"T": "1.5"}
    for name in CURVES:
        history = mlflow.get_metric_history(tracker.run_id, name)
        expected = [(each.epoch, getattr(each, name)) for each in result.history]
        assert [(metric.step, metric.value) for metric in history] == expected
    final = {
        "validation_accuracy": 0.875,
        "ece": 0.0625,
        "nll": 0.5,
        "brier": 0.25,
        "seconds": 12.5,
        "unscaled_ece": 0.125,
        "unscaled_nll": 0.75,
    }
    assert {name: run.data.metrics[name] for name in run.data.metrics.keys() - {*CURVES}} == final
    tags = run.data.tags
    assert (tags["lr_relax.key"], tags["lr_relax.kind"]) == (CONFIG.key, "run")
    assert (tags["lr_relax.command"], tags["mlflow.source.git.commit"]) == ("lr-relax study", "c0ffee")
    assert tags["lr_relax.version"] == lr_relax.__version__
    assert "mlflow.parentRunId" not in tags
    for name in ("result.json", "reliability.png"):
        path = mlflow.download_artifacts(tracker.run_id, name, str(tmp_path))
        assert Path(path).read_bytes() == (folder / name).read_bytes()

    [record] = tracked.records(uri, experiment)
    assert (record.run_id, record.key, record.config) == (tracker.run_id, CONFIG.key, CONFIG)
    assert (record.metrics, record.tags) == (run.data.metrics, tags)
    assert tracked.result(uri, record) == result


def test_artifacts_are_beside_the_database(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finish(
        Tracker.of_run(CONFIG, "sqlite:///a store/mlflow.db", EXPERIMENT, folder=tmp_path),
        tmp_path,
        result_of(),
    )
    [artifact] = (tmp_path / "a store" / "mlruns").rglob("result.json")
    assert artifact.read_bytes() == (tmp_path / "result.json").read_bytes()
    assert the_run(sqlite).info.status == "FINISHED"


def test_a_test_run_has_no_validation_metrics(sqlite: str, tmp_path: Path) -> None:
    tracker = Tracker.of_run(TEST, sqlite, EXPERIMENT, folder=tmp_path)
    tracker.epoch(epoch(0, test_run=True))
    finish(tracker, tmp_path, result_of(TEST, environment={"commit": ""}))
    run = the_run(sqlite)
    assert {*run.data.metrics} == {
        "loss",
        "accuracy",
        "lr",
        "test_accuracy",
        "ece",
        "nll",
        "brier",
        "seconds",
    }
    assert "T" not in run.data.params
    assert "mlflow.source.git.commit" not in run.data.tags


def test_runs_point_to_their_search_which_ends_with_the_choice(sqlite: str, tmp_path: Path) -> None:
    def search() -> Tracker:
        return Tracker(
            sqlite,
            EXPERIMENT,
            folder=tmp_path / "search",
            params={"alphas": [0.1, 0.2]},
            name="a search",
            kind="search",
        )

    parent = search()
    child = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path / "run", parent=parent.run_id)
    finish(child, tmp_path / "run", result_of())
    for tracker in (parent, search()):  # the search is started once more
        assert MlflowClient(sqlite).get_run(parent.run_id).info.status == "RUNNING"
        tracker.finished(params={"alpha": 0.1}, metrics=tracking.final_metrics(result_of(TEST)))
        run = MlflowClient(sqlite).get_run(parent.run_id)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "a search")
        assert run.data.params == {"alphas": "[0.1, 0.2]", "alpha": "0.1"}
        assert run.data.metrics["test_accuracy"] == 0.875
        assert run.data.tags["lr_relax.kind"] == "search"
        assert steps(sqlite, parent.run_id, "ece") == [0]
        if tracker is parent:
            search()
    children = [run for run in all_runs(sqlite) if run.data.tags.get("mlflow.parentRunId") == parent.run_id]
    assert [run.info.run_id for run in children] == [child.run_id]
    assert [record.run_id for record in tracked.records(sqlite, EXPERIMENT)] == [child.run_id]


@pytest.mark.parametrize("lost", ["nothing", "run_id", "the last call"])
def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(lost: str, sqlite: str, tmp_path: Path) -> None:
    first = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    for step in range(3):
        first.epoch(epoch(step))
    if lost == "run_id":  # it was killed before MLflow's answer was kept
        state = json.loads((tmp_path / "tracking.json").read_text())
        del state["run_id"]
        (tmp_path / "tracking.json").write_text(json.dumps(state))
    again = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    for step in range(5):
        again.epoch(dataclasses.replace(epoch(step), seconds=3.0))
    finish(again, tmp_path, result_of())
    if lost == "the last call":  # it was killed after all was sent, before the run's end was
        MlflowClient(sqlite).update_run(again.run_id, "RUNNING")
    for _ in range(2):
        late = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
        late.epoch(epoch(0))
        late.finished(result_of())
    run = the_run(sqlite)
    assert run.info.run_id == first.run_id == again.run_id == late.run_id
    assert run.info.status == "FINISHED"
    for name in CURVES:
        assert steps(sqlite, first.run_id, name) == [0, 1, 2, 3, 4]
    for name in ("validation_accuracy", "ece", "seconds"):
        assert steps(sqlite, first.run_id, name) == [0]


def test_a_run_of_many_epochs_may_be_told_at_its_end(sqlite: str, tmp_path: Path) -> None:
    result = result_of(history=[epoch(step) for step in range(250)])
    tracker = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path, started=time.time() - 500)
    finish(tracker, tmp_path, result)
    history = MlflowClient(sqlite).get_metric_history(tracker.run_id, "val_ece")
    assert [metric.step for metric in history] == [*range(250)]
    assert {b.timestamp - a.timestamp for a, b in pairwise(history)} <= {
        1999,
        2000,
        2001,
    }
    info = the_run(sqlite).info
    assert info.end_time - info.start_time >= 500_000


def test_another_store_or_experiment_gets_everything(sqlite: str, database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finish(Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=folder), folder, result_of())
    shutil.copy(database, tmp_path / "other.db")
    for uri, name in ((sqlite, "next study"), (f"sqlite:///{tmp_path}/other.db", EXPERIMENT)):
        finish(Tracker.of_run(CONFIG, uri, name, folder=folder), folder, result_of())
        run = the_run(uri, name)
        assert run.info.status == "FINISHED"
        assert steps(uri, run.info.run_id) == [0, 1, 2, 3, 4]
    assert len(all_runs(sqlite)) == 1


@pytest.mark.parametrize("when", ["finished", "running"])
def test_a_deleted_run_is_sent_anew(
    when: str, sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    tracker.epoch(epoch(0))
    deleted = tracker.run_id
    if when == "finished":
        finish(tracker, tmp_path, result_of())
    MlflowClient(sqlite).delete_run(deleted)
    if when == "finished":
        tracker = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    else:
        tracker.epoch(epoch(1))
        assert len(caplog.records) == 1
    finish(tracker, tmp_path, result_of())
    assert the_run(sqlite).info.run_id == tracker.run_id != deleted
    assert steps(sqlite, tracker.run_id) == [0, 1, 2, 3, 4]


def test_a_failed_run_tells_why_and_may_be_resumed(sqlite: str, tmp_path: Path) -> None:
    failing = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    failing.epoch(epoch(0))
    failing.failed("the loss is nan in epoch 2")
    run = the_run(sqlite)
    assert (run.info.status, run.data.tags["lr_relax.reason"]) == ("FAILED", "the loss is nan in epoch 2")
    assert tracked.records(sqlite, EXPERIMENT) == []
    resumed = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    run = the_run(sqlite)
    assert run.info.status == "RUNNING"
    assert "lr_relax.reason" not in run.data.tags
    finish(resumed, tmp_path, result_of())
    assert the_run(sqlite).info.status == "FINISHED"
    assert steps(sqlite, resumed.run_id) == [0, 1, 2, 3, 4]


def test_a_server_that_is_killed_costs_one_warning_and_no_epoch(
    server: Server,
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the second is at once
    back, stays, late = tmp_path / "back", tmp_path / "stays", tmp_path / "late"
    trackers = [Tracker.of_run(CONFIG, server.uri, experiment, folder=folder) for folder in (back, stays)]
    for tracker in trackers:
        tracker.epoch(epoch(0))
    server.kill()
    try:
        start = time.monotonic()
        for step in (1, 2):
            for tracker in trackers:
                tracker.epoch(epoch(step))
        trackers.append(
            Tracker.of_run(TEST, server.uri, experiment, folder=late)
        )  # it has never seen the server
        trackers[2].epoch(epoch(0))
        finish(trackers[1], stays, result_of())
        trackers[2].failed("it may")
        assert time.monotonic() - start < 5
        [warning] = caplog.messages
        assert warning.endswith(f"MLflow at {server.uri}: no server answers ([Errno 111] Connection refused)")
    finally:
        server.start()
    assert [steps(server.uri, tracker.run_id) for tracker in trackers[:2]] == [[0], [0]]
    trackers[0].epoch(epoch(3))  # too soon to try again
    assert steps(server.uri, trackers[0].run_id) == [0]
    tracking._failed[server.uri] -= tracking.RETRY_AFTER  # the time has passed
    trackers[0].epoch(epoch(4))
    assert steps(server.uri, trackers[0].run_id) == [0, 1, 2, 3, 4]
    finish(trackers[0], back, result_of())
    finish(Tracker.of_run(CONFIG, server.uri, experiment, folder=stays), stays, result_of())  # the next start
    finish(trackers[2], late, result_of(TEST))
    runs = all_runs(server.uri, experiment)
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [steps(server.uri, run.info.run_id) for run in runs] == [[0, 1, 2, 3, 4]] * 3
    assert len(caplog.records) == 1


PROGRAM = """
import os, signal, sys
from pathlib import Path
from lr_relax.study import mlflow_store, results, tracking
uri, experiment, folder, kill = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
result = results.load(folder)
print("ready", flush=True)
input()
mlflow_store.check(uri, experiment)
tracker = tracking.Tracker.of_run(result.config, uri, experiment, folder=folder)
for epoch in result.history[:2]:
    tracker.epoch(epoch)
if kill:
    os.kill(os.getpid(), signal.SIGKILL)
tracker.finished(result)
"""


def start(uri: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir()
    save(result_of(), folder)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, uri, EXPERIMENT, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_create_a_store_at_once_and_silently_and_one_is_killed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [start(uri, tmp_path / "ends"), start(uri, tmp_path / "killed", "kill")]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=300) for process in processes] == [("", ""), ("", "")]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]
    assert sorted(run.info.status for run in all_runs(uri)) == ["FINISHED", "RUNNING"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mlflow.db", "mlruns"]
    resumed = Tracker.of_run(CONFIG, uri, EXPERIMENT, folder=tmp_path / "killed")
    for step in range(5):
        resumed.epoch(epoch(step))
    finish(resumed, tmp_path / "killed", result_of())
    runs = all_runs(uri)
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert [steps(uri, run.info.run_id) for run in runs] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("text", ["", "[1]", '{"uri": ', '{"uri": "{uri}", "experiment": "a study"}'])
def test_a_broken_file_begins_a_new_run(text: str, sqlite: str, tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text(text.replace("{uri}", sqlite))
    tracker = Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path)
    assert the_run(sqlite).info.run_id == tracker.run_id


def test_a_folder_that_cannot_be_written_to_costs_a_warning(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path / "file").epoch(epoch(0))
    [warning] = caplog.messages
    assert warning.startswith(
        "tracking is interrupted; the run goes on, the rest is sent later: MLflow at sqlite"
    )
    assert warning.endswith(f"Not a directory: {tmp_path}/file/tracking.json")
    assert all_runs(sqlite) == []


def test_records_are_the_newest_of_each_key_over_all_pages(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "PAGE", 2)
    configs = [dataclasses.replace(CONFIG, seed=seed) for seed in (0, 1, 2, 1, 3)]
    trackers = []
    for i, config in enumerate(configs):
        folder = tmp_path / str(i)
        trackers.append(Tracker.of_run(config, sqlite, EXPERIMENT, folder=folder, started=1000.0 + i))
        finish(trackers[-1], folder, result_of(config))
    found = tracked.records(sqlite, EXPERIMENT)
    assert [record.run_id for record in found] == [trackers[i].run_id for i in (4, 3, 2, 0)]
    assert [record.config.seed for record in found] == [3, 1, 2, 0]
    monkeypatch.setattr(tracked, "PAGE", 1000)
    assert tracked.records(sqlite, EXPERIMENT) == found


def test_reading_creates_nothing_and_says_what_is_missing(
    sqlite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrackingError, match="there is no experiment of no one"):
        tracked.records(sqlite, "of no one")
    with pytest.raises(TrackingError, match=r"none\.db: there is no such file"):
        tracked.records(f"sqlite:///{tmp_path}/none.db", EXPERIMENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a store"]
    Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path).finished(result_of())  # it has no result.json
    [record] = tracked.records(sqlite, EXPERIMENT)
    with pytest.raises(TrackingError, match=r"result\.json"):
        tracked.result(sqlite, record)
    MlflowClient(sqlite).log_text(record.run_id, "{}", "result.json")
    with pytest.raises(TrackingError, match=r"has no result\.json of this version"):
        tracked.result(sqlite, record)
    Tracker(sqlite, EXPERIMENT, folder=tmp_path / "x", params={"model_name": "other"}, name="x").finished()
    caplog.clear()
    assert tracked.records(sqlite, EXPERIMENT) == [record]
    [warning] = caplog.messages
    assert "is none of this version's and left out: Expected `model_name` to be one of" in warning


def test_a_run_that_was_trained_on_its_own_may_be_taken_into_a_grid(sqlite: str, tmp_path: Path) -> None:
    def tracker(parent: str | None) -> Tracker:
        return Tracker.of_run(CONFIG, sqlite, EXPERIMENT, folder=tmp_path / "run", parent=parent)

    finish(tracker(None), tmp_path / "run", result_of())
    for parent, expected in (("first", "first"), ("second", "first")):
        assert tracker(parent).run_id
        assert the_run(sqlite).data.tags["mlflow.parentRunId"] == expected


def test_a_grid_that_has_grown_tells_its_new_numbers(sqlite: str, tmp_path: Path) -> None:
    for runs in (1, 3):
        grid = Tracker(sqlite, EXPERIMENT, folder=tmp_path, params={}, name="grid", kind="grid")
        grid.finished(metrics={"finished": runs, "failed": 0})
        assert the_run(sqlite).data.metrics == {"finished": runs, "failed": 0}
