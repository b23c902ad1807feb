"""``lr-relax compare``: three losses over several seeds, on digits or Fashion-MNIST, without any tracking."""

from __future__ import annotations

import errno
import os
import shlex
import time
from pathlib import Path

import click
import torch
from rich.table import Table

from .. import compare as job
from .. import figures
from ..atomic import occupied
from ..results import Result
from ..run import RunError, run
from ..summary import counted
from ..training import Epoch
from .execution import load
from .options import AT_LEAST_ONE, BELOW_ONE, BINS, POSITIVE, OneLineErrorsCommand
from .terminal import console, progress_bar


def _per_dataset(field: str) -> str:
    """The defaults of an option that depend on the data set, for the help text."""
    return ", ".join(f"{getattr(preset, field):g} on {dataset}" for dataset, preset in job.PRESETS.items())


@click.command(cls=OneLineErrorsCommand, short_help="Compare three losses, without tracking.")
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
@click.option("--n-bins", type=BINS, default=15, show_default=True, help="Bins of the calibration error.")
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

    loaded = load(dataset, data_dir)
    try:
        click.get_current_context().with_resource(occupied(out))
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

    configs = job.plan(
        dataset,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        alpha=alpha,
        smoothing=smoothing,
        n_bins=n_bins,
        validation=validation,
    )
    todo = [config for config in configs if not (resume and results.find(config))]
    start = time.perf_counter()
    with progress_bar(len(todo) * epochs) as progress:
        [task] = progress.task_ids
        for config in todo:
            progress.update(task, description=f"{config.title}, seed {config.seed}")

            def show(epoch: Epoch) -> None:
                progress.update(
                    task, advance=1, status=f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
                )

            try:
                results.add(run(config, loaded, command=command, on_epoch=show))
            except (RunError, OSError) as error:
                raise click.ClickException(f"{config.title}, seed {config.seed}: {error}") from error
    seconds = time.perf_counter() - start

    runs = [found for config in configs if (found := results.find(config)) is not None]
    try:
        figures.reliability(runs, picture)
    except OSError as error:
        raise click.ClickException(f"{picture} cannot be written: {error.strerror}") from error
    told = console()
    told.print(_table(runs))
    told.print(command)
    told.print(
        f"{counted([len(todo)], 'run')} in {seconds:.1f} s on {threads} of {os.cpu_count()} threads"
        + (f", {len(runs) - len(todo)} from before" if resume else "")
    )
    told.print(f"{results.path}, {picture}")


def _table(runs: list[Result]) -> Table:
    config, groups = runs[0].config, job.by_loss(runs)
    evaluated = "test" if config.test_run else "validation"
    seeds = len(runs) // len(groups)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"{config.dataset_name}, {runs[0].n_eval} {evaluated} images, {spread}")
    table.add_column("loss")
    for heading in ("accuracy", f"ECE ({config.n_bins} bins)", "NLL"):
        table.add_column(heading, justify="right")
    for title, group in groups.items():
        cells = [
            f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"
            for mean, deviation in job.summarize(group).values()
        ]
        table.add_row(title, *cells)
    return table
