"""Render the tables of the documentation from the newest benchmark record and from the record of the coverage
of intervals.

    python misc/benchmarks/tables.py [--check] [--record FILE]

A table stands between the markers <!-- bench:NAME --> and <!-- /bench:NAME --> in README.md and in docs/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "misc"))
from markers import markdown, render  # noqa: E402

RECORDS = ROOT / "misc" / "benchmarks" / "records"
COVERAGE = RECORDS / "coverage.json"
IS_CODE = re.compile(r"(F|torch|logits|x)\.")

BenchRow = dict[str, Any]


def median(row: BenchRow, name: str = "ours") -> str:
    value = row["contenders"][name]["median"]
    return f"{value:.0f} {row['unit']}" if value >= 100 else f"{value:#.2g} {row['unit']}".replace(". ", " ")


def times(row: BenchRow, name: str) -> str:
    """How many times as long as lr-relax a contender takes."""
    value = row["times_ours"][name]["median"]
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def code(name: str) -> str:
    return f"`{name}`" if IS_CODE.match(name) else name


def section(row: BenchRow) -> str:
    """The table in which a row stands."""
    if row["work"].startswith("Linear"):
        return "linear"
    if row["unit"] == "MiB":
        return "memory"
    if row["work"].startswith("Training"):
        return "training"
    if "forward" not in row["work"]:
        return "metrics"
    if row["work"].startswith("Compiled"):
        return "compiled"
    if row["retained_memory"]:
        return "retained-memory"
    return "losses" if row["work"].startswith("LR forward") else "other-losses"


def comparison(rows: list[BenchRow]) -> str:
    """Our median and quartiles, and the ratios of all others to it."""
    header = ["work", "lr-relax", "quartiles", "others, in multiples of lr-relax"]
    lines = []
    for row in rows:
        ours = row["contenders"]["ours"]
        others = ", ".join(f"{code(name)} {times(row, name)}" for name in row["times_ours"])
        lines.append([row["name"], median(row), f"{ours['q1']:.3g} to {ours['q3']:.3g}", others])
    return markdown(header, lines)


def limits(rows: dict[str, BenchRow]) -> str:
    """Ours in multiples of an operator that only reads, copies or normalizes the input."""
    header = ["work", "lr-relax", "operator", "lr-relax / operator (quartiles)"]
    return markdown(
        header,
        [
            [
                row["name"],
                median(row),
                f"`{row['yardstick']}`, {median(row, row['yardstick'])}",
                "{median:.2f} ({q1:.2f} to {q3:.2f})".format(**row["ratio"]),
            ]
            for row in rows.values()
            if re.match(r"logits\.|x\.max|torch\.softmax", row["yardstick"]) and row["unit"] == "ms"
        ],
    )


def readme(rows: dict[str, BenchRow]) -> str:
    """Four rows, each with its caveat."""
    loss = "LR forward + backward {}"
    small, medium = rows[loss.format("(64, 10), 1 thread")], rows[loss.format("(4096, 1000)")]
    large = rows[loss.format("(1024, 32000)")]
    retained = rows[large["name"] + ", retained memory"]
    ece = rows["ECE of logits (100000, 1000)"]
    few_classes = rows["ECE of logits (1000000, 10)"]
    cross_entropy = "F.cross_entropy"
    return markdown(
        ["work", "lr-relax", "peer takes", "caveat"],
        [
            [
                "loss and gradient, (64, 10), 1 thread",
                median(small),
                f"`{cross_entropy}`: {times(small, cross_entropy)} times as long",
                "mostly Python and autograd, for both",
            ],
            [
                "loss and gradient, (4096, 1000)",
                median(medium),
                f"`{cross_entropy}`: {times(medium, cross_entropy)} times",
                "the loss alone; most of a training step is the network",
            ],
            [
                "loss and gradient, (1024, 32000)",
                median(large),
                f"`{cross_entropy}`: {times(large, cross_entropy)} times",
                "mostly because the memory of the gradient is kept for the next step; where malloc retains "
                f"freed memory for both: **{times(retained, cross_entropy)} times** ({median(retained)})",
            ],
            [
                "ECE of logits, (100000, 1000)",
                median(ece),
                f"torchmetrics: {times(ece, 'torchmetrics')} times",
                f"with 10 classes, (1000000, 10): {times(few_classes, 'torchmetrics')} times",
            ],
        ],
    )


def source(record: dict[str, Any], link: str) -> str:
    machine, versions = record["machine"], record["versions"]
    return (
        f"Medians; float32 and 2 threads unless a row says otherwise. {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['instruction_set']}; lr-relax {versions['lr-relax']} "
        f"({record['build']} build, commit {record['commit'][:9]}), torch {versions['torch']}, "
        f"Python {versions['python']}; {record['date'][:10]}; [record]({link})."
    )


def bench_tables(path: Path, document: Path) -> dict[str, str]:
    record = json.loads(path.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    sections: dict[str, list[BenchRow]] = {}
    for row in rows.values():
        sections.setdefault(section(row), []).append(row)
    return {
        "source": source(record, os.path.relpath(path, document.parent)),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
        "readme": readme(rows),
        "limits": limits(rows),
        **{name: comparison(rows) for name, rows in sections.items()},
    }


def linear_tables(document: Path) -> dict[str, str]:
    """The rows of linear layers, of the newest record that has them: they can be measured alone."""
    found = []
    for path in [*RECORDS.glob("2*.json"), *RECORDS.glob("linear-*.json")]:
        record = json.loads(path.read_text())
        rows = [row for row in record["rows"] if section(row) == "linear"]
        if rows:
            found.append(
                (record["date"], comparison(rows), source(record, os.path.relpath(path, document.parent)))
            )
    if not found:
        return {}
    _, table, about = max(found)
    return {"linear": table, "linear-source": about}


def coverage_tables() -> dict[str, str]:
    """The coverage of intervals: by error, rows and classes, the lowest of all models; and in summary."""
    record = json.loads(COVERAGE.read_text())
    cases = [{**case["case"], "methods": case["methods"]} for case in record["cases"]]
    main = [case for case in cases if (case.get("binning"), case.get("norm")) == ("uniform", "l1")]
    errors, sizes, classes = (sorted({case[key] for case in main}) for key in ("error", "size", "classes"))

    def lowest(method: str, error: float, size: int) -> str:
        """For each number of classes."""
        return " / ".join(
            f"{min(_coverage(main, method, error=error, size=size, classes=c)):.2f}" for c in classes
        )

    names = {"test_inversion": "**test_inversion**", "percentile": "percentile"}
    lines = [
        [f"{error:g}", name, *(lowest(method, error, size) for size in sizes)]
        for error in errors
        for method, name in names.items()
    ]
    header = ["true ECE", "method", *(f"{size:,} rows" for size in sizes)]

    kinds = {
        "l1": {"kind": "interval", "norm": "l1", "binning": "uniform"},
        "l1, quantile bins": {"kind": "interval", "norm": "l1", "binning": "quantile"},
        "l2": {"kind": "interval", "norm": "l2"},
        "maximum": {"kind": "interval", "norm": "max"},
        "classwise": {"kind": "classwise"},
        "smooth": {"kind": "smooth"},
        "soft": {"kind": "soft"},
        "difference of two ECEs": {"kind": "comparison"},
    }
    summary = []
    for name, about in kinds.items():
        of_kind = [case for case in cases if about.items() <= case.items()]
        default = "chance" if name in ("classwise", "smooth", "soft") else "test_inversion"
        cells = [name, default if name != "difference of two ECEs" else "`compare_calibration`"]
        for method in (default, "percentile", "basic"):
            shares = [case["methods"][method]["coverage"] for case in of_kind if method in case["methods"]]
            cells.append(f"{min(shares):.2f} to {max(shares):.2f}" if shares else "")
        summary.append([*cells[:2], str(len(of_kind)), *cells[2:]])
    return {
        "coverage": markdown(header, lines),
        "coverage-summary": markdown(
            ["error", "default method", "cases", "its coverage", "percentile", "basic"], summary
        ),
    }


def _coverage(cases: list[dict[str, Any]], method: str, **values: float) -> list[float]:
    return [case["methods"][method]["coverage"] for case in cases if values.items() <= case.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table differs")
    parser.add_argument("--record", type=Path, metavar="FILE", help="default: the newest one in records/")
    options = parser.parse_args()
    record = (options.record or max(RECORDS.glob("2*.json"))).resolve()
    pages = {
        page: bench_tables(record, page) | linear_tables(page) | coverage_tables()
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    }
    sys.exit(render("bench", pages, options.check))


if __name__ == "__main__":
    main()
