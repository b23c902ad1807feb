"""Tracking: runs are sent to MLflow, where it is installed, and on request to TensorBoard.

Tracking never costs a result: if a store fails there is one warning, this process sends nothing more to it,
and the run continues. The same command started again sends everything again under the same run id.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .config import RunConfig
from .files import replaced
from .folder import DIAGRAM, PREDICTIONS, RESULT, Result
from .training import Epoch

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "LabelRelaxationStudy"
CURVES = ("loss", "accuracy", "lr", "val_loss", "val_accuracy", "val_ece")
# MLflow's defaults wait for two minutes and retry seven times. Variables that are set are not changed.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_SHORT = {
    "label relaxation": "LR",
    "cross-entropy": "CE",
    "label smoothing": "LS",
    "confidence penalty": "CP",
}
LOGGER = logging.getLogger(__name__)

_failed: set[str] = set()  # stores that failed in this process


class TrackingError(Exception):
    """A store cannot be used; the message is one line."""


def default_uri() -> str:
    """MLflow's own default, a file in the working folder; "none" where MLflow is not installed."""
    if find_spec("mlflow") is None:
        return "none"
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def run_name(config: RunConfig, *, search: bool = False) -> str:
    """The name of a run or of the search for its alpha: "LR 0.05 · digits · seed 0 · test"."""
    loss = [_SHORT.get(config.loss_title, config.loss_title)]
    loss += [f"{config.alpha:g}"] * (not search and config.loss_title != "cross-entropy")
    loss += ["+ T"] * config.temp_scaling
    network = [config.model_name] * (config.model_name != "simple_dense")
    part = "search" if search else config.part
    return " · ".join([" ".join(loss), *network, config.dataset_name, f"seed {config.seed}", part])


def curves(epoch: Epoch) -> dict[str, float]:
    """The metrics of an epoch that are known."""
    values = {name: getattr(epoch, name) for name in CURVES}
    return {name: value for name, value in values.items() if value is not None}


def final_metrics(result: Result) -> dict[str, float]:
    """The metrics of a finished run, by their names in MLflow."""
    metrics = {f"{result.config.part}_accuracy": result.accuracy}
    metrics |= {name: getattr(result, name) for name in ("ece", "nll", "brier", "seconds")}
    if result.unscaled is not None:
        metrics |= {"unscaled_ece": result.unscaled.ece, "unscaled_nll": result.unscaled.nll}
    return metrics


