"""The connection to an MLflow store: errors of one line, waits of seconds, a silent terminal.

:func:`connect` is for those who write, :func:`client` for those who read; what they do with the client
belongs into :func:`calls`. MLflow itself is only imported when it is used.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "LabelRelaxationStudy"

# MLflow would wait for two minutes and try seven times. What the environment sets is left as it is.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# To answer soon, without a second try.
AT_ONCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


PATIENCE = 5.0  # seconds, while another process writes to the database
CHECKED = "lr_relax.checked"  # a tag of experiments: when something was last written for a test


class TrackingError(Exception):
    """Why tracking fails, in one line."""


def default_uri() -> str:
    """The store that MLflow itself would take: that of the environment, or a file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def check(uri: str, experiment: str = EXPERIMENT) -> None:
    """Raise TrackingError, within seconds, unless runs can be tracked there; what is missing is created."""
    uri = absolute(uri)
    with calls(uri, AT_ONCE):
        mlflow, experiment_id = connect(uri, experiment)
        mlflow.set_experiment_tag(experiment_id, CHECKED, _now())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def absolute(uri: str) -> str:
    """The URI of the same store from every working folder."""
    database = _database(uri)
    return uri if database is None else f"sqlite:///{database}"


def without_password(uri: str) -> str:
    """The URI to show or to keep."""
    return re.sub(r"(?<=://)[^/@]+@", "", uri)


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client to write with, and the id of the experiment. What is not there is created."""
    mlflow = client(uri, create=True)
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        database = _database(uri)
        # Beside the database, not in whichever folder the command happens to be called from.
        artifacts = None if database is None else (database.parent / "mlruns").as_uri()
        try:
            return mlflow, mlflow.create_experiment(experiment, artifacts, {CHECKED: _now()})
        except Exception:
            found = mlflow.get_experiment_by_name(experiment)
            if found is None:
                raise  # else another process was faster
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {experiment} is deleted: choose another name, or mlflow experiments restore "
            f"--experiment-id {found.experiment_id}"
        )
    return mlflow, found.experiment_id


def client(uri: str, *, create: bool = False) -> MlflowClient:
    """A client of the store; a database is tried out first, as MLflow would try again for minutes."""
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as missing:
        raise TrackingError(f'{missing.name} is missing: pip install "lr-relax[study]"') from missing
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException as UnknownScheme

    scheme = uri.partition(":")[0]
    if (database := _database(uri)) is not None:
        _open_database(database, create)
    elif scheme.partition("+")[0] in DATABASE_ENGINES:
        import sqlalchemy

        with sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect():
            pass
    with suppress(UnknownScheme):
        if uri:  # else MLflow would take its default
            return MlflowClient(uri)
    raise TrackingError(
        f"there are no stores of the kind {scheme!r}; usual are sqlite:///mlflow.db and http://host:port"
    )


def _database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    if not uri.startswith("sqlite:"):
        return None
    path = uri.removeprefix("sqlite:///")
    if path in (uri, "", ":memory:"):
        raise TrackingError(f"Expected the URI to name a file, as in sqlite:///mlflow.db, but got {uri!r}.")
    file = Path(path).absolute()
    if re.search(r"\?|%[0-9A-Fa-f]{2}", str(file)):
        raise TrackingError(f"a file of SQLite cannot have ? or %XX in its path, as {file} has")
    return file


def _open_database(path: Path, create: bool) -> None:
    if not path.exists():
        if not create:
            raise TrackingError("there is no such file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_database(path)
        except OSError as error:
            raise TrackingError(f"no file can be created there: {error.strerror}") from error
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
        database.execute("BEGIN IMMEDIATE" if create else "PRAGMA schema_version")


def _create_database(path: Path) -> None:
    """Create MLflow's tables aside: there are dozens of steps, and another process may start in between."""
    from mlflow import MlflowClient

    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        try:
            os.link(aside, path)  # unlike a renaming, it never replaces what another process has put there
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(aside, path)


@contextmanager
def calls(uri: str, settings: dict[str, str] | None = None) -> Iterator[None]:
    """Call MLflow quietly, with bounded waits. Whatever goes wrong is a TrackingError of one line.

    Settings and silence are the whole process's, and end with the calls.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    ours = {name: value for name, value in (SETTINGS | (settings or {})).items() if name not in os.environ}
    os.environ.update(ours)
    logged = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TrackingError as error:
        raise TrackingError(f"MLflow at {without_password(uri)}: {error}") from error
    except Exception as error:
        raise TrackingError(f"MLflow at {without_password(uri)}: {_reason(error)}") from error
    finally:
        logging.disable(logged)
        for name in ours:
            os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    """Why, in one line: without the SQL statement, the nested causes or the whole page of an answer."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    from requests import RequestException

    cause = error.__context__
    if isinstance(cause, RequestException):
        reason = getattr(cause.args[0], "reason", cause) if cause.args else cause
        return f"no server answers ({str(reason).rpartition(': ')[2]})"
    text = str(error).partition("\n[SQL")[0]
    return textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__
