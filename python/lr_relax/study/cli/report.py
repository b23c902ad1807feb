"""``lr-relax figure``: pictures."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Number, OneLineErrors


@click.group(cls=OneLineErrors)
def figure() -> None:
    """Draw pictures."""


@figure.command()
@click.option(
    "--alpha",
    type=Number(min=0, max=1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Imprecision of label relaxation, weight of label smoothing.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("simplex.png"),
    show_default=True,
    help="The picture; its ending tells the format.",
)
def simplex(alpha: float, out: Path) -> None:
    """Label smoothing beside label relaxation, over all predictions for three classes."""
    from ...plots import relaxation_on_simplex

    picture = relaxation_on_simplex(alpha)
    try:
        picture.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{out} cannot be written: {error}.", param_hint="'--out'") from error
    click.echo(out)
