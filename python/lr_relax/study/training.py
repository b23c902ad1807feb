"""Training of a network, epoch by epoch, and prediction.

Batches, dropout and augmentation of an epoch come from generators that are seeded with the run's seed and the
number of the epoch only: a run that resumes from a checkpoint gives the same bits as an uninterrupted one.
Under torchrun each process takes its share of every batch, and gradients are averaged over the batch: the
steps equal those of one process except for rounding, dropout, and batch norm over a share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ..metrics import ReliabilityCurve, brier_score, reliability_curve
from .augmentation import augmented
from .config import RunConfig
from .files import RunError
from .network import Network
from .objective import criterion
from .optimizer import KerasSGD, Plateau, Schedule
from .processes import Processes
from .splits import Split

# Convolutions on a CPU are faster with the channels last, but not DenseNet's many narrow ones.
CHANNELS_LAST = ("vgg", "resnet")


class DivergedError(RunError):
    """The loss or the predictions are not finite."""


@dataclass(frozen=True)
class Metrics:
    """Metrics of predictions; the calibration error has the bins of the paper's code."""

    accuracy: float
    ece: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Epoch:
    """Metrics of an epoch; those on validation data are None in test runs."""

    epoch: int  # from 0
    loss: float  # mean over the batches, each before its step, without the penalty of the weights
    accuracy: float
    lr: float  # of the last step
    val_loss: float | None  # as `loss`; also None if it is not finite
    val_accuracy: float | None
    val_ece: float | None
    seconds: float
    val_nll: float | None = None


