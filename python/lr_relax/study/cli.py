"""The command ``lr-relax``: checks arguments, shows progress, prints tables. The work is in compare.py."""

from __future__ import annotations

import errno
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import click
    import matplotlib  # noqa: F401  (asked for here, so that it is not missed after the training)
    import sklearn  # noqa: F401
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ModuleNotFoundError as missing:
    sys.exit(f'lr-relax needs {missing.name}: pip install "lr-relax[study]"')

from . import compare as job
from . import data
from .training import DivergedError, Epoch, Recipe


class OneLineErrors(click.Group):
    """A group whose usage errors are a single line, without the usage above it."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _without_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _without_usage():
            return super().invoke(ctx)


@contextmanager
def _without_usage() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        error.ctx = None  # what Click takes the usage from
        raise


class Number(click.FloatRange):
    """A range of floats that are numbers: Click's own lets nan and infinity pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _per_dataset(field: str) -> str:
    """The defaults of an option that depend on the data set, for the help text."""
    return ", ".join(f"{getattr(preset, field):g} on {dataset}" for dataset, preset in job.PRESETS.items())


@click.group(cls=OneLineErrors)
@click.version_option(package_name="lr-relax")
def main() -> None:
    """Label relaxation and calibration: the study."""


# Bounds beyond which no one means it, and below which nothing overflows.
AT_LEAST_ONE = click.IntRange(min=1, max=1_000_000)
POSITIVE = Number(min=0, min_open=True)
BELOW_ONE = Number(min=0, max=1, max_open=True)


@main.command()
@click.option(
    "--dataset",
    type=click.Choice(tuple(job.PRESETS)),
    default="digits",
    show_default=True,
    help="Scikit-learn's 8x8 digits, or Fashion-MNIST.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Where the files of Fashion-MNIST are, or are put.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1, max=10_000),
    show_default=_per_dataset("seeds"),
    help="Train with seeds 0 to N-1.",
)
@click.option("--epochs", type=AT_LEAST_ONE, show_default=_per_dataset("epochs"))
@click.option("--batch-size", type=AT_LEAST_ONE, default=64, show_default=True)
@click.option("--lr", type=POSITIVE, show_default=_per_dataset("learning_rate"), help="Learning rate.")
@click.option(
    "--alpha", type=BELOW_ONE, show_default=_per_dataset("alpha"), help="Imprecision of label relaxation."
)
@click.option(
    "--smoothing", type=BELOW_ONE, show_default=_per_dataset("smoothing"), help="Weight of label smoothing."
)
@click.option(
    "--n-bins", type=AT_LEAST_ONE, default=15, show_default=True, help="Bins of the calibration error."
)
@click.option("--validation", is_flag=True, help="Set the test data aside and evaluate on validation data.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="runs/compare-<dataset>",
    help="Folder for results.json and reliability.png.",
)
@click.option(
    "--resume", is_flag=True, help="Keep the finished runs in --out instead of training them again."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    default=1,  # a batch of 64 gains little from more, and loses much where other programs need the cores
    show_default=True,
    help="Threads to train with; results differ in rounding.",
)
def compare(
    dataset: str,
    data_dir: Path,
    seeds: int | None,
    epochs: int | None,
    batch_size: int,
    lr: float | None,
    alpha: float | None,
    smoothing: float | None,
    n_bins: int,
    validation: bool,
    out: Path | None,
    resume: bool,
    threads: int,
) -> None:
    """Compare label relaxation with cross-entropy and label smoothing.

    Trains the paper's dense network with each loss and seed; prints accuracy, expected calibration error and
    negative log-likelihood; saves every run and the reliability diagrams.
    """
    preset = job.PRESETS[dataset]
    seeds = preset.seeds if seeds is None else seeds
    epochs = preset.epochs if epochs is None else epochs
    lr = preset.learning_rate if lr is None else lr
    alpha = preset.alpha if alpha is None else alpha
    smoothing = preset.smoothing if smoothing is None else smoothing
    out = Path("runs", f"compare-{dataset}") if out is None else out
    if not out.name:
        raise click.BadParameter("a folder is needed.", param_hint="'--out'")
    torch.set_num_threads(threads)
    options = {
        "dataset": dataset,
        "data-dir": data_dir,
        "seeds": seeds,
        "epochs": epochs,
        "batch-size": batch_size,
        "lr": lr,
        "alpha": alpha,
        "smoothing": smoothing,
        "n-bins": n_bins,
        "out": out,
        "threads": threads,
    }
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    command = shlex.join(["lr-relax", "compare", *words, *["--validation"] * validation])

    try:
        loaded = data.load(dataset, data_dir)
    except data.DataError as error:
        raise click.UsageError(str(error)) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        results = job.Results(out / "results.json")
        results.save()  # what cannot be written should fail now, not after the first run
        if (picture := out / "reliability.png").is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{picture} is a folder")
    except OSError as error:
        raise click.BadParameter(
            f"{out} cannot be written to: {error.strerror}.", param_hint="'--out'"
        ) from error
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="'--out'") from error

    settings = job.plan(
        dataset,
        Recipe(epochs, batch_size, lr),
        seeds=seeds,
        alpha=alpha,
        smoothing=smoothing,
        n_bins=n_bins,
        validation=validation,
    )
    todo = [setting for setting in settings if not (resume and results.find(setting))]
    start = time.perf_counter()
    with _progress(len(todo) * epochs) as progress:
        [task] = progress.task_ids
        for setting in todo:
            progress.update(task, description=f"{job.title(setting)}, seed {setting.seed}")

            def show(epoch: Epoch) -> None:
                progress.update(
                    task, advance=1, status=f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
                )

            try:
                results.add(job.run(setting, loaded, command=command, on_epoch=show))
            except (DivergedError, OSError) as error:
                raise click.ClickException(f"{setting.loss}, seed {setting.seed}: {error}") from error
    seconds = time.perf_counter() - start

    runs = [found for setting in settings if (found := results.find(setting)) is not None]
    job.save_diagrams(runs, out / "reliability.png")
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(runs))
    console.print(command)
    console.print(
        f"{len(todo)} run{'s' * (len(todo) != 1)} in {seconds:.1f} s on {threads} of {os.cpu_count()} threads"
        + (f", {len(runs) - len(todo)} from before" if resume else "")
    )
    console.print(f"{results.path}, {out / 'reliability.png'}")


@main.group(cls=OneLineErrors)
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
    from ..plots import relaxation_on_simplex

    picture = relaxation_on_simplex(alpha)
    try:
        picture.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{out} cannot be written: {error}.", param_hint="'--out'") from error
    click.echo(out)


def _progress(epochs: int) -> Progress:
    """A progress bar over epochs, on stderr; silent where that is no terminal."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    progress.add_task("", total=epochs, status="")
    return progress


def _table(runs: list[job.Run]) -> Table:
    setting, groups = runs[0].setting, job.by_loss(runs)
    seeds = len(runs) // len(groups)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"{setting.dataset}, {runs[0].n_eval} {setting.evaluated_on} images, {spread}")
    table.add_column("loss")
    for heading in ("accuracy", f"ECE ({setting.n_bins} bins)", "NLL"):
        table.add_column(heading, justify="right")
    for group in groups.values():
        cells = [
            f"{mean:.4f}" if math.isnan(deviation) else f"{mean:.4f} ± {deviation:.4f}"
            for mean, deviation in job.summarize(group).values()
        ]
        table.add_row(job.title(group[0].setting), *cells)
    return table
