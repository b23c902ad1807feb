"""What determines a run: its options, their ranges, and the paper's hyperparameters for them.

Options have the names that the paper's code gives them (Lienen and Hüllermeier, AAAI 2021,
https://github.com/julilien/LabelRelaxation), "multipler" included.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from . import data, models
from .resources import load_json

LOSSES = ("label_relaxation", "cross_entropy", "focal", "confidence_penalty")
TEMPERATURES = ("grid", "nll")

# How the files name the losses and the networks.
_FILES = {
    "label_relaxation": "hyperparams_lr.json",
    "cross_entropy": "hyperparams_ce.json",
    "focal": "hyperparams_focal.json",
    "confidence_penalty": "hyperparams_conf_pen.json",
}
_SHORT = "hyperparams_short.json"
_NETWORKS = {"vgg": "VGG16", "resnet": "ResNet56V2", "densenet": "DenseNetBC"}


class ConfigError(ValueError):
    """An option that no run can have; the message says why in one line."""


@dataclass(frozen=True)
class RunConfig:
    """All that determines the outcome of a run; runs of equal configurations have equal results.

    Wrong values raise `ConfigError`, a ValueError, that names the option.
    """

    model_name: str = "vgg"
    """One of `models.NAMES`."""
    dataset_name: str = "cifar100"
    """One of `data.DATASETS`."""
    loss_name: str = "label_relaxation"
    """One of `LOSSES`; label smoothing is cross-entropy with an alpha."""
    alpha: float = 0.0
    """Of the loss, which the paper's code calls so for all: the imprecision, or the weight of the smoothing,
    in [0, 1); for the focal loss gamma, for the confidence penalty beta, at least 0."""
    seed: int = 0
    """Of the split, the initial weights, the order of the batches, dropout and augmentation; at least 0."""
    epochs: int = 200
    batch_size: int = 64
    initial_lr: float = 1e-3
    """The learning rate; `optimiser.Schedule` says what becomes of it."""
    steps: tuple[int, ...] = (80, 120, 160, 180)
    """The epochs after which it drops, rising."""
    lr_sched_multipler: float = 0.1
    """The factor of each drop."""
    decay: float = 0.0
    """By which it falls with each batch."""
    warmup: int = 0
    """The epochs in which it rises to `initial_lr` instead."""
    gradient_clipping: float = 0.0
    """The greatest absolute value of an element of the gradient; 0 for none."""
    reduce_on_plateau: bool = False
    """Whether the learning rate drops, too, when the loss of ten epochs is no improvement."""
    data_augmentation: bool = True
    """Whether training images are shifted and mirrored at random."""
    subtract_pixel_mean: bool = True
    model_checkpoints: bool = False
    """Whether the network with the best validation accuracy is kept and evaluated, not the last one; in test
    runs, which validate nothing, it is the last one."""
    test_run: bool = False
    """Whether to evaluate on test data, not on validation data."""
    temp_scaling: bool = False
    """Whether to set data aside and scale predictions with a temperature chosen on them."""
    temperature: str = "grid"
    """How: of the paper's 16 the one with the least ECE in 15 bins ("grid"), or by the likelihood ("nll")."""
    validation_share: float = 0.25
    """How much of what is not test data is for validation; the paper says 1/6."""
    n_bins: int = 15
    """Of the calibration error."""
    legacy_clip: bool = False
    """As in the paper's code, probabilities are clipped to [1e-7, 1 - 1e-7] (not for cross-entropy), so that
    saturated wrong predictions have no gradient."""
    legacy_confidence_penalty: bool = False
    """As in the paper's code, the confidence penalty adds entropy where the paper's subtracts it."""
    legacy_temp_scaling: bool = False
    """As in the paper's code, under `temp_scaling` losses but cross-entropy take logits for probabilities,
    and so does ResNet's penalty of its outputs."""
    legacy_schedule: bool = False
    """As in the paper's code, `warmup` and `reduce_on_plateau` have no effect."""
    legacy_checkpoints: bool = False
    """As in the paper's code, `model_checkpoints` are kept but not evaluated."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps) if isinstance(self.steps, list) else self.steps)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and isinstance(value, int | float) and not isinstance(value, bool):
                with suppress(OverflowError):  # of an integer, which is then refused below
                    object.__setattr__(self, field.name, float(value) + 0.0)  # -0 is 0, and named so
        _one_of("model_name", self.model_name, models.NAMES)
        _one_of("dataset_name", self.dataset_name, data.DATASETS)
        _one_of("loss_name", self.loss_name, LOSSES)
        _one_of("temperature", self.temperature, TEMPERATURES)
        self._check_numbers()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"Expected `{field.name}` to be True or False, but got {value!r}.")
        size, least = data.image_shape(self.dataset_name)[1], models.least_size(self.model_name)
        if size < least:
            raise ConfigError(
                f"Expected images of at least {least} pixels for `model_name` {self.model_name!r}, "
                f"but those of {self.dataset_name} have {size}."
            )

    def _check_numbers(self) -> None:
        below_one = self.loss_name in ("label_relaxation", "cross_entropy")
        _number("alpha", self.alpha, 0, 1 if below_one else math.inf, f" for {self.loss_name}")
        _integer("seed", self.seed, 0, 2**32 - 1)
        for name in ("epochs", "batch_size"):
            _integer(name, getattr(self, name), 1, 1_000_000)
        _integer("warmup", self.warmup, 0, 1_000_000)
        _integer("n_bins", self.n_bins, 1, 1000)  # the diagram shows each
        _number("initial_lr", self.initial_lr, 0, math.inf, above=True)
        _number("lr_sched_multipler", self.lr_sched_multipler, 0, math.inf, above=True)
        _number("decay", self.decay, 0, math.inf)
        _number("gradient_clipping", self.gradient_clipping, 0, math.inf)
        _number("validation_share", self.validation_share, 0, 1, above=True)
        if not isinstance(self.steps, tuple):
            raise ConfigError(f"Expected `steps` to be rising epochs, but got {self.steps!r}.")
        for step in self.steps:
            _integer("steps", step, 0, 1_000_000)
        if list(self.steps) != sorted(set(self.steps)):
            raise ConfigError(f"Expected `steps` to be rising epochs, but got {self.steps!r}.")

    def to_dict(self) -> dict[str, Any]:
        """All options, as JSON has them."""
        return {**asdict(self), "steps": list(self.steps)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of :meth:`to_dict`; options that are not there have their defaults."""
        unknown = [name for name in values if name not in cls.__dataclass_fields__]
        if unknown:
            raise ConfigError(f"Expected options of a run, but got {unknown[0]!r}.")
        return cls(**values)

    def effective(self) -> RunConfig:
        """The same run, with the options that do nothing in it at their defaults.

        So a grid's runs of one loss keep their keys, whatever is asked of another.
        """
        scaled = self.temp_scaling
        plain = self.loss_name == "cross_entropy"
        return replace(
            self,
            temperature=self.temperature if scaled else "grid",
            legacy_clip=self.legacy_clip and not plain,
            legacy_confidence_penalty=self.legacy_confidence_penalty
            and self.loss_name == "confidence_penalty",
            legacy_temp_scaling=self.legacy_temp_scaling
            and scaled
            and (not plain or self.model_name == "resnet"),  # which has a penalty of its outputs
            legacy_schedule=self.legacy_schedule and bool(self.warmup or self.reduce_on_plateau),
            legacy_checkpoints=self.legacy_checkpoints and self.model_checkpoints,
        )

    @property
    def key(self) -> str:
        """A name for the run, equal for equal configurations.

        Options at their defaults do not count: a new option leaves older runs their names.
        """
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        part = "test" if self.test_run else "validation"
        names = f"{self.model_name}-{self.dataset_name}-{self.loss_name}"
        return f"{names}-{self.alpha:g}-seed{self.seed}-{part}-{digest}"

    @property
    def loss_title(self) -> str:
        """The loss as a reader names it: "label relaxation", "cross-entropy", "label smoothing"."""
        if self.loss_name == "cross_entropy":
            return "label smoothing" if self.alpha else "cross-entropy"
        return self.loss_name.replace("_", " ")

    @property
    def title(self) -> str:
        """The same with its alpha: "label relaxation 0.1", "cross-entropy + temperature"."""
        alpha = "" if self.loss_title == "cross-entropy" else f" {self.alpha:g}"
        return f"{self.loss_title}{alpha}{' + temperature' if self.temp_scaling else ''}"


