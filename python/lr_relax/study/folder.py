"""A run's folder, the only store of the study: configuration, result and predictions.

``config.json`` is written first, ``checkpoint.pt`` after every epoch, ``predictions.npz``,
``reliability.png`` and ``result.json`` at the end, in this order: a folder with a result is complete.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..metrics import ReliabilityCurve
from ..metrics.reliability import curve_of_sums
from .config import RunConfig
from .files import RunError, replaced
from .training import Epoch, Metrics

CONFIG, RESULT, PREDICTIONS = "config.json", "result.json", "predictions.npz"
CHECKPOINT, MODEL, DIAGRAM = "checkpoint.pt", "model.pt", "reliability.png"
T = TypeVar("T")
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result(Metrics):
    """A finished run. With temperature scaling, metrics and bins are those of the scaled predictions."""

    config: RunConfig
    n_train: int
    n_eval: int
    temperature: float | None
    unscaled: Metrics | None  # before temperature scaling
    bin_counts: list[int]
    bin_confidence: list[float | None]  # mean of each bin, None if it is empty
    bin_accuracy: list[float | None]
    history: list[Epoch]
    seconds: float  # of training and evaluation, over all processes that resumed the run
    environment: dict[str, str]  # versions, commit, device, threads, processor
    command: str

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON stores them."""
        return {**asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of :meth:`to_dict`."""
        parsed = {
            "config": RunConfig.from_dict(values["config"]),
            "unscaled": Metrics(**values["unscaled"]) if values["unscaled"] else None,
            "history": [Epoch(**epoch) for epoch in values["history"]],
        }
        result = cls(**{**values, **parsed})
        bins = range(result.config.n_bins), result.bin_counts, result.bin_confidence, result.bin_accuracy
        optional = [*zip(*bins, strict=True), *(vars(epoch).values() for epoch in result.history)]
        needed = [n for m in (result, result.unscaled) if m for n in (m.accuracy, m.ece, m.nll, m.brier)]
        numbers = [n or 0 for row in [*optional, [result.temperature]] for n in row]
        sum([*numbers, *needed, result.seconds], 0.0)  # TypeError if one is no number
        return result


class Statistic(NamedTuple):
    """Mean and sample standard deviation over seeds, None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def claim(folder: Path, config: RunConfig) -> None:
    """Write the configuration of a new run; RunError if the folder holds another run."""
    if (former := _load(folder / CONFIG, lambda text: RunConfig.from_dict(json.loads(text)))) is None:
        with replaced(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    elif former != config:
        raise RunError(f"{folder} is the folder of another run")


def load_result(folder: Path) -> Result | None:
    """The result in a run's folder, None if the run has not finished."""
    return _load(folder / RESULT, lambda text: Result.from_dict(json.loads(text)))


def _load(path: Path, parse: Callable[[str], T]) -> T | None:
    try:
        return parse(path.read_text("utf-8") if path.is_file() or not path.exists() else "")  # no pipe
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"the {path.stem} of a run, delete it to start over"
        raise RunError(f"{path} is not {what if path.suffix == '.json' else 'a record of runs'}") from error


def save_result(result: Result, folder: Path) -> None:
    with replaced(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result.to_dict(), allow_nan=False) + "\n", encoding="utf-8")


def save_predictions(logits: Tensor, labels: Tensor, folder: Path) -> None:
    """Write the evaluation logits as float32, which the network computes, and the labels as int64."""
    with replaced(folder / PREDICTIONS) as temporary, temporary.open("wb") as file:
        np.savez(file, logits=logits.float().numpy(), labels=labels.numpy())


def load_predictions(folder: Path) -> tuple[Tensor, Tensor]:
    """The evaluation logits (N, C), not scaled with a temperature, and the labels (N,) of a finished run."""
    with np.load(folder / PREDICTIONS) as arrays:
        return torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["labels"])


def load_results(out: Path) -> list[Result]:
    """All results below a folder, newest first, one per configuration; unreadable files cost a warning.
    Or those in a file with one per line, as misc/results/digits.jsonl.
    """
    if out.is_file():
        return _load(out, lambda s: [Result.from_dict(json.loads(x)) for x in s.strip().splitlines()]) or []
    newest: dict[RunConfig, Result] = {}
    for path in sorted(out.rglob(RESULT), key=lambda path: (-path.stat().st_mtime_ns, path)):
        try:
            if (result := load_result(path.parent)) is not None:
                newest.setdefault(result.config, result)
        except (RunError, OSError) as error:
            LOGGER.warning("skipped: %s", error)
    return list(newest.values())


def pooled_curve(results: Sequence[Result]) -> ReliabilityCurve:
    """The reliability curve of the predictions of several runs together, with the mean of the runs' ECEs.

    The ECE of the pooled predictions would be smaller, because errors of the runs cancel.
    """
    counts = np.array([each.bin_counts for each in results], dtype=np.int64)
    means = [[each.bin_confidence for each in results], [each.bin_accuracy for each in results]]
    # The means of empty bins are None, which becomes nan.
    confidence, correct = (counts * np.nan_to_num(np.array(means, dtype=np.float64))).sum(axis=1)
    edges = np.linspace(0, 1, counts.shape[1] + 1)
    expected = statistics.fmean(each.ece for each in results)
    return curve_of_sums(edges, counts.sum(axis=0), confidence, correct, expected)
