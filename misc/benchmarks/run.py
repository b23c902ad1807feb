"""Measure the speed and the memory of lr-relax against PyTorch and against other packages.

    python misc/benchmarks/run.py [--quick] [--only PATTERN] [--retain-memory] [--json FILE]

Every row of ROWS is one piece of work: ours, a yardstick with the ratio to it that we want to reach, and
peers. All of them run in turn, in a new random order every round, so that drift hits all alike.
A ratio is the median over the rounds of the ratio within a round; a sample is a loop of calls that fills
SAMPLE_SECONDS. A call that makes a gradient also frees it, as a clone is freed: each pays for its own memory.
Other work on the machine spoils the numbers all the same, of threaded operators most: look at load_average.

Speed is shown, never tested: the exit code is 0 whether or not the targets are met.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from label_relaxation import label_relaxation_loss as label_relaxation_package
from label_relaxation import mixup_label_relaxation_loss as mixup_package
from lr_relax import RobustDataAmbiguationLoss
from lr_relax.functional import (
    confidence_penalty_loss,
    cross_entropy_loss,
    focal_loss,
    label_relaxation_loss,
    mixup_label_relaxation_loss,
)
from lr_relax.metrics import expected_calibration_error
from torch import Tensor

TCH_BUILD = Path(__file__).parents[2] / "target" / "tch"
SAMPLE_SECONDS = 0.05  # thousands of calls for the smallest work
ALPHA = 0.1

Inputs = tuple[Tensor, ...]
Contender = Callable[..., object]  # takes the row's inputs
Loss = Callable[..., Tensor]  # takes logits, and what they are compared with


@dataclass(frozen=True)
class Row:
    """One line of the table; targets are ratios of ours to the yardstick."""

    name: str
    inputs: Callable[[], Inputs]
    ours: Contender
    yardstick: tuple[str, Contender]
    target: float
    peers: Mapping[str, Contender] = field(default_factory=dict)
    threads: int = 2
    unit: str = "ms"  # or "MiB": the row measures the peak of memory in place of time

    @property
    def contenders(self) -> dict[str, Contender]:
        return {"ours": self.ours, self.yardstick[0]: self.yardstick[1], **self.peers}


# Inputs, seeded by whoever calls them.


def classification(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Logits that ask for a gradient, and class indices."""
    return torch.randn(rows, classes).to(dtype).requires_grad_(), torch.randint(classes, (rows,))


def with_sets(rows: int, classes: int) -> Inputs:
    """A second target: the class, and about every tenth of the others."""
    x, y = classification(rows, classes)
    return x, y, (torch.rand(rows, classes) < 0.1).scatter(1, y[:, None], True)


def with_distributions(rows: int, classes: int) -> Inputs:
    """A second target: what a teacher would say, dense and far from the logits."""
    return *classification(rows, classes), torch.randn(rows, classes).softmax(1)


def with_mixed_rows(rows: int, classes: int) -> Inputs:
    """A second target: rows of mixup, dense."""
    x, y, other = with_second_class(rows, classes)
    return x, y, 0.3 * F.one_hot(y, classes).float() + 0.7 * F.one_hot(other, classes).float()


def with_second_class(rows: int, classes: int) -> Inputs:
    return *classification(rows, classes), torch.randint(classes, (rows,))


def predictions(rows: int, classes: int, probabilities: bool) -> Inputs:
    """Confident predictions, about two thirds of them right."""
    logits = 3 * torch.randn(rows, classes)
    target = torch.where(torch.rand(rows) < 2 / 3, logits.argmax(1), torch.randint(classes, (rows,)))
    return logits.softmax(1) if probabilities else logits, target


# Contenders.


def step(loss: Loss) -> Contender:
    """Forward and backward, the gradient freed at the end."""

    def run(x: Tensor, *targets: Tensor) -> None:
        loss(x, *targets).backward()  # type: ignore[no-untyped-call]
        x.grad = None

    return run


def first_target(loss: Loss) -> Loss:
    return lambda x, y, _: loss(x, y)


def second_target(loss: Loss) -> Loss:
    return lambda x, _, target: loss(x, target)


def of_layer(loss: Loss) -> Loss:
    """Of logits that a layer has made, which are no leaf."""
    return lambda x, *targets: loss(x + 0, *targets)


def no_grad(function: Contender) -> Contender:
    def run(*inputs: Tensor) -> object:
        with torch.no_grad():
            return function(*inputs)

    return run


