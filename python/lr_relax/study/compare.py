"""The job ``lr-relax compare``: the same training with each loss over several seeds, and what became of it.

Within a seed all losses share the split, the initial weights and the order of the mini-batches, so that a
difference between them comes from the loss alone. Every finished run goes to the results file at once.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from .. import LabelRelaxationLoss
from ..metrics import ReliabilityCurve, reliability_curve
from ..metrics.reliability import curve_of_sums
from ..plots import reliability_diagram
from . import data, models, splits, training
from .atomic import replaced

LOSSES = ("cross_entropy", "label_smoothing", "label_relaxation")
METRICS = ("accuracy", "ece", "nll")


@dataclass(frozen=True)
class Preset:
    """The hyperparameters to compare with on a data set, and the number of seeds."""

    seeds: int
    epochs: int
    learning_rate: float
    alpha: float
    smoothing: float


# All losses share the epochs and the learning rate. Those of Fashion-MNIST are the paper's, but for 10 epochs
# instead of 50, one alpha for both losses. Those of the digits were chosen on validation data (10 seeds).
# The rate, of .05 .1 .2 .3 .4, has cross-entropy's best accuracy (.9622 .9636 .9658 .9631 .9622);
# the alphas, of the paper's .01 .025 .05 .1 .2 .3 .4, have the lowest mean ECE:
#
#   cross-entropy      .0276
#   label relaxation   .0286 .0269 .0253 .0262 .0335, higher from there on
#   label smoothing    .0364 .0569 .0847, higher from there on
#
# Relaxation helps where cross-entropy is overconfident. With smaller rates it is less so after 20 epochs (ECE
# .0262 at a rate of .05, .0249 at .1), and there is less to gain.
PRESETS = {
    "digits": Preset(seeds=10, epochs=20, learning_rate=0.2, alpha=0.05, smoothing=0.01),
    "fashion_mnist": Preset(seeds=3, epochs=10, learning_rate=0.05, alpha=0.1, smoothing=0.1),
}


@dataclass(frozen=True)
class Setting:
    """All that determines a run; two runs of equal settings give equal results."""

    dataset: str
    loss: str
    alpha: float  # of the loss: the relaxation's imprecision or the smoothing's weight; 0 for cross-entropy
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    evaluated_on: str  # "test" or "validation"
    n_bins: int
    threads: int
    lr_relax: str  # versions
    torch: str
    python: str


@dataclass(frozen=True)
class Run:
    """A finished run as the results file keeps it. Of empty bins the confidence and accuracy are None."""

    setting: Setting
    n_train: int
    n_eval: int
    accuracy: float
    ece: float
    nll: float
    bin_counts: list[int]
    bin_confidence: list[float | None]
    bin_accuracy: list[float | None]
    epoch_losses: list[float]
    seconds: float
    command: str


class Statistic(NamedTuple):
    """Mean and sample standard deviation over seeds (nan for a single seed)."""

    mean: float
    deviation: float


class Results:
    """The runs in a results file. One of the same setting replaces the former, all others are kept."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one; ValueError if it holds anything else than runs."""
        self.path = path
        self.runs: list[Run] = []
        if path.exists():
            try:
                records = json.loads(path.read_text(encoding="utf-8"))["runs"]
                self.runs = [Run(**{**record, "setting": Setting(**record["setting"])}) for record in records]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} is not a results file of lr-relax compare") from error

    def find(self, setting: Setting) -> Run | None:
        return next((run for run in self.runs if run.setting == setting), None)

    def add(self, run: Run) -> None:
        self.runs = [other for other in self.runs if other.setting != run.setting] + [run]
        self.save()

    def save(self) -> None:
        """Write the file anew, a line per run."""
        lines = ",\n".join(json.dumps(asdict(run), allow_nan=False) for run in self.runs)
        with replaced(self.path) as temporary:
            temporary.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def plan(
    dataset: str,
    recipe: training.Recipe,
    *,
    seeds: int,
    alpha: float,
    smoothing: float,
    n_bins: int = 15,
    validation: bool = False,
    losses: Sequence[str] = LOSSES,
) -> list[Setting]:
    """The settings of a comparison, seed by seed: an interrupted job has compared some seeds in full."""
    alphas = {"cross_entropy": 0.0, "label_smoothing": smoothing, "label_relaxation": alpha}
    return [
        Setting(
            dataset=dataset,
            loss=loss,
            alpha=alphas[loss],
            seed=seed,
            **asdict(recipe),
            evaluated_on="validation" if validation else "test",
            n_bins=n_bins,
            threads=torch.get_num_threads(),
            lr_relax=version("lr-relax"),
            torch=torch.__version__,
            python=platform.python_version(),
        )
        for seed in range(seeds)
        for loss in losses
    ]


