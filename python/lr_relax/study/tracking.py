"""Tracking: runs are sent to MLflow, where it is installed, and on request to TensorBoard.

Tracking never costs a result: if a store fails there is one warning, this process sends nothing more to it,
and the run continues. The same command started again sends everything again under the same run id.
"""

from __future__ import annotations

import json
import logging
import os
import re
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import RunConfig
from .files import locked, replaced
from .folder import DIAGRAM, PREDICTIONS, RESULT, Result
from .training import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EXPERIMENT = "LabelRelaxationStudy"
CURVES = ("loss", "accuracy", "lr", "val_loss", "val_accuracy", "val_ece", "val_nll")
# MLflow's defaults wait for two minutes and retry seven times. Variables that are set are not changed.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
Values = Mapping[str, Any]
LOGGER = logging.getLogger(__name__)


class TrackingError(Exception):
    """A store cannot be used; the message is one line."""


def run_name(config: RunConfig, *, search: bool = False) -> str:
    """The name of a run or of the search for its alpha: "focal 2 · vgg · cifar10 · seed 0 · test"."""
    loss, part = (config.loss_title, "search") if search else (config.title, config.part)
    return f"{loss} · {config.model_name} · {config.dataset_name} · seed {config.seed} · {part}"


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


class Experiment:
    """An experiment in an MLflow store; without a ``uri`` MLflow's default, if it is installed.

    ``uri`` "none" tracks nothing, ``every`` tracks every nth epoch and the last one, and ``command`` is the
    command line to record.
    """

    def __init__(self, uri: str | None, name: str = EXPERIMENT, *, every: int = 1, command: str = "") -> None:
        missing = find_spec("mlflow") is None
        default = "none" if missing else os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self.uri, self.name, self.every, self.command = uri or default, name, every, command
        self.off = self.uri == "none"  # or the store has failed
        if missing and not self.off:
            raise TrackingError('MLflow is not installed: pip install "lr-relax[mlflow]"')
        if not (self.off or re.match(r"databricks|(?!file:)\w.*://.*[^/]", self.uri)):
            raise TrackingError(f"{self.uri!r} is not a store: use sqlite:///mlflow.db or http://host:port")

    def open(self) -> None:
        """Create store and experiment if needed; TrackingError if runs cannot be tracked there."""
        if self.off:
            return
        file, artifacts = self.uri.removeprefix("sqlite:///"), None
        with self.calls(), ExitStack() as stack:
            from mlflow import MlflowClient

            if file != self.uri:
                folder = Path(file).absolute().parent / "mlruns"  # not in the working folder
                stack.enter_context(locked(folder, wait=True))  # or two processes create the file at once
                artifacts = folder.as_uri()
            self.mlflow = MlflowClient(self.uri)
            try:
                self.id = self.mlflow.create_experiment(self.name, artifacts)
            except Exception as error:
                known = getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS"
                found = self.mlflow.get_experiment_by_name(self.name) if known else None
                if found is None:
                    raise
                self.id = found.experiment_id
            self.mlflow.set_experiment_tag(self.id, "lr_relax.checked", "")  # can it be written to?

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Call MLflow quietly and with bounded waits; any error becomes a TrackingError of one line."""
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        disabled = logging.root.manager.disable
        logging.disable()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with suppress(ImportError):  # mlflow-skinny has no databases
                    from mlflow.store.db import utils

                    utils.MAX_RETRY_COUNT = 1  # or it tries to open a database for two minutes
                yield
        except Exception as error:
            text = re.split(r"\n[\[(]", str(error))[0]  # without the SQL statement
            reason = textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__
            where = re.sub(r"(?<=://)[^/@]+@", "", self.uri)  # without a password
            raise TrackingError(f"MLflow at {where}: {reason}") from error
        finally:
            logging.disable(disabled)


def _sends(method: Callable[..., None]) -> Callable[..., None]:
    """Call a method if there is something to send; an error costs one warning for all runs."""

    @wraps(method)
    def send(self: Tracker, *args: Any, **kwargs: Any) -> None:
        if self.experiment.off or self.done:
            return
        try:
            with self.experiment.calls():
                method(self, *args, **kwargs)
        except TrackingError as error:
            self.experiment.off = True
            LOGGER.warning("%s; the run continues without tracking, the same command sends it later", error)

    return send


class Tracker:
    """A run in MLflow, or a search or grid, which is the ``parent`` of its runs. No method raises.

    The folder's ``tracking.json`` stores MLflow's run id, so that a resumed run continues there; in another
    store or experiment, or after a deletion, a new run is created. An interrupted run stays RUNNING until it
    is resumed. ``tags`` have the ``kind``: "run", "search" or "grid".
    """

    def __init__(
        self, experiment: Experiment, folder: Path, name: str, params: Values, parent: str = "", **tags: str
    ) -> None:
        self.experiment, self.folder, self.run_id, self.done = experiment, folder, "", False
        self._seconds, self._epochs = 0.0, params.get("epochs")
        known = {"mlflow.parentRunId": parent} if parent else {}
        known |= {f"lr_relax.{tag}": value for tag, value in tags.items()}
        self._start(name, params, known | {"lr_relax.command": experiment.command})

    @classmethod
    def of_run(cls, experiment: Experiment, folder: Path, config: RunConfig, parent: str = "") -> Tracker:
        """The tracker of a single run."""
        also = {"model_type": config.model_name, "loss_type": config.loss_name}  # in the paper's code
        params = config.to_dict() | also
        return cls(experiment, folder, run_name(config), params, parent, kind="run", key=config.key)

    @_sends
    def _start(self, name: str, params: Values, tags: Mapping[str, str]) -> None:
        """Find MLflow's run or create it."""
        mlflow, path, run = self.experiment.mlflow, self.folder / "tracking.json", None
        with suppress(Exception):  # there is none, it is damaged, or of another store
            run = mlflow.get_run(json.loads(path.read_text(encoding="utf-8"))["run_id"])
        here = ("active", self.experiment.id)
        if run is None or (run.info.lifecycle_stage, run.info.experiment_id) != here:
            run = mlflow.create_run(self.experiment.id, run_name=name)
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced(path) as temporary:
                temporary.write_text(json.dumps({"run_id": run.info.run_id}), encoding="utf-8")
        self.run_id, self._started = run.info.run_id, run.info.start_time
        # A finished run is complete, but a search or a grid may have become larger.
        self.done = run.info.status == "FINISHED" and tags["lr_relax.kind"] == "run"
        self._log({name: value for name, value in params.items() if name not in run.data.params}, {}, tags)
        if not self.done:
            mlflow.update_run(self.run_id, "RUNNING")

    @_sends
    def epoch(self, epoch: Epoch) -> None:
        """Log the curves of an epoch; one that is logged again is the same point."""
        self._seconds += epoch.seconds
        if epoch.epoch % self.experiment.every == 0 or epoch.epoch + 1 == self._epochs:
            when = self._started + round(1000 * self._seconds)
            self._log({}, curves(epoch), {}, when, epoch.epoch)

    @_sends
    def finished(self, result: Result) -> None:
        """Log the final metrics and the folder's files, and end the run."""
        for name in (RESULT, DIAGRAM, PREDICTIONS):
            if (self.folder / name).is_file():
                self.experiment.mlflow.log_artifact(self.run_id, self.folder / name)
        self._log({}, {}, {"mlflow.source.git.commit": result.environment.get("commit", "")})
        self.end({"T": result.temperature} if result.temperature else {}, final_metrics(result))

    @_sends
    def end(self, params: Values, metrics: Values) -> None:
        """Log what is known at the end, and end the run."""
        self._log(params, metrics, {"lr_relax.reason": ""})
        self.experiment.mlflow.set_terminated(self.run_id, "FINISHED")
        self.done = True

    @_sends
    def failed(self, reason: str) -> None:
        """End the run as failed, with the reason as a tag. It can be resumed."""
        self._log({}, {}, {"lr_relax.reason": reason})
        self.experiment.mlflow.set_terminated(self.run_id, "FAILED")

    def _log(self, params: Values, metrics: Values, tags: Values, when: int = 0, step: int = 0) -> None:
        from mlflow.entities import Metric, Param, RunTag

        when = when or round(1000 * time.time())
        points = [Metric(name, value, when, step) for name, value in metrics.items()]
        known = [Param(name, str(value)) for name, value in params.items()]
        self.experiment.mlflow.log_batch(self.run_id, points, known, [RunTag(*tag) for tag in tags.items()])


class TensorBoard:
    """The curves as TensorBoard logs; a resumed run replaces its former ones. A failure costs one warning."""

    def __init__(self, folder: Path) -> None:
        """TrackingError if TensorBoard is missing; the folder is created with the first epoch."""
        if find_spec("tensorboard") is None:
            raise TrackingError('TensorBoard is not installed: pip install "lr-relax[tensorboard]"')
        self._folder, self._failed = folder, False
        self._writer: SummaryWriter | None = None

    def epoch(self, epoch: Epoch) -> None:
        """Write the curves of an epoch; the first call hides what the folder has from there on."""
        if self._failed:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._folder), purge_step=epoch.epoch)
            for name, value in curves(epoch).items():
                self._writer.add_scalar(name, value, epoch.epoch)
            self._writer.flush()
        except OSError as error:
            self._failed = True
            LOGGER.warning("%s has no logs for TensorBoard from here on: %s", self._folder, error)

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
