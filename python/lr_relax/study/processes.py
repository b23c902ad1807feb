"""Distributed training of one network under torchrun; without it there is one process.

torchrun --standalone --nproc-per-node 2 -m lr_relax.study.lr_study --model_name resnet ...

Only the first process (rank 0) reads and writes files and prints. It broadcasts what it reads, and its
errors, so that all processes end when one cannot continue.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .files import RunError

T = TypeVar("T")


def start(device: torch.device) -> torch.device:
    """Join the process group if torchrun has started several processes; return this process's device."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return device
    if device.type == "cuda":
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise RunError(f"process {local} has no device: each needs its own, and there are {devices}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif os.environ.get("LOCAL_WORLD_SIZE") == size:
        # All are on this machine. By default gloo resolves the host name, which may fail.
        for loopback in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"the processes cannot reach each other: {reason}") from error
    atexit.register(dist.destroy_process_group)
    return device


def wait_for_the_first(seconds: float = 30) -> None:
    """Let the first process report an error and exit, after which torchrun ends the others."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        time.sleep(seconds)


def is_lost_peer(error: BaseException) -> bool:
    """Whether torch raised this error because another process has ended."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


class Processes:
    """The rank of this process, the number of processes, and their collective operations."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if together else 0
        self.size: int = dist.get_world_size() if together else 1

    def share(self, rows: int) -> tuple[slice, float]:
        """This process's rows of a batch, and the factor of their mean.

        The average over the processes, with the factors, is the mean over the batch. If there are fewer rows
        than processes, the others get one row with factor 0.
        """
        if self.rank >= rows:
            return slice(1), 0.0
        mine = slice(self.rank, None, self.size)
        return mine, len(range(rows)[mine]) * self.size / rows

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def first(self, compute: Callable[[], T]) -> T:
        """Return the first process's result in all processes, or raise its error in all."""
        if self.size == 1:
            return compute()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = compute()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result
