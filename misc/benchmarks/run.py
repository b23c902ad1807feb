"""Measure the speed and the memory of lr-relax beside PyTorch and other packages; write a record.

    python misc/benchmarks/run.py [--quick] [--only PATTERN] [--record FILE]

Each row of rows.py is one piece of work for lr-relax, a yardstick with a target ratio, and peers. All of
them run in turn, in a new random order every round, so that drift affects all alike. A ratio is the median
over the rounds of the ratio within a round; a sample is a loop of calls that fills SAMPLE_SECONDS. A call
that makes a gradient also frees it. Other work on the machine distorts the times, above all of threaded
operators: see `load_average` in the record.

A complete run writes a record into records/, from which tables.py renders the tables of the documentation.
The exit code is 0 whether or not the targets are met.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lr_relax
import torch
from lr_relax.study.run import commit, processor

from metrics import PEERS
from row import Row
from rows import ROWS, TCH_BUILD

SAMPLE_SECONDS = 0.05  # thousands of calls for the smallest work
RECORDS = Path(__file__).parent / "records"


# Measuring: samples by contender, aligned by round.

Samples = dict[str, list[float]]


def sample(call: Callable[[], object], calls: int) -> float:
    """Milliseconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e3


def inputs_of(row: Row) -> Any:
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    return row.inputs(*row.shape)


def measure_time(row: Row, seconds: float, min_rounds: int) -> Samples:
    inputs = inputs_of(row)
    calls = {name: partial(contender, *inputs) for name, contender in row.contenders.items()}
    loops = dict.fromkeys(calls, 1)
    for name, call in calls.items():
        sample(call, 1)  # a compiled function compiles
        while sample(call, loops[name]) * loops[name] < SAMPLE_SECONDS * 1e3:
            loops[name] *= 2
    samples: Samples = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    deadline = time.perf_counter() + seconds
    while len(samples["ours"]) < min_rounds or time.perf_counter() < deadline:
        shuffle(order)
        for name in order:
            samples[name].append(sample(calls[name], loops[name]))
    gc.enable()
    return samples


def measure_time_with_retained_memory(row_name: str, seconds: float, min_rounds: int) -> Samples:
    """As `measure_time`, for a process of its own: malloc keeps what is freed, without page faults."""
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    if not (libc.mallopt(m_mmap_threshold, 1 << 30) and libc.mallopt(m_trim_threshold, -1)):
        raise OSError("mallopt refused to retain freed memory")
    return measure_time(row_named(row_name), seconds, min_rounds)


