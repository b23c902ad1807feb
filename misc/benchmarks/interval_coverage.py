"""How often confidence intervals of calibration errors hold the error of the population.

    nice python misc/benchmarks/interval_coverage.py [--quick] [--record FILE]

Each case draws samples from a population of known calibration error. The confidences are the highest
probabilities of normal logits, and a prediction is correct with the probability of the true model. The
miscalibrated models are

- "overconfident", "underconfident": the true logits are a fraction or a multiple of the predicted;
- "in one range": confidences from 0.6 to 0.8 are too high by a constant, all others are right.

Only the confidence and whether it is correct matter to errors over bins of confidence, so samples are passed
as binary events. Comparisons draw labels from the true model, for two models on the same rows.

The record is written after each case, and a call continues an incomplete record. Seeds are fixed; one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import lr_relax
import numpy as np
import numpy.typing as npt
import torch
from lr_relax.metrics import (
    bootstrap_ci,
    compare_calibration,
    reliability_curve,
    smooth_calibration_error,
)

from run import machine

RECORD = Path(__file__).parent / "records" / "coverage.json"
N_BINS, LEVEL = 15, 0.95
SCALE = {2: 3.0, 10: 2.5, 100: 3.0}
"""The standard deviation of the logits for each number of classes."""
CLASSES, SIZES = tuple(SCALE), (500, 1000, 2000, 10_000)
MODELS = ("overconfident", "underconfident", "in one range")
ERRORS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
POPULATION = 100_000
RESAMPLES = 500

Floats = npt.NDArray[np.float64]
Case = dict[str, Any]


def logits(classes: int) -> Floats:
    z: Floats = np.random.default_rng(classes).standard_normal((POPULATION, classes)) * SCALE[classes]
    return z


def softmax(z: Floats) -> Floats:
    p: Floats = torch.softmax(torch.from_numpy(z), 1).numpy()
    return p


@cache
def population(classes: int, model: str, error: float) -> Population:
    return Population(classes, model, error)


class Population:
    """Confidences in ascending order, and the probability that each is correct."""

    def __init__(self, classes: int, model: str, error: float) -> None:
        z = logits(classes)
        confidence = softmax(z).max(1)

        def accuracies(t: float) -> Floats:
            accuracy: Floats
            if model == "in one range":
                accuracy = confidence - np.where((confidence >= 0.6) & (confidence < 0.8), t, 0)
            else:
                factor = 1 + t if model == "underconfident" else 1 / (1 + t)
                accuracy = softmax(factor * z).max(1)
            return accuracy

        def error_of(t: float) -> float:
            return uniform_error(confidence, accuracies(t))

        accuracy = accuracies(solve(error_of, error, 0.6 if model == "in one range" else 9.0) if error else 0)
        order = np.argsort(confidence)
        self.confidence, self.accuracy = confidence[order], accuracy[order]
        self._sums = np.append(0, np.cumsum(self.confidence - self.accuracy))

    def sample(self, size: int, random: np.random.Generator) -> tuple[Floats, npt.NDArray[np.int64]]:
        rows = random.integers(POPULATION, size=size)
        return self.confidence[rows], (random.random(size) < self.accuracy[rows]).astype(np.int64)

    def smooth_error(self) -> float:
        """The smooth calibration error: each row counts as correct and as wrong, with the weight of each."""
        outcome = np.repeat([1, 0], POPULATION)
        weight = np.concatenate([self.accuracy, 1 - self.accuracy])
        return float(smooth_calibration_error(np.tile(self.confidence, 2), outcome, sample_weight=weight))

    def soft_error(self) -> float:
        """The soft calibration error with norm "l2", by its formula."""
        centers = (np.arange(N_BINS) + 0.5) / N_BINS
        share = softmax(-((self.confidence[:, None] - centers) ** 2) / 0.01)
        gap = share.T @ (self.accuracy - self.confidence)
        return float(np.sqrt((gap**2 / share.sum(0)).sum() / POPULATION))

    def error(self, edges: Floats, norm: str) -> float:
        """The calibration error over bins with these edges."""
        ends = np.searchsorted(self.confidence, edges)
        ends[0], ends[-1] = 0, POPULATION
        counts, sums = np.diff(ends), np.diff(self._sums[ends])
        gap, share = np.abs(sums) / np.maximum(counts, 1), counts / POPULATION
        errors = {"l1": (gap * share).sum(), "l2": np.sqrt((gap**2 * share).sum()), "max": gap.max()}
        return float(errors[norm])


def uniform_error(confidence: Floats, accuracy: Floats) -> float:
    bins = np.minimum((confidence * N_BINS).astype(np.intp), N_BINS - 1)
    return float(np.abs(np.bincount(bins, confidence - accuracy)).sum() / POPULATION)


def solve(function: Callable[[float], float], value: float, high: float) -> float:
    """Where an increasing function that is 0 at 0 has a value."""
    low = 0.0
    if function(high) < value:
        raise ValueError(f"Expected a population of error {value}, but the largest one is {function(high)}.")
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > value else (middle, high)
    return high


def intervals(case: Case, repeats: int) -> Case:
    """The share of intervals that hold the population error, for each method, and their mean width."""
    of = population(case["classes"], case["model"], case["error"])
    methods: dict[str, list[tuple[float, float, float]]] = {
        name: [] for name in ("test_inversion", "percentile", "basic")
    }
    estimates, excluded = [], 0
    for repeat in range(repeats):
        random = np.random.default_rng([case["classes"], case["size"], round(1e4 * case["error"]), repeat])
        p, y = of.sample(case["size"], random)
        got = bootstrap_ci(
            p,
            y,
            metric="calibration_error",
            norm=case["norm"],
            binning=case["binning"],
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            seed=repeat,
        )
        edges = reliability_curve(p, y, n_bins=N_BINS, binning=case["binning"]).edges
        truth = of.error(edges, case["norm"])
        low, high = np.quantile(got.distribution, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        methods["test_inversion"].append((got.low, got.high, truth))
        methods["percentile"].append((low, high, truth))
        methods["basic"].append((max(2 * got.estimate - high, 0), 2 * got.estimate - low, truth))
        estimates.append(got.estimate)
        excluded += not low <= got.estimate <= high
    results = {name: summary(ends) for name, ends in methods.items()}
    results["percentile"]["excludes_estimate"] = round(excluded / repeats, 4)
    return {"true": round(truth, 5), "estimate": round(float(np.mean(estimates)), 5), "methods": results}


def summary(ends: list[tuple[float, float, float]]) -> dict[str, float]:
    low, high, truth = np.array(ends).T
    rounding = 1e-12
    return {
        "coverage": round(float(((low <= truth + rounding) & (truth <= high + rounding)).mean()), 4),
        "too_high": round(float((low > truth + rounding).mean()), 4),
        "too_low": round(float((high < truth - rounding).mean()), 4),
        "width": round(float((high - low).mean()), 5),
    }


def comparisons(case: Case, repeats: int) -> Case:
    """The same for the difference between two models, the first and second of "models"."""
    z = logits(case["classes"])
    truth = softmax(z)
    models = [softmax(model_logits(z, name)) for name in case["models"]]
    errors = [uniform_error(p.max(1), truth[np.arange(POPULATION), p.argmax(1)]) for p in models]
    difference = errors[0] - errors[1]
    cumulative = truth.cumsum(1)[:, :-1]
    ends, percentile, rejected = [], [], 0
    for repeat in range(repeats):
        random = np.random.default_rng([case["classes"], case["size"], repeat])
        rows: Any = random.integers(POPULATION, size=case["size"])
        target = (cumulative[rows] <= random.random((len(rows), 1))).sum(1)
        got = compare_calibration(
            models[0][rows],
            models[1][rows],
            target,
            n_bins=N_BINS,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            seed=repeat,
        )
        ends.append((got.low, got.high, difference))
        low, high = np.quantile(got.distribution, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        percentile.append((low, high, difference))
        rejected += got.p_value < 1 - LEVEL
    methods = {"test_inversion": summary(ends), "percentile": summary(percentile)}
    methods["test_inversion"]["p_below_0.05"] = round(rejected / repeats, 4)
    return {"true": [round(e, 5) for e in errors], "methods": methods}


def classwise(case: Case, repeats: int) -> Case:
    """The same as for `intervals` for the classwise calibration error of a model."""
    z = logits(case["classes"])
    p, truth = softmax(model_logits(z, case["model"])), softmax(z)
    error = float(np.mean([uniform_error(*columns) for columns in zip(p.T, truth.T, strict=True)]))
    cumulative = truth.cumsum(1)[:, :-1]
    ends, percentile = [], []
    for repeat in range(repeats):
        random = np.random.default_rng([case["classes"], case["size"], repeat])
        rows: Any = random.integers(POPULATION, size=case["size"])
        target = (cumulative[rows] <= random.random((len(rows), 1))).sum(1)
        got = bootstrap_ci(
            p[rows],
            target,
            metric="classwise_calibration_error",
            n_bins=N_BINS,
            n_resamples=RESAMPLES // 2,
            confidence_level=LEVEL,
            seed=repeat,
        )
        ends.append((got.low, got.high, error))
        low, high = np.quantile(got.distribution, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        percentile.append((low, high, error))
    return {"true": round(error, 5), "methods": {"chance": summary(ends), "percentile": summary(percentile)}}


def unbinned(case: Case, repeats: int) -> Case:
    """The same as for `intervals` for the smooth and the soft calibration error."""
    of = population(case["classes"], case["model"], case["error"])
    truth = of.smooth_error() if case["kind"] == "smooth" else of.soft_error()
    estimates, ends, percentile = [], [], []
    for repeat in range(repeats):
        random = np.random.default_rng([case["classes"], case["size"], round(1e4 * case["error"]), repeat])
        got = bootstrap_ci(
            *of.sample(case["size"], random),
            metric=f"{case['kind']}_calibration_error",
            n_bins=N_BINS,
            n_resamples=RESAMPLES // 5,
            confidence_level=LEVEL,
            seed=repeat,
        )
        estimates.append(got.estimate)
        ends.append((got.low, got.high, truth))
        low, high = np.quantile(got.distribution, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        percentile.append((low, high, truth))
    methods = {"chance": summary(ends), "percentile": summary(percentile)}
    return {"true": round(truth, 5), "estimate": round(float(np.mean(estimates)), 5), "methods": methods}


def model_logits(z: Floats, name: str) -> Floats:
    """A number is the temperature by which the true logits are divided; "noisy" adds noise to them."""
    if name == "noisy":
        noisy: Floats = z + 0.7 * np.random.default_rng(0).standard_normal(z.shape)
        return noisy
    return z / float(name)


def cases(quick: bool) -> Iterator[tuple[Case, int]]:
    """Each case with its number of repeats."""
    errors, classes = ((0.0, 0.1), (10,)) if quick else (ERRORS, CLASSES)
    for binning, norm in [("uniform", "l1"), ("quantile", "l1"), ("uniform", "l2"), ("uniform", "max")]:
        main = (binning, norm) == ("uniform", "l1")
        sizes = (500,) if quick else SIZES if main else (500, 10_000)
        for model, error, size, c in product(MODELS, errors, sizes, classes):
            # With 100 classes, too few confidences are in the range for an error of 0.1.
            if (model != MODELS[0] and error == 0) or (model, error, c) == ("in one range", 0.1, 100):
                continue
            if not main and (model == "underconfident" or error in (0.005, 0.02)):
                continue
            case: Case = {"kind": "interval", "binning": binning, "norm": norm, "model": model}
            yield {**case, "error": error, "size": size, "classes": c}, 20 if quick else 200 if main else 100
    pairs = [("1", "0.77"), ("1", "0.95"), ("0.77", "0.75"), ("0.77", "1.2"), ("1", "noisy")]
    for models, size, c in product(pairs, (500,) if quick else (500, 10_000), (2, 10)):
        case = {"kind": "comparison", "models": list(models), "size": size, "classes": c}
        yield case, 10 if quick else 60
    for name, size, c in product(("1", "0.95", "0.77"), (500,), (2, 10)):
        yield {"kind": "classwise", "model": name, "size": size, "classes": c}, 5 if quick else 50
    without_bins = [(kind, MODELS[0], error) for kind in ("soft", "smooth") for error in (0.0, 0.02, 0.1)]
    without_bins.append(("soft", MODELS[2], 0.02))
    for (kind, model, error), size in product(without_bins, (500,) if quick else (500, 2000)):
        case = {"kind": kind, "model": model, "error": error, "size": size, "classes": 10}
        yield case, 5 if quick else 100 if kind == "soft" else 40


RUNS = {
    "interval": intervals,
    "comparison": comparisons,
    "classwise": classwise,
    "smooth": unbinned,
    "soft": unbinned,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases and repeats, printed only")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done: list[Case] = []
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"lr-relax": lr_relax.__version__} | {name: version(name) for name in ("torch", "numpy")},
        "level": LEVEL,
        "n_bins": N_BINS,
        "n_resamples": RESAMPLES,
        "cpu_seconds": 0.0,
    }
    if options.record.exists() and not options.quick:
        record = json.loads(options.record.read_text())
        done = record.pop("cases")
    finished = {json.dumps(case["case"]) for case in done}
    for case, repeats in cases(options.quick):
        if json.dumps(case) in finished:
            continue
        start = time.process_time()
        result = RUNS[case["kind"]](case, repeats)
        done.append({"case": case, "repeats": repeats, **result})
        record["cpu_seconds"] = round(record["cpu_seconds"] + time.process_time() - start, 1)
        print(json.dumps(done[-1]), flush=True)
        if not options.quick:
            write(options.record, record, done)


def write(path: Path, record: dict[str, Any], done: list[Case]) -> None:
    """One case per line."""
    head = json.dumps(record, indent=2)[:-2]
    lines = ",\n    ".join(map(json.dumps, done))
    part = path.with_suffix(".part")
    part.write_text(f'{head},\n  "cases": [\n    {lines}\n  ]\n}}\n')
    part.replace(path)


if __name__ == "__main__":
    main()
