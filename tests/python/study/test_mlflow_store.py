"""Whether a store can be tracked to, and why not: in one line, soon, and without a trace."""

import os
import shutil
import socket
import sqlite3
import sys
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from lr_relax.study import mlflow_store
from lr_relax.study.mlflow_store import TrackingError, check
from mlflow import MlflowClient

EXPERIMENT = "a study"


def test_check_creates_a_store_where_hard_links_are_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    check(f"sqlite:///{tmp_path}/mlflow.db", EXPERIMENT)
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_experiment_by_name(EXPERIMENT) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9: no server answers ([Errno 111] Connection refused)"),
        ("http://someone:secret@127.0.0.1:9", "http://127.0.0.1:9: no server answers"),
        ("{silent}", "no server answers (Read timed out. (read timeout=1))"),
        ("https://no-such-host.invalid", "no server answers (Failed to resolve 'no-such-host.invalid'"),
        ("http://", "MLflow at http://: "),
        ("foo://somewhere", "there are no stores of the kind 'foo'"),
        ("", "there are no stores of the kind ''"),
        ("mlruns", "maintenance mode"),
        ("file:///elsewhere/mlruns", "Please migrate to a database backend (e.g., 'sqlite:///mlflow.db')"),
        ("sqlite://", "Expected the URI to name a file, as in sqlite:///mlflow.db, but got 'sqlite://'."),
        ("sqlite:///{tmp}/a%2Fb.db", "a file of SQLite cannot have ? or %XX in its path, as "),
        ("sqlite:///{tmp}/a.db?timeout=5", "a file of SQLite cannot have ? or %XX in its path, as "),
        ("sqlite:///:memory:", "Expected the URI to name a file"),
        ("sqlite:///{tmp}/text", "/text: file is not a database"),
        ("sqlite:///{tmp}/folder", "/folder: unable to open database file"),
        ("sqlite:///{tmp}/text/mlflow.db", "/text/mlflow.db: no file can be created there: File exists"),
        (
            "sqlite:////proc/mlflow.db",
            "/proc/mlflow.db: no file can be created there: No such file or directory",
        ),
        ("sqlite:///{tmp}/old.db", "Detected out-of-date database schema (found version 0,"),
        ("sqlite:///{tmp}/locked.db", "database is locked"),
        ("postgresql://someone:secret@127.0.0.1:9/mlflow", "postgresql://127.0.0.1:9/mlflow: "),
        ("mysql+nothing://127.0.0.1:9/mlflow", "Can't load plugin: sqlalchemy.dialects:mysql.nothing"),
    ],
)
def test_check_says_in_one_line_and_soon_why_a_store_does_not_do(
    uri: str, message: str, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow_store, "AT_ONCE", mlflow_store.AT_ONCE | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    monkeypatch.setattr(mlflow_store, "PATIENCE", 0.5)
    (tmp_path / "text").write_text("this is text\n" * 100)
    (tmp_path / "folder").mkdir()
    for name in ("old.db", "locked.db"):
        shutil.copy(database, tmp_path / name)
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.execute("UPDATE alembic_version SET version_num = '0'")
        old.commit()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closing(sqlite3.connect(tmp_path / "locked.db")) as locked,
    ):
        locked.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            check(
                uri.format(tmp=tmp_path, silent=f"http://127.0.0.1:{silent.getsockname()[1]}"),
                EXPERIMENT,
            )
    assert time.monotonic() - start < 5
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert len(text) < 500
    assert "secret" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "locked.db", "old.db", "text"]


def test_check_refuses_a_server_that_is_not_mlflows() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        thread = Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(TrackingError, match=r"failed with error code 501 != 200") as caught:
                check(f"http://127.0.0.1:{other.server_port}", EXPERIMENT)
        finally:
            other.shutdown()
            thread.join()
    assert "\n" not in str(caught.value)


def test_check_refuses_a_deleted_experiment(sqlite: str) -> None:
    check(sqlite, EXPERIMENT)
    mlflow = MlflowClient(sqlite)
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    mlflow.delete_experiment(found.experiment_id)
    with pytest.raises(TrackingError, match="the experiment a study is deleted: choose another name, or"):
        check(sqlite, EXPERIMENT)


def test_check_names_the_extra_where_mlflow_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match=r'mlflow is missing: pip install "lr-relax\[study\]"$'):
        check("http://127.0.0.1:9")


def test_the_default_store_is_mlflows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_store.default_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert mlflow_store.default_uri() == "http://127.0.0.1:5000"


def test_the_environment_is_left_as_it_was(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    with mlflow_store.calls(sqlite):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert dict(os.environ) == before
