"""Results without training, for the tests of tables, figures and tracking."""

from dataclasses import replace
from typing import Any

from lr_relax.study.config import RunConfig
from lr_relax.study.folder import Result
from lr_relax.study.training import Epoch

COMMON = {"dataset_name": "fashion_mnist", "model_name": "simple_dense", "epochs": 10}


def epoch(step: int, *, test_run: bool = False) -> Epoch:
    """Every curve has another value in every epoch, except the rate and the validation's ECE."""
    validation = (None, None, None) if test_run else (0.6 + step, 0.5 + step / 100, 0.25)
    return Epoch(step, 0.5 + step, 0.4 + step / 100, 0.1, *validation, 2.0, 0.7 if validation[0] else None)


def result(counts: list[int], confidence: list[Any], accuracy: list[Any], **options: Any) -> Result:
    """A result with these predictions in bins."""
    fields = COMMON | {"loss_name": "label_relaxation", "n_bins": len(counts)} | options
    metrics = {"accuracy": 0.9, "ece": 0.1, "nll": 0.5, "brier": 0.2, "temperature": None, "unscaled": None}
    bins = {"bin_counts": counts, "bin_confidence": confidence, "bin_accuracy": accuracy}
    about = {"history": [], "seconds": 1.0, "environment": {}, "command": "", "n_train": 100}
    return Result(config=RunConfig(**fields), n_eval=sum(counts), **metrics, **bins, **about)


def record(accuracy: float, ece: float, **options: Any) -> Result:
    """A result with these metrics."""
    no = [None] * (options.get("n_bins", 15) - 1)
    return replace(result([1] + [0] * len(no), [0.5, *no], [1.0, *no], **options), accuracy=accuracy, ece=ece)


def timeless(result: Result) -> Result:
    """What must be the same in a run that was interrupted."""
    history = [replace(epoch, seconds=0) for epoch in result.history]
    return replace(result, seconds=0, history=history, command="")
