"""Training of runs for a command: options, checks before the training, progress, tracking."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import data, files, processes, tracking
from .. import run as runs
from ..config import RunConfig
from ..engines import Outcome
from ..folder import Result
from ..tracking import TensorBoard, Tracker, TrackingError
from ..training import Batch, DivergedError, Epoch
from .options import FOLDER, POSITIVE, Decorator, all_of, command_line, option, switch

T = TypeVar("T")


def _files(name: str, **known: Any) -> Decorator:
    return option(name, group="Files", type=FOLDER, **known)


def _execution(name: str, **known: Any) -> Decorator:
    return option(name, group="Execution", **known)


def _tracking(name: str, **known: Any) -> Decorator:
    return option(name, group="Tracking", **known)


def out_options(out: Path | None, show_default: str | bool = True) -> Decorator:
    """Where data and runs are."""
    help = "Folder of the runs: interrupted runs are resumed, finished ones are not repeated."
    data_dir = _files(
        "data_dir", default=Path("data"), show_default=True, help="Folder of the data sets' files."
    )
    return all_of(data_dir, _files("out", default=out, show_default=show_default, help=help))


def tracking_options(default: str = "") -> Decorator:
    """Where runs are tracked."""
    shown = default or "MLFLOW_TRACKING_URI or sqlite:///mlflow.db, none without MLflow"
    help = "MLflow's store or server, as http://host:5000; none turns tracking off."
    return all_of(
        _tracking("tracking_uri", default=default or None, show_default=shown, help=help),
        _tracking(
            "experiment", default=tracking.EXPERIMENT, show_default=True, help="Name of the experiment."
        ),
    )


_DEVICE = "cpu, cuda, cuda:1, ...; auto prefers cuda."
execution_options = all_of(
    switch("restart", "Train again, even finished runs.", group="Execution"),
    _execution("device", default="auto", show_default=True, help=_DEVICE),
    _execution(
        "threads",
        type=click.IntRange(1, 1024),
        show_default="torch's; 1 in compare",
        help="CPU threads; they change the rounding.",
    ),
)
study_options = all_of(
    out_options(Path("runs", "study")),
    execution_options,
    switch("cluster_job", "Print only the result, and write no TensorBoard logs.", group="Execution"),
    tracking_options(),
    _tracking("autolog_freq", type=POSITIVE, default=1, show_default=True, help="Track every nth epoch."),
    _tracking("tensorboard", type=FOLDER, help="Write TensorBoard logs to this folder."),
)


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Prints text unchanged, without line breaks."""
    return Console(stderr=stderr, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


def progress_bar(total: int, *, silent: bool = False) -> Progress:
    """A progress bar with one task on stderr, hidden if that is not a terminal."""
    terminal = console(stderr=True, quiet=silent)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
    )
    hidden = silent or not terminal.is_terminal
    progress = Progress(*columns, TimeRemainingColumn(), console=terminal, transient=True, disable=hidden)
    progress.add_task("", total=total, status="")
    return progress


class RunProgress:
    """Progress of one or more runs: a bar on a terminal, else a line per epoch or run."""

    def __init__(self, epochs: int, *, runs: int = 1, silent: bool) -> None:
        self.epochs, self.runs, self.bar = epochs, runs, progress_bar(epochs * runs, silent=silent)
        [self.task] = self.bar.task_ids
        self.before, self.shown = -epochs, 0.0  # epochs of former runs

    def begin(self, config: RunConfig) -> None:
        """Show the next run."""
        self.before += self.epochs
        title = f"{config.title}, seed {config.seed}"
        self.bar.update(self.task, description=title, completed=self.before)
        if self.runs > 1 and not self.bar.console.is_terminal:
            self.bar.console.print(f"run {self.before // self.epochs + 1}/{self.runs}  {title}")

    def batch(self, batch: Batch) -> None:
        """Update the bar, a few times per second."""
        if self.bar.disable or (now := time.monotonic()) - self.shown < 0.2:
            return
        self.shown, done = now, self.before + batch.epoch + batch.done / batch.batches
        loss, accuracy = (batch.totals / batch.rows).tolist()
        status = f"loss {loss:.4f}  accuracy {accuracy:.4f}"
        self.bar.update(self.task, completed=done, status=status)

    def epoch(self, epoch: Epoch) -> None:
        """Print the metrics of an epoch if there is no bar."""
        self.bar.update(self.task, completed=self.before + epoch.epoch + 1)
        if self.runs == 1 and not self.bar.console.is_terminal:
            line = (
                f"epoch {epoch.epoch + 1}/{self.epochs}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
            )
            if epoch.val_accuracy is not None:
                line += f"  validation accuracy {epoch.val_accuracy:.4f}  ECE {epoch.val_ece:.4f}"
            self.bar.console.print(f"{line}  {epoch.seconds:.1f} s")


def announce(what: str, *, silent: bool = False) -> None:
    """Print a first line before slow imports."""
    console(stderr=True, quiet=silent).print(f"{what}: preparing")


def load(name: str, data_dir: Path) -> data.Dataset:
    """The data set, or a usage error."""
    try:
        return data.load(name, data_dir)
    except data.DataError as error:
        raise click.UsageError(str(error)) from error


