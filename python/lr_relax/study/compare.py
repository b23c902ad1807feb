"""The runs of ``lr-relax compare``: the same training with three losses over several seeds.

For each seed all losses share the split, the initial weights and the order of the batches: only the loss
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from .config import ConfigError, RunConfig
from .folder import Result, Statistic

METRICS = ("accuracy", "ece", "nll")

# All losses share the epochs and the learning rate. Those of Fashion-MNIST are the paper's, except for 10
# epochs instead of 50 and one alpha for both losses. Those of the digits were chosen on validation data (10
# seeds): of the rates .05 .1 .2 .3 .4 the one with cross-entropy's best accuracy (.9622 .9618 .9640 .9636
# .9631); of the paper's alphas .01 .025 .05 .1 .2 .3 .4 those with the lowest mean ECE (label relaxation
# .0289 .0270 .0255 .0270 .0340, smoothing .0360 .0559 .0863, increasing from there on; cross-entropy .0289).
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"seeds": range(10), "epochs": 20, "initial_lr": 0.2, "alpha": 0.05, "smoothing": 0.01},
    "fashion_mnist": {"seeds": range(3), "epochs": 10, "initial_lr": 0.05, "alpha": 0.1, "smoothing": 0.1},
}


def plan(dataset: str, **options: Any) -> list[RunConfig]:
    """The runs of a comparison, seed by seed; label smoothing by 0 is cross-entropy, which is not run twice.

    ``options`` are ``seeds``, ``smoothing`` and those of `RunConfig`; by default those of the preset.
    """
    given = {"steps": (), "data_augmentation": False, "test_run": True, **PRESETS[dataset], **options}
    seeds, alpha, smoothing = (given.pop(name) for name in ("seeds", "alpha", "smoothing"))
    if not 0 <= smoothing < 1:
        raise ConfigError(f"Expected argument `smoothing` to be a number in [0, 1), but got {smoothing!r}.")
    losses = (("cross_entropy", 0.0), ("cross_entropy", smoothing), ("label_relaxation", alpha))
    pairs = product(seeds, losses)
    runs = [RunConfig("simple_dense", dataset, loss, value, seed, **given) for seed, (loss, value) in pairs]
    return list(dict.fromkeys(runs))


def summarize(runs: Sequence[Result]) -> dict[str, Statistic]:
    """Mean and standard deviation of each metric over runs that differ only in their seed."""
    return {metric: Statistic.of([getattr(each, metric) for each in runs]) for metric in METRICS}
