"""Stochastic gradient descent as Keras does it, and the learning rates of the paper's code.

Keras and PyTorch agree while the learning rate is constant. When it changes, Keras's velocity, a sum of
gradients times the rates that they came with, goes on as it is; PyTorch's sum of plain gradients gets the new
rate. The paper's rate changes in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of the paper's code.

    An epoch's rate is ``initial`` times ``factor`` for each of the ``steps`` that the epoch, counted from 0,
    has *passed*: with steps (30, 50) it drops at epoch 31, and in 50 epochs no more. In the first ``warmup``
    epochs it rises in equal parts instead. Within an epoch it falls with ``decay`` and the number of all
    mini-batches so far, which is never reset.
    """

    initial: float
    steps: tuple[int, ...] = ()
    factor: float = 0.1
    decay: float = 0.0
    warmup: int = 0

    def of_epoch(self, epoch: int) -> float:
        """The rate without the decay."""
        if epoch < self.warmup:
            return (epoch + 1) * self.initial / self.warmup
        rate = self.initial
        for _ in takewhile(lambda step: epoch > step, self.steps):
            rate *= self.factor
        return rate

    def rate(self, epoch: int, iteration: int) -> float:
        """The rate of an epoch's mini-batch that ``iteration`` others came before, in all epochs."""
        return self.of_epoch(epoch) / (1 + self.decay * iteration)


@dataclass
class Plateau:
    """The factor by which the rate has dropped because the loss no longer fell: Keras's ReduceLROnPlateau.

    Args:
        factor: Of each drop; the paper's code has the root of a tenth.
        patience: The number of epochs without an improvement that make a drop.
        least_change: What counts as an improvement of the loss.
        least_rate: Below which the rate does not drop.
    """

    factor: float = math.sqrt(0.1)
    patience: int = 10
    least_change: float = 1e-4
    least_rate: float = 0.5e-6
    best: float = math.inf
    waited: int = 0
    drops: int = 0

    def see(self, loss: float) -> None:
        """Note the loss of an epoch."""
        if loss < self.best - self.least_change:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.waited, self.drops = 0, self.drops + 1

    def rate(self, rate: float) -> float:
        """What becomes of the schedule's rate."""
        return max(rate * self.factor**self.drops, min(rate, self.least_rate)) if self.drops else rate


class KerasSGD(torch.optim.SGD):
    """SGD whose velocity keeps the learning rates that its gradients came with.

    All else is as in :class:`torch.optim.SGD`, to the bit as long as the rate is constant. Rates are set with
    :meth:`set_rate` or by any of PyTorch's schedulers. ``weight_decay`` is PyTorch's: for Keras's regulariser
    ``l2(x)`` it is ``2 * x``.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        rate: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__(
            params, rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused
        )

    def set_rate(self, rate: float) -> None:
        """Use this learning rate from the next step on, in all groups."""
        for group in self.param_groups:
            group["lr"] = rate

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As in :class:`torch.optim.SGD`; only a changed rate leaves the velocity alone."""
        for group in self.param_groups:
            rate, former = group["lr"], group.get("velocity_rate")
            if not rate > 0:
                raise ValueError(f"Expected a positive learning rate, but got {rate}.")
            if former not in (None, rate):
                # Keras's velocity is -rate * buffer: it stays if the buffer moves against the rate.
                states = [self.state[parameter] for parameter in group["params"] if parameter in self.state]
                buffers = [state["momentum_buffer"] for state in states if "momentum_buffer" in state]
                if buffers:
                    torch._foreach_mul_(buffers, former / rate)
            group["velocity_rate"] = rate  # in the group, so that state_dict() has it
        return super().step(closure)
