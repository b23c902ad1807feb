"""Runs as MLflow gives them back, and epochs as it gets them, for the tests of both."""

from typing import Any

from lr_relax.study.config import RunConfig
from lr_relax.study.results import Result
from lr_relax.study.tracked import Record
from lr_relax.study.training import Epoch

CURVES = ("loss", "accuracy", "lr", "val_loss", "val_accuracy", "val_ece")
COMMON = {"dataset_name": "fashion_mnist", "model_name": "simple_dense", "epochs": 10}


def record(accuracy: float, ece: float, *, alpha: float = 0.0, **fields: Any) -> Record:
    config = RunConfig(**(COMMON | {"loss_name": "label_relaxation", "alpha": alpha} | fields))
    metrics = {"test_accuracy" if config.test_run else "validation_accuracy": accuracy, "ece": ece}
    return Record(run_id=config.key, key=config.key, config=config, metrics=metrics, tags={})


def result(counts: list[int], confidence: list[Any], accuracy: list[Any], **fields: Any) -> Result:
    """What a run with these predictions in bins has left."""
    config = record(0, 0, **({"n_bins": len(counts)} | fields)).config
    return Result(
        config=config,
        n_train=100,
        n_eval=sum(counts),
        accuracy=0.9,
        ece=0.1,
        nll=0.5,
        brier=0.2,
        temperature=None,
        unscaled=None,
        bin_counts=counts,
        bin_confidence=confidence,
        bin_accuracy=accuracy,
        history=[],
        seconds=1.0,
        environment={},
        command="",
    )


def epoch(step: int, *, test_run: bool = False) -> Epoch:
    """Every curve has other values in every epoch, but for the rate and the validation's ECE."""
    validation = (None, None, None) if test_run else (0.6 + step, 0.5 + step / 100, 0.25)
    return Epoch(step, 0.5 + step, 0.4 + step / 100, 0.1, *validation, seconds=2.0)