def hyperparameters(
    loss_name: str,
    model_name: str,
    dataset_name: str,
    *,
    path: Path | None = None,
    short: bool = False,
    legacy: bool = False,
) -> dict[str, Any]:
    """The paper's hyperparameters, as options of :class:`RunConfig`.

    Args:
        loss_name, model_name, dataset_name: As in `RunConfig`.
        path: A file of one's own, in the format of those in misc/, instead of theirs.
        short: A schedule for machines without a GPU, the same for all losses, instead of the paper's.
        legacy: What the paper's code has, where the supplement says otherwise: VGG16's row for the focal loss
            and the confidence penalty, and none for DenseNetBC.
    """
    _one_of("loss_name", loss_name, LOSSES)
    file = str(path) if path else _SHORT if short else _FILES[loss_name]
    rows = _read(path) if path else load_json(file)
    key = f"{_NETWORKS.get(model_name, model_name)}_{dataset_name}"
    if legacy and loss_name in ("focal", "confidence_penalty"):
        if model_name == "densenet":
            raise ConfigError(f"{file} of the paper's code has no row {key}")
        key = f"legacy_{key}" if f"legacy_{key}" in rows else key
    if key not in rows:
        hint = "; the short schedules have one" if file != _SHORT and key in load_json(_SHORT) else ""
        raise ConfigError(f"{file} has no row {key}{hint}")
    row = rows[key]
    if not isinstance(row, dict):
        raise ConfigError(f"{file} has no options in its row {key}")
    # The paper's files have strings for truth values.
    truths = {"True": True, "true": True, "False": False, "false": False}
    options = {
        name: truths.get(value, value) if isinstance(value, str) else value for name, value in row.items()
    }
    names = {"model_name": model_name, "dataset_name": dataset_name, "loss_name": loss_name}
    for name in names:
        if name in options:
            raise ConfigError(f"{file}, row {key}: `{name}` cannot be set in a row")
    try:
        RunConfig.from_dict({**options, **names})
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{file}, row {key}: {error}") from error
    return options


def _read(path: Path) -> dict[str, Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, dict):
        raise ConfigError(f"{path} is not an object of rows")
    return rows


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"Expected `{name}` to be one of {', '.join(known)}, but got {value!r}.")


def _integer(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"Expected `{name}` to be an integer in [{least}, {most}], but got {value!r}.")


def _number(
    name: str, value: Any, least: float, below: float, where: str = "", *, above: bool = False
) -> None:
    inside = isinstance(value, float) and (least < value if above else least <= value) and value < below
    if not inside:
        upper = "" if math.isinf(below) else f", {below:g}"
        opening = "(" if above else "["
        wanted = (
            f"in {opening}{least:g}{upper})" if upper else f"{'above' if above else 'at least'} {least:g}"
        )
        raise ConfigError(f"Expected `{name}` to be a number {wanted}{where}, but got {value!r}.")
