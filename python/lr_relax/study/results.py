"""What a run gives: how good its predictions are, how it came about, and where from; kept as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import ReliabilityCurve
from ..metrics.reliability import curve_of_sums
from .atomic import replaced
from .config import RunConfig
from .training import Epoch

FILE = "result.json"


class ResultError(Exception):
    """A result cannot be read; the message says why in one line."""


@dataclass(frozen=True)
class Metrics:
    """How good predictions are."""

    accuracy: float
    ece: float
    """The expected calibration error, with the bins of the paper's code."""
    nll: float
    brier: float


@dataclass(frozen=True)
class Result:
    """A finished run. With temperature scaling its metrics and bins are those of the scaled predictions."""

    config: RunConfig
    n_train: int
    n_eval: int
    accuracy: float
    ece: float
    nll: float
    brier: float
    temperature: float | None
    unscaled: Metrics | None
    """Without the temperature."""
    bin_counts: list[int]
    bin_confidence: list[float | None]
    """The mean of each bin, None where it is empty."""
    bin_accuracy: list[float | None]
    """Likewise."""
    history: list[Epoch]
    seconds: float
    """Of training and evaluation, together for all processes that had to go on."""
    environment: dict[str, str]
    """Versions, the commit, device, threads, processor."""
    command: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of :meth:`to_dict`."""
        unscaled = values["unscaled"]
        return cls(
            **{
                **values,
                "config": RunConfig.from_dict(values["config"]),
                "unscaled": None if unscaled is None else Metrics(**unscaled),
                "history": [Epoch(**epoch) for epoch in values["history"]],
            }
        )


def load(folder: Path) -> Result | None:
    """The result in a run's folder, None if the run has not finished."""
    path = folder / FILE
    try:
        return Result.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultError(f"{path} is not the result of a run, delete it to start anew") from error


def save(result: Result, folder: Path) -> None:
    """Write the result to a run's folder, whole or not at all."""
    with replaced(folder / FILE) as temporary:
        temporary.write_text(json.dumps(result.to_dict(), allow_nan=False) + "\n", encoding="utf-8")


def pooled_curve(results: Sequence[Result]) -> ReliabilityCurve:
    """The reliability curve of all predictions of some runs together, with the mean of the runs' ECEs.

    That of all predictions together is smaller, or equal, as errors of the runs make up for each other.
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
