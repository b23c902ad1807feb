"""What a row of the benchmark is made of; see rows.py for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Inputs = tuple[Any, ...]
Contender = Callable[..., object]  # takes the row's inputs


@dataclass(frozen=True)
class Row:
    """One line of the table; targets are ratios of ours to the yardstick."""

    name: str
    inputs: Callable[[], Inputs]
    ours: Contender
    yardstick: tuple[str, Contender]
    target: float
    peers: Mapping[str, Contender] = field(default_factory=dict)
    threads: int = 2
    unit: str = "ms"  # or "MiB": the row measures the peak of memory in place of time

    @property
    def contenders(self) -> dict[str, Contender]:
        return {"ours": self.ours, self.yardstick[0]: self.yardstick[1], **self.peers}
