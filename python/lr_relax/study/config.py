"""The configuration of a run: its options with their ranges and help texts, and the paper's hyperparameters.

The options have the names of the paper's code (Lienen and Hüllermeier, AAAI 2021,
https://github.com/julilien/LabelRelaxation), "multipler" included. The command line is made from these
fields.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import data, models
from .files import load_json

LEGACY = ("confidence-penalty", "clip", "temp-scaling", "grid", "hyperparams", "schedule", "checkpoints")
"""What `--legacy` names: the behavior of the paper's code where it differs from the paper or fails."""

# The names of losses and networks in the files of hyperparameters and their keys.
_FILES = {"label_relaxation": "lr", "cross_entropy": "ce", "focal": "focal", "confidence_penalty": "conf_pen"}
_NETWORKS = {"vgg": "VGG16", "resnet": "ResNet56V2", "densenet": "DenseNetBC"}
LOSSES = tuple(_FILES)


class ConfigError(ValueError):
    """An option or a hyperparameter file is invalid; the message is one line."""


def _option(default: Any, help: str, *, group: str = "Training", **about: Any) -> Any:
    """A field with its help and its range or choices; ``above`` excludes the lowest number."""
    return field(default=default, metadata={"help": help, "group": group, **about})


_task, _evaluation = partial(_option, group="Task"), partial(_option, group="Evaluation")
_ALPHA = "Imprecision of relaxation, weight of smoothing, focal loss's gamma or confidence penalty's beta."
_BEST = "Keep the network with the best validation accuracy and evaluate it; in test runs the last network."