def run(
    setting: Setting,
    dataset: data.Dataset,
    *,
    command: str = "",
    on_epoch: Callable[[training.Epoch], None] = lambda epoch: None,
) -> Run:
    """Train and evaluate as ``setting`` says. Seeds torch's global generator."""
    start = time.perf_counter()
    split = splits.split(dataset, setting.seed, validation=setting.evaluated_on == "validation")
    torch.manual_seed(setting.seed)
    model = models.simple_dense(split.train_images[0].numel(), dataset.classes)
    loss: nn.Module
    if setting.loss == "label_relaxation":
        loss = LabelRelaxationLoss(setting.alpha)
    else:
        loss = nn.CrossEntropyLoss(label_smoothing=setting.alpha)
    recipe = training.Recipe(setting.epochs, setting.batch_size, setting.learning_rate, setting.momentum)
    epoch_losses = []
    for epoch in training.train(model, split, loss, recipe):
        epoch_losses.append(epoch.loss)
        on_epoch(epoch)

    logits, labels = training.predict(model, split.eval_images).double(), split.eval_labels
    if not logits.isfinite().all():
        raise training.DivergedError(
            "the trained network gives infinite logits; a smaller learning rate may help"
        )
    curve = reliability_curve(logits, labels, from_logits=True, n_bins=setting.n_bins)
    return Run(
        setting=setting,
        n_train=len(split.train_labels),
        n_eval=len(labels),
        accuracy=(logits.argmax(1) == labels).double().mean().item(),
        ece=curve.expected_calibration_error,
        nll=F.cross_entropy(logits, labels).item(),
        bin_counts=curve.counts.tolist(),
        bin_confidence=[None if math.isnan(mean) else mean for mean in curve.confidence.tolist()],
        bin_accuracy=[None if math.isnan(mean) else mean for mean in curve.accuracy.tolist()],
        epoch_losses=epoch_losses,
        seconds=time.perf_counter() - start,
        command=command,
    )


def by_loss(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each loss, losses and runs in the order in which they come."""
    groups: dict[str, list[Run]] = {}
    for each in runs:
        groups.setdefault(each.setting.loss, []).append(each)
    return groups


def summarize(runs: Sequence[Run]) -> dict[str, Statistic]:
    """Each metric over runs that differ in their seed."""
    summary = {}
    for metric in METRICS:
        values = [getattr(each, metric) for each in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        summary[metric] = Statistic(statistics.fmean(values), deviation)
    return summary


def pooled_curve(runs: Sequence[Run]) -> ReliabilityCurve:
    """The reliability curve of all runs' predictions together."""
    counts = np.array([each.bin_counts for each in runs], dtype=np.int64)
    total = counts.sum(axis=0)

    def total_of(means: list[list[float | None]]) -> NDArray[np.float64]:
        sums = counts * np.nan_to_num(np.array(means, dtype=np.float64))  # None is nan
        total: NDArray[np.float64] = sums.sum(axis=0, dtype=np.float64)
        return total

    confidence = total_of([each.bin_confidence for each in runs])
    correct = total_of([each.bin_accuracy for each in runs])
    expected = float(abs(confidence - correct).sum() / total.sum())
    return curve_of_sums(np.linspace(0, 1, len(total) + 1), total, confidence, correct, expected)


def save_diagrams(runs: Sequence[Run], path: Path) -> None:
    """Draw a reliability diagram per loss, side by side, over the predictions of all seeds pooled."""
    from matplotlib.figure import Figure

    groups = by_loss(runs)
    setting, seeds = runs[0].setting, len(runs) // len(groups)
    figure = Figure(figsize=(3.4 * len(groups), 4.6), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for ax, group in zip(panels, groups.values(), strict=True):
        reliability_diagram(pooled_curve(group), ax=ax, title=title(group[0].setting))
    figure.suptitle(
        f"{setting.dataset}: {setting.evaluated_on} predictions of {seeds} seed{'s' * (seeds > 1)}, pooled"
    )
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def title(setting: Setting) -> str:
    """The loss as a reader names it, with its alpha if it has one."""
    name = setting.loss.replace("_", " ").replace("cross entropy", "cross-entropy")
    return f"{name} {setting.alpha:g}" if setting.alpha else name