def paper(logits: Tensor, target: Tensor) -> Tensor:
    """Equations 5 to 7 of the paper as one writes them in PyTorch."""
    p = logits.softmax(1)
    one_hot = F.one_hot(target, logits.shape[1])
    with torch.no_grad():  # the projection is the target: a constant
        others = p * (1 - one_hot)
        projection = torch.where(one_hot == 1, 1 - ALPHA, ALPHA * p / others.sum(1, keepdim=True))
    divergence = F.kl_div(p.log(), projection, reduction="none").sum(1)
    p_y = (p * one_hot).sum(1)
    return torch.where(p_y >= 1 - ALPHA, 0.0, divergence).mean()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """The focal loss as one writes it in PyTorch."""
    ln_p = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
    return -((1 - ln_p.exp()) ** 2 * ln_p).mean()


def confidence_penalty(logits: Tensor, target: Tensor) -> Tensor:
    """The confidence penalty as one writes it in PyTorch."""
    ln_p = F.log_softmax(logits, 1)
    return F.nll_loss(ln_p, target) + 0.1 * (ln_p.exp() * ln_p).sum(1).mean()


def set_relaxation(logits: Tensor, target: Tensor) -> Tensor:
    """Label relaxation of a set as one writes it in PyTorch."""
    ln_in = logits.masked_fill(~target, -torch.inf).logsumexp(1)
    ln_out = logits.masked_fill(target, -torch.inf).logsumexp(1)
    d = ln_in - ln_out
    losses = (1 - ALPHA) * (math.log(1 - ALPHA) + F.softplus(-d)) + ALPHA * (math.log(ALPHA) + F.softplus(d))
    return torch.where(torch.sigmoid(d) >= 1 - ALPHA, 0.0, losses).mean()


def ambiguation(logits: Tensor, target: Tensor) -> Tensor:
    """Robust data ambiguation as one writes it in PyTorch."""
    p = logits.detach().softmax(1)
    return set_relaxation(logits, (p > 0.75).scatter(1, target[:, None], True))


def pyo3_tch() -> Loss:
    """Our loss on the build with pyo3-tch: the package of that folder, imported beside the default one."""

    def forget() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == "lr_relax"]
        return {name: sys.modules.pop(name) for name in names}

    default = forget()
    sys.path.insert(0, str(TCH_BUILD))
    try:
        build = importlib.import_module("lr_relax")
    finally:
        sys.path.remove(str(TCH_BUILD))
        forget()
        sys.modules.update(default)
    assert Path(build.__file__ or "").is_relative_to(TCH_BUILD)
    return partial(build.label_relaxation_loss, alpha=ALPHA)


ours = partial(label_relaxation_loss, alpha=ALPHA)
ours_pyo3_tch = pyo3_tch() if (TCH_BUILD / "lr_relax").is_dir() else None
package = partial(label_relaxation_package, alpha=ALPHA)

CLONE = ("logits.clone()", no_grad(lambda x, y: x.clone()))
AMAX = ("logits.amax(1)", no_grad(lambda x, y: x.amax(1)))
CROSS_ENTROPY = ("F.cross_entropy", step(F.cross_entropy))
MAX = ("x.max(1)", lambda x, y: x.max(1))
SOFTMAX = ("torch.softmax(x, 1)", lambda x, y: torch.softmax(x, 1))
OTHER_RELAXATIONS = {"label-relaxation": step(package), "paper": step(paper)}
BORDERS = {"ours by pyo3-tch": step(ours_pyo3_tch)} if ours_pyo3_tch else {}

# Name, ours, the most that it may take in times of our label relaxation, and the closest peer.
OTHER_LOSSES: list[tuple[str, Loss, float, tuple[str, Loss]]] = [
    ("Cross-entropy", cross_entropy_loss, 1.15, ("F.cross_entropy", F.cross_entropy)),
    (
        "Label smoothing",
        partial(cross_entropy_loss, label_smoothing=0.1),
        1.15,
        ("F.cross_entropy", partial(F.cross_entropy, label_smoothing=0.1)),
    ),
    ("Focal", focal_loss, 1.3, ("torch", focal)),
    ("Confidence penalty", confidence_penalty_loss, 1.15, ("torch", confidence_penalty)),
]

