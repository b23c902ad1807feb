"""Keras's stochastic gradient descent and the learning rates of the paper's code, which change in every step.

Keras's velocity sums gradients times the rates of their steps; PyTorch's momentum buffer sums plain gradients
and applies the current rate to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of the paper's code.

    It is multiplied by ``factor`` for each of the ``steps`` that is smaller than the epoch, counted from 0:
    with steps (30, 50) it drops at epoch 31, and in 50 epochs only once. In the first ``warmup`` epochs it
    rises linearly instead. With ``decay`` it falls with the number of all batches so far.
    """

    initial: float
    steps: tuple[int, ...] = ()
    factor: float = 0.1
    decay: float = 0.0
    warmup: int = 0

    def of_epoch(self, epoch: int) -> float:
        """The rate of an epoch, without decay."""
        if epoch < self.warmup:
            return (epoch + 1) * self.initial / self.warmup
        rate = self.initial
        for _ in filter(lambda step: epoch > step, self.steps):
            rate *= self.factor
        return rate

    def rate(self, epoch: int, iteration: int) -> float:
        """The rate of a batch of an epoch; ``iteration`` counts the batches of all epochs before it."""
        return self.of_epoch(epoch) / (1 + self.decay * iteration)


@dataclass
class Plateau:
    """Keras's ReduceLROnPlateau: the rate drops by ``factor`` after ``patience`` epochs without improvement.

    An improvement lowers the loss by more than ``least_change``; the rate never drops below ``least_rate``.
    """

    factor: float = math.sqrt(0.1)
    patience: int = 10
    least_change: float = 1e-4
    least_rate: float = 0.5e-6
    best: float = math.inf
    waited: int = 0
    drops: int = 0

    def see(self, loss: float) -> None:
        """Record the loss of an epoch."""
        if loss < self.best - self.least_change:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.waited, self.drops = 0, self.drops + 1

    def rate(self, rate: float) -> float:
        """The schedule's rate after the drops."""
        return max(rate * self.factor**self.drops, min(rate, self.least_rate)) if self.drops else rate


class KerasSGD(torch.optim.SGD):
    """SGD with Keras's velocity, which keeps the learning rate of each gradient's step.

    It equals :class:`torch.optim.SGD`, bit for bit, while the rate is constant. PyTorch's schedulers may set
    the rate, too. Keras's regularizer ``l2(x)`` is a ``weight_decay`` of ``2 * x``.
    """

    def __init__(self, params: Iterable[Any], rate: float, **options: Any) -> None:
        super().__init__(params, rate, **{"momentum": 0.9, "nesterov": True, "fused": True} | options)

    def set_rate(self, rate: float) -> None:
        for group in self.param_groups:
            group["lr"] = rate

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Like :class:`torch.optim.SGD`, except that a changed rate does not change the velocity."""
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
