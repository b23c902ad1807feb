"""Write the tables and figures of the replication from the runs recorded in misc/results.

    python misc/replication.py [--check]

A table stands between the markers <!-- replication:NAME --> and <!-- /replication:NAME --> in README.md and
docs/replication/results.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from lr_relax.study import figures, report
from lr_relax.study.cli.options import INTEGERS
from lr_relax.study.files import load_json
from lr_relax.study.folder import Result, Statistic, load_results
from lr_relax.study.report import Row, Table
from markers import markdown, render
from replicate import RESULTS
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "replication" / "results.md"]
METRICS = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL"}
SEEDS = {1: "0", 2: "0-1", 3: "0-2", 8: "0,3-9"}
"""The seeds that the paper's code was measured with, by their number."""


def signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "\N{MINUS SIGN}")


def sign_of_the_paper(run: Result) -> bool:
    """Whether a run is one of the confidence penalty with the paper's sign, which has no validation runs."""
    return run.config.loss_name == "confidence_penalty" and not run.config.legacy_confidence_penalty


def tables_of(runs: Iterable[Result]) -> list[Table]:
    published = [
        row for row in load_json("published.json")["rows"] if row["source"].startswith("the paper, ")
    ]
    return report.summarize((run for run in runs if not sign_of_the_paper(run)), published)


def label(row: Row, alpha: float | None = None) -> str:
    return row.method.title(alpha).replace(" (legacy_confidence_penalty)", ", the code's sign")


def results(table: Table) -> str:
    """Mean and standard deviation of each metric over seeds, the best mean in bold; and the chance level.

    Of the paper's schedule, the published numbers, too.
    """
    rows = [row for row in table.rows if row.runs]
    has_published = table.setting.epochs == 50 and any(row.published for row in rows)
    beside = ["accuracy", "ece"] if has_published else []
    means = {name: [fmean(getattr(run, name) for run in row.runs) for row in rows] for name in METRICS}
    lines = []
    for i, row in enumerate(rows):
        alphas = sorted({*row.alphas}) if row.method.has_alpha else []
        cells = [label(row), ", ".join(f"{alpha:g}" for alpha in alphas), str(len(row.runs))]
        for name in METRICS:
            cell = report.plus_minus(row.statistic(name) or ())
            best = max(means[name]) if name == "accuracy" else min(means[name])
            cells.append(f"**{cell}**" if means[name][i] == best else cell)
        cells.append(f"{fmean(chance(run) for run in row.runs):.4f}")
        [original] = row.published.values() or [{}]
        lines.append([*cells, *(f"{original[name]:.3f}" if original else "" for name in beside)])
    header = ["training", "alpha", "seeds", *METRICS.values(), "ECE by chance"]
    return markdown([*header, *(f"{METRICS[name]}, the paper" for name in beside)], lines)


def chance(run: Result, draws: int = 1000) -> float:
    """The mean ECE of a calibrated model: of draws of each bin's accuracy, binomial with its confidence."""
    counts = np.array(run.bin_counts)
    confidence = np.array([c or 0.0 for c in run.bin_confidence])
    drawn = np.random.default_rng(0).binomial(counts, confidence, (draws, len(counts)))
    return float(np.abs(drawn - counts * confidence).sum(axis=1).mean() / counts.sum())


def differences(table: Table) -> str:
    """Of each row from cross-entropy with and without temperature, paired by seed, with 95 % t intervals."""
    rows = {label(row): row for row in table.rows}
    plain, scaled = rows["cross-entropy"], rows["cross-entropy + temperature"]
    pairs = [("accuracy", plain), ("ece", plain), ("nll", plain), ("ece", scaled), ("nll", scaled)]
    lines = [
        [name, *("" if row is other else difference(row, other, metric) for metric, other in pairs)]
        for name, row in rows.items()
        if row is not plain
    ]
    header = [f"{METRICS[metric]}{' (+ T)' if other is scaled else ''}" for metric, other in pairs]
    return markdown(["training", *header], lines)


def difference(row: Row, other: Row, metric: str) -> str:
    """The mean difference over seeds with its interval, in bold if the interval excludes 0."""
    values = [{run.config.seed: getattr(run, metric) for run in each.runs} for each in (row, other)]
    seeds = sorted(values[0].keys() & values[1].keys())
    found = [values[0][seed] - values[1][seed] for seed in seeds]
    if len(found) < 2:
        return report.NOTHING
    return with_interval(fmean(found), stdev(found) / len(found) ** 0.5, len(found) - 1)


