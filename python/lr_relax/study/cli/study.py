"""``lr-relax study`` and ``lr-relax study-ho``: the two scripts of the paper's code, with its options.

Source: Lienen and Hüllermeier, AAAI 2021, https://github.com/julilien/LabelRelaxation.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console

from .. import data, processes, search
from ..checkpoint import CheckpointError
from ..config import RunConfig
from ..results import Result, ResultError
from ..run import RunError, run
from ..training import Batch, Epoch
from .options import (
    NOT_NEGATIVE,
    List,
    OneLineErrorsCommand,
    option,
    read_config,
    run_options,
    switch,
)
from .terminal import RunProgress

Command = TypeVar("Command", bound=Callable[..., Any])

_EXECUTION = [
    option(
        "data_dir",
        type=click.Path(path_type=Path),
        default=Path("data"),
        show_default=True,
        help="Where the data set's files are, or are put.",
    ),
    option(
        "out",
        type=click.Path(path_type=Path),
        default=Path("runs", "study"),
        show_default=True,
        help="Every run has a folder here: an interrupted run goes on, a finished one is not repeated.",
    ),
    switch("restart", "Train anew what is in the folder."),
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
    switch("cluster_job", "Show nothing but the result and write no TensorBoard logs."),
]


def execution_options(command: Command) -> Command:
    """The options that tell how and where to run, and do not change the result."""
    for decorator in reversed(_EXECUTION):
        command = decorator(command)
    return command


@dataclass
class Execution:
    """How and where to run; made before anything is trained, so that what is wrong with it is told first."""

    out: Path
    data_dir: Path
    device: torch.device
    silent: bool
    restart: bool
    dataset: data.Dataset
    first: bool

    @classmethod
    def prepare(cls, dataset_name: str, options: dict[str, Any]) -> Execution:
        """Join the other processes, load the data, see that results can be kept."""
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        device = _device(options["device"])
        try:
            device = processes.start(device)
        except processes.ProcessesError as error:
            raise click.ClickException(str(error)) from error
        together, out = processes.Processes(), options["out"]
        try:
            dataset = together.first(lambda: data.load(dataset_name, options["data_dir"]))
        except data.DataError as error:
            raise click.UsageError(str(error)) from error

        def probe() -> None:
            out.mkdir(parents=True, exist_ok=True)
            file = out / ".writable"
            file.touch()
            file.unlink(missing_ok=True)

        try:
            together.first(probe)
        except OSError as error:
            raise click.BadParameter(
                f"{out} cannot be written to: {error.strerror}.", param_hint="'--out'"
            ) from error
        return cls(
            out=out,
            data_dir=options["data_dir"],
            device=device,
            silent=bool(options["cluster_job"]) or together.rank > 0,
            restart=bool(options["restart"]),
            dataset=dataset,
            first=together.rank == 0,
        )

    def run(self, config: RunConfig) -> Result:
        """Run, or go on with, or read the result of what has been run before."""
        folder = self.out / config.key
        if self.restart and self.first:
            shutil.rmtree(folder, ignore_errors=True)
        with RunProgress(
            f"{config.title}, seed {config.seed}", config.epochs, silent=self.silent
        ) as progress:

            def on_epoch(epoch: Epoch) -> None:
                progress.epoch(epoch)

            def on_batch(batch: Batch) -> None:
                progress.batch(batch)

            try:
                return run(
                    config,
                    self.dataset,
                    folder=folder,
                    device=self.device,
                    command=shlex.join(["lr-relax", *sys.argv[1:]]),
                    on_epoch=on_epoch,
                    on_batch=on_batch,
                )
            except (RunError, ResultError, CheckpointError) as error:
                raise click.ClickException(f"{config.title}, seed {config.seed}: {error}") from error
            except OSError as error:
                raise click.ClickException(f"{folder}: {error.strerror}") from error
            except RuntimeError as error:
                if not processes.is_loss_of_another(error):
                    raise
                raise click.ClickException(
                    "another of the processes has ended; start again to go on from the last epoch"
                ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(
            f"{name} is not a device of this machine.", param_hint="'--device'"
        ) from error
    return device


@click.command(cls=OneLineErrorsCommand)
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


@click.command("study-ho", cls=OneLineErrorsCommand)
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
    execution = Execution.prepare(config.dataset_name, options)
    results = [execution.run(candidate) for candidate in candidates]
    best = search.best(results, by_ece=bool(options["optimize_ece"]))
    final = search.final(best.config)
    result = execution.run(final)
    if execution.first:
        _print(result, execution.out / final.key)


def _print(result: Result, folder: Path) -> None:
    console = Console(soft_wrap=True, highlight=False)
    config = result.config
    evaluated = "test" if config.test_run else "validation"
    temperature = "" if result.temperature is None else f"  temperature {result.temperature:.4g}"
    console.print(
        f"{config.model_name} on {config.dataset_name}, {config.title}, seed {config.seed}, "
        f"{result.n_eval} {evaluated} images:"
    )
    console.print(
        f"accuracy {result.accuracy:.4f}  ECE {result.ece:.4f}  NLL {result.nll:.4f}  "
        f"Brier score {result.brier:.4f}{temperature}"
    )
    console.print(f"{result.seconds:.1f} s, {folder}")