class Training:
    """A network in training, which is moved to the device; its state_dict is all that is needed to resume.

    ``split`` has the training data, and the validation data unless the run is a test run.
    """

    def __init__(self, config: RunConfig, split: Split, network: Network, *, device: torch.device) -> None:
        self.config, self.device, self.processes = config, device, Processes()
        layout = torch.channels_last if config.model_name in CHANNELS_LAST else torch.contiguous_format
        self.network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.images = split.train_images.to(device, memory_format=layout)
        self.labels = split.train_labels.to(device)
        self.validation = None if config.test_run else (split.eval_images, split.eval_labels)
        self.criterion = criterion(config)
        # Keras clips the gradient of loss and penalty together.
        clipped = config.gradient_clipping > 0
        parameters = self.network.parameters() if clipped else self.network.parameter_groups()
        self.optimizer = KerasSGD(parameters, config.initial_lr)
        drops = config.steps, config.lr_sched_multipler
        warmup = 0 if config.legacy_schedule else config.warmup
        self.schedule = Schedule(config.initial_lr, *drops, config.decay, warmup)
        self.plateau = Plateau()
        self.epochs: list[Epoch] = []
        self.parallel: nn.Module = self.network
        if self.processes.size > 1:
            self.parallel = DistributedDataParallel(self.network, [device] if device.type == "cuda" else None)
            # DDP reorders its gradient buckets, and so the terms of sums, after the first backward pass. A
            # backward pass now makes a resumed run add in the same order as an uninterrupted one.
            self.parallel.eval()
            self.parallel(self.images[:1]).sum().backward()
            self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plateau": asdict(self.plateau),
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau = Plateau(**state["plateau"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]

    def epoch(self, on_batch: Callable[[float], None] = lambda done: None) -> Epoch:
        """Train for an epoch, once on every row. Seeds torch's global generator, which dropout uses.

        ``on_batch`` gets the number of epochs so far after every batch, as 2.5.
        """
        config, processes = self.config, self.processes
        start, number, n = time.perf_counter(), len(self.epochs), len(self.labels)
        order = torch.Generator().manual_seed(_seed(config.seed, number, 0, 0))
        noise = torch.Generator().manual_seed(_seed(config.seed, number, 0, 1))
        torch.manual_seed(_seed(config.seed, number, processes.rank, 2))
        self.parallel.train()
        # Indexing one tensor with a permutation is faster than a DataLoader, which collates single images.
        batches = torch.randperm(n, generator=order).to(self.device).split(config.batch_size)  # type: ignore[no-untyped-call]
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # losses, correct predictions
        for index, batch in enumerate(batches):
            rate = self.plateau.rate(self.schedule.rate(number, number * len(batches) + index))
            if not rate > 0:
                raise DivergedError(f"the learning rate is {rate} in epoch {number + 1}: it falls too fast")
            self.optimizer.set_rate(rate)
            mine, share = processes.share(len(batch))
            rows = batch[mine]
            images, labels = self.images[rows], self.labels[rows]
            if config.data_augmentation:
                images = augmented(images, noise, batch=len(batch), share=mine)
            logits = self.parallel(images)
            loss = self._loss(logits, labels)
            self.optimizer.zero_grad()
            (loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]
            if config.gradient_clipping > 0:
                penalty = self.network.weight_penalty()
                if penalty.requires_grad:
                    penalty.backward()
                nn.utils.clip_grad_value_(self.network.parameters(), config.gradient_clipping)
            self.optimizer.step()
            with torch.no_grad():
                correct = (logits.argmax(1) == labels).sum()
                totals += torch.stack([loss.double() * len(rows), correct]) * (share > 0)
            on_batch(number + (index + 1) / len(batches))
        mean_loss, accuracy = (processes.sum(totals) / n).tolist()
        if not math.isfinite(mean_loss):
            reason = f"the loss is {mean_loss} in epoch {number + 1}"
            raise DivergedError(f"{reason}; a smaller learning rate may help")
        val_loss, val = processes.first(self._validate)
        if config.reduce_on_plateau and not config.legacy_schedule:
            # As Keras, on the loss with the penalty of the weights.
            penalty = self.network.weight_penalty().item()
            self.plateau.see((mean_loss if val_loss is None else val_loss) + penalty)
        seconds = time.perf_counter() - start
        of_val = (val.accuracy, val.ece, seconds, val.nll) if val else (None, None, seconds, None)
        self.epochs.append(Epoch(number, mean_loss, accuracy, rate, val_loss, *of_val))
        return self.epochs[-1]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        of_logits = self.config.temp_scaling and self.config.legacy_temp_scaling
        penalty = self.network.activity_penalty(logits, of_logits=of_logits)
        loss: Tensor = self.criterion(logits, labels) + penalty
        return loss

    def _validate(self) -> tuple[float | None, Metrics | None]:
        """The loss and the metrics on the validation data."""
        if self.validation is None:
            return None, None
        images, labels = self.validation
        logits = predict(self.network, images)
        loss = self._loss(logits, labels).item()
        return loss if math.isfinite(loss) else None, evaluate(logits, labels, self.config.n_bins)[0]


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of all images, in float64, chunk by chunk; DivergedError if one is not finite."""
    network.eval()
    device = next(network.parameters()).device
    chunks = images.split(1000)  # type: ignore[no-untyped-call]
    logits = torch.cat([network(chunk.to(device)).cpu() for chunk in chunks]).double()
    if not logits.isfinite().all():
        raise DivergedError("the network's logits are no longer finite; a smaller learning rate may help")
    return logits


def evaluate(logits: Tensor, labels: Tensor, n_bins: int) -> tuple[Metrics, ReliabilityCurve]:
    """The metrics of predictions, and their reliability curve."""
    curve = reliability_curve(logits, labels, from_logits=True, n_bins=n_bins, binning="paper")
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    nll, brier = cross_entropy(logits, labels).item(), brier_score(logits, labels, from_logits=True)
    return Metrics(accuracy, curve.expected_calibration_error, nll, float(brier)), curve


def _seed(run: int, epoch: int, rank: int, use: int) -> int:
    """An independent seed for each combination of numbers."""
    return int(np.random.SeedSequence((run, epoch, rank, use)).generate_state(1, np.uint64)[0])
