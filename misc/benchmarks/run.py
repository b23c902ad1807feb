"""Measure the speed and the memory of lr-relax against PyTorch and against other packages.

    python misc/benchmarks/run.py [--quick] [--only PATTERN] [--retain-memory] [--json FILE]

Every row of rows.py, metrics.py and training.py is one piece of work: ours, a yardstick with the ratio to
it that we want to reach, and peers. All of them run in turn, in a new random order every round, so that drift
hits all alike. A ratio is the median over the rounds of the ratio within a round; a sample is a loop of calls
that fills SAMPLE_SECONDS. A call that makes a gradient also frees it, as a clone is freed: each pays for its
own memory. Other work on the machine spoils the numbers all the same, of threaded operators most: look at
load_average.

Speed is shown, never tested: the exit code is 0 whether or not the targets are met.
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
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from metrics import PEERS
from row import Row
from rows import ROWS

SAMPLE_SECONDS = 0.05  # thousands of calls for the smallest work


# Measuring: samples by contender, aligned by round.

Samples = dict[str, list[float]]


def sample(call: Callable[[], object], calls: int) -> float:
    """Milliseconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e3


def measure_time(row: Row, seconds: float, min_rounds: int) -> Samples:
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    inputs = row.inputs()
    calls = {name: partial(contender, *inputs) for name, contender in row.contenders.items()}
    loops = dict.fromkeys(calls, 1)
    for name, call in calls.items():  # warms up as well
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


def peak_extra_memory(row_name: str, contender_name: str) -> list[float]:
    """The peaks of two calls, in MiB above what was resident before the first: memory kept counts too.

    The libraries are warmed up by a call on four rows.
    """

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    row = next(row for row in ROWS if row.name == row_name)
    contender = row.contenders[contender_name]
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    inputs = row.inputs()
    contender(*(x[:4].detach().requires_grad_(x.requires_grad) for x in inputs))
    before = status("VmRSS")
    peaks = []
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        contender(*inputs)
        peaks.append((status("VmHWM") - before) / 1024)
    return peaks


def measure_memory(row: Row) -> Samples:
    """Each contender in a fresh process: what others left behind would hide what it takes."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        peaks = fresh.starmap(peak_extra_memory, [(row.name, name) for name in row.contenders], chunksize=1)
    return dict(zip(row.contenders, peaks, strict=True))


def retain_memory() -> None:
    """Let malloc keep what is freed: without it the page faults of fresh memory rule the large rows.

    lr-relax keeps the memory of one large gradient by itself, so only this shows the computation alone.
    """
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    if not (
        hasattr(libc, "mallopt")
        and libc.mallopt(m_mmap_threshold, 1 << 30)
        and libc.mallopt(m_trim_threshold, -1)
    ):
        sys.exit("--retain-memory needs the GNU C library")


# Reporting.

Quartiles = dict[str, float]


def quartiles(values: list[float]) -> Quartiles:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "q1": q1, "median": median, "q3": q3, "max": max(values)}


@dataclass(frozen=True)
class Result:
    """What the JSON file holds of a row."""

    name: str
    unit: str
    threads: int
    rounds: int
    contenders: dict[str, Quartiles]
    yardstick: str
    ratio: Quartiles
    target: float
    met: bool
    times_ours: dict[str, Quartiles]


def summarise(row: Row, samples: Samples) -> Result:
    def ratio(name: str, base: str) -> Quartiles:
        return quartiles([a / b for a, b in zip(samples[name], samples[base], strict=True)])

    to_yardstick = ratio("ours", row.yardstick[0])
    return Result(
        name=row.name,
        unit=row.unit,
        threads=row.threads,
        rounds=len(samples["ours"]),
        contenders={name: quartiles(values) for name, values in samples.items()},
        yardstick=row.yardstick[0],
        ratio=to_yardstick,
        target=row.target,
        met=to_yardstick["median"] <= row.target,
        times_ours={name: ratio(name, "ours") for name in row.peers},
    )


def table(results: list[Result]) -> str:
    """Aligned columns that are Markdown too."""

    def absolute(result: Result, name: str) -> str:
        median = result.contenders[name]["median"]
        return f"{median:.0f} {result.unit}" if median >= 100 else f"{median:#.3g} {result.unit}"

    lines = [["work", "ours", "yardstick", "ratio (quartiles)", "target", "", "peers: times ours"]]
    lines += [
        [
            r.name,
            absolute(r, "ours"),
            f"{r.yardstick}: {absolute(r, r.yardstick)}",
            f"{r.ratio['median']:.2f} ({r.ratio['q1']:.2f}-{r.ratio['q3']:.2f})",
            f"<= {r.target:g}",
            "met" if r.met else "missed",
            ", ".join(f"{name} {times['median']:.3g}" for name, times in r.times_ours.items()),
        ]
        for r in results
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def machine() -> dict[str, object]:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, for a first look")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only rows with this in their name")
    parser.add_argument("--retain-memory", action="store_true", help="let malloc keep freed memory (glibc)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: results/ beside this file")
    options = parser.parse_args()
    rows = [row for row in ROWS if fnmatch(row.name.lower(), f"*{options.only.lower()}*")]
    if not rows:
        parser.error(f"--only {options.only!r} matches none of: " + "; ".join(row.name for row in ROWS))
    if options.retain_memory:
        retain_memory()

    now = datetime.now(timezone.utc)
    about = machine()
    versions = {"python": platform.python_version()}
    try:
        versions |= {
            name: version(name) for name in ("lr-relax", "torch", "numpy", "label-relaxation", *PEERS)
        }
    except PackageNotFoundError as missing:
        sys.exit(f"{missing.name} is not installed: `make bench` or `pip install --group bench` does it")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    memory = "retained by malloc" if options.retain_memory else "as by default"
    print(f"2 threads unless the row says otherwise; memory {memory}\n")

    results = []
    for i, row in enumerate(rows, 1):
        print(f"[{i}/{len(rows)}] {row.name}", file=sys.stderr)
        if row.unit == "ms":
            samples = measure_time(row, *((0.5, 2) if options.quick else (20, 5)))
        elif Path("/proc/self/clear_refs").exists():
            samples = measure_memory(row)
        else:
            print("left out: the peak is read from Linux's /proc", file=sys.stderr)
            continue
        results.append(summarise(row, samples))
    print("\n" + table(results))

    path = options.json or Path(__file__).parent / "results" / f"{now:%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "machine": about,
        "versions": versions,
        "quick": options.quick,
        "retain_memory": options.retain_memory,
        "rows": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
