"""Train the paper's study on one data set and keep a record of every run in misc/results.

    python misc/replicate.py DATASET [--seeds 0-9] [--out FOLDER] [--continue] [--collect]

For each seed: the validation runs of all losses over the paper's grids of alpha, the test runs of the alphas
that are best by accuracy and by ECE, and cross-entropy with temperature scaling. The confidence penalty has
the sign of the paper's code; its chosen alphas are also tested with the paper's sign. On Fashion-MNIST, the
test runs of ten epochs that the paper's code was measured with come first.

The same command resumes: finished runs are not repeated. ``--continue`` first writes the runs of the record
to the folder, so that one machine can go on where another stopped. Two runs train at a time, each with one
thread. After each grid the results are merged into misc/results/DATASET.jsonl, a line per run; ``--collect``
only does that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lr_relax.study.config import RunConfig
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
    path.write_text("".join(f"{line}\n" for line in lines))
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=SCHEDULES)
    parser.add_argument("--seeds", default="0-9", help="first and last seed, or one")
    parser.add_argument("--out", type=Path, default=Path("runs", "replication"), help="folder of the runs")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="skip the runs of the record")
    parser.add_argument("--collect", action="store_true", help="only merge finished runs into the record")
    arguments = parser.parse_args()
    dataset, record = arguments.dataset, RESULTS / f"{arguments.dataset}.jsonl"

    def collect() -> list[Result]:
        return merge(record, [r for r in load_results(arguments.out) if r.config.dataset_name == dataset])

    def train(grid: str) -> None:
        command = [Path(sys.executable).with_name("lr-relax"), "grid", *grid.split(), "--out", arguments.out]
        print(f"lr-relax grid {grid}", flush=True)
        subprocess.run([*command, "--tracking_uri", "none"], check=True)

    if arguments.goes_on:
        for result in load_results(record):
            folder = arguments.out / result.config.key
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / RESULT).exists():
                save_result(result, folder)

    first, _, last = arguments.seeds.partition("-")
    for seed in () if arguments.collect else range(int(first), int(last or first) + 1):
        for grid in grids(dataset, seed):
            train(grid)
            collect()
        if last_grid := papers_sign(dataset, seed, collect()):
            train(last_grid)
    print(f"{record}: {len(collect())} runs")


if __name__ == "__main__":
    main()
