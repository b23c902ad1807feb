"""``lr-relax study`` and ``lr-relax study-ho``: the two scripts of the paper's code, with their options.

Source: Lienen and Hüllermeier, AAAI 2021, https://github.com/julilien/LabelRelaxation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .. import grid
from ..config import RunConfig
from ..folder import Result
from ..tracking import Tracker, final_metrics, run_name
from ..training import DivergedError
from .execution import Execution, study_options
from .options import NUMBERS, Command, option, read_config, run_options, switch


@click.command(cls=Command, short_help="Train and evaluate a network.")
@run_options()
@study_options
def study(**options: Any) -> None:
    """Train and evaluate a network: the script lr_study of the paper's code.

    Options can be written with - or _, and booleans as --test_run or --test_run True.
    """
    config = read_config(options)
    execution = Execution(run_name(config), [config.dataset_name], options)
    result = execution.run(config)
    if execution.first:
        _print(result, execution.out / config.key)


@click.command("study-ho", cls=Command, short_help="Choose a loss's alpha, then test it.")
@run_options("alpha", "test_run")
@switch("optimize_ece", "Choose alpha by calibration error instead of accuracy.", group="Search")
@option("alphas", type=NUMBERS, show_default="the paper's", help="The alphas, as 0.1,0.2.", group="Search")
@study_options
def study_ho(**options: Any) -> None:
    """Choose a loss's alpha on validation data, then test: the script lr_study_ho of the paper's code."""
    config = read_config(options, alpha=0.0, test_run=False)
    grids = grid.LEGACY_GRIDS if "grid" in options["legacy"] else grid.GRIDS
    alphas = grids[config.loss_name] if options["alphas"] is None else options["alphas"]
    if not alphas:
        raise click.BadParameter("expected at least one alpha.", param_hint="'--alphas'")
    candidates = [replace(config, alpha=alpha) for alpha in alphas]
    by, name = "ece" if options["optimize_ece"] else "accuracy", run_name(config, search=True)
    search = {"optimize_ece": by == "ece", "alphas": ",".join(f"{alpha:g}" for alpha in alphas)}
    params = {key: value for key, value in config.to_dict().items() if key not in ("alpha", "test_run")}
    digest = hashlib.sha256(repr(search).encode()).hexdigest()[:8]
    execution = Execution(name, [config.dataset_name], options)
    folder = execution.out / f"search-{config.key}-{digest}"
    parent = Tracker(execution.experiment, folder, name, {**params, **search}, kind="search")
    try:
        best = grid.best(_validated(execution, candidates, parent.run_id), by).config
        result = execution.run(replace(best, test_run=True), parent.run_id)
    except click.ClickException as error:
        parent.failed(error.message)
        raise
    parent.end({"alpha": best.alpha}, {"alpha": best.alpha, **final_metrics(result)})
    if execution.first:
        _print(result, execution.out / result.config.key)


def _validated(execution: Execution, configs: Sequence[RunConfig], parent: str) -> list[Result]:
    """The results of all runs that do not diverge."""
    results = []
    for config in configs:
        try:
            results.append(execution.run(config, parent))
        except click.ClickException as failure:
            if not isinstance(failure.__cause__, DivergedError):
                raise
            if execution.first:
                failure.show()
            continue
        metrics = f"validation accuracy {results[-1].accuracy:.4f}  ECE {results[-1].ece:.4f}"
        if not execution.silent:
            click.echo(f"{config.title}, seed {config.seed}: {metrics}", err=True)
    if not results:
        raise click.ClickException("no alpha has a result to choose by")
    return results


def _print(result: Result, folder: Path) -> None:
    config = result.config
    run = f"{config.model_name} on {config.dataset_name}, {config.title}, seed {config.seed}"
    click.echo(f"{run}, {result.n_eval} {config.part} images:")
    metrics = f"accuracy {result.accuracy:.4f}  ECE {result.ece:.4f}  NLL {result.nll:.4f}"
    temperature = f"  temperature {result.temperature:.4g}" if result.temperature else ""
    click.echo(f"{metrics}  Brier score {result.brier:.4f}{temperature}")
    click.echo(f"{result.seconds:.1f} s, {folder}")
