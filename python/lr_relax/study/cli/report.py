"""``lr-relax table`` and ``lr-relax figure``: tables and figures of finished runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import data, figures, models
from .. import report as tables
from ..files import load_json, replaced
from ..folder import Result, load_results
from .options import FOLDER, LOSS, NUMBER, NUMBERS, Command, Decorator, Group, all_of, choice, list_of, option

FILE = click.Path(path_type=Path, dir_okay=False)
_ONLY = {"help": "Only these, comma-separated."}
_RUNS = all_of(
    option("out", type=FOLDER, default=Path("runs", "study"), show_default=True, help="Folder or record."),
    option("model_name", type=list_of("name", choice(models.NAMES)), **_ONLY),
    option("dataset_name", "--dataset", type=list_of("name", choice(data.DATASETS)), **_ONLY),
)
_LOSSES = all_of(
    option("loss_name", "--loss", type=list_of("name", LOSS), **_ONLY),
    option("alpha", type=NUMBERS, **_ONLY),
)


def _save(default: str, *names: str) -> Decorator:
    help = "The picture; its suffix selects the format."
    return option("save", *names, type=FILE, default=Path(default), show_default=True, help=help)


@click.command(cls=Command, short_help="The paper's tables from finished runs.")
@option(
    "format",
    type=click.Choice(tuple(tables.FORMATS)),
    default="markdown",
    show_default=True,
    help="LaTeX needs the package booktabs; CSV has full precision.",
)
@option("save", type=FILE, help="A file to write instead of printing.")
@_RUNS
def table(format: str, save: Path | None, **selection: Any) -> None:
    """The paper's tables from finished runs, beside the paper's numbers and those of its code.

    For each loss, over seeds: with the alpha that is best on validation data by accuracy, and by ECE.
    """
    text = tables.render(_results(**selection), load_json("published.json")["rows"], format)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        with replaced(save) as temporary:
            temporary.write_text(text, encoding="utf-8")
    click.echo(text if save is None else f"{save}\n", nl=False)


@click.group(cls=Group)
def figure() -> None:
    """Draw figures."""


def _figure(name: str, draw: Callable[[list[Result]], Any], help: str) -> None:
    """Add a command that draws finished runs."""

    @figure.command(name, cls=Command, help=help)
    @all_of(_save(f"{name}.png"), _RUNS, _LOSSES)
    def command(save: Path, **selection: Any) -> None:
        _draw(lambda: draw(_results(**selection)), save)


_figure("reliability", figures.reliability, "Reliability diagrams of finished runs, one for each loss.")
_figure("alpha", figures.against_alpha, "Accuracy and ECE of finished runs against alpha, with deviations.")


@figure.command(cls=Command)
@option("alpha", type=NUMBER, default=0.25, show_default=True, help="Imprecision, and smoothing's weight.")
@_save("simplex.png", "--out")
def simplex(alpha: float, save: Path) -> None:
    """Label smoothing beside label relaxation, over all predictions for three classes."""
    from ...plots import relaxation_on_simplex

    _draw(lambda: relaxation_on_simplex(alpha), save)


def _draw(draw: Callable[[], Any], save: Path) -> None:
    save.parent.mkdir(parents=True, exist_ok=True)
    try:
        figures.save(draw(), save)
    except ValueError as error:  # nothing to draw, alpha, or an unknown suffix
        raise click.UsageError(str(error)) from error
    click.echo(save)


def _results(out: Path, **selection: tuple[Any, ...] | None) -> list[Result]:
    """The selected results below a folder."""
    wanted = {name: values for name, values in selection.items() if values is not None}
    found = load_results(out)
    if results := [run for run in found if all(getattr(run.config, name) in v for name, v in wanted.items())]:
        return results
    none = "has no finished runs" + " of this selection" * bool(found)
    raise click.UsageError(f"{out} {none if out.exists() else 'does not exist'}")
