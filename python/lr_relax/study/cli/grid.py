"""``lr-relax grid``: many runs, here or on a cluster, tracked as they finish."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click

from .. import data, engines, models, search
from .. import grid as job
from ..config import RunConfig
from ..engines import EngineError, Outcome
from ..results import Result
from ..summary import counted
from .execution import Tracking, command_line, load, out_options, tracking_options, writable
from .options import (
    LOSS_NAMES,
    Integers,
    List,
    Number,
    OneLineErrorsCommand,
    option,
    read_config,
    run_options,
    switch,
)
from .terminal import console, progress_bar


class LossAndAlphas(click.ParamType):  # type: ignore[type-arg]
    """A loss, or a loss and an alpha as in lr:0.1."""

    name = "loss[:alpha]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float | None]:
        if isinstance(value, tuple):
            return value
        loss, colon, alpha = value.partition(":")
        if loss.lower() not in LOSS_NAMES:
            self.fail(f"{loss!r} is not one of {', '.join(LOSS_NAMES)}.", param, ctx)
        try:
            return LOSS_NAMES[loss.lower()], float(alpha) if colon else None
        except ValueError:
            self.fail(f"{alpha!r} is not a number.", param, ctx)


class KeyValue(click.ParamType):  # type: ignore[type-arg]
    """A parameter of submitit, as slurm_partition=gpu."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | int | float | bool]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not (key and equals and text):
            self.fail(f"{value!r} is not of the form key=value.", param, ctx)
        if key in ("jobs", "workers", "folder", "gpu_share"):  # the engine's own
            self.fail(f"{key!r} is not a parameter of submitit.", param, ctx)
        if key == "slurm_setup":  # lines of a shell
            return key, text
        for number in (int, float):
            with suppress(ValueError):
                if text[0].isdigit() and str(number(text)) == text:  # but not an account 007
                    return key, number(text)
        return key, {"true": True, "false": False}.get(text.lower(), text)


@click.command(cls=OneLineErrorsCommand, short_help="Run many, here or on a cluster.")
@option(
    "models",
    type=List(click.Choice(models.NAMES, case_sensitive=False)),
    default="simple_dense",
    show_default=True,
    help="The networks, with commas between.",
)
@option(
    "datasets",
    type=List(click.Choice(data.DATASETS, case_sensitive=False)),
    default="fashion_mnist",
    show_default=True,
    help="The data sets.",
)
@option(
    "losses",
    type=List(LossAndAlphas()),
    default="label_relaxation,cross_entropy",
    show_default=True,
    help="The losses; with an alpha, as in lr:0.1,cross_entropy:0, or with all of the paper's.",
)
@option("seeds", type=Integers(), default="0-4", show_default=True, help="The seeds.")
@switch("legacy_grid", "Leave plain cross-entropy out of cross_entropy's alphas, as the paper's code does.")
@option(
    "test_best",
    type=List(click.Choice(job.CRITERIA)),
    help="Then test, for each seed, the alphas that are best on validation data: by accuracy, ece or both.",
)
@run_options("model_name", "dataset_name", "loss_name", "alpha", "seed")
@option(
    "engine",
    type=click.Choice(("local", "slurm", "ray")),
    default="local",
    show_default=True,
    help="Processes of this machine, jobs of SLURM, or a Ray cluster.",
)
@option(
    "workers",
    type=click.IntRange(min=1, max=100_000),
    default=os.cpu_count() or 1,
    show_default="one for each processor",
    help="How many runs at a time, each with one thread.",
)
@option(
    "gpu_share",
    type=Number(min=0, max=1),
    default=0.0,
    show_default=True,
    help="How much of a GPU each run gets: 1 for one of its own, 0.25 where four share one, 0 for the CPU.",
)
@option("ray_address", help="Of the cluster, as ray://host:10001; without one Ray runs on this machine.")
@option(
    "slurm",
    type=KeyValue(),
    multiple=True,
    help="A parameter of submitit, as slurm_partition=gpu; may be given several times.",
)
@out_options(Path("runs", "study"))
@tracking_options
def grid(**options: Any) -> None:
    """Run networks x data sets x losses x alphas x seeds, and skip what has finished before.

    Lists have commas between. A run that fails, or whose worker dies, costs the others nothing; the same
    command tries it again.
    """
    configs = _configs(options)
    engine = _engine(options)
    criteria = options["test_best"] or ()
    if criteria and options["test_run"]:
        raise click.BadParameter("there are no validation runs with --test-run.", param_hint="'--test-best'")
    out = writable(options["out"])
    for name in options["datasets"]:
        load(name, options["data_dir"])  # told now, and downloaded once
    tracking = Tracking.prepare(options)
    command = command_line()
    parent = tracking.parent(
        out, "grid", {"engine": options["engine"], "workers": options["workers"]}, command
    )

    finished: list[Result] = []
    failed: list[Outcome] = []

    def run(todo: Sequence[RunConfig]) -> None:
        with progress_bar(len(todo)) as progress:
            [task] = progress.task_ids
            try:
                for outcome in job.run(job.jobs(todo, out, options["data_dir"], command), engine):
                    tracking.outcome(outcome, parent.run_id)
                    if outcome.result is None:
                        failed.append(outcome)
                        progress.console.print(f"{outcome.job.config.key}: {outcome.error}")
                    else:
                        finished.append(outcome.result)
                        if progress.disable:  # there is no bar
                            progress.console.print(
                                f"{outcome.job.config.key}: accuracy {outcome.result.accuracy:.4f}  "
                                f"ECE {outcome.result.ece:.4f}"
                            )
                    progress.update(task, advance=1, status=f"{len(failed)} failed" if failed else "")
            except EngineError as error:
                parent.failed(str(error))
                raise click.BadParameter(f"{error}.", param_hint="'--engine'") from error

    run(configs)
    if criteria:
        run(job.best_tested(finished, criteria))
    parent.finished(metrics={"finished": len(finished), "failed": len(failed)})
    unfinished = f", {len(failed)} failed" if failed else ""
    console().print(f"{counted([len(finished)], 'run')} in {out}{unfinished}")
    if failed:
        raise click.ClickException(f"{counted([len(failed)], 'run')} failed; the same command tries again")


def _configs(options: dict[str, Any]) -> list[RunConfig]:
    grids = search.LEGACY_GRIDS if options["legacy_grid"] else search.GRIDS
    configs = []
    for model, dataset, (loss, alpha), seed in product(
        options["models"], options["datasets"], options["losses"], options["seeds"]
    ):
        for of_loss in grids[loss] if alpha is None else (alpha,):
            configs.append(
                read_config(
                    options, model_name=model, dataset_name=dataset, loss_name=loss, alpha=of_loss, seed=seed
                )
            )
    if not configs:
        raise click.UsageError("there are no runs: a list is empty")
    return configs


def _engine(options: dict[str, Any]) -> job.Engine:
    shared = {"workers": options["workers"], "gpu_share": options["gpu_share"]}
    if options["engine"] == "slurm":
        parameters: dict[str, Any] = dict(options["slurm"])
        if "slurm_setup" in parameters:  # the only one that may be given again
            parameters["slurm_setup"] = [line for key, line in options["slurm"] if key == "slurm_setup"]
        return partial(engines.slurm, folder=options["out"] / "slurm", **shared, **parameters)
    if options["engine"] == "ray":
        return partial(engines.ray, address=options["ray_address"], **shared)
    return partial(engines.local, **shared)
