"""``lr-relax grid``: many runs, on this machine or a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click

from .. import data, engines, models
from .. import grid as job
from ..config import RunConfig
from ..engines import EngineError, Outcome
from ..folder import Result
from ..report import counted
from .execution import (
    Tracking,
    announce,
    console,
    load,
    out_options,
    progress_bar,
    tracking_options,
    writable,
)
from .options import (
    INTEGERS,
    LOSSES,
    NUMBER,
    Command,
    Decorator,
    Parsed,
    choice,
    command_line,
    list_of,
    option,
    read_config,
    run_options,
)


def _parameter(text: str) -> tuple[str, str | int | float | bool]:
    """A parameter of submitit, as slurm_partition=gpu."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(f"{text!r} is not of the form key=value")
    if key in ("jobs", "workers", "folder", "gpu_share", "cluster"):  # the engine's own
        raise ValueError(f"{key!r} is not a parameter of submitit")
    if key == "slurm_setup":  # lines of a shell
        return key, value
    for number in (int, float):
        with suppress(ValueError):
            if value[0].isdigit() and str(number(value)) == value:  # but not an account 007
                return key, number(value)
    return key, {"true": True, "false": False}.get(value.lower(), value)


def _runs(name: str, type: click.ParamType, default: str | None, help: str) -> Decorator:  # type: ignore[type-arg]
    return option(name, type=type, default=default, show_default=True, help=help, group="Runs")


def _of_engine(name: str, type: Any, help: str, **known: Any) -> Decorator:
    return option(name, type=type, help=help, group="Engine", **{"show_default": True, **known})


_NAMES = list_of("name", choice(models.NAMES)), list_of("name", choice(data.DATASETS))
_LOSSES_HELP = "Losses; with an alpha, as lr:0.1,cross_entropy:0, or with all of the paper's."
_BEST_HELP = "Then test, for each seed, the alphas that are best on validation data by accuracy, ece or both."
_SHARE_HELP = "Part of a GPU for each run: 1 for a whole one, 0.25 if four share one, 0 for the CPU."


@click.command(cls=Command, short_help="Train many runs, here or on a cluster.")
@_runs("models", _NAMES[0], "simple_dense", f"Networks, of {', '.join(models.NAMES)}.")
@_runs("datasets", _NAMES[1], "fashion_mnist", f"Data sets, of {', '.join(data.DATASETS)}.")
@_runs("losses", LOSSES, "label_relaxation,cross_entropy", _LOSSES_HELP)
@_runs("seeds", INTEGERS, "0-4", "Seeds, as 0-4 or 0,2.")
@_runs("test_best", list_of("metric", choice(job.CRITERIA)), None, _BEST_HELP)
@run_options("model_name", "dataset_name", "loss_name", "alpha", "seed")
@_of_engine("engine", click.Choice(("local", "slurm", "ray")), "Where to train.", default="local")
@_of_engine(
    "workers", click.IntRange(1, 100_000), "Runs at a time, each with one thread.", default=os.cpu_count()
)
@_of_engine("gpu_share", NUMBER, _SHARE_HELP, default=0.0)
@_of_engine("ray_address", str, "The Ray cluster, as ray://host:10001.", show_default="a new one here")
@_of_engine("slurm", Parsed("key=value", _parameter), "Of submitit, as slurm_partition=gpu.", multiple=True)
@out_options(Path("runs", "study"))
@tracking_options()
def grid(**options: Any) -> None:
    """Train networks x data sets x losses x alphas x seeds, except finished runs.

    A run that fails, or whose worker dies, does not affect the others; the same command tries it again.
    """
    configs = _configs(options)
    engine = _engine(options)
    criteria = options["test_best"] or ()
    if criteria and options["test_run"]:
        raise click.BadParameter("there are no validation runs with --test-run.", param_hint="'--test-best'")
    name = f"grid · {counted([len(configs)], 'run')} · {options['out'].name}"
    announce(name)
    logging.basicConfig(format="%(message)s")
    out = writable(options["out"])
    for dataset in options["datasets"]:
        load(dataset, options["data_dir"])  # errors appear now, and files are downloaded once
    tracking = Tracking.prepare(options)
    parent = tracking.parent(out, "grid", name, {"engine": options["engine"], "workers": options["workers"]})
    finished: list[Result] = []
    failed: list[Outcome] = []

    def run(todo: Sequence[RunConfig]) -> None:
        with progress_bar(len(todo)) as progress:
            [task] = progress.task_ids
            try:
                for outcome in job.run(todo, out, options["data_dir"], command_line(), engine):
                    tracking.outcome(outcome, parent.run_id)
                    key, result = outcome.job.config.key, outcome.result
                    if result is None:
                        failed.append(outcome)
                        progress.console.print(f"{key}: {outcome.error}")
                    else:
                        finished.append(result)
                        if progress.disable:  # there is no bar
                            metrics = f"accuracy {result.accuracy:.4f}  ECE {result.ece:.4f}"
                            progress.console.print(f"{key}: {metrics}")
                    progress.update(task, advance=1, status=f"{len(failed)} failed" if failed else "")
            except EngineError as error:
                parent.failed(str(error))
                raise _refused(error) from error

    run(configs)
    if criteria:
        run(job.best_tested(finished, criteria))
    parent.finished(metrics={"finished": len(finished), "failed": len(failed)})
    unfinished = f", {len(failed)} failed" if failed else ""
    console().print(f"{counted([len(finished)], 'run')} in {out}{unfinished}")
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


def _refused(error: EngineError) -> click.BadParameter:
    return click.BadParameter(f"{error}.", param_hint=f"'--{error.argument.replace('_', '-')}'")


def _engine(options: dict[str, Any]) -> job.Engine:
    engine, workers, share = options["engine"], options["workers"], options["gpu_share"]
    if not 0 <= share <= 1:
        raise click.BadParameter("expected a number in [0, 1].", param_hint="'--gpu-share'")
    for name, of in (("slurm", "slurm"), ("ray_address", "ray")):
        if options[name] and engine != of:
            reason = f"it needs --engine {of}, but got {engine}."
            raise click.BadParameter(reason, param_hint=f"'--{name.replace('_', '-')}'")
    try:
        engines.check(engine, workers, share, address=options["ray_address"])
    except EngineError as error:
        raise _refused(error) from error
    if engine == "ray":
        return partial(engines.ray, workers=workers, gpu_share=share, address=options["ray_address"])
    parameters: dict[str, Any] = dict(options["slurm"])
    if "slurm_setup" in parameters:  # the only one that can be repeated
        parameters["slurm_setup"] = [line for key, line in options["slurm"] if key == "slurm_setup"]
    submit, folder = getattr(engines, engine), options["out"] / "jobs"
    return partial(submit, workers=workers, gpu_share=share, folder=folder, **parameters)
