"""``lr-relax table`` and ``lr-relax figure``: what tracked runs say, and pictures that need none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .. import data, figures, mlflow_store, models, tables, tracked
from ..atomic import replaced
from ..mlflow_store import TrackingError
from ..resources import load_json
from ..tracked import Record
from .execution import tracking_options
from .options import Command, Number, OneLineErrors, OneLineErrorsCommand, option

_WHICH = [
    option(
        "model_name",
        type=click.Choice(models.NAMES, case_sensitive=False),
        show_default="all",
        help="Of this network alone.",
    ),
    option(
        "dataset_name",
        type=click.Choice(data.DATASETS, case_sensitive=False),
        show_default="all",
        help="Of this data set alone.",
    ),
    tracking_options,
]


def runs_options(command: Command) -> Command:
    """Which of the tracked runs."""
    for decorator in reversed(_WHICH):
        command = decorator(command)
    return command


def _out(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path(default),
        show_default=True,
        help="The picture; its ending tells the format.",
    )


@click.command(cls=OneLineErrorsCommand, short_help="The paper's tables from tracked runs.")
@click.option(
    "--format",
    type=click.Choice(tuple(tables.FORMATS)),
    default="markdown",
    show_default=True,
    help="LaTeX needs the package booktabs; CSV has full precision.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file to write to instead of the terminal.",
)
@runs_options
def table(format: str, out: Path | None, **which: Any) -> None:
    """The paper's tables from tracked runs, beside the paper's numbers and those of its code.

    For each loss, over seeds: with the alpha that is best on validation data by accuracy, and by ECE.
    """
    with _usage_errors(out):
        text = tables.render(_records(which), load_json("published.json"), format)
        if out is not None:
            with replaced(out) as temporary:
                temporary.write_text(text, encoding="utf-8")
    click.echo(text if out is None else f"{out}\n", nl=False)


@click.group(cls=OneLineErrors)
def figure() -> None:
    """Draw pictures."""


@figure.command()
@_out("reliability.png")
@runs_options
def reliability(out: Path, **which: Any) -> None:
    """Reliability diagrams of tracked runs: one for each loss, all seeds together."""
    with _usage_errors(out):
        records = _records(which)
        figures.reliability([tracked.result(_uri(which), record) for record in records], out)
    click.echo(out)


@figure.command()
@_out("alpha.png")
@runs_options
def alpha(out: Path, **which: Any) -> None:
    """Accuracy and ECE of tracked runs against alpha, with the spread over seeds."""
    with _usage_errors(out):
        figures.against_alpha(_records(which), out)
    click.echo(out)


@figure.command()
@click.option(
    "--alpha",
    type=Number(min=0, max=1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Imprecision of label relaxation, weight of label smoothing.",
)
@_out("simplex.png")
def simplex(alpha: float, out: Path) -> None:
    """Label smoothing beside label relaxation, over all predictions for three classes."""
    from ...plots import relaxation_on_simplex

    with _usage_errors(out):
        relaxation_on_simplex(alpha).savefig(out, dpi=150)
    click.echo(out)


def _uri(which: dict[str, Any]) -> str:
    uri: str = which["tracking_uri"] or mlflow_store.default_uri()
    return uri


def _records(which: dict[str, Any]) -> list[Record]:
    """The tracked runs that are asked for."""
    return [
        record
        for record in tracked.records(_uri(which), which["experiment"])
        if which["model_name"] in (None, record.config.model_name)
        and which["dataset_name"] in (None, record.config.dataset_name)
    ]


@contextmanager
def _usage_errors(out: Path | None) -> Iterator[None]:
    try:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except TrackingError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        if out is None:
            raise click.ClickException(str(error)) from error
        reason = error.strerror or error
        raise click.BadParameter(f"{out} cannot be written: {reason}.", param_hint="'--out'") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
