"""Write the tables and figures of the documentation from the records of train.py.

    python misc/experiments/pages.py [--check]

A table stands between the markers <!-- experiments:NAME --> and <!-- /experiments:NAME --> in the study's
page, STUDY.md below docs/; its figure is misc/STUDY.png. Rows with fewer than three seeds are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy.stats import t as student

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "misc"))
from markers import markdown, render  # noqa: E402

RESULTS = ROOT / "misc" / "results"
METRICS = {"accuracy": "accuracy", "ece": "ECE", "smooth_ece": "smooth ECE", "nll": "NLL"}


class Row(NamedTuple):
    """What a row of a table evaluates; ``fitted`` is how the temperature was fitted."""

    target: str
    loss: str
    fitted: str = "none"


CE, LS, LR, RDA = "cross_entropy", "label_smoothing", "label_relaxation", "data_ambiguation"
NAMES = {CE: "cross-entropy", LS: "label smoothing", LR: "label relaxation", RDA: "data ambiguation"}
SCALED = {"none": "", "nll": " + T by likelihood", "grid": " + T of the grid"}
NOISY = {"noise-0.2": "20 %", "noise-0.4": "40 %"}
VOTED = {"majority": "majority", "shares": "shares", "sets": "sets"}

PANELS: dict[str, dict[str, dict[str, Row]]] = {
    "label_noise": {
        f"{share} noise": {f"{share}, {NAMES[loss]}": Row(target, loss) for loss in NAMES}
        for target, share in NOISY.items()
    },
    "annotators": {
        NAMES[loss]: {f"{NAMES[loss]}, {target}": Row(target, loss) for target in targets}
        for loss, targets in {CE: ("majority", "shares"), LR: ("majority", "shares", "sets")}.items()
    },
    "temperature": {
        title: {NAMES[loss] + SCALED[fitted]: Row("labels", loss, fitted) for loss in (CE, LS, LR)}
        for fitted, title in {
            "none": "no temperature",
            "nll": "T by likelihood",
            "grid": "T of the grid",
        }.items()
    },
}
"""The rows of each study by their names, and the panels of its figure."""

COMPARED: dict[str, list[tuple[Row, Row]]] = {
    "label_noise": [
        (Row(target, a), Row(target, b))
        for target in NOISY
        for a, b in ((LS, CE), (LR, CE), (RDA, CE), (RDA, LS), (RDA, LR))
    ],
    "annotators": [
        (Row("shares", CE), Row("majority", CE)),
        (Row("shares", LR), Row("majority", LR)),
        (Row("sets", LR), Row("majority", LR)),
        (Row("majority", LR), Row("majority", CE)),
        (Row("sets", LR), Row("shares", CE)),
        (Row("sets", LR), Row("shares", LR)),
    ],
    "temperature": [
        (Row("labels", LS), Row("labels", CE)),
        (Row("labels", LR), Row("labels", CE)),
        (Row("labels", LS), Row("labels", CE, "nll")),
        (Row("labels", LR), Row("labels", CE, "nll")),
        (Row("labels", LS, "nll"), Row("labels", CE, "nll")),
        (Row("labels", LR, "nll"), Row("labels", CE, "nll")),
        (Row("labels", LR, "nll"), Row("labels", LR)),
    ],
}
"""The pairs whose differences are shown, chosen before the runs; the last one of the votes, afterward."""


class Records:
    """The runs of a study: of the rows with at least three seeds, the seeds that all of these have."""

    def __init__(self, study: str) -> None:
        self.path = RESULTS / f"{study}.jsonl"
        runs = [json.loads(line) for line in self.path.read_text().splitlines()]
        seeds: dict[tuple[str, str], set[int]] = {}
        for run in runs:
            seeds.setdefault((run["target"], run["loss"]), set()).add(run["seed"])
        enough = {pair: found for pair, found in seeds.items() if len(found) >= 3}
        self.seeds = sorted(set.intersection(*enough.values()))
        self.runs = [
            run for run in runs if run["seed"] in self.seeds and (run["target"], run["loss"]) in enough
        ]
        self.panels = {
            title: {name: row for name, row in rows.items() if row[:2] in enough}
            for title, rows in PANELS[study].items()
        }
        self.rows = {name: row for panel in self.panels.values() for name, row in panel.items()}

    def evaluations(self, row: Row) -> list[dict[str, Any]]:
        """Those of a row, in the order of the seeds."""
        runs = [run for run in self.runs if (run["target"], run["loss"]) == row[:2]]
        return [run["evaluations"][row.fitted] for run in sorted(runs, key=lambda run: run["seed"])]

    def values(self, row: Row, metric: str) -> list[Any]:
        return [evaluation[metric] for evaluation in self.evaluations(row)]


def means(records: Records, temperatures: bool) -> str:
    """Mean and standard deviation of each metric over the seeds, and the ECE of calibrated predictions."""
    metrics = {**({"temperature": "T"} if temperatures else {}), **METRICS}
    lines = []
    for name, row in records.rows.items():
        cells = [name]
        for metric in metrics:
            values = records.values(row, metric)
            digits = 2 if metric == "temperature" else 4
            known = metric != "temperature" or row.fitted != "none"
            cells.append(f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}" if known else "")
        chances = zip(*records.values(row, "ece_by_chance"), strict=True)
        mean, _, high = (fmean(values) for values in chances)
        lines.append([*cells, f"{mean:.4f} ({high:.4f})"])
    return markdown(["training", *metrics.values(), "ECE by chance"], lines)


def interval(differences: list[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval by Student's t distribution."""
    n, mean = len(differences), fmean(differences)
    half = float(student.ppf(0.975, n - 1)) * stdev(differences) / n**0.5
    return mean, mean - half, mean + half


