"""One run: from its configuration to a result, through a folder that it can be resumed from.

The folder has the checkpoint of the last whole epoch, and in the end, in its place, the result. A run that
was killed goes on when it is started again, to the same result bit for bit; one that has a result is not
repeated.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..metrics import ReliabilityCurve, TemperatureScaling, brier_score, reliability_curve
from . import checkpoint, data, models, results, splits
from .atomic import occupied, replaced
from .checkpoint import CheckpointError
from .config import RunConfig
from .processes import Processes
from .results import Metrics, Result
from .training import Batch, DivergedError, Epoch, Training, predict

CHECKPOINT, CONFIG, MODEL, DIAGRAM = "checkpoint.pt", "config.json", "model.pt", "reliability.png"


class RunError(Exception):
    """A run cannot go on; the message says why in one line."""


class RunDivergedError(RunError):
    """The loss or the predictions are no longer finite, in all processes."""


def run(
    config: RunConfig,
    dataset: data.Dataset | None = None,
    *,
    folder: Path | None = None,
    data_dir: Path = Path("data"),
    device: torch.device | str = "cpu",
    command: str = "",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> Result:
    """Train and evaluate as ``config`` says. Seeds torch's global generator.

    Args:
        config: All that determines the result.
        dataset: What `data.load` returned, if it is there already.
        folder: Of this run alone, made if need be; without one nothing is written.
        data_dir: Where the data set's files are, or are put.
        device: Where to train.
        command: What the result says that it came from.
        on_epoch: Gets every epoch, those before a resumed checkpoint too.
        on_batch: Gets every batch.

    Raises:
        ValueError: `model_checkpoints` without a folder, or another data set than that of the configuration.
        DataError: The data set cannot be had.
        RunError: The loss is no longer finite, or the folder holds something else; likewise ResultError and
            CheckpointError.
        OSError: The folder cannot be written, or another process trains the same run in it.
    """
    if config.model_checkpoints and folder is None:
        raise ValueError("Expected argument `folder` to be a path for `model_checkpoints`, but got None.")
    if dataset is not None and dataset.name != config.dataset_name:
        raise ValueError(f"Expected argument `dataset` to be {config.dataset_name}, but got {dataset.name}.")
    device, processes = torch.device(device), Processes()
    with ExitStack() as stack:
        if folder is not None:
            processes.first(lambda: stack.enter_context(occupied(folder)))
            if (finished := processes.first(lambda: results.load(folder))) is not None:
                if finished.config != config:
                    raise RunError(f"{folder} is the folder of another run")
                for epoch in finished.history:
                    on_epoch(epoch)
                return finished
            processes.first(lambda: _begin(folder, config))
        start = time.perf_counter()
        if dataset is None:
            dataset = processes.first(lambda: data.load(config.dataset_name, data_dir))
        try:
            split = splits.split(
                dataset,
                config.seed,
                validation=not config.test_run,
                temperature=config.temp_scaling,
                subtract_mean=config.subtract_pixel_mean,
                validation_share=config.validation_share,
            )
        except ValueError as error:  # of a part that would be empty
            raise RunError(f"{config.dataset_name} cannot be split: {error}") from error
        torch.manual_seed(config.seed)
        network = models.build(config.model_name, split.mean_image.shape, dataset.classes)
        training = Training(config, split, network, device=device)
        before = 0.0 if folder is None else _resume(training, folder / CHECKPOINT)
        for epoch in training.epochs:
            on_epoch(epoch)

        def seconds() -> float:
            return before + time.perf_counter() - start

        def evaluated() -> dict[str, Any]:
            if folder is not None and config.model_checkpoints and not config.legacy_checkpoints:
                _load_best(network, folder / MODEL)
            return _evaluate(config, network, split)

        try:
            while len(training.epochs) < config.epochs:
                epoch = training.epoch(on_batch)
                if folder is not None:
                    processes.first(lambda: _keep(training, seconds(), folder))
                on_epoch(epoch)
            evaluation = processes.first(evaluated)
        except DivergedError as error:
            raise RunDivergedError(str(error)) from error

        result = Result(
            config=config,
            n_train=len(split.train_labels),
            n_eval=len(split.eval_labels),
            **evaluation,
            history=training.epochs,
            seconds=seconds(),
            environment=environment(device),
            command=command,
        )
        if folder is not None:
            processes.first(lambda: _finish(folder, result))
        return result


def _begin(folder: Path, config: RunConfig) -> None:
    """Write down whose folder it is; RunError if it is another run's."""
    path = folder / CONFIG
    if path.exists():
        try:
            former = RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is not the configuration of a run, delete it to go on") from error
        if former != config:
            raise RunError(f"{folder} is the folder of another run")
        return
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")


