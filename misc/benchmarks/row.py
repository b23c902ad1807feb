"""The type of a benchmark row; rows.py lists all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Inputs = tuple[Any, ...]
Contender = Callable[..., object]  # takes the row's inputs


@dataclass(frozen=True)
class Row:
    """Work of one shape for lr-relax (`ours`), a yardstick and peers; `target` is for ours / yardstick."""

    work: str
    shape: tuple[int, ...]
    inputs: Callable[..., Inputs]  # takes the shape
    ours: Contender
    yardstick: tuple[str, Contender]
    target: float
    peers: Mapping[str, Contender] = field(default_factory=dict)
    dtype: str = "float32"
    threads: int = 2
    min_rounds: int = 5
    unit: str = "ms"  # "MiB": peak memory is measured instead of time
    not_counted: float = 0.0  # the memory of results
    retain_memory: bool = False  # malloc keeps freed memory

    @property
    def name(self) -> str:
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        threads = ", 1 thread" if self.threads == 1 else ""
        memory = ", retained memory" if self.retain_memory else ""
        return f"{self.work} {self.shape}{dtype}{threads}{memory}"

    @property
    def contenders(self) -> dict[str, Contender]:
        return {"ours": self.ours, self.yardstick[0]: self.yardstick[1], **self.peers}
