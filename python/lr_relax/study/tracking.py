"""What a run tells while it runs and when it is over: to MLflow and, on request, to TensorBoard.

Both get the epochs one by one, each epoch once however often the run is resumed. Tracking never costs a
result: if MLflow fails, there is one warning, the run goes on, and what is missing is sent later.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import replaced
from .mlflow_store import TrackingError, absolute, calls, connect, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from .config import RunConfig
    from .results import Result
    from .training import Epoch

CURVES = ("loss", "accuracy", "lr", "val_loss", "val_accuracy", "val_ece")
ARTIFACTS = ("result.json", "reliability.png")
BATCH = 100  # epochs
PARENT, REASON = "mlflow.parentRunId", "lr_relax.reason"  # tags
LOGGER = logging.getLogger(__name__)

# When a store that failed may be tried again, by URI; it is shared, as the next run would find the same.
_failed: dict[str, float] = {}
RETRY_AFTER = 60.0  # seconds


def curves(epoch: Epoch) -> dict[str, float]:
    """What is drawn over the epochs: what is known of them."""
    values = {name: getattr(epoch, name) for name in CURVES}
    return {name: value for name, value in values.items() if value is not None}


def final_metrics(result: Result) -> dict[str, float]:
    """The metrics of a finished run, by the names that they have in MLflow."""
    accuracy = "test_accuracy" if result.config.test_run else "validation_accuracy"
    metrics = {
        accuracy: result.accuracy,
        **{name: getattr(result, name) for name in ("ece", "nll", "brier", "seconds")},
    }
    if result.unscaled is not None:
        metrics |= {"unscaled_ece": result.unscaled.ece, "unscaled_nll": result.unscaled.nll}
    return metrics


class Tracker:
    """A run in MLflow, or one with further runs below it, as a search or a grid is.

    Its folder's ``tracking.json`` says which of MLflow's runs it is, so that a resumed run goes on in it; in
    another store or experiment, or after a deletion, it starts anew there. Where MLflow fails, no method
    raises. An interrupted run stays RUNNING in MLflow until it is resumed.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        folder: Path,
        params: Mapping[str, Any],
        name: str,
        kind: str = "run",
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        started: float | None = None,
        every: int = 1,
    ) -> None:
        """Create the run in MLflow, or find it again.

        Args:
            uri: Of the store; see MLflow's ``--tracking-uri``.
            experiment: Its name.
            folder: Of the run; it gets ``tracking.json``, and in the end ``result.json`` and
                ``reliability.png`` are taken from it.
            params: The run's parameters.
            name: The run's name.
            kind: "run", "search" or "grid".
            parent: The ``run_id`` of the search or grid that the run belongs to.
            tags: Further tags.
            started: When the run was started if not now, as :func:`time.time` says it.
            every: Of so many epochs the first is tracked, as is the last of a finished run.
        """
        self.uri, self.experiment, self.run_id = absolute(uri), experiment, ""
        self._path = folder / "tracking.json"
        self._folder, self._name = folder, name
        self._started = time.time() if started is None else started
        self._params = _texts(params)
        self._tags = {"lr_relax.kind": kind, "lr_relax.version": version("lr-relax"), **(tags or {})}
        if parent:
            self._tags[PARENT] = parent
        self._mlflow: MlflowClient | None = None  # None: not connected
        self._epochs: dict[int, tuple[int, dict[str, float]]] = {}  # their times and curves
        self._sent: set[int] = set()
        self._every = every
        self._complete = False
        if not self._waiting():
            with self._at_no_cost():
                self._connect()

    @classmethod
    def of_run(
        cls,
        config: RunConfig,
        uri: str,
        experiment: str,
        *,
        folder: Path,
        command: str = "",
        parent: str | None = None,
        started: float | None = None,
        every: int = 1,
    ) -> Tracker:
        """The tracker of a single run, with the parameters and tags that tables and figures look for."""
        return cls(
            uri,
            experiment,
            folder=folder,
            params=config.to_dict(),
            name=config.key,
            parent=parent,
            tags={"lr_relax.key": config.key, "lr_relax.command": command},
            started=started,
            every=every,
        )

    def epoch(self, epoch: Epoch) -> None:
        """Track an epoch; one that MLflow has already is not sent again."""
        if epoch.epoch % self._every:
            return
        self._epochs.setdefault(epoch.epoch, (_milliseconds(time.time()), curves(epoch)))
        if not self._waiting():
            with self._at_no_cost():
                self._send_epochs(self._connect())

    def finished(
        self,
        result: Result | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Send whatever is missing and end the run.

        Args:
            result: Of a run. A search or a grid has none.
            params: What has only become known now, such as the chosen alpha of a search.
            metrics: Further metrics; see :func:`final_metrics`.
        """
        final, found, tags = dict(metrics or {}), dict(params or {}), {}
        if result is not None:
            final = final_metrics(result) | final
            if result.temperature is not None:
                found["T"] = result.temperature
            if commit := result.environment.get("commit"):
                tags["mlflow.source.git.commit"] = commit
            ended = time.time()
            for epoch in reversed(result.history):
                if epoch.epoch % self._every == 0 or epoch is result.history[-1]:
                    self._epochs.setdefault(epoch.epoch, (_milliseconds(ended), curves(epoch)))
                ended -= epoch.seconds
        with self._at_no_cost():
            mlflow = self._connect()
            if self._complete:
                return
            self._send_epochs(mlflow)
            run = mlflow.get_run(self.run_id)
            self._send(mlflow, run, _texts(found), tags, final)
            if REASON in run.data.tags:
                mlflow.delete_tag(self.run_id, REASON)
            for artifact in ARTIFACTS:
                if (self._folder / artifact).is_file():
                    mlflow.log_artifact(self.run_id, self._folder / artifact)
            mlflow.set_terminated(self.run_id, "FINISHED")
            self._complete = True

    def failed(self, reason: str) -> None:
        """Send the epochs that are missing and end the run as failed. It may be resumed nevertheless."""
        with self._at_no_cost():
            mlflow = self._connect()
            if self._complete:
                return
            self._send_epochs(mlflow)
            mlflow.set_tag(self.run_id, REASON, reason)
            mlflow.set_terminated(self.run_id, "FAILED")

    def _connect(self) -> MlflowClient:
        """Find MLflow's run or create it, and learn what it has already."""
        if self._mlflow is not None:
            return self._mlflow
        mlflow, experiment_id = connect(self.uri, self.experiment)
        run = self._find(mlflow, experiment_id) or self._create(mlflow, experiment_id)
        self.run_id = run.info.run_id
        self._save({**self._state(), "run_id": self.run_id})
        # A run that is over is left alone, but a search or a grid may have become larger.
        self._complete = run.info.status == "FINISHED" and self._tags["lr_relax.kind"] == "run"
        if not self._complete:
            if run.info.status != "RUNNING":
                mlflow.update_run(self.run_id, "RUNNING")
            if REASON in run.data.tags:
                mlflow.delete_tag(self.run_id, REASON)
            self._send(mlflow, run, self._params, self._tags, {})
        elif PARENT in self._tags and PARENT not in run.data.tags:  # it was trained before, on its own
            mlflow.set_tag(self.run_id, PARENT, self._tags[PARENT])
        self._sent = {metric.step for metric in mlflow.get_metric_history(self.run_id, "loss")}
        self._mlflow = mlflow
        return mlflow

    def _find(self, mlflow: MlflowClient, experiment_id: str) -> Run | None:
        """MLflow's run, unless it is in another store or deleted."""
        state = self._state()
        if (state.get("uri"), state.get("experiment")) != (without_password(self.uri), self.experiment):
            return None
        found = mlflow.search_runs(
            [experiment_id], f"tags.`lr_relax.token` = '{state['token']}'", max_results=1
        )
        return found[0] if found else None

    def _create(self, mlflow: MlflowClient, experiment_id: str) -> Run:
        # The token is kept first: if the answer with the run's id is lost, the run is found nevertheless.
        token = uuid.uuid4().hex
        self._save({"uri": without_password(self.uri), "experiment": self.experiment, "token": token})
        return mlflow.create_run(
            experiment_id,
            start_time=_milliseconds(self._started),
            tags={**self._tags, "lr_relax.token": token},
            run_name=self._name,
        )

    def _send_epochs(self, mlflow: MlflowClient) -> None:
        """Send the epochs that MLflow lacks. A batch, of 1000 values at most, arrives whole or not at all."""
        from mlflow.entities import Metric

        if self._complete:
            return
        missing = sorted(self._epochs.keys() - self._sent)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            metrics = [
                Metric(name, value, self._epochs[step][0], step)
                for step in batch
                for name, value in self._epochs[step][1].items()
            ]
            mlflow.log_batch(self.run_id, metrics)
            self._sent.update(batch)

    def _send(
        self,
        mlflow: MlflowClient,
        run: Run,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> None:
        """Send what the run lacks of these; parameters cannot be changed, in MLflow."""
        from mlflow.entities import Metric, Param, RunTag

        now, there = _milliseconds(time.time()), run.data.metrics
        mlflow.log_batch(
            self.run_id,
            [Metric(name, value, now, 0) for name, value in metrics.items() if there.get(name) != value],
            [Param(name, value) for name, value in params.items() if name not in run.data.params],
            [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value],
        )

    def _state(self) -> dict[str, str]:
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) and "token" in state else {}

    def _save(self, state: Mapping[str, str]) -> None:
        if state != self._state():
            self._folder.mkdir(parents=True, exist_ok=True)
            with replaced(self._path) as temporary:
                temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    def _waiting(self) -> bool:
        return time.monotonic() < _failed.get(self.uri, 0)

    @contextmanager
    def _at_no_cost(self) -> Iterator[None]:
        """Whatever fails is told once and sent by a later call, which asks what has arrived."""
        try:
            with calls(self.uri):
                yield
        except TrackingError as error:
            self._mlflow = None
            if self.uri not in _failed:
                LOGGER.warning("tracking is interrupted; the run goes on, the rest is sent later: %s", error)
            _failed[self.uri] = time.monotonic() + RETRY_AFTER
        else:
            _failed.pop(self.uri, None)


class TensorBoard:
    """The same curves in TensorBoard's files; a resumed run tells all its epochs again, and these count.

    Where they can no longer be written, there is a warning, and no more of them.
    """

    def __init__(self, folder: Path) -> None:
        """TrackingError if TensorBoard is missing; the folder is made with the first epoch."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as missing:
            raise TrackingError(
                'the logs for TensorBoard need tensorboard: pip install "lr-relax[tensorboard]"'
            ) from missing
        self._new, self._folder = SummaryWriter, folder
        self._writer: SummaryWriter | None = None
        self._failed = False

    def epoch(self, epoch: Epoch) -> None:
        """Write the curves' values of an epoch; the first call hides what the folder has from there on."""
        if self._failed:
            return
        with self._at_no_cost():
            if self._writer is None:
                self._writer = self._new(str(self._folder), purge_step=epoch.epoch)
            for name, value in curves(epoch).items():
                self._writer.add_scalar(name, value, epoch.epoch)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is None or self._failed:
            return
        with self._at_no_cost():
            self._writer.close()

    @contextmanager
    def _at_no_cost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            LOGGER.warning("%s has no logs for TensorBoard from here on: %s", self._folder, error)


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in params.items()}


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
