"""Trains a network, epoch by epoch, and predicts with it.

An epoch draws its batches, dropout and augmentation from generators that the run's seed and the number of the
epoch alone determine: a run that goes on from a checkpoint sees what the uninterrupted one would have seen,
bit for bit. Under torchrun each process takes its share of every batch; gradients are averaged over the
batch, so that the steps are those of one process but for rounding, dropout, and batch norm over a share.
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

from ..metrics import expected_calibration_error
from .augmentation import augmented
from .config import RunConfig
from .network import Network
from .objective import criterion
from .optimiser import KerasSGD, Plateau, Schedule
from .processes import Processes
from .splits import Split

# Convolutions on a CPU are faster with the channels last, but not DenseNet's many narrow ones.
CHANNELS_LAST = ("vgg", "resnet")


class DivergedError(Exception):
    """The loss, or what the network gives, is no longer finite; the message says so in one line."""


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch; the validation's numbers are None in test runs."""

    epoch: int
    """Counted from 0."""
    loss: float
    """The mean over the batches, each before its step, without the penalty of the weights."""
    accuracy: float
    """Likewise."""
    lr: float
    """The learning rate of the last step."""
    val_loss: float | None
    """Cross-entropy."""
    val_accuracy: float | None
    val_ece: float | None
    seconds: float


@dataclass(frozen=True)
class Batch:
    """How far an epoch is."""

    epoch: int
    """Counted from 0."""
    done: int
    batches: int
    totals: Tensor
    """Of the loss and of the hits; a reader on another device has to wait for them."""
    rows: int

    @property
    def loss(self) -> float:
        """The mean so far."""
        return float(self.totals[0]) / self.rows

    @property
    def accuracy(self) -> float:
        """The mean so far."""
        return float(self.totals[1]) / self.rows