def writable(folder: Path, option: str = "--out") -> Path:
    """The folder, which is created, or a usage error if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        reason = f"{folder} cannot be written to: {error.strerror}."
        raise click.BadParameter(reason, param_hint=f"'{option}'") from error
    return folder


@dataclass(frozen=True)
class Tracking:
    """Where the runs of a command are tracked."""

    uri: str
    experiment: str
    every: int = 1
    command: str = ""

    @classmethod
    def prepare(cls, options: Mapping[str, Any]) -> Tracking:
        """Check the store; a usage error if it cannot be used."""
        uri, experiment = options["tracking_uri"] or tracking.default_uri(), options["experiment"]
        if uri != "none":
            if not experiment.strip():
                raise click.BadParameter("a name is needed.", param_hint="'--experiment'")
            try:
                uri = tracking.absolute(uri)
                tracking.check(uri, experiment)
            except TrackingError as error:
                raise click.BadParameter(f"{error}.", param_hint="'--tracking-uri'") from error
        return cls(uri, experiment, options.get("autolog_freq", 1), command_line())

    def run(self, config: RunConfig, folder: Path, parent: str = "") -> Tracker:
        """The tracker of a run."""
        about: dict[str, Any] = {"command": self.command, "parent": parent, "every": self.every}
        return Tracker.of_run(config, self.uri, self.experiment, folder=folder, **about)

    def parent(self, folder: Path, kind: str, name: str, params: Mapping[str, Any]) -> Tracker:
        """The tracker of a search or a grid."""
        tags = {"lr_relax.kind": kind, "lr_relax.command": self.command}
        return Tracker(self.uri, self.experiment, folder=folder, name=name, params=params, tags=tags)

    def outcome(self, outcome: Outcome, parent: str) -> None:
        """Track a run that an engine has trained."""
        if outcome.elsewhere:
            return
        tracker = self.run(outcome.job.config, outcome.job.folder, parent)
        if outcome.result is None:
            tracker.failed(outcome.error)
        else:
            for epoch in outcome.result.history:
                tracker.epoch(epoch)
            tracker.finished(outcome.result)


class Diverged(click.ClickException):
    """A run has diverged; runs with other hyperparameters may not."""


class Execution:
    """Trains the runs of a command; everything is checked, and the data are loaded, before the training.

    Of several processes that train together the ``first`` prints, tracks and writes.
    """

    def __init__(self, what: str, dataset_name: str, options: Mapping[str, Any]) -> None:
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        try:
            self.device = processes.start(_device(options["device"]))
        except files.RunError as error:
            raise click.ClickException(str(error)) from error
        together = processes.Processes()
        self.first, self.restart = together.rank == 0, bool(options["restart"])
        self.silent = bool(options.get("cluster_job")) or not self.first
        announce(what, silent=self.silent)
        logging.basicConfig(format="%(message)s")
        board = None if options.get("cluster_job") else options.get("tensorboard")
        if board is not None:
            try:
                TensorBoard(board)
            except TrackingError as error:
                raise click.UsageError(str(error)) from error
            together.first(lambda: writable(board, "--tensorboard"))
        self.tensorboard = board if self.first else None
        self.out = together.first(lambda: writable(options["out"]))
        tracks = together.first(lambda: Tracking.prepare(options))
        self.tracking = tracks if self.first else replace(tracks, uri="none")
        self.dataset = together.first(lambda: load(dataset_name, options["data_dir"]))

    def run(self, config: RunConfig, parent: str = "", progress: RunProgress | None = None) -> Result:
        """Train a run, resume it, or read its result."""
        folder = self.out / config.key
        if self.restart:
            processes.Processes().first(lambda: _remove(folder))
        with ExitStack() as stack:
            if progress is None:
                progress = RunProgress(config.epochs, silent=self.silent)
                stack.enter_context(progress.bar)
            progress.begin(config)
            tracker = self.tracking.run(config, folder, parent)
            board = None if self.tensorboard is None else TensorBoard(self.tensorboard / config.key)
            if board is not None:
                stack.callback(board.close)

            def on_epoch(epoch: Epoch) -> None:
                progress.epoch(epoch)
                tracker.epoch(epoch)
                if board is not None:
                    board.epoch(epoch)

            try:
                result = runs.run(
                    config,
                    self.dataset,
                    folder=folder,
                    device=self.device,
                    command=self.tracking.command,
                    on_epoch=on_epoch,
                    on_batch=progress.batch,
                )
            except runs.ERRORS as error:
                reason = f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
                if not isinstance(error, BlockingIOError):  # of the other process that trains it
                    tracker.failed(reason)
                failure = Diverged if isinstance(error, DivergedError) else click.ClickException
                raise failure(f"{config.title}, seed {config.seed}: {reason}") from error
            except RuntimeError as error:
                if not processes.is_lost_peer(error):
                    raise
                reason = "another process has ended; run the same command again to resume from the last epoch"
                raise click.ClickException(reason) from error
        tracker.finished(result)
        return result


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    try:
        with files.locked(folder):
            shutil.rmtree(folder)
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be removed: {error.strerror or error}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError  # others lack float64
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(
            f"{name} is not a device of this machine.", param_hint="'--device'"
        ) from error
    return device