class Tracker:
    """A run in MLflow, or a search or grid with nested runs. ``uri`` "none" tracks nothing; no method raises.

    The folder's ``tracking.json`` stores MLflow's run id, so that a resumed run continues there; in another
    store or experiment, or after a deletion, a new run is created. An interrupted run stays RUNNING until it
    is resumed. ``every`` tracks every nth epoch and the last one; ``parent`` is the ``run_id`` of a search or
    grid.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        folder: Path,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent: str = "",
        every: int = 1,
    ) -> None:
        self.uri, self.experiment, self.run_id = uri, experiment, ""
        self._folder, self._every, self._elapsed, self._done = folder, every, 0.0, False
        tags = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        self._send(lambda mlflow: self._start(mlflow, name, params, tags))

    @classmethod
    def of_run(
        cls, config: RunConfig, uri: str, experiment: str, *, folder: Path, command: str = "", **options: Any
    ) -> Tracker:
        """The tracker of a single run."""
        about = {"lr_relax.kind": "run", "lr_relax.key": config.key, "lr_relax.command": command}
        name, params = run_name(config), config.to_dict()
        return cls(uri, experiment, folder=folder, name=name, params=params, tags=about, **options)

    def _start(
        self, mlflow: MlflowClient, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Find MLflow's run or create it."""
        from mlflow.exceptions import MlflowException

        path = self._folder / "tracking.json"
        store = {"uri": _shown(self.uri), "experiment": self.experiment}
        run = None
        with suppress(OSError, ValueError, KeyError, TypeError, MlflowException):
            state = json.loads(path.read_text(encoding="utf-8"))
            run = mlflow.get_run(state["run_id"]) if {**state, **store} == state else None
        if run is None or run.info.lifecycle_stage != "active":
            experiment = _experiment(mlflow, self.uri, self.experiment)
            run = mlflow.create_run(experiment, tags=dict(tags), run_name=name)
            self._folder.mkdir(parents=True, exist_ok=True)
            with replaced(path) as temporary:
                temporary.write_text(json.dumps({**store, "run_id": run.info.run_id}), encoding="utf-8")
        self.run_id, self._started = run.info.run_id, run.info.start_time
        for tag in [tag for tag, value in tags.items() if run.data.tags.get(tag) != value]:
            mlflow.set_tag(self.run_id, tag, tags[tag])
        # A finished run is complete, but a search or a grid may have become larger.
        self._done = run.info.status == "FINISHED" and tags["lr_relax.kind"] == "run"
        if not self._done:
            mlflow.update_run(self.run_id, "RUNNING")
            self._log(mlflow, {n: v for n, v in params.items() if n not in run.data.params}, {})

    def epoch(self, epoch: Epoch) -> None:
        """Log the curves of an epoch."""
        self._elapsed += epoch.seconds
        if epoch.epoch % self._every == 0:
            self._log_epoch(epoch)

    def _log_epoch(self, epoch: Epoch) -> None:
        def send(mlflow: MlflowClient) -> None:
            when = self._started + round(
                1000 * self._elapsed
            )  # an epoch that is logged again is the same point
            self._log(mlflow, {}, curves(epoch), when, epoch.epoch)

        self._send(send)

    def finished(
        self,
        result: Result | None = None,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Log the final metrics and the folder's files and end the run; searches and grids have no result."""
        final, found = dict(metrics or {}), dict(params or {})
        if result is not None:
            final |= final_metrics(result)
            found |= {"T": result.temperature} if result.temperature is not None else {}
            if (last := result.history[-1]).epoch % self._every:
                self._log_epoch(last)

        def send(mlflow: MlflowClient) -> None:
            self._log(mlflow, found, final)
            if result is not None:
                mlflow.set_tag(self.run_id, "mlflow.source.git.commit", result.environment.get("commit", ""))
                for name in (RESULT, DIAGRAM, PREDICTIONS):
                    if (self._folder / name).is_file():
                        mlflow.log_artifact(self.run_id, self._folder / name)
            mlflow.set_tag(self.run_id, "lr_relax.reason", "")
            mlflow.set_terminated(self.run_id, "FINISHED")
            self._done = True

        self._send(send)

    def failed(self, reason: str) -> None:
        """End the run as failed, with the reason as a tag. It can be resumed."""

        def send(mlflow: MlflowClient) -> None:
            mlflow.set_tag(self.run_id, "lr_relax.reason", reason)
            mlflow.set_terminated(self.run_id, "FAILED")

        self._send(send)

    def _log(
        self,
        mlflow: MlflowClient,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        when: int | None = None,
        step: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param

        when = round(1000 * time.time()) if when is None else when
        points = [Metric(name, value, when, step) for name, value in metrics.items()]
        mlflow.log_batch(self.run_id, points, [Param(name, str(value)) for name, value in params.items()])

    def _send(self, action: Callable[[MlflowClient], None]) -> None:
        """Call MLflow, unless there is nothing to send; an error costs one warning for all runs."""
        if self.uri == "none" or self.uri in _failed or self._done:
            return
        try:
            with _calls(self.uri):
                action(_client(self.uri))
        except TrackingError as error:
            _failed.add(self.uri)
            LOGGER.warning("%s; the run continues without tracking, the same command sends it later", error)


def check(uri: str, experiment: str = EXPERIMENT) -> None:
    """Raise TrackingError unless runs can be tracked there; a missing store or experiment is created."""
    if find_spec("mlflow") is None:
        raise TrackingError('MLflow is not installed: pip install "lr-relax[mlflow]"')
    with _calls(uri):
        mlflow = _client(uri)
        mlflow.set_experiment_tag(_experiment(mlflow, uri, experiment), "lr_relax.checked", str(time.time()))


def absolute(uri: str) -> str:
    """The URI of the same store from every working folder."""
    database = _database(uri)
    return uri if database is None else f"sqlite:///{database}"


def _experiment(mlflow: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, which is created if needed."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        database = _database(uri)  # whose folder gets the artifacts, not the working folder
        artifacts = None if database is None else (database.parent / "mlruns").as_uri()
        with suppress(Exception):  # if another process is faster
            return str(mlflow.create_experiment(name, artifacts))
        found = mlflow.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(f"the experiment {name} cannot be created or is deleted: choose another name")
    return str(found.experiment_id)


def _client(uri: str) -> MlflowClient:
    """A client; databases are opened first, because MLflow would retry for minutes."""
    from mlflow import MlflowClient
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    scheme = uri.partition(":")[0]
    if (database := _database(uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        if not database.exists():
            _create(database)
        with closing(sqlite3.connect(database, timeout=5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    elif scheme.partition("+")[0] in DATABASE_ENGINES:
        import sqlalchemy

        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
    with suppress(UnsupportedModelRegistryStoreURIException):
        return MlflowClient(uri)
    raise TrackingError(f"{scheme!r} is not a supported store; use sqlite:///mlflow.db or http://host:port")


def _database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    if not uri.startswith("sqlite:"):
        return None
    path = uri.removeprefix("sqlite:///")
    if path in (uri, "", ":memory:") or re.search(r"\?|%[0-9A-Fa-f]{2}", path):
        raise TrackingError(f"expected a file without ? and %XX, as sqlite:///mlflow.db, but got {uri!r}")
    return Path(path).absolute()


def _create(database: Path) -> None:
    """Create MLflow's tables in another place first, because a second process may start at the same time."""
    from mlflow import MlflowClient

    with TemporaryDirectory(dir=database.parent, prefix=f".{database.name}.") as folder:
        aside = Path(folder) / database.name
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        try:
            os.link(aside, database)  # unlike renaming, this never replaces a file
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(aside, database)


@contextmanager
def _calls(uri: str) -> Iterator[None]:
    """Call MLflow quietly and with bounded waits; errors become a TrackingError of one line."""
    ours = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        text = str(error).partition("\n[SQL")[0]  # without the statement, nested causes, or a page of HTML
        if "Max retries exceeded" in text:
            reason = text.rpartition(": ")[2].rstrip(")\"'")
            text = f"no server answers ({reason})"
        reason = textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__
        raise TrackingError(f"MLflow at {_shown(uri)}: {reason}") from error
    finally:
        logging.disable(disabled)
        for name in ours:
            os.environ.pop(name, None)


def _shown(uri: str) -> str:
    """The URI without a password."""
    return re.sub(r"(?<=://)[^/@]+@", "", uri)


class TensorBoard:
    """The curves as TensorBoard logs; a resumed run replaces its former ones. A failure costs one warning."""

    def __init__(self, folder: Path) -> None:
        """TrackingError if TensorBoard is missing; the folder is created with the first epoch."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as missing:
            reason = '--tensorboard needs tensorboard: pip install "lr-relax[tensorboard]"'
            raise TrackingError(reason) from missing
        self._new, self._folder, self._failed = SummaryWriter, folder, False
        self._writer: SummaryWriter | None = None

    def epoch(self, epoch: Epoch) -> None:
        """Write the curves of an epoch; the first call hides what the folder has from there on."""
        if self._failed:
            return
        with self._warning():
            if self._writer is None:
                self._writer = self._new(str(self._folder), purge_step=epoch.epoch)
            for name, value in curves(epoch).items():
                self._writer.add_scalar(name, value, epoch.epoch)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None and not self._failed:
            with self._warning():
                self._writer.close()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            LOGGER.warning("%s has no logs for TensorBoard from here on: %s", self._folder, error)
