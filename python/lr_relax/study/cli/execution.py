"""Training of runs for a command: options, checks before the training, progress, tracking."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress

from .. import data, files, processes, tracking
from .. import run as runs
from ..config import RunConfig
from ..folder import Result
from ..tracking import Experiment, TensorBoard, Tracker
from ..training import Epoch
from .options import FOLDER, POSITIVE, all_of, command_line, option, switch

_files = partial(option, group="Files", type=FOLDER)
_execution = partial(option, group="Execution")
_tracking = partial(option, group="Tracking")
_OUT = "Folder of the runs: interrupted runs are resumed, finished ones are not repeated."
_URI = "MLflow's store or server, as http://host:5000; none turns tracking off."
_URIS = "MLFLOW_TRACKING_URI or sqlite:///mlflow.db; none without MLflow and in compare"
_DEVICE = "cpu, cuda, cuda:1, ...; auto prefers cuda."
_THREADS = "CPU threads; they change the rounding."

store_options = all_of(
    _files("data_dir", default=Path("data"), show_default=True, help="Folder of the data sets' files."),
    _files("out", default=Path("runs", "study"), show_default=True, help=_OUT),
    _tracking("tracking_uri", show_default=_URIS, help=_URI),
    _tracking("experiment", default=tracking.EXPERIMENT, show_default=True, help="Name of the experiment."),
)
execution_options = all_of(
    switch("restart", "Train again, even finished runs.", group="Execution"),
    _execution("device", default="auto", show_default=True, help=_DEVICE),
    _execution("threads", type=click.IntRange(1, 1024), show_default="torch's; 1 in compare", help=_THREADS),
)
study_options = all_of(
    execution_options,
    switch("cluster_job", "Print only the result, and write no TensorBoard logs.", group="Execution"),
    store_options,
    _tracking("autolog_freq", type=POSITIVE, default=1, show_default=True, help="Track every nth epoch."),
    _tracking("tensorboard", type=FOLDER, help="Write TensorBoard logs to this folder."),
)


def progress_bar(total: int, *, silent: bool = False) -> Progress:
    """A progress bar with one task on stderr, hidden if that is not a terminal."""
    plain = {"soft_wrap": True, "markup": False, "emoji": False, "highlight": False}
    terminal = Console(stderr=True, quiet=silent, **plain)  # type: ignore[arg-type]
    progress = Progress(console=terminal, transient=True, disable=silent or not terminal.is_terminal)
    progress.add_task("", total=total)
    return progress


class RunProgress:
    """Progress of one or more runs: a bar on a terminal, and a line per epoch or run."""

    def __init__(self, epochs: int, *, runs: int = 1, silent: bool) -> None:
        self.epochs, self.runs, self.bar = epochs, runs, progress_bar(epochs * runs, silent=silent)
        self.before = -epochs  # of former runs

    def begin(self, config: RunConfig) -> None:
        self.before += self.epochs
        title = f"{config.title}, seed {config.seed}"
        self.bar.update(self.bar.task_ids[0], description=title, completed=self.before)
        if self.runs > 1:
            self.bar.console.print(f"run {self.before // self.epochs + 1}/{self.runs}  {title}")

    def batch(self, done: float) -> None:
        self.bar.update(self.bar.task_ids[0], completed=self.before + done)

    def epoch(self, epoch: Epoch) -> None:
        """Print the metrics of an epoch of a single run."""
        self.batch(epoch.epoch + 1)
        if self.runs == 1:
            line = f"epoch {epoch.epoch + 1}/{self.epochs}  loss {epoch.loss:.4f}"
            line += f"  accuracy {epoch.accuracy:.4f}"
            if epoch.val_accuracy is not None:
                line += f"  validation accuracy {epoch.val_accuracy:.4f}  ECE {epoch.val_ece:.4f}"
            self.bar.console.print(f"{line}  {epoch.seconds:.1f} s")


class Execution:
    """Trains the runs of a command; everything is checked, and the data are loaded, before the training.

    Of several processes that train together the ``first`` prints, tracks and writes.
    """

    def __init__(self, what: str, dataset_names: Sequence[str], options: Mapping[str, Any]) -> None:
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        self.device = processes.start(_device(options.get("device", "cpu")))
        together = processes.Processes()
        self.first, self.restart, self.out = together.rank == 0, options.get("restart"), options["out"]
        self.silent = bool(options.get("cluster_job")) or not self.first
        self.board = None if options.get("cluster_job") or not self.first else options.get("tensorboard")
        about = {"every": options.get("autolog_freq", 1), "command": command_line()}
        self.experiment = Experiment(options["tracking_uri"], options["experiment"], **about)
        self.experiment.off |= not self.first

        def prepare() -> data.Dataset:
            if self.board is not None:
                TensorBoard(self.board)
                self.board.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=self.board).close()  # OSError if it cannot be written to
            self.out.mkdir(parents=True, exist_ok=True)
            if not self.silent:  # before slow imports
                click.echo(f"{what}: preparing", err=True)
            self.experiment.open()
            return [data.load(name, options["data_dir"]) for name in dataset_names][-1]

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
                if not isinstance(error, BlockingIOError):  # of the other process that trains it
                    tracker.failed(str(error))
                raise click.ClickException(f"{config.title}, seed {config.seed}: {error}") from error
            except RuntimeError as error:
                if not processes.is_lost_peer(error):
                    raise
                reason = "another process has ended; run the same command again to resume from the last epoch"
                raise click.ClickException(reason) from error
        tracker.finished(result)
        return result


def _remove(folder: Path) -> None:
    with files.locked(folder):
        shutil.rmtree(folder)


def _device(name: str) -> torch.device:
    gpus = torch.cuda.device_count()
    devices = ["cuda"] * (gpus > 0) + ["cpu"] + [f"cuda:{gpu}" for gpu in range(gpus)]
    if name not in ("auto", *devices):
        raise click.BadParameter(f"{name} is not a device of this machine.", param_hint="'--device'")
    return torch.device(devices[0] if name == "auto" else name)
