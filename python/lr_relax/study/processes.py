"""The processes that train one network together, under torchrun; without it, one process.

torchrun --nproc-per-node 2 -m lr_relax.study.lr_study --model_name resnet ...
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start(device: torch.device) -> torch.device:
    """Join the other processes, if torchrun has started several; the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


class Processes:
    """Who of how many this one is, and what they do together."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if together else 0
        self.size: int = dist.get_world_size() if together else 1

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        """This process's rows, and the factor of their mean that makes the average over all the batch's mean.

        Where there are fewer rows than processes, some get one that does not count.
        """
        if self.size == 1:
            return rows, 1.0
        mine = rows[self.rank :: self.size]
        return (mine, len(mine) * self.size / len(rows)) if len(mine) else (rows[:1], 0.0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, for all."""
        if self.size == 1:
            return compute()
        result = [compute() if self.rank == 0 else None]
        dist.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()
