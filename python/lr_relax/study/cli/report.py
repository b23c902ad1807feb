"""``lr-relax table`` and ``lr-relax figure``: tables and figures of finished runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .. import data, figures, models
from .. import report as tables
from ..files import load_json, replaced
from ..folder import Result, load_results
from .options import FILE, FOLDER, LOSS, Command, Decorator, Group, all_of, choice, list_of, option


def _selection(*names: str) -> Decorator:
    """Options that select results."""
    several = "Only these, comma-separated."
    known = {
        "model_name": option("model_name", type=list_of("name", choice(models.NAMES)), help=several),
        "dataset_name": option(
            "dataset_name", "--dataset", type=list_of("name", choice(data.DATASETS)), help=several
        ),
        "loss_name": option("loss_name", "--loss", type=list_of("name", LOSS), help=several),
        "alpha": option("alpha", type=list_of("number", float), help=several),
    }
    out = option(
        "out", type=FOLDER, default=Path("runs", "study"), show_default=True, help="Folder of the runs."
    )
    return all_of(out, *(known[name] for name in names))


def _save(default: str) -> Decorator:
    help = "The picture; its suffix selects the format."
    return option("save", type=FILE, default=Path(default), show_default=True, help=help)


@click.command(cls=Command, short_help="The paper's tables from finished runs.")
@option(
    "format",
    type=click.Choice(tuple(tables.FORMATS)),
    default="markdown",
    show_default=True,
    help="LaTeX needs the package booktabs; CSV has full precision.",
)
@option("save", type=FILE, help="A file to write instead of printing.")
@_selection("model_name", "dataset_name")
def table(format: str, save: Path | None, **selection: Any) -> None:
    """The paper's tables from finished runs, beside the paper's numbers and those of its code.

    For each loss, over seeds: with the alpha that is best on validation data by accuracy, and by ECE.
    """
    with _usage_errors(save):
        text = tables.render(_results(**selection), load_json("published.json"), format)
        if save is not None:
            with replaced(save) as temporary:
                temporary.write_text(text, encoding="utf-8")
    click.echo(text if save is None else f"{save}\n", nl=False)


@click.group(cls=Group)
def figure() -> None:
    """Draw figures."""


@figure.command(cls=Command)
@_save("reliability.png")
@_selection("model_name", "dataset_name", "loss_name", "alpha")
def reliability(save: Path, **selection: Any) -> None:
    """Reliability diagrams of finished runs: one for each loss, all seeds together."""
    with _usage_errors(save):
        figures.reliability(_results(**selection), save)
    click.echo(save)


@figure.command(cls=Command)
@_save("alpha.png")
@_selection("model_name", "dataset_name", "loss_name", "alpha")
def alpha(save: Path, **selection: Any) -> None:
    """Accuracy and ECE of finished runs against alpha, with the deviation over seeds."""
    with _usage_errors(save):
        figures.against_alpha(_results(**selection), save)
    click.echo(save)


@figure.command(cls=Command)
@option(
    "alpha",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Imprecision of label relaxation, weight of label smoothing.",
)
@option("save", "--out", type=FILE, default=Path("simplex.png"), show_default=True, help="The picture.")
def simplex(alpha: float, save: Path) -> None:
    """Label smoothing beside label relaxation, over all predictions for three classes."""
    from ...plots import relaxation_on_simplex

    with _usage_errors(save):
        relaxation_on_simplex(alpha).savefig(save, dpi=150)
    click.echo(save)


def _results(out: Path, **selection: tuple[Any, ...] | None) -> list[Result]:
    """The selected results below a folder."""
    wanted = {name: values for name, values in selection.items() if values is not None}
    found = load_results(out)
    results = [run for run in found if all(getattr(run.config, name) in v for name, v in wanted.items())]
    if not results:
        raise click.UsageError(f"{out} has no finished runs" + " of this selection" * bool(found))
    return results


@contextmanager
def _usage_errors(save: Path | None) -> Iterator[None]:
    try:
        if save is not None:
            save.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if save is None:
            raise click.ClickException(str(error)) from error
        reason = error.strerror or error
        raise click.BadParameter(f"{save} cannot be written: {reason}.", param_hint="'--save'") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