@dataclass(frozen=True)
class RunConfig:
    """All options that determine the result of a run; equal configurations give equal results.

    Raises ConfigError if an option is outside its range.
    """

    model_name: str = _task("vgg", "The network.", choices=models.NAMES)
    dataset_name: str = _task("cifar100", "The data set.", choices=data.DATASETS)
    loss_name: str = _task(
        "label_relaxation", "The loss; smoothing is cross_entropy with alpha.", choices=LOSSES
    )
    alpha: float = _task(0.0, _ALPHA)
    seed: int = _task(0, "Seed of split, weights, batches, dropout and augmentation.", high=2**32 - 1)
    epochs: int = _option(200, "Number of epochs.", low=1)
    batch_size: int = _option(64, "Images per batch.", low=1)
    initial_lr: float = _option(1e-3, "Learning rate.", above=True)
    steps: tuple[int, ...] = _option((80, 120, 160, 180), "Epochs after which the rate drops, as 30,50.")
    lr_sched_multipler: float = _option(0.1, "Factor of each drop of the learning rate.", above=True)
    decay: float = _option(0.0, "Decay of the learning rate per batch: rate / (1 + decay * batches).")
    warmup: int = _option(0, "Epochs in which the learning rate rises to its initial value.")
    gradient_clipping: float = _option(0.0, "Maximum absolute value of a gradient's elements; 0 for none.")
    reduce_on_plateau: bool = _option(False, "Reduce the rate after ten epochs without a better loss.")
    data_augmentation: bool = _option(True, "Shift and flip the training images at random.")
    subtract_pixel_mean: bool = _option(True, "Subtract the mean of the training images.")
    model_checkpoints: bool = _evaluation(False, _BEST)
    test_run: bool = _evaluation(False, "Evaluate on test data instead of validation data.")
    temp_scaling: bool = _evaluation(False, "Scale predictions with a temperature of held-out data.")
    temperature: str = _evaluation("grid", "By ECE in the paper's grid, or by NLL.", choices=("grid", "nll"))
    validation_share: float = _evaluation(0.25, "Validation data's share; paper: 1/6.", high=1, above=True)
    n_bins: int = _evaluation(15, "Number of bins of the calibration error.", low=1, high=1000)
    # The behavior of the paper's code, by the names in LEGACY:
    legacy_clip: bool = False  # clip probabilities (not of cross-entropy): saturated errors have no gradient
    legacy_confidence_penalty: bool = False  # add the entropy to the loss instead of subtracting it
    legacy_temp_scaling: bool = False  # losses and ResNet's penalty take logits for probabilities
    legacy_schedule: bool = False  # ignore warmup and reduce_on_plateau
    legacy_checkpoints: bool = False  # keep the best network but evaluate the last one

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, list):
                value = tuple(value)
            elif each.type == "float" and isinstance(value, int | float) and not isinstance(value, bool):
                with suppress(OverflowError):  # of an integer, which is refused
                    value = float(value) + 0.0  # -0 becomes 0
            object.__setattr__(self, each.name, value)
            _check(each.name, value, str(each.type), each.metadata)
        if self.loss_name in ("label_relaxation", "cross_entropy") and self.alpha >= 1:
            raise _error("alpha", f"a number in [0, 1) for {self.loss_name}", self.alpha)
        size = data.FACTS[self.dataset_name].shape[1]
        if size < models.LEAST_SIZES[self.model_name]:
            expected = f"a network for images of {size} pixels, as those of {self.dataset_name}"
            raise _error("model_name", expected, self.model_name)

    def to_dict(self) -> dict[str, Any]:
        """All options, as JSON stores them."""
        return {**asdict(self), "steps": list(self.steps)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of :meth:`to_dict`; missing options have their defaults."""
        for name in values:
            if name not in cls.__dataclass_fields__:
                raise ConfigError(f"Expected options of a run, but got {name!r}.")
        return cls(**values)

    def effective(self) -> RunConfig:
        """The same run with options that have no effect at their defaults, so that its key ignores them."""
        scaled, plain = self.temp_scaling, self.loss_name == "cross_entropy"
        penalty = self.legacy_confidence_penalty and self.loss_name == "confidence_penalty"
        outputs = not plain or self.model_name == "resnet"  # which has a penalty of its outputs
        return replace(
            self,
            temperature=self.temperature if scaled else "grid",
            legacy_clip=self.legacy_clip and not plain,
            legacy_confidence_penalty=penalty,
            legacy_temp_scaling=self.legacy_temp_scaling and scaled and outputs,
            legacy_schedule=self.legacy_schedule and bool(self.warmup or self.reduce_on_plateau),
            legacy_checkpoints=self.legacy_checkpoints and self.model_checkpoints,
        )

    @property
    def key(self) -> str:
        """The name of the run's folder, equal for equal configurations.

        Options at their defaults do not count, so that a new option does not rename older runs.
        """
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        names = f"{self.model_name}-{self.dataset_name}-{self.loss_name}"
        return f"{names}-{self.alpha:g}-seed{self.seed}-{self.part}-{digest}"

    @property
    def part(self) -> str:
        """The data that the run is evaluated on: "test" or "validation"."""
        return "test" if self.test_run else "validation"

    @property
    def loss_title(self) -> str:
        """The name of the loss in tables: "label relaxation", "cross-entropy", "label smoothing"."""
        if self.loss_name == "cross_entropy":
            return "label smoothing" if self.alpha else "cross-entropy"
        return self.loss_name.replace("_", " ")

    @property
    def title(self) -> str:
        """The same with its alpha: "label relaxation 0.1", "cross-entropy + temperature"."""
        alpha = "" if self.loss_title == "cross-entropy" else f" {self.alpha:g}"
        return f"{self.loss_title}{alpha}{' + temperature' if self.temp_scaling else ''}"


def _check(name: str, value: Any, type: str, about: Mapping[str, Any]) -> None:
    """Check a value against the type and the metadata of its field."""
    low, high, above = about.get("low", 0), about.get("high"), "above" in about

    def is_integer(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= (high or 1_000_000)

    if type == "bool":
        valid, expected = isinstance(value, bool), "True or False"
    elif type == "str":
        valid, expected = value in about["choices"], f"one of {', '.join(about['choices'])}"
    elif type == "float":
        valid = (
            isinstance(value, float) and low <= value < (high or math.inf) and not (above and value == low)
        )
        expected = f"a number in {'(' if above else '['}{low}, {high or math.inf})"
    elif type == "int":
        valid, expected = is_integer(value), f"an integer in [{low}, {high or 1_000_000}]"
    else:
        valid = isinstance(value, tuple) and all(map(is_integer, value)) and list(value) == sorted(set(value))
        expected = "increasing epochs of at most 1000000"
    if not valid:
        raise _error(name, expected, value)


def _error(name: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"Expected argument `{name}` to be {expected}, but got {value!r}.")


def hyperparameters(
    loss_name: str,
    model_name: str,
    dataset_name: str,
    path: Path | None = None,
    short: bool = False,
    legacy: bool = False,
) -> dict[str, Any]:
    """The paper's hyperparameters, as options of :class:`RunConfig`.

    ``path`` is another file in their format; ``short`` selects a schedule for machines without a GPU;
    ``legacy`` selects the rows of the paper's code where its supplement differs (VGG16 with the focal loss or
    the confidence penalty; DenseNetBC has none).
    """
    names = {"model_name": model_name, "dataset_name": dataset_name, "loss_name": loss_name}
    key = f"{_NETWORKS.get(model_name, model_name)}_{dataset_name}"
    if legacy and loss_name in ("focal", "confidence_penalty") and model_name in ("vgg", "densenet"):
        key = f"legacy_{key}"
    file = path or f"hyperparams_{'short' if short else _FILES[loss_name]}.json"
    try:
        if path and not path.is_file():  # a pipe, or a device without an end
            raise ConfigError("it is not a file")
        rows = json.loads(path.read_text(encoding="utf-8")) if path else load_json(str(file))
        row = rows.get(key) if isinstance(rows, dict) else None
        if not isinstance(row, dict):
            raise ConfigError("there is no such row of options")
        # The paper's files store booleans as strings.
        booleans = {"True": True, "true": True, "False": False, "false": False}
        row = {name: booleans.get(v, v) if isinstance(v, str) else v for name, v in row.items()}
        for name in names.keys() & row.keys():
            raise ConfigError(f"`{name}` cannot be set in a row")
        RunConfig.from_dict({**row, **names})
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}, row {key}: {error}") from error
    return row
