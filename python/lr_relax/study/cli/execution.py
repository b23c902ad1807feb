"""Training of runs for a command: options, checks before the training, progress, tracking."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import data, files, processes, tracking
from .. import run as runs
from ..config import RunConfig
from ..engines import EngineError
from ..folder import Result
from ..tracking import Experiment, TensorBoard, Tracker, TrackingError
from ..training import Batch, Epoch
from .options import FOLDER, POSITIVE, Decorator, all_of, command_line, option, switch

_files = partial(option, group="Files", type=FOLDER)
_execution = partial(option, group="Execution")
_tracking = partial(option, group="Tracking")
_OUT = "Folder of the runs: interrupted runs are resumed, finished ones are not repeated."
_URI = "MLflow's store or server, as http://host:5000; none turns tracking off."
_DEVICE = "cpu, cuda, cuda:1, ...; auto prefers cuda."
_THREADS = "CPU threads; they change the rounding."


def out_options(out: Path | None, show_default: str | bool = True) -> Decorator:
    """Where data and runs are."""
    help = "Folder of the data sets' files."
    return all_of(
        _files("data_dir", default=Path("data"), show_default=True, help=help),
        _files("out", default=out, show_default=show_default, help=_OUT),
    )


def tracking_options(default: str | None = None) -> Decorator:
    """Where runs are tracked."""
    shown = default or "MLFLOW_TRACKING_URI or sqlite:///mlflow.db, none without MLflow"
    help = "Name of the experiment."
    return all_of(
        _tracking("tracking_uri", default=default, show_default=shown, help=_URI),
        _tracking("experiment", default=tracking.EXPERIMENT, show_default=True, help=help),
    )


execution_options = all_of(
    switch("restart", "Train again, even finished runs.", group="Execution"),
    _execution("device", default="auto", show_default=True, help=_DEVICE),
    _execution("threads", type=click.IntRange(1, 1024), show_default="torch's; 1 in compare", help=_THREADS),
)
study_options = all_of(
    out_options(Path("runs", "study")),
    execution_options,
    switch("cluster_job", "Print only the result, and write no TensorBoard logs.", group="Execution"),
    tracking_options(),
    _tracking("autolog_freq", type=POSITIVE, default=1, show_default=True, help="Track every nth epoch."),
    _tracking("tensorboard", type=FOLDER, help="Write TensorBoard logs to this folder."),
)


@contextmanager
def usage_errors(option: str = "") -> Iterator[None]:
    """Turn errors of data, engines and tracking into a usage error, of an option if one is named."""
    try:
        yield
    except (data.DataError, EngineError, TrackingError) as error:
        if isinstance(error, EngineError):
            option = f"--{error.argument.replace('_', '-')}"
        if option:
            raise click.BadParameter(f"{error}.", param_hint=f"'{option}'") from error
        raise click.UsageError(str(error)) from error


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Prints text unchanged, without line breaks."""
    return Console(stderr=stderr, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


def announce(what: str, *, silent: bool = False) -> None:
    """Print a first line before slow imports."""
    console(stderr=True, quiet=silent).print(f"{what}: preparing")


def progress_bar(total: int, *, silent: bool = False) -> Progress:
    """A progress bar with one task on stderr, hidden if that is not a terminal."""
    terminal = console(stderr=True, quiet=silent)
    texts = TextColumn("{task.description}"), TextColumn("{task.fields[status]}")
    columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn()
    hidden = silent or not terminal.is_terminal
    progress = Progress(*columns, console=terminal, transient=True, disable=hidden)
    progress.add_task("", total=total, status="")
    return progress


class RunProgress:
    """Progress of one or more runs: a bar on a terminal, else a line per epoch or run."""

    def __init__(self, epochs: int, *, runs: int = 1, silent: bool) -> None:
        self.epochs, self.runs, self.bar = epochs, runs, progress_bar(epochs * runs, silent=silent)
        self.before, self.shown = -epochs, 0.0  # epochs of former runs
        self.update = partial(self.bar.update, self.bar.task_ids[0])

    def begin(self, config: RunConfig) -> None:
        """Show the next run."""
        self.before += self.epochs
        title = f"{config.title}, seed {config.seed}"
        self.update(description=title, completed=self.before)
        if self.runs > 1 and not self.bar.console.is_terminal:
            self.bar.console.print(f"run {self.before // self.epochs + 1}/{self.runs}  {title}")

    def batch(self, batch: Batch) -> None:
        """Update the bar, a few times per second."""
        if self.bar.disable or (now := time.monotonic()) - self.shown < 0.2:
            return
        self.shown, done = now, self.before + batch.epoch + batch.done / batch.batches
        loss, accuracy = (batch.totals / batch.rows).tolist()
        self.update(completed=done, status=f"loss {loss:.4f}  accuracy {accuracy:.4f}")

    def epoch(self, epoch: Epoch) -> None:
        """Print the metrics of an epoch if there is no bar."""
        self.update(completed=self.before + epoch.epoch + 1)
        if self.runs == 1 and not self.bar.console.is_terminal:
            line = f"epoch {epoch.epoch + 1}/{self.epochs}  loss {epoch.loss:.4f}"
            line += f"  accuracy {epoch.accuracy:.4f}"
            if epoch.val_accuracy is not None:
                line += f"  validation accuracy {epoch.val_accuracy:.4f}  ECE {epoch.val_ece:.4f}"
            self.bar.console.print(f"{line}  {epoch.seconds:.1f} s")


class Execution:
    """Trains the runs of a command; everything is checked, and the data are loaded, before the training.

    Of several processes that train together the ``first`` prints, tracks and writes.
    """

    def __init__(self, what: str, dataset_names: str | Sequence[str], options: Mapping[str, Any]) -> None:
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        try:
            self.device = processes.start(_device(options.get("device", "cpu")))
        except files.RunError as error:
            raise click.ClickException(str(error)) from error
        together = processes.Processes()
        self.first, self.restart, self.out = together.rank == 0, options.get("restart"), options["out"]
        self.silent = bool(options.get("cluster_job")) or not self.first
        self.board = None if options.get("cluster_job") or not self.first else options.get("tensorboard")
        if not options["experiment"].strip():
            raise click.BadParameter("a name is needed.", param_hint="'--experiment'")
        with usage_errors("--tracking-uri"):
            about = {"every": options.get("autolog_freq", 1), "command": command_line()}
            self.experiment = Experiment(options["tracking_uri"], options["experiment"], **about)
        self.experiment.off |= not self.first

        def prepare() -> data.Dataset:
            if self.board is not None:
                with usage_errors("--tensorboard"):
                    TensorBoard(self.board)
                _check_writable(self.board, "--tensorboard")
            _check_writable(self.out, "--out")
            announce(what, silent=self.silent)
            with usage_errors("--tracking-uri"):
                self.experiment.open()
            with usage_errors():
                names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
                return [data.load(name, options["data_dir"]) for name in names][-1]

        logging.basicConfig(format="%(message)s")
        self.dataset = together.first(prepare)

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
            tracker = Tracker.of_run(self.experiment, folder, config, parent)
            listeners: list[RunProgress | Tracker | TensorBoard] = [progress, tracker]
            if self.board is not None:
                listeners.append(board := TensorBoard(self.board / config.key))
                stack.callback(board.close)

            def on_epoch(epoch: Epoch) -> None:
                for each in listeners:
                    each.epoch(epoch)

            try:
                result = runs.run(
                    config,
                    self.dataset,
                    folder=folder,
                    device=self.device,
                    command=self.experiment.command,
                    on_epoch=on_epoch,
                    on_batch=progress.batch,
                )
            except runs.ERRORS as error:
                reason = f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
                if not isinstance(error, BlockingIOError):  # of the other process that trains it
                    tracker.failed(reason)
                raise click.ClickException(f"{config.title}, seed {config.seed}: {reason}") from error
            except RuntimeError as error:
                if not processes.is_lost_peer(error):
                    raise
                reason = "another process has ended; run the same command again to resume from the last epoch"
                raise click.ClickException(reason) from error
        tracker.finished(result)
        return result


def _check_writable(folder: Path, option: str) -> None:
    """Create a folder; a usage error if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"{folder} cannot be written to: {error.strerror}."
        raise click.BadParameter(reason, param_hint=f"'{option}'") from error


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            with files.locked(folder):
                shutil.rmtree(folder)
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be removed: {error.strerror or error}") from error


def _device(name: str) -> torch.device:
    gpus = torch.cuda.device_count()
    devices = ["cuda"] * (gpus > 0) + ["cpu"] + [f"cuda:{gpu}" for gpu in range(gpus)]
    if name not in ("auto", *devices):
        raise click.BadParameter(f"{name} is not a device of this machine.", param_hint="'--device'")
    return torch.device(devices[0] if name == "auto" else name)
