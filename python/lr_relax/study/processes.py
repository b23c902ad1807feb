"""The processes that train one network together, under torchrun; without it, one process.

torchrun --standalone --nproc-per-node 2 -m lr_relax.study.lr_study --model_name resnet ...

Only the first process touches files and tells anything. What it reads it gives to the others, and so it does
with its errors, so that all end where one cannot go on.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class ProcessesError(Exception):
    """The processes cannot work together; the message says why in one line."""


def start(device: torch.device) -> torch.device:
    """Join the other processes, if torchrun has started several; the device of this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return device
    if device.type == "cuda":
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise ProcessesError(
                f"process {local} has no device: each needs its own, and there are {devices}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # All are on this machine. Left alone, gloo asks for the host's name, which may lead nowhere.
        for loopback in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ProcessesError(f"the processes cannot reach each other: {reason}") from error
    atexit.register(dist.destroy_process_group)
    return device


def let_the_first_tell(seconds: float = 30) -> None:
    """Wait, in the other processes, for the first to tell what is wrong and to end; torchrun then ends all.

    An error of this process alone is told after that time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
        time.sleep(seconds)


def is_loss_of_another(error: BaseException) -> bool:
    """Whether this is what torch raises where another process has ended."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


class Processes:
    """Who of how many this one is, and what they do together."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if together else 0
        self.size: int = dist.get_world_size() if together else 1

    def share(self, rows: int) -> tuple[slice, float]:
        """This process's rows of a batch, and the factor of their mean.

        With the factor, the average over the processes is the mean over the batch. Where there are fewer
        rows than processes, some get one that does not count.
        """
        if self.rank >= rows:
            return slice(1), 0.0
        mine = slice(self.rank, None, self.size)
        return mine, len(range(rows)[mine]) * self.size / rows

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, for all, or raises, in all."""
        if self.size == 1:
            return compute()
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.rank == 0:
            try:
                outcome = [(compute(), None)]
            except Exception as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome)
        [(result, failure)] = outcome
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]