def differences(study: str, records: Records) -> str:
    """Paired differences over the seeds, those in bold whose interval excludes 0."""
    names = {row: name for name, row in records.rows.items()}
    lines = []
    for row, other in COMPARED[study]:
        if row not in names or other not in names:
            continue
        cells = [names[row], names[other]]
        for metric in METRICS:
            pairs = zip(records.values(row, metric), records.values(other, metric), strict=True)
            mean, low, high = interval([a - b for a, b in pairs])
            cell = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
            cells.append(f"**{cell}**" if low > 0 or high < 0 else cell)
        lines.append(cells)
    return markdown(["training", "minus", *METRICS.values()], lines)


def about(records: Records, page: Path) -> str:
    """What was run, and with what."""
    hours, first = sum(run["seconds"] for run in records.runs) / 3600, records.runs[0]
    used, link = first["environment"], os.path.relpath(records.path, page.parent)
    commits = " and ".join(dict.fromkeys(run["environment"]["commit"][:9] for run in records.runs))
    # The first runs were made before train.py was committed.
    commits = commits.replace("67c72e5f9", "67c72e5f9 (with train.py as 808a8e9 has it)")
    return (
        f"Seeds {records.seeds[0]} to {records.seeds[-1]}, {len(records.runs)} runs, {first['n_train']:,} "
        f"training and {first['n_test']:,} test images, {hours:.1f} hours of one core, beside other work "
        f"({used['machine']}); lr-relax {used['lr_relax']} at commit {commits}, torch "
        f"{used['torch']}, Python {used['python']}; [record]({link})."
    )


def facts(study: str, records: Records) -> str:
    """How many of the training targets are wrong, the mean over the seeds."""

    def mean(target: str, name: str) -> float:
        return fmean(run["facts"][name] for run in records.runs if run["target"] == target)

    if study == "label_noise":
        noisy = sorted({row.target for row in records.rows.values()})
        shares = [f"{100 * mean(target, 'wrong_labels'):.1f} %" for target in noisy]
        return f"So {' and '.join(shares)} of the training labels are wrong."
    if study == "annotators":
        names = ("wrong_votes", "wrong_majorities", "sets_with_true_class")
        votes, majorities, sets = (100 * mean("sets", name) for name in names)
        return (
            f"So {votes:.1f} % of the votes and {majorities:.1f} % of the majority labels are wrong. A set "
            f"has {mean('sets', 'classes_per_set'):.2f} classes on average, and {sets:.1f} % of them "
            "contain the true class."
        )
    return ""


def tables(study: str, records: Records, page: Path) -> dict[str, str]:
    return {
        "about": about(records, page),
        "facts": facts(study, records),
        "means": means(records, temperatures=study == "temperature"),
        "differences": differences(study, records),
    }


def figure(records: Records) -> Figure:
    """Accuracy minus confidence, of the pooled predictions of all seeds."""
    from lr_relax.plots import compare_reliability
    from lr_relax.study.folder import pooled_curve
    from matplotlib.figure import Figure

    panels = {title: rows for title, rows in records.panels.items() if rows}
    drawn = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    reach = 0.0
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        curves = {
            name.split(", ")[-1].split(" + ")[0]: pooled_curve(
                [SimpleNamespace(**each) for each in records.evaluations(row)]  # type: ignore[misc]
            )
            for name, row in rows.items()
        }
        compare_reliability(curves, ax=ax, title=title)
        ax.label_outer()
        reach = max(reach, ax.get_ylim()[1])
    axes[0].set_ylim(-reach, reach)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table differs")
    options = parser.parse_args()
    pages = {}
    for study in PANELS:
        records, page = Records(study), next((ROOT / "docs").rglob(f"{study}.md"))
        pages[page] = tables(study, records, page)
        if not options.check:
            figure(records).savefig(ROOT / "misc" / f"{study}.png", dpi=110)
    sys.exit(render("experiments", pages, options.check))


if __name__ == "__main__":
    main()
