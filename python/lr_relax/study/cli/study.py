"""``lr-relax study`` and ``lr-relax study-ho``: the two scripts of the paper's code, with its options.

Source: Lienen and Hüllermeier, AAAI 2021, https://github.com/julilien/LabelRelaxation.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from .. import data, processes, search
from ..atomic import occupied
from ..checkpoint import CheckpointError
from ..config import RunConfig
from ..mlflow_store import TrackingError
from ..results import Result, ResultError
from ..run import RunDivergedError, RunError, run
from ..tracking import TensorBoard, final_metrics
from ..training import Epoch
from .execution import Tracking, command_line, load, out_options, tracking_options, writable
from .options import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    Command,
    List,
    OneLineErrorsCommand,
    option,
    read_config,
    run_options,
    switch,
)
from .terminal import RunProgress, console

_EXECUTION = [
    out_options(Path("runs", "study")),
    switch("restart", "Train anew, even what has finished."),
    tracking_options,
    option(
        "autolog_freq",
        type=AT_LEAST_ONE,
        default=1,
        show_default=True,
        help="Track every nth epoch.",
    ),
    option(
        "tensorboard", type=click.Path(path_type=Path), help="Write logs for TensorBoard to this folder, too."
    ),
    switch("cluster_job", "Show nothing but the result, and write no logs for TensorBoard."),
    option(
        "device",
        default="auto",
        show_default=True,
        help="Where to train: cpu, cuda, cuda:1, ...; auto is cuda where it is there.",
    ),
    option(
        "threads",
        type=click.IntRange(min=1, max=1024),
        show_default="torch's",
        help="Of the CPU; results differ in rounding.",
    ),
]


def execution_options(command: Command) -> Command:
    """The options that tell how and where to run, and do not change the result."""
    for decorator in reversed(_EXECUTION):
        command = decorator(command)
    return command


class Diverged(click.ClickException):
    """A run has failed by its own hyperparameters; others need not."""


@dataclass(frozen=True)
class Execution:
    """How and where to run; made before anything is trained, so that what is wrong with it is told first."""

    dataset: data.Dataset
    out: Path
    tracking: Tracking
    tensorboard: Path | None
    device: torch.device
    restart: bool
    silent: bool
    first: bool
    """Whether this is the first of the processes that train together: the one that tells and keeps."""
    command: str

    @classmethod
    def prepare(cls, dataset_name: str, options: dict[str, Any]) -> Execution:
        """Check all that can be wrong, load the data, join the other processes."""
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        device = _device(options["device"])
        try:
            device = processes.start(device)
        except processes.ProcessesError as error:
            raise click.ClickException(str(error)) from error
        together = processes.Processes()
        first = together.rank == 0
        tensorboard = None if options["cluster_job"] else options["tensorboard"]
        if tensorboard is not None:
            try:
                TensorBoard(tensorboard)
            except TrackingError as error:
                raise click.UsageError(str(error)) from error
            together.first(lambda: writable(tensorboard, "--tensorboard"))
        out = together.first(lambda: writable(options["out"]))
        tracks = together.first(lambda: Tracking.prepare(options))
        return cls(
            dataset=together.first(lambda: load(dataset_name, options["data_dir"])),
            out=out,
            tracking=tracks if first else Tracking(None, tracks.experiment),
            tensorboard=tensorboard if first else None,
            device=device,
            restart=bool(options["restart"]),
            silent=bool(options["cluster_job"]) or not first,
            first=first,
            command=command_line(),
        )

    def run(self, config: RunConfig, parent: str = "") -> Result:
        """Run, or go on with, or read the result of, what has been run before."""
        folder = self.out / config.key
        if self.restart:
            processes.Processes().first(lambda: _remove(folder))
        tracker = self.tracking.run(config, folder, self.command, parent)
        board = None if self.tensorboard is None else TensorBoard(self.tensorboard / config.key)
        title = f"{config.title}, seed {config.seed}"

        def on_epoch(epoch: Epoch) -> None:
            progress.epoch(epoch)
            tracker.epoch(epoch)
            if board is not None:
                board.epoch(epoch)

        with ExitStack() as stack:
            progress = stack.enter_context(RunProgress(title, config.epochs, silent=self.silent))
            if board is not None:
                stack.callback(board.close)
            try:
                result = run(
                    config,
                    self.dataset,
                    folder=folder,
                    device=self.device,
                    command=self.command,
                    on_epoch=on_epoch,
                    on_batch=progress.batch,
                )
            except (RunError, ResultError, CheckpointError, OSError) as error:
                reason = f"{folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
                if not isinstance(error, BlockingIOError):  # of the other process that trains it
                    tracker.failed(reason)
                failure = Diverged if isinstance(error, RunDivergedError) else click.ClickException
                raise failure(f"{title}: {reason}") from error
            except RuntimeError as error:
                if not processes.is_loss_of_another(error):
                    raise
                raise click.ClickException(
                    "another of the processes has ended; start again to go on from the last epoch"
                ) from error
        tracker.finished(result)
        return result


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    try:
        with occupied(folder):
            shutil.rmtree(folder)
    except OSError as error:
        reason = error.strerror or error
        raise click.ClickException(f"{folder} cannot be removed: {reason}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError  # others lack float64, or hold no numbers at all
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(
            f"{name} is not a device of this machine.", param_hint="'--device'"
        ) from error
    return device


@click.command(cls=OneLineErrorsCommand, short_help="Train and evaluate a network.")
@run_options()
@execution_options
def study(**options: Any) -> None:
    """Train and evaluate a network: the script lr_study of the paper's code.

    Every option can be written with - or _, and truth values as --test_run or --test_run True.
    """
    config = read_config(options)
    execution = Execution.prepare(config.dataset_name, options)
    result = execution.run(config)
    if execution.first:
        _print(result, execution.out / config.key)


@click.command("study-ho", cls=OneLineErrorsCommand, short_help="Choose a loss's alpha, then test it.")
@run_options("alpha", "test_run")
@switch("optimize_ece", "Choose the alpha by the calibration error, not by the accuracy.")
@option(
    "alphas",
    type=List(NOT_NEGATIVE),
    show_default="the paper's",
    help="The alphas to choose from, as 0.1,0.2.",
)
@switch("legacy_grid", "Leave plain cross-entropy out of cross_entropy's alphas, as the paper's code does.")
@execution_options
def study_ho(**options: Any) -> None:
    """Choose a loss's alpha on validation data, then test: the script lr_study_ho of the paper's code."""
    config = read_config(options, alpha=0.0, test_run=False)
    grids = search.LEGACY_GRIDS if options["legacy_grid"] else search.GRIDS
    alphas = options["alphas"] or grids[config.loss_name]
    try:
        candidates = search.candidates(config, alphas)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--alphas'") from error
    by_ece = bool(options["optimize_ece"])
    execution = Execution.prepare(config.dataset_name, options)
    of_this_search = {"optimize_ece": by_ece, "alphas": ",".join(f"{alpha:g}" for alpha in alphas)}
    digest = hashlib.sha256(repr(of_this_search).encode()).hexdigest()[:8]
    parent = execution.tracking.parent(
        execution.out / f"search-{config.key}-{digest}",
        "search",
        {
            **{name: value for name, value in config.to_dict().items() if name not in ("alpha", "test_run")},
            **of_this_search,
        },
        execution.command,
    )
    try:
        best = search.best(_candidates(execution, candidates, parent.run_id), by_ece=by_ece).config
        result = execution.run(search.final(best), parent.run_id)
    except click.ClickException as error:
        parent.failed(error.message)
        raise
    parent.finished(params={"alpha": best.alpha}, metrics={"alpha": best.alpha, **final_metrics(result)})
    if execution.first:
        _print(result, execution.out / result.config.key)


def _candidates(execution: Execution, configs: Sequence[RunConfig], parent: str) -> list[Result]:
    """The results of all that do not diverge."""
    results, told = [], console(stderr=True, quiet=execution.silent)
    for config in configs:
        try:
            results.append(execution.run(config, parent))
        except Diverged as failure:
            if execution.first:
                failure.show()
            continue
        told.print(
            f"{config.title}, seed {config.seed}: validation accuracy {results[-1].accuracy:.4f}  "
            f"ECE {results[-1].ece:.4f}"
        )
    if not results:
        raise click.ClickException("none of the alphas has a result to choose by")
    return results


def _print(result: Result, folder: Path) -> None:
    show, config = console().print, result.config
    evaluated = "test" if config.test_run else "validation"
    temperature = "" if result.temperature is None else f"  temperature {result.temperature:.4g}"
    show(
        f"{config.model_name} on {config.dataset_name}, {config.title}, seed {config.seed}, "
        f"{result.n_eval} {evaluated} images:"
    )
    show(
        f"accuracy {result.accuracy:.4f}  ECE {result.ece:.4f}  NLL {result.nll:.4f}  "
        f"Brier score {result.brier:.4f}{temperature}"
    )
    show(f"{result.seconds:.1f} s, {folder}")