def peak_extra_memory(row_name: str, contender_name: str) -> list[float]:
    """The peaks of two calls, in MiB above the resident memory before the first; warms up on four rows."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    row = row_named(row_name)
    contender = row.contenders[contender_name]
    inputs = inputs_of(row)
    contender(*row.inputs(4, *row.shape[1:]))
    before = status("VmRSS")
    peaks = []
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        contender(*inputs)
        peaks.append((status("VmHWM") - before) / 1024 - row.not_counted)
    return peaks


def row_named(name: str) -> Row:
    """Rows hold functions that cannot be pickled: a new process gets the name."""
    return next(row for row in ROWS if row.name == name)


def measure(row: Row, seconds: float, min_rounds: int) -> Samples | None:
    """The samples of a row; None if this system cannot measure it."""
    if row.unit == "ms" and not row.retain_memory:
        return measure_time(row, seconds, min_rounds)
    # A new process for each call: memory that others have left behind would distort the result.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as new_process:
        if row.unit == "ms" and hasattr(ctypes.CDLL(None), "mallopt"):
            return new_process.apply(measure_time_with_retained_memory, (row.name, seconds, min_rounds))
        if row.unit == "MiB" and Path("/proc/self/clear_refs").exists():
            peaks = new_process.starmap(peak_extra_memory, [(row.name, c) for c in row.contenders], 1)
            return dict(zip(row.contenders, peaks, strict=True))
    return None


# Reporting.

Quartiles = dict[str, float]


def quartiles(values: list[float]) -> Quartiles:
    names = ("q1", "median", "q3")
    return {
        name: float(f"{value:.4g}")
        for name, value in zip(names, statistics.quantiles(values, n=4, method="inclusive"), strict=True)
    }


def summarize(row: Row, samples: Samples) -> dict[str, Any]:
    """What the record holds of a row; `times_ours` are the ratios of the others to ours."""

    def ratio(name: str, base: str) -> Quartiles:
        return quartiles([a / b for a, b in zip(samples[name], samples[base], strict=True)])

    return {
        "name": row.name,
        "work": row.work,
        "shape": row.shape,
        "dtype": row.dtype,
        "threads": row.threads,
        "retained_memory": row.retain_memory,
        "unit": row.unit,
        "repeats": len(samples["ours"]),
        "contenders": {name: quartiles(values) for name, values in samples.items()},
        "times_ours": {name: ratio(name, "ours") for name in samples if name != "ours"},
        "yardstick": row.yardstick[0],
        "ratio": ratio("ours", row.yardstick[0]),
        "target": row.target,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Aligned columns that are Markdown too."""

    def absolute(row: dict[str, Any], name: str) -> str:
        median = row["contenders"][name]["median"]
        return f"{median:.0f} {row['unit']}" if median >= 100 else f"{median:#.3g} {row['unit']}"

    lines = [["work", "ours", "yardstick", "ratio (quartiles)", "target", "", "peers: times ours"]]
    for row in results:
        peers = {name: times for name, times in row["times_ours"].items() if name != row["yardstick"]}
        lines.append(
            [
                row["name"],
                absolute(row, "ours"),
                f"{row['yardstick']}: {absolute(row, row['yardstick'])}",
                "{median:.2f} ({q1:.2f}-{q3:.2f})".format(**row["ratio"]),
                f"<= {row['target']:g}",
                "met" if row["ratio"]["median"] <= row["target"] else "missed",
                ", ".join(f"{name} {times['median']:.3g}" for name, times in peers.items()),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def machine() -> dict[str, object]:
    return {
        "cpu": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, for a first look; no record")
    parser.add_argument("--only", metavar="PATTERN", help="only rows with this in their name; no record")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="where to write the record, also of some rows"
    )
    options = parser.parse_args()
    pattern = f"*{(options.only or '').lower()}*"
    rows = [row for row in ROWS if fnmatch(row.name.lower(), pattern)]
    if not rows:
        parser.error(f"--only {options.only!r} matches none of: " + "; ".join(row.name for row in ROWS))

    now = datetime.now(timezone.utc)
    about = machine()
    packages = ("lr-relax", "torch", "numpy", "label-relaxation", *PEERS)
    try:
        versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    except PackageNotFoundError as missing:
        sys.exit(f"{missing.name} is not installed: `make bench` or `pip install --group bench` does it")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    print("2 threads unless the row says otherwise\n")

    results = []
    for i, row in enumerate(rows, 1):
        print(f"[{i}/{len(rows)}] {row.name}", file=sys.stderr)
        samples = measure(row, *((0.5, 2) if options.quick else (4, row.min_rounds)))
        if samples is None:
            print("left out: not supported on this system", file=sys.stderr)
        else:
            results.append(summarize(row, samples))
    print("\n" + table(results))

    path: Path | None = options.record
    if path is None and not (options.quick or options.only):
        path = RECORDS / f"{now:%Y-%m-%d-%H%M}.json"
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "date": now.isoformat(timespec="seconds"),
            "commit": commit(Path(__file__).parents[2]),
            "build": "pyo3-tch" if TCH_BUILD in Path(lr_relax.__file__).parents else "default",
            "machine": about,
            "versions": versions,
            "rows": "ROWS",
        }
        lines = ",\n".join("    " + json.dumps(result) for result in results)  # one line for each row
        path.write_text(json.dumps(record, indent=2).replace('"ROWS"', f"[\n{lines}\n  ]") + "\n")
        print(f"\nwrote {path}; render the tables with misc/benchmarks/tables.py")


if __name__ == "__main__":
    main()
