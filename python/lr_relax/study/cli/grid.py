"""``lr-relax grid``: many runs, on this machine or a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

import click

from .. import data, engines, models
from .. import grid as job
from ..config import RunConfig
from ..engines import Outcome
from ..folder import Result
from ..report import counted
from ..tracking import Experiment, Tracker
from .execution import Execution, progress_bar, store_options
from .options import (
    INTEGERS,
    LOSSES,
    NUMBER,
    Command,
    Parsed,
    choice,
    list_of,
    option,
    read_config,
    run_options,
)


def _parameter(text: str) -> tuple[str, Any]:
    """A parameter of submitit, as slurm_partition=gpu."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(f"{text!r} is not of the form key=value")
    if key in ("jobs", "workers", "folder", "gpu_share", "cluster"):  # the engine's own
        raise ValueError(f"{key!r} is not a parameter of submitit")
    with suppress(ValueError):
        if key != "slurm_setup":  # a line of a shell
            return key, json.loads(value.lower() if value in ("True", "False") else value)
    return key, value


_runs = partial(option, show_default=True, group="Runs")
_engine = partial(option, show_default=True, group="Engine")
_NAMES = list_of("name", choice(models.NAMES)), list_of("name", choice(data.DATASETS))
_LOSSES_HELP = "Losses; with an alpha, as lr:0.1,cross_entropy:0, or with all of the paper's."
_BEST_HELP = "Then test, for each seed, the alphas that are best on validation data by accuracy, ece or both."
_WORKERS_HELP = "Runs at a time, each with one thread."
_SLURM_HELP = "Of submitit, as slurm_partition=gpu."
_SHARE_HELP = "Part of a GPU for each run: 1 for a whole one, 0.25 if four share one, 0 for the CPU."


@click.command(cls=Command, short_help="Train many runs, here or on a cluster.")
@_runs("models", type=_NAMES[0], default="simple_dense", help=f"Networks, of {', '.join(models.NAMES)}.")
@_runs("datasets", type=_NAMES[1], default="fashion_mnist", help=f"Data sets, of {', '.join(data.DATASETS)}.")
@_runs("losses", type=LOSSES, default="label_relaxation,cross_entropy", help=_LOSSES_HELP)
@_runs("seeds", type=INTEGERS, default="0-4", help="Seeds, as 0-4 or 0,2.")
@_runs("test_best", type=list_of("metric", choice(job.CRITERIA)), help=_BEST_HELP)
@run_options("model_name", "dataset_name", "loss_name", "alpha", "seed")
@_engine("engine", type=click.Choice(("local", "slurm", "ray")), default="local", help="Where to train.")
@_engine("workers", type=click.IntRange(1, 100_000), default=os.cpu_count(), help=_WORKERS_HELP)
@_engine("gpu_share", type=NUMBER, default=0.0, help=_SHARE_HELP)
@_engine("ray_address", show_default="a new one here", help="The Ray cluster, as ray://host:10001.")
@_engine("slurm", type=Parsed("key=value", _parameter), multiple=True, help=_SLURM_HELP)
@store_options
def grid(**options: Any) -> None:
    """Train networks x data sets x losses x alphas x seeds, except finished runs.

    A run that fails, or whose worker dies, does not affect the others; the same command tries it again.
    """
    configs, engine = _configs(options), _engine_of(options)
    criteria = options["test_best"] or ()
    if criteria and options["test_run"]:
        raise click.BadParameter("there are no validation runs with --test-run.", param_hint="'--test-best'")
    name = f"grid · {counted([len(configs)], 'run')} · {options['out'].name}"
    execution = Execution(name, options["datasets"], options)  # the files are downloaded once
    experiment, out = execution.experiment, execution.out
    params = {"engine": options["engine"], "workers": options["workers"]}
    parent = Tracker(experiment, out, name, params, kind="grid")
    finished: list[Result] = []
    failed: list[Outcome] = []

    def run(todo: Sequence[RunConfig]) -> None:
        with progress_bar(len(todo)) as progress:
            for outcome in job.run(todo, out, options["data_dir"], experiment.command, engine):
                line, result = outcome.error, outcome.result
                _track(outcome, experiment, parent.run_id)
                if result is None:
                    failed.append(outcome)
                else:
                    finished.append(result)
                    line = f"accuracy {result.accuracy:.4f}  ECE {result.ece:.4f}"
                progress.console.print(f"{outcome.job.config.key}: {line}")
                progress.advance(progress.task_ids[0])

    try:
        run(configs)
        if criteria:
            run(job.best_tested(finished, criteria))
    except engines.EngineError as error:
        parent.failed(str(error))
        raise
    parent.end({}, {"finished": len(finished), "failed": len(failed)})
    click.echo(f"{counted([len(finished)], 'run')} in {out}")
    if failed:
        raise click.ClickException(f"{counted([len(failed)], 'run')} failed; the same command tries again")


def _configs(options: dict[str, Any]) -> list[RunConfig]:
    grids = job.LEGACY_GRIDS if "grid" in options["legacy"] else job.GRIDS
    lists = (options["models"], options["datasets"], options["losses"], options["seeds"])
    configs = [
        read_config(options, model_name=model, dataset_name=dataset, loss_name=loss, alpha=value, seed=seed)
        for model, dataset, (loss, alpha), seed in product(*lists)
        for value in (grids[loss] if alpha is None else (alpha,))
    ]
    if not configs:
        raise click.UsageError("there are no runs: a list is empty")
    return configs


def _engine_of(options: dict[str, Any]) -> job.Engine:
    engine, workers, share = options["engine"], options["workers"], options["gpu_share"]
    for name, of in (("slurm", "slurm"), ("ray_address", "ray")):
        if options[name] and engine != of:
            reason = f"it needs --engine {of}, but got {engine}."
            raise click.BadParameter(reason, param_hint=f"'--{name.replace('_', '-')}'")
    engines.check(engine, workers, share, address=options["ray_address"])
    if engine == "ray":
        return partial(engines.ray, workers=workers, gpu_share=share, address=options["ray_address"])
    parameters: dict[str, Any] = dict(options["slurm"])
    if "slurm_setup" in parameters:  # the only one that can be repeated
        parameters["slurm_setup"] = [line for key, line in options["slurm"] if key == "slurm_setup"]
    submit, folder = getattr(engines, engine), options["out"] / "jobs"
    return partial(submit, workers=workers, gpu_share=share, folder=folder, **parameters)


def _track(outcome: Outcome, experiment: Experiment, parent: str) -> None:
    """Track a run that an engine has trained, but not one that another process trains."""
    if outcome.elsewhere:
        return
    tracker = Tracker.of_run(experiment, outcome.job.folder, outcome.job.config, parent)
    if outcome.result is None:
        tracker.failed(outcome.error)
    else:
        for epoch in outcome.result.history:
            tracker.epoch(epoch)
        tracker.finished(outcome.result)