def _resume(training: Training, path: Path) -> float:
    """Go on from the checkpoint, if there is one; the seconds that it took."""
    processes, cpu = training.processes, torch.device("cpu")  # each process has its own device
    state = processes.first(lambda: checkpoint.load(path, cpu) if path.exists() else None)
    if state is None:
        return 0.0
    try:
        training.load_state_dict(state)
        return float(state["seconds"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path} is not a checkpoint of this run, delete it to start anew") from error


def _load_best(network: torch.nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(checkpoint.load(path, torch.device("cpu"))["network"])
    except (FileNotFoundError, CheckpointError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path} is no longer the best network: delete {path.parent} to start anew") from error


def _keep(training: Training, seconds: float, folder: Path) -> None:
    """Write the checkpoint, and the model if it is the best so far."""
    if training.config.model_checkpoints and _is_best(training):
        checkpoint.save({"network": training.network.state_dict()}, folder / MODEL)
    checkpoint.save({**training.state_dict(), "seconds": seconds}, folder / CHECKPOINT)


def _is_best(training: Training) -> bool:
    """Whether the last epoch has the first best validation accuracy; without validation the last is kept."""
    *before, last = [epoch.val_accuracy for epoch in training.epochs]
    return last is None or all(accuracy is None or last > accuracy for accuracy in before)


def _evaluate(config: RunConfig, network: torch.nn.Module, split: splits.Split) -> dict[str, Any]:
    """The fields of a result that tell how good the network is."""
    logits, labels = predict(network, split.eval_images), split.eval_labels
    temperature = unscaled = None
    if config.temp_scaling:
        unscaled = _metrics(logits, labels, config.n_bins)[0]
        held_out = predict(network, split.scaling_images)
        scaling = TemperatureScaling().fit(held_out, split.scaling_labels, method=config.temperature)
        temperature = scaling.temperature.item()
        logits = scaling.transform(logits)
    metrics, curve = _metrics(logits, labels, config.n_bins)
    return {
        **asdict(metrics),
        "temperature": temperature,
        "unscaled": unscaled,
        "bin_counts": curve.counts.tolist(),
        "bin_confidence": [None if math.isnan(mean) else mean for mean in curve.confidence.tolist()],
        "bin_accuracy": [None if math.isnan(mean) else mean for mean in curve.accuracy.tolist()],
    }


def _metrics(logits: Tensor, labels: Tensor, n_bins: int) -> tuple[Metrics, ReliabilityCurve]:
    curve = reliability_curve(logits, labels, from_logits=True, n_bins=n_bins, binning="paper")
    metrics = Metrics(
        accuracy=(logits.argmax(1) == labels).double().mean().item(),
        ece=curve.expected_calibration_error,
        nll=cross_entropy(logits, labels).item(),
        brier=float(brier_score(logits, labels, from_logits=True)),
    )
    return metrics, curve


def _finish(folder: Path, result: Result) -> None:
    """Put the result in the place of the checkpoint."""
    from matplotlib.figure import Figure

    from ..plots import reliability_diagram

    figure = Figure(figsize=(3.6, 4.4), layout="constrained")
    reliability_diagram(results.pooled_curve([result]), ax=figure.subplots(), title=result.config.title)
    with replaced(folder / DIAGRAM) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    results.save(result, folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def environment(device: torch.device) -> dict[str, str]:
    """What a result should say about where it comes from."""
    cuda = device.type == "cuda"
    return {
        "lr_relax": version("lr-relax"),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": str(torch.get_num_threads()),
        "processes": str(Processes().size),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


@cache
def commit() -> str:
    """The commit of the checkout that the package is in, "" if it is installed otherwise."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        asked = subprocess.run(describe, cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()