class Training:
    """A network in training; its state_dict is all that a later process needs to go on.

    Args:
        config: Of the run.
        split: What to train on, and to validate on after each epoch unless the run is a test run.
        network: What to train; it is moved to the device.
        device: Where to train.
    """

    def __init__(self, config: RunConfig, split: Split, network: Network, *, device: torch.device) -> None:
        self.config, self.device, self.processes = config, device, Processes()
        layout = torch.channels_last if config.model_name in CHANNELS_LAST else torch.contiguous_format
        self.network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.images = split.train_images.to(device, memory_format=layout)
        self.labels = split.train_labels.to(device)
        self.validation = None if config.test_run else (split.eval_images, split.eval_labels)
        self.criterion = criterion(config)
        clipped = config.gradient_clipping > 0
        # Keras clips the gradient of loss and penalty together.
        parameters = self.network.parameters() if clipped else self.network.parameter_groups()
        self.optimiser = KerasSGD(parameters, config.initial_lr)
        self.schedule = Schedule(
            config.initial_lr,
            config.steps,
            config.lr_sched_multipler,
            config.decay,
            0 if config.legacy_schedule else config.warmup,
        )
        self.plateau = Plateau()
        self.epochs: list[Epoch] = []
        self.parallel: nn.Module = self.network
        if self.processes.size > 1:
            self.parallel = DistributedDataParallel(
                self.network, device_ids=[device] if device.type == "cuda" else None
            )
            # After its first backward pass DDP orders the gradients anew, and with them the terms of their
            # sums. With that behind it, a resumed run adds as the uninterrupted one does.
            self.parallel.eval()
            self.parallel(self.images[:1]).sum().backward()
            self.optimiser.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "plateau": asdict(self.plateau),
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.plateau = Plateau(**state["plateau"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]

    def epoch(self, on_batch: Callable[[Batch], None] = lambda batch: None) -> Epoch:
        """Train for an epoch, on every row once. Seeds torch's global generator, from which dropout draws."""
        config, processes = self.config, self.processes
        start, number = time.perf_counter(), len(self.epochs)
        order = torch.Generator().manual_seed(_seed(config.seed, number, 0, 0))
        noise = torch.Generator().manual_seed(_seed(config.seed, number, 0, 1))
        torch.manual_seed(_seed(config.seed, number, processes.rank, 2))
        self.parallel.train()
        n = len(self.labels)
        # The data are one tensor that a permutation indexes: a DataLoader collates it image by image.
        batches = torch.randperm(n, generator=order).to(self.device).split(config.batch_size)  # type: ignore[no-untyped-call]
        totals = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # loss, hits; read only when asked for
        seen = 0
        for index, batch in enumerate(batches):
            rate = self.plateau.rate(self.schedule.rate(number, number * len(batches) + index))
            if not rate > 0:
                raise DivergedError(f"the learning rate is {rate} in epoch {number + 1}: it falls too fast")
            self.optimiser.set_rate(rate)
            mine, share = processes.share(len(batch))
            rows = batch[mine]
            images, labels = self.images[rows], self.labels[rows]
            if config.data_augmentation:
                images = augmented(images, noise, batch=len(batch), share=mine)
            logits = self.parallel(images)
            loss = self._loss(logits, labels)
            self.optimiser.zero_grad()
            (loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]
            if config.gradient_clipping > 0:
                self._clip()
            self.optimiser.step()
            with torch.no_grad():
                hits = (logits.argmax(1) == labels).sum()
                totals += torch.stack([loss.double() * len(rows), hits]) * (share > 0)
            seen += len(rows) if share else 0
            on_batch(Batch(number, index + 1, len(batches), totals, max(seen, 1)))
        mean_loss, accuracy = (processes.sum(totals) / n).tolist()
        if not math.isfinite(mean_loss):
            raise DivergedError(
                f"the loss is {mean_loss} in epoch {number + 1}; a smaller learning rate may help"
            )
        val_loss, val_accuracy, val_ece = processes.first(self._validate)
        if config.reduce_on_plateau and not config.legacy_schedule:
            self.plateau.see(mean_loss if val_loss is None else val_loss)
        seconds = time.perf_counter() - start
        self.epochs.append(Epoch(number, mean_loss, accuracy, rate, val_loss, val_accuracy, val_ece, seconds))
        return self.epochs[-1]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = self.criterion(logits, labels)
        if self.network.activity_l2:
            of_logits = self.config.temp_scaling and self.config.legacy_temp_scaling
            loss = loss + self.network.activity_penalty(logits, of_logits=of_logits)
        return loss

    def _clip(self) -> None:
        """Clip the whole gradient, that of the penalty of the weights with it."""
        penalty = self.network.weight_penalty()
        if penalty.requires_grad:
            penalty.backward()
        nn.utils.clip_grad_value_(self.network.parameters(), self.config.gradient_clipping)

    def _validate(self) -> tuple[float, float, float] | tuple[None, None, None]:
        """Cross-entropy, accuracy and calibration error."""
        if self.validation is None:
            return None, None, None
        images, labels = self.validation
        logits = predict(self.network, images)
        ece = expected_calibration_error(
            logits, labels, from_logits=True, n_bins=self.config.n_bins, binning="paper"
        )
        accuracy = (logits.argmax(1) == labels).double().mean()
        return cross_entropy(logits, labels).item(), accuracy.item(), float(ece)


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of all images, in float64; DivergedError if one of them is not finite.

    In portions, so that the activations of large sets fit in memory.
    """
    network.eval()
    device = next(network.parameters()).device
    portions = images.split(1000)  # type: ignore[no-untyped-call]
    logits = torch.cat([network(portion.to(device)).cpu() for portion in portions]).double()
    if not logits.isfinite().all():
        raise DivergedError("the network's logits are no longer finite; a smaller learning rate may help")
    return logits


def _seed(run: int, epoch: int, rank: int, use: int) -> int:
    """A seed that has nothing in common with those of other numbers."""
    return int(np.random.SeedSequence((run, epoch, rank, use)).generate_state(1, np.uint64)[0])
