"""Train the paper's study on one data set and keep a record of every run in misc/results.

    python misc/replicate.py DATASET [--seeds 0-9] [--out FOLDER] [--continue] [--collect]

For each seed: the validation runs of all losses over the paper's grids of alpha, the test runs of the alphas
that are best by accuracy and by ECE, and cross-entropy with temperature scaling. The confidence penalty has
the sign of the paper's code; its chosen alphas are also tested with the paper's sign. On Fashion-MNIST, the
test runs of ten epochs that the paper's code was measured with come first.

The same command resumes: runs that are finished in the folder are not repeated. ``--continue`` first writes
the runs of the record to the folder, so that one machine can go on where another stopped. Two runs train at a
time, each with one thread. Every five minutes the finished ones are merged into misc/results/DATASET.jsonl, a
line per run; ``--collect`` only does that. A run that fails does not stop the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click
from lr_relax.study.cli.options import INTEGERS
from lr_relax.study.config import RunConfig
from lr_relax.study.files import replaced
from lr_relax.study.folder import RESULT, Result, load_results, save_result

RESULTS = Path(__file__).parent / "results"
LOSSES = "cross_entropy,label_relaxation,focal,confidence_penalty"
MEASURED = "cross_entropy:0,label_relaxation:0.1,cross_entropy:0.1,focal:2,confidence_penalty:0.3"
"""The losses that the paper's code was measured with, for ten epochs."""
SCHEDULES = {  # the digits are not in the paper: the schedule of `lr-relax compare`
    "digits": "--short True --epochs 20 --initial_lr 0.2",
    "mnist": "--load_ext_params True",
    "fashion_mnist": "--load_ext_params True",
}
CODES_SIGN = "--legacy confidence-penalty"
TEMPERATURE = "--losses cross_entropy:0 --temp_scaling True --test_run True"


def merge(path: Path, results: Iterable[Result]) -> list[Result]:
    """All runs, the recorded ones and these, sorted; writes them, validation runs without their history."""
    runs = {result.config: result for result in [*load_results(path), *results]}

    def order(config: RunConfig) -> tuple[object, ...]:
        return (
            config.epochs,
            config.seed,
            config.test_run,
            config.temp_scaling,
            config.loss_name,
            config.alpha,
        )

    kept = sorted(runs.values(), key=lambda result: (*order(result.config), result.config.key))
    lines = [json.dumps({**r.to_dict(), **({} if r.config.test_run else {"history": []})}) for r in kept]
    if lines:
        with replaced(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return kept


def grids(dataset: str, seed: int) -> Iterator[str]:
    """The arguments of `lr-relax grid` for one seed, except those for the paper's sign of the penalty."""
    common = f"--datasets {dataset} --seeds {seed} {SCHEDULES[dataset]}"
    if dataset == "fashion_mnist":
        yield f"{common} --epochs 10 --losses {MEASURED} --test_run True {CODES_SIGN}"
        yield f"{common} --epochs 10 {TEMPERATURE}"
    yield f"{common} --losses {LOSSES} --test_best accuracy,ece {CODES_SIGN}"
    yield f"{common} {TEMPERATURE}"


def papers_sign(dataset: str, seed: int, results: Iterable[Result]) -> str | None:
    """The arguments for the chosen alphas of the confidence penalty, with the paper's sign."""
    alphas = {
        result.config.alpha
        for result in results
        if (result.config.loss_name, result.config.seed) == ("confidence_penalty", seed)
        and result.config.test_run
        and result.config.epochs != 10
    }
    losses = ",".join(f"confidence_penalty:{alpha:g}" for alpha in sorted(alphas))
    common = f"--datasets {dataset} --seeds {seed} {SCHEDULES[dataset]}"
    return f"{common} --losses {losses} --test_run True" if alphas else None


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("dataset", type=click.Choice(list(SCHEDULES)))
@click.option("--seeds", type=INTEGERS, default="0-9", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs", "replication"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option("--continue", "goes_on", is_flag=True, help="Skip the runs of the record.")
@click.option("--collect", "only_collect", is_flag=True, help="Only merge finished runs into the record.")
def main(dataset: str, seeds: tuple[int, ...], out: Path, goes_on: bool, only_collect: bool) -> None:
    record, failed = RESULTS / f"{dataset}.jsonl", []

    def collect() -> list[Result]:
        return merge(record, [each for each in load_results(out) if each.config.dataset_name == dataset])

    def train(grid: str) -> None:
        command = [str(Path(sys.executable).with_name("lr-relax")), "grid", *grid.split()]
        command += ["--workers", "2", "--tracking_uri", "none", "--out", str(out)]
        print(f"lr-relax grid {grid}", flush=True)
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(300)
                collect()
        if process.returncode == 1:  # runs failed
            failed.append(grid)
        elif process.returncode:  # none could be started, or the grid was stopped
            sys.exit(process.returncode)

    for result in load_results(record) if goes_on else ():
        folder = out / result.config.key
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RESULT).exists():
            save_result(result, folder)
    for seed in () if only_collect else seeds:
        for grid in grids(dataset, seed):
            train(grid)
        if last_grid := papers_sign(dataset, seed, collect()):
            train(last_grid)
    print(f"{record}: {len(collect())} runs")
    if failed:
        sys.exit("\n".join(["Not all runs of these grids succeeded:", *failed]))


if __name__ == "__main__":
    main()
