"""The search for a loss's alpha: train with every one of a grid, choose on validation data, test the best.

Source: Lienen and Hüllermeier, AAAI 2021; the grids are those of the paper's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .config import RunConfig
from .results import Result

_WEIGHTS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4)
GRIDS = {
    "label_relaxation": _WEIGHTS,
    "cross_entropy": (0.0, *_WEIGHTS),
    "focal": (0.1, 0.2, 0.5, 1.0, 2.0, 3.5, 5.0),
    "confidence_penalty": (0.1, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0),
}
"""The alphas to look through for each loss."""

LEGACY_GRIDS = {**GRIDS, "cross_entropy": _WEIGHTS}
"""The same without plain cross-entropy, which the grid of the paper's code lacks."""


def candidates(config: RunConfig, alphas: Sequence[float]) -> list[RunConfig]:
    """The validation runs of a search."""
    return [replace(config, alpha=alpha, test_run=False) for alpha in alphas]


def best(results: Sequence[Result], *, by_ece: bool) -> Result:
    """The highest accuracy, or the lowest calibration error; of equal ones, that with the smallest alpha."""
    return min(results, key=lambda one: (one.ece if by_ece else -one.accuracy, one.config.alpha))


def final(chosen: RunConfig) -> RunConfig:
    """The test run with what was chosen."""
    return replace(chosen, test_run=True)
