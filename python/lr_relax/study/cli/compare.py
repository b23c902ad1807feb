"""``lr-relax compare``: three losses over several seeds, a preset of the study's machinery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import compare as job
from .. import figures
from ..report import counted, grouped, padded, plus_minus
from .execution import Execution, RunProgress, execution_options, store_options
from .options import INTEGERS, NUMBER, Command, Decorator, option, run_option

DEFAULTS = {"out": Path("runs", "compare"), "threads": 1, "tracking_uri": "none"}


def _preset(name: str) -> str:
    """The defaults of an option for each data set, for the help."""
    return ", ".join(f"{preset[name]:g} on {dataset}" for dataset, preset in job.PRESETS.items())


def _task(name: str, type: Any, help: str, default: str) -> Decorator:
    return option(name, type=type, help=help, show_default=default, group="Task")


@click.command(cls=Command, short_help="Compare three losses.", context_settings={"default_map": DEFAULTS})
@run_option("dataset_name", "--dataset", choices=tuple(job.PRESETS), default="digits", show_default=True)
@_task("seeds", INTEGERS, "Seeds, as 0-4 or 0,2.", "0-9 on digits, 0-2 on fashion_mnist")
@_task("alpha", NUMBER, "Imprecision of label relaxation.", _preset("alpha"))
@_task("smoothing", NUMBER, "Weight of label smoothing.", _preset("smoothing"))
@run_option("epochs", show_default=_preset("epochs"))
@run_option("batch_size")
@run_option("initial_lr", show_default=_preset("initial_lr"))
@run_option("n_bins")
@run_option("test_run", show_default="True", help="Evaluate on test data; False for validation data.")
@execution_options
@store_options
def compare(dataset_name: str, **options: Any) -> None:
    """Compare label relaxation with cross-entropy and label smoothing.

    Trains the paper's dense network with each loss and seed, prints accuracy, expected calibration error and
    negative log-likelihood, and draws reliability diagrams.
    """
    names = ("seeds", "alpha", "smoothing", "epochs", "batch_size", "initial_lr", "n_bins", "test_run")
    configs = job.plan(dataset_name, **{n: options[n] for n in names if options[n] is not None})
    picture = options["out"] / f"reliability-{dataset_name}.png"
    execution = Execution(f"{dataset_name}: {counted([len(configs)], 'run')}", [dataset_name], options)
    progress = RunProgress(configs[0].epochs, runs=len(configs), silent=not execution.first)
    with progress.bar:
        runs = [execution.run(config, progress=progress) for config in configs]
    if not execution.first:
        return
    figures.save(figures.reliability(runs), picture)
    lines = [["loss", "accuracy", f"ECE ({configs[0].n_bins} bins)", "NLL"]]
    for loss, alike in grouped(runs, lambda run: run.title).items():
        lines.append([loss, *map(plus_minus, job.summarize(alike).values())])
    spread = f"mean ± standard deviation over {counted([len(alike)], 'seed')}"
    click.echo(f"{dataset_name}, {runs[0].n_eval} {configs[0].part} images, {spread}\n")
    click.echo("\n".join([*padded(lines), "", str(picture)]))
