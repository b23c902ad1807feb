"""``lr-relax compare``: three losses over several seeds, a preset of the study's machinery."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from .. import compare as job
from .. import figures
from ..folder import Result
from ..report import counted, plus_minus
from .execution import Execution, RunProgress, console, execution_options, out_options, tracking_options
from .options import INTEGERS, NUMBER, Command, Decorator, all_of, option, run_option


def _preset(name: str) -> str:
    """The defaults of an option for each data set, for the help."""
    return ", ".join(f"{preset[name]:g} on {dataset}" for dataset, preset in job.PRESETS.items())


def _task(name: str, type: Any, help: str, default: str) -> Decorator:
    return option(name, type=type, help=help, show_default=default, group="Task")


@click.command(cls=Command, short_help="Compare three losses.")
@run_option("dataset_name", "--dataset", choices=tuple(job.PRESETS), default="digits", show_default=True)
@_task("seeds", INTEGERS, "Seeds, as 0-4 or 0,2.", "0-9 on digits, 0-2 on fashion_mnist")
@_task("alpha", NUMBER, "Imprecision of label relaxation.", _preset("alpha"))
@_task("smoothing", NUMBER, "Weight of label smoothing.", _preset("smoothing"))
@run_option("epochs", show_default=_preset("epochs"))
@run_option("batch_size")
@run_option("initial_lr", show_default=_preset("initial_lr"))
@run_option("n_bins")
@run_option("test_run", show_default="True", help="Evaluate on test data; False for validation data.")
@all_of(out_options(None, "runs/compare-<dataset>"), execution_options, tracking_options("none"))
def compare(dataset_name: str, **options: Any) -> None:
    """Compare label relaxation with cross-entropy and label smoothing.

    Trains the paper's dense network with each loss and seed, prints accuracy, expected calibration error and
    negative log-likelihood, and draws reliability diagrams.
    """
    names = ("seeds", "alpha", "smoothing", "epochs", "batch_size", "initial_lr", "n_bins", "test_run")
    configs = job.plan(dataset_name, **{n: options[n] for n in names if options[n] is not None})
    options["out"] = out = options["out"] or Path("runs", f"compare-{dataset_name}")
    options["threads"] = threads = options["threads"] or 1  # a batch of 64 gains little from more
    picture = out / "reliability.png"
    execution = Execution(f"{dataset_name}: {counted([len(configs)], 'run')}", dataset_name, options)
    start = time.perf_counter()
    progress = RunProgress(configs[0].epochs, runs=len(configs), silent=not execution.first)
    with progress.bar:
        runs = [execution.run(config, progress=progress) for config in configs]
    seconds = time.perf_counter() - start
    if not execution.first:
        return
    try:
        figures.save(figures.reliability(runs), picture)
    except OSError as error:
        raise click.ClickException(f"{picture} cannot be written: {error.strerror}") from error
    show = console().print
    show(_table(runs))
    show(f"{counted([len(runs)], 'run')} in {seconds:.1f} s on {threads} of {os.cpu_count()} threads")
    show(f"{out}, {picture}")


def _table(runs: list[Result]) -> Table:
    config, losses = runs[0].config, dict.fromkeys(run.config.title for run in runs)
    seeds = len(runs) // len(losses)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"{config.dataset_name}, {runs[0].n_eval} {config.part} images, {spread}")
    table.add_column("loss")
    for heading in ("accuracy", f"ECE ({config.n_bins} bins)", "NLL"):
        table.add_column(heading, justify="right")
    for loss in losses:
        summary = job.summarize([run for run in runs if run.config.title == loss])
        table.add_row(loss, *map(plus_minus, summary.values()))
    return table
