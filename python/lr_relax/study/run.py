"""One run: from its configuration to a result, in a folder from which it can be resumed.

A run that was killed resumes from the checkpoint of the last complete epoch and gives the same bits as an
uninterrupted one; a finished run is not repeated.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from ..metrics import TemperatureScaling
from . import data, files, models, splits
from . import folder as store
from .config import RunConfig
from .files import RunError
from .folder import CHECKPOINT, DIAGRAM, MODEL, Result
from .processes import Processes
from .training import Epoch, Training, evaluate, predict

ERRORS = (RunError, OSError)


def run(
    config: RunConfig,
    dataset: data.Dataset | None = None,
    *,
    folder: Path | None = None,
    data_dir: Path = Path("data"),
    device: torch.device | str = "cpu",
    command: str = "",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_batch: Callable[[float], None] = lambda done: None,
) -> Result:
    """Train and evaluate a network, resuming from ``folder``. Seeds torch's global generator.

    Without a folder nothing is written. ``dataset`` is the data set if it is loaded, ``command`` the command
    line to record. ``on_epoch`` gets every epoch, those before a resumed checkpoint included.

    Raises DataError if there are no data, `ERRORS` if training diverges or the folder cannot be used.
    """
    if config.model_checkpoints and folder is None:
        raise ValueError("Expected argument `folder` to be a path for `model_checkpoints`, but got None.")
    if dataset is not None and dataset.name != config.dataset_name:
        raise ValueError(f"Expected argument `dataset` to be {config.dataset_name}, but got {dataset.name}.")
    device, first = torch.device(device), Processes().first
    with ExitStack() as stack:
        if folder is not None:
            first(lambda: stack.enter_context(files.locked(folder)))
            if (finished := first(lambda: store.load_result(folder))) is not None:
                if finished.config != config:
                    raise RunError(f"{folder} is the folder of another run")
                for epoch in finished.history:
                    on_epoch(epoch)
                return finished
            first(lambda: store.claim(folder, config))
        start, _ = time.perf_counter(), commit()  # kept: the checkout may be another one when training ends
        dataset = dataset or first(lambda: data.load(config.dataset_name, data_dir))
        parts = {"validation": not config.test_run, "temperature": config.temp_scaling}
        mean, share = config.subtract_pixel_mean, config.validation_share
        try:
            split = splits.split(dataset, config.seed, **parts, subtract_mean=mean, validation_share=share)
        except ValueError as error:  # of an empty part
            raise RunError(f"{config.dataset_name} cannot be split: {error}") from error
        torch.manual_seed(config.seed)
        network = models.build(config.model_name, split.mean_image.shape, dataset.classes)
        training = Training(config, split, network, device=device)
        if folder is not None:
            path = folder / CHECKPOINT
            state = first(lambda: files.load_checkpoint(path) if path.is_file() else None)
            with _refusing(f"{path} is not a checkpoint of this run, delete it to start over"):
                if state is not None:
                    training.load_state_dict(state)
                    start -= float(state["seconds"])
        for epoch in training.epochs:
            on_epoch(epoch)
        while len(training.epochs) < config.epochs:
            epoch = training.epoch(on_batch)
            if folder is not None:
                first(lambda: _save(training, time.perf_counter() - start, folder))
            on_epoch(epoch)
        return first(lambda: _evaluate(training, split, folder, start, command))


@contextmanager
def _refusing(reason: str) -> Iterator[None]:
    """Give this reason where a file is missing, damaged, or of another network."""
    try:
        yield
    except (RunError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(reason) from error


def _save(training: Training, seconds: float, folder: Path) -> None:
    """Write the checkpoint, and the network if it is the best so far."""
    if training.config.model_checkpoints and _is_best(training.epochs):
        files.save_checkpoint({"network": training.network.state_dict()}, folder / MODEL)
    files.save_checkpoint({**training.state_dict(), "seconds": seconds}, folder / CHECKPOINT)


def _is_best(epochs: list[Epoch]) -> bool:
    """Whether the last epoch has the first best validation accuracy; True without validation data."""
    *before, last = [epoch.val_accuracy for epoch in epochs]
    return last is None or all(accuracy is None or last > accuracy for accuracy in before)


def _evaluate(
    training: Training, split: splits.Split, folder: Path | None, start: float, command: str
) -> Result:
    """Evaluate the network; write predictions, diagram and result, and remove the checkpoint."""
    config, network = training.config, training.network
    if folder is not None and config.model_checkpoints and not config.legacy_checkpoints:
        with _refusing(f"{folder / MODEL} is not the best network, delete {folder} to start over"):
            network.load_state_dict(files.load_checkpoint(folder / MODEL)["network"])
    logits, labels = predict(network, split.eval_images), split.eval_labels
    if folder is not None:
        store.save_predictions(logits, labels, folder)
    temperature = unscaled = None
    if config.temp_scaling:
        unscaled = evaluate(logits, labels, config.n_bins)[0]
        held_out = predict(network, split.scaling_images)
        scaling = TemperatureScaling().fit(held_out, split.scaling_labels, method=config.temperature)
        temperature = scaling.temperature.item()
        logits = scaling.transform(logits)
    metrics, curve = evaluate(logits, labels, config.n_bins)
    result = Result(
        **asdict(metrics),
        config=config,
        n_train=len(split.train_labels),
        n_eval=len(labels),
        temperature=temperature,
        unscaled=unscaled,
        bin_counts=curve.counts.tolist(),
        bin_confidence=[None if math.isnan(mean) else mean for mean in curve.confidence.tolist()],
        bin_accuracy=[None if math.isnan(mean) else mean for mean in curve.accuracy.tolist()],
        history=training.epochs,
        seconds=time.perf_counter() - start,
        environment=environment(training.device),
        command=command,
    )
    if folder is not None:
        _draw(result, folder)
        store.save_result(result, folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _draw(result: Result, folder: Path) -> None:
    from matplotlib.figure import Figure

    from ..plots import reliability_diagram

    figure = Figure(figsize=(3.6, 4.4), layout="constrained")
    reliability_diagram(store.pooled_curve([result]), ax=figure.subplots(), title=result.config.title)
    with files.replaced(folder / DIAGRAM) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware to record in a result."""
    return {
        "lr_relax": version("lr-relax"),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": str(torch.get_num_threads()),
        "processes": str(Processes().size),
        "machine": f"{processor()}, {os.cpu_count()} cores",
    }


def processor() -> str:
    """The model of the processor, on which the rounding of matrix products depends."""
    with suppress(OSError, StopIteration):  # on other systems than Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


@cache
def commit(root: Path = Path(__file__).parents[3]) -> str:
    """The commit of a checkout, "-dirty" if more than misc/results differs; "" without one."""
    git = ["git", f"--git-dir={root}/.git", f"--work-tree={root}"]
    with suppress(OSError, subprocess.CalledProcessError):  # without git, or a commit
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!misc/results"]
        return head.strip() + "-dirty" * bool(subprocess.call(changes, cwd=root))
    return ""