def with_interval(mean: float, error: float, freedom: int) -> str:
    """A difference with its 95 % t interval, in bold if that excludes 0."""
    half = float(stats.t.ppf(0.975, freedom)) * error
    cell = f"{signed(mean)} ± {half:.4f}"
    return f"**{cell}**" if abs(mean) > half else cell


def beside_the_code(runs: list[Result]) -> str:
    """Ours, the paper's code with the same seeds, and their difference with its 95 % t interval.

    The interval is Student's for two samples of one deviation; a single run of each code has none.
    """
    lines = []
    for original in load_json("published.json")["rows"]:
        if not original["source"].startswith("the paper's code"):
            continue
        seeds = SEEDS[original["seeds"]]
        config = {name: original[name] for name in ("loss_name", "alpha", "temp_scaling", "epochs")}
        ours = [
            run
            for run in runs
            if config.items() <= run.config.to_dict().items()
            and run.config.test_run
            and run.config.seed in INTEGERS.parse(seeds)
            and not sign_of_the_paper(run)
        ]
        if n := len(ours):
            assert n == original["seeds"]
            [row] = report.summarize(ours)[0].rows
            cells = [label(row, original["alpha"]), seeds]
            for metric in report.METRICS:
                mean, deviation = Statistic.of([getattr(run, metric) for run in ours])
                theirs = original[metric], original[f"{metric}_std"]
                cells += [report.plus_minus((mean, deviation)), report.plus_minus(theirs)]
                apart, error = mean - theirs[0], (((deviation or 0) ** 2 + (theirs[1] or 0) ** 2) / n) ** 0.5
                cells.append(with_interval(apart, error, 2 * n - 2) if n > 1 else signed(apart))
            lines.append(cells)
    heads = [f"{name}{of}" for name in report.METRICS.values() for of in ("", ", the code", ", difference")]
    return markdown(["training", "seeds", *heads], lines)


def cost(name: str, runs: list[Result]) -> list[str]:
    test = sum(run.config.test_run for run in runs)
    commits = {run.environment["commit"][:7] for run in runs}
    hours = sum(run.seconds for run in runs) / 3600
    return [name, str(test), str(len(runs) - test), f"{hours:.1f}", ", ".join(sorted(commits))]


def tables(fashion: list[Result], digits: list[Result]) -> dict[str, str]:
    ten = [run for run in fashion if run.config.epochs == 10]
    fifty = [run for run in fashion if run.config.epochs != 10]
    [table] = tables_of(ten)
    found = {"ten": results(table), "ten-differences": differences(table)}
    found |= {"code": beside_the_code(ten), "fifty-code": beside_the_code(fifty)}
    for name, runs in ("fifty", fifty), ("digits", digits):
        for table in tables_of(runs):
            found[f"{name}-{table.optimized_for}"] = results(table)
            found[f"{name}-{table.optimized_for}-differences"] = differences(table)
        found[f"{name}-sign"] = results(report.summarize(filter(sign_of_the_paper, runs))[0])
    parts = {"Fashion-MNIST, 10 epochs": ten, "Fashion-MNIST, 50 epochs": fifty, "digits": digits}
    header = ["record", "test runs", "validation runs", "core-hours", "commits"]
    found["cost"] = markdown(header, [cost(*part) for part in parts.items()])
    return found


def draw(fashion: list[Result], digits: list[Result]) -> None:
    for name, runs in ("digits", digits), ("fashion", fashion):
        # A penalty of 8 hides the rest of the figure: for some seeds the network does not learn with it.
        validation = [run for run in runs if not run.config.test_run and run.config.alpha < 8]
        figures.save(figures.against_alpha(validation), ROOT / "misc" / f"replication-alpha-{name}.png")
    ten = [run for run in fashion if run.config.epochs == 10]
    figures.save(figures.reliability(ten), ROOT / "misc" / "replication-reliability.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table differs")
    check = parser.parse_args().check
    fashion, digits = (load_results(RESULTS / f"{name}.jsonl") for name in ("fashion_mnist", "digits"))
    found = tables(fashion, digits)
    if not check:
        draw(fashion, digits)
    sys.exit(render("replication", dict.fromkeys(PAGES, found), check))


if __name__ == "__main__":
    main()
