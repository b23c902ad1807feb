"""A run's folder, the only store of the study: configuration, result and predictions.

``config.json`` is written first, ``checkpoint.pt`` after every epoch, ``predictions.npz``,
``reliability.png`` and ``result.json`` at the end, in this order: a folder with a result is complete.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..metrics import ReliabilityCurve
from ..metrics.reliability import curve_of_sums
from .config import RunConfig
from .files import replaced
from .training import Epoch

CONFIG, RESULT, PREDICTIONS = "config.json", "result.json", "predictions.npz"
CHECKPOINT, MODEL, DIAGRAM = "checkpoint.pt", "model.pt", "reliability.png"
LOGGER = logging.getLogger(__name__)


class FolderError(Exception):
    """A folder holds another run or a damaged file; the message is one line."""


@dataclass(frozen=True)
class Metrics:
    """Metrics of predictions; the calibration error has the bins of the paper's code."""

    accuracy: float
    ece: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Result:
    """A finished run. With temperature scaling, metrics and bins are those of the scaled predictions."""

    config: RunConfig
    n_train: int
    n_eval: int
    accuracy: float
    ece: float
    nll: float
    brier: float
    temperature: float | None
    unscaled: Metrics | None  # before temperature scaling
    bin_counts: list[int]
    bin_confidence: list[float | None]  # mean of each bin, None if it is empty
    bin_accuracy: list[float | None]
    history: list[Epoch]
    seconds: float
    """Time of training and evaluation, over all processes that resumed the run."""
    environment: dict[str, str]
    """Versions, commit, device, threads, processor."""
    command: str

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON stores them."""
        return {**asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of :meth:`to_dict`."""
        unscaled = values["unscaled"]
        parsed = {
            "config": RunConfig.from_dict(values["config"]),
            "unscaled": None if unscaled is None else Metrics(**unscaled),
            "history": [Epoch(**epoch) for epoch in values["history"]],
        }
        return cls(**{**values, **parsed})


class Statistic(NamedTuple):
    """Mean and sample standard deviation over seeds, None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def claim(folder: Path, config: RunConfig) -> None:
    """Write the configuration of a new run; FolderError if the folder holds another run."""
    path = folder / CONFIG
    if path.exists():
        try:
            former = RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            raise FolderError(f"{path} is not the configuration of a run, delete it to continue") from error
        if former != config:
            raise FolderError(f"{folder} is the folder of another run")
        return
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")


def load_result(folder: Path) -> Result | None:
    """The result in a run's folder, None if the run has not finished."""
    path = folder / RESULT
    try:
        return Result.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FolderError(f"{path} is not the result of a run, delete it to start over") from error


def save_result(result: Result, folder: Path) -> None:
    """Write the result atomically."""
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
    """All results below a folder, newest first, one per configuration; unreadable files cost a warning."""
    paths = sorted(out.rglob(RESULT), key=lambda path: (-path.stat().st_mtime_ns, path))
    newest: dict[RunConfig, Result] = {}
    for path in paths:
        try:
            result = load_result(path.parent)
        except (FolderError, OSError) as error:
            LOGGER.warning("skipped: %s", error)
            continue
        if result is not None:
            newest.setdefault(result.config, result)
    return list(newest.values())


def pooled_curve(results: Sequence[Result]) -> ReliabilityCurve:
    """The reliability curve of the predictions of several runs together, with the mean of the runs' ECEs.

    The ECE of the pooled predictions would be smaller, because errors of the runs cancel.
    """
    counts = np.array([each.bin_counts for each in results], dtype=np.int64)
    total = counts.sum(axis=0)

    def total_of(means: list[list[float | None]]) -> NDArray[np.float64]:
        sums = counts * np.nan_to_num(np.array(means, dtype=np.float64))  # None is nan
        total: NDArray[np.float64] = sums.sum(axis=0, dtype=np.float64)
        return total

    confidence = total_of([each.bin_confidence for each in results])
    correct = total_of([each.bin_accuracy for each in results])
    expected = statistics.fmean(each.ece for each in results)
    return curve_of_sums(np.linspace(0, 1, len(total) + 1), total, confidence, correct, expected)