# Name, inputs, ours, the most that it may take in times of our label relaxation of a class, the closest peer.
OTHER_TARGETS: list[tuple[str, Callable[[int, int], Inputs], Loss, float, tuple[str, Loss]]] = [
    (
        "LR of distributions",
        with_distributions,
        second_target(ours),
        2.0,
        ("F.cross_entropy", second_target(F.cross_entropy)),
    ),
    (
        "LR of dense mixup",
        with_mixed_rows,
        second_target(ours),
        2.0,
        ("F.cross_entropy", second_target(F.cross_entropy)),
    ),
    ("LR of sets", with_sets, second_target(ours), 2.0, ("torch", second_target(set_relaxation))),
    (
        "Mixup LR",
        with_second_class,
        partial(mixup_label_relaxation_loss, lam=0.3, alpha=ALPHA),
        2.0,
        ("label-relaxation", partial(mixup_package, lam=0.3, alpha=ALPHA)),
    ),
]

ROWS = [
    Row(
        "LR forward + backward (1024, 32000)",
        partial(classification, 1024, 32000),
        ours=step(ours),
        yardstick=CLONE,
        target=1.0,
        peers={"F.cross_entropy": step(F.cross_entropy), **OTHER_RELAXATIONS},
    ),
    Row(
        "LR forward only (1024, 32000)",
        partial(classification, 1024, 32000),
        ours=no_grad(ours),
        yardstick=AMAX,
        target=1.5,
        peers={"F.cross_entropy": no_grad(F.cross_entropy)},
    ),
    Row(
        "LR forward + backward (4096, 1000)",
        partial(classification, 4096, 1000),
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.45,
        peers={**OTHER_RELAXATIONS, **BORDERS},
    ),
    Row(
        "LR forward + backward (256, 1000)",
        partial(classification, 256, 1000),
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.6,
        peers=OTHER_RELAXATIONS,
    ),
    Row(
        "LR forward + backward (64, 10), 1 thread",
        partial(classification, 64, 10),
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.8,
        peers={**OTHER_RELAXATIONS, **BORDERS},
        threads=1,
    ),
    Row(
        "LR forward + backward (1024, 32000), bfloat16",
        partial(classification, 1024, 32000, torch.bfloat16),
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.5,
    ),
    *(
        Row(
            f"{name} forward + backward {size}",
            partial(classification, *size),
            ours=step(loss),
            yardstick=("our LR", step(ours)),
            target=target,
            peers={peer_name: step(peer)},
        )
        for size in [(4096, 1000), (1024, 32000)]
        for name, loss, target, (peer_name, peer) in OTHER_LOSSES
    ),
    *(
        Row(
            f"{name} forward + backward {size}",
            partial(inputs, *size),
            ours=step(loss),
            yardstick=("our LR", step(first_target(ours))),
            target=target,
            peers={peer_name: step(peer)},
        )
        for size in [(4096, 1000), (1024, 32000)]
        for name, inputs, loss, target, (peer_name, peer) in OTHER_TARGETS
    ),
    Row(
        "Ambiguation forward + backward (4096, 1000)",
        partial(classification, 4096, 1000),
        ours=step(RobustDataAmbiguationLoss(ALPHA)),
        yardstick=("torch", step(ambiguation)),
        target=0.5,
    ),
    Row(
        "x + 0 and LR in place, forward + backward (1024, 32000)",
        partial(classification, 1024, 32000),
        ours=step(of_layer(partial(ours, inplace=True))),
        yardstick=("not in place", step(of_layer(ours))),
        target=1.0,
    ),
    Row(
        "x + 0 and LR in place, peak extra memory (1024, 32000)",
        partial(classification, 1024, 32000),
        ours=step(of_layer(partial(ours, inplace=True))),
        yardstick=CLONE,  # x + 0 alone
        target=1.05,
        peers={"not in place": step(of_layer(ours))},
        unit="MiB",
    ),
    Row(
        "LR peak extra memory (1024, 32000)",
        partial(classification, 1024, 32000),
        ours=step(ours),
        yardstick=CLONE,  # the size of the logits, by the same measure
        target=1.05,
        peers={"F.cross_entropy": step(F.cross_entropy), "label-relaxation": step(package)},
        unit="MiB",
    ),
    *(
        Row(
            f"ECE of probabilities {size}",
            partial(predictions, *size, probabilities=True),
            ours=expected_calibration_error,
            yardstick=MAX,
            target=1.0,
        )
        for size in [(1_000_000, 10), (100_000, 1000)]
    ),
    *(
        Row(
            f"ECE of logits {size}",
            partial(predictions, *size, probabilities=False),
            ours=partial(expected_calibration_error, from_logits=True),
            yardstick=SOFTMAX,
            target=1.0,
        )
        for size in [(1_000_000, 10), (100_000, 1000)]
    ),
]


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
    versions |= {name: version(name) for name in ("lr-relax", "torch", "numpy", "label-relaxation")}
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
