"""What the commands share: types of options, one-line errors, and the options that determine a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from fractions import Fraction
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import config, data, models, processes
from ..config import ConfigError, RunConfig

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Usage errors without the usage above them; of several processes the first tells."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as error:
        processes.let_the_first_tell()
        if isinstance(error, click.UsageError):
            error.ctx = None  # what Click takes the usage from
        raise


class OneLineErrorsCommand(click.Command):
    """A command whose usage errors are a single line, also where it is run by itself."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # where there is no ±
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


class OneLineErrors(OneLineErrorsCommand, click.Group):
    """The same of a group."""


class Number(click.FloatRange):
    """A range of floats that are numbers: Click's own lets nan and infinity pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Share(click.ParamType):  # type: ignore[type-arg]
    """A number, or a fraction such as 1/6."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
        except (ValueError, ZeroDivisionError, OverflowError):
            self.fail(f"{value!r} is not a number or a fraction such as 1/6.", param, ctx)


class List(click.ParamType):  # type: ignore[type-arg]
    """Values of a type, with commas between."""

    def __init__(self, of: click.ParamType) -> None:  # type: ignore[type-arg]
        self.of, self.name = of, f"{of.name},..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self.of.convert(part.strip(), param, ctx) for part in value.split(",") if part.strip())


class Integers(click.ParamType):  # type: ignore[type-arg]
    """Integers with commas between, and ranges such as 0-4."""

    name = "integers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        integers: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            try:
                least, most = int(first), int(last if dash else first)
            except ValueError:
                self.fail(f"{part!r} is not an integer or a range such as 0-4.", param, ctx)
            if not least <= most < least + 10_000:
                self.fail(f"{part!r} is not a rising range of at most 10,000.", param, ctx)
            integers += range(least, most + 1)
        return tuple(dict.fromkeys(integers))


# Bounds beyond which no one means it, and below which nothing overflows.
AT_LEAST_ONE = click.IntRange(min=1, max=1_000_000)
BINS = click.IntRange(min=1, max=1000)
POSITIVE = Number(min=0, min_open=True)
NOT_NEGATIVE = Number(min=0)
BELOW_ONE = Number(min=0, max=1, max_open=True)

# The losses as the paper's code names them, and as we do.
LOSS_NAMES = {"lr": "label_relaxation", **{name: name for name in config.LOSSES}}


_DEFAULTS = {field.name: field.default for field in fields(RunConfig)}


def option(name: str, **attributes: Any) -> Callable[[Command], Command]:
    """An option with both spellings, --model-name and --model_name."""
    spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
    if name in _DEFAULTS and "show_default" not in attributes:
        default = _DEFAULTS[name]
        attributes["show_default"] = (
            ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        )
    return click.option(*spellings, name, **attributes)


def switch(name: str, help: str) -> Callable[[Command], Command]:
    """A truth value: ``--name``, or ``--name True`` as the paper's code takes it."""
    return option(name, type=click.BOOL, is_flag=False, flag_value=True, help=help)


# The options that determine a run, by their names in RunConfig.
_RUN: dict[str, Callable[[Any], Any]] = {
    "model_name": option(
        "model_name", type=click.Choice(models.NAMES, case_sensitive=False), help="The network."
    ),
    "dataset_name": option(
        "dataset_name",
        type=click.Choice((*data.DATASETS, "imagenet"), case_sensitive=False),
        help="The data set; imagenet is refused, as in the paper's code.",
    ),
    "loss_name": option(
        "loss_name",
        type=click.Choice(tuple(LOSS_NAMES), case_sensitive=False),
        help="The loss; cross_entropy with an alpha is label smoothing, lr is label_relaxation.",
    ),
    "alpha": option(
        "alpha",
        type=NOT_NEGATIVE,
        help="Of the loss: the imprecision, the weight of the smoothing, the focal loss's gamma, the "
        "confidence penalty's beta.",
    ),
    "seed": option(
        "seed",
        type=click.IntRange(min=0, max=2**32 - 1),
        help="Of the split, the weights, the batches, dropout and augmentation.",
    ),
    "epochs": option("epochs", type=AT_LEAST_ONE, help="Times that every training image is seen."),
    "batch_size": option("batch_size", type=AT_LEAST_ONE, help="Images of each step."),
    "initial_lr": option("initial_lr", type=POSITIVE, help="Learning rate."),
    "steps": option(
        "steps",
        type=List(click.IntRange(min=0)),
        help="Epochs after which the learning rate drops, as 30,50.",
    ),
    "lr_sched_multipler": option("lr_sched_multipler", type=POSITIVE, help="Factor of each drop."),
    "decay": option(
        "decay",
        type=NOT_NEGATIVE,
        help="Of the learning rate, with each batch: rate / (1 + decay * batches).",
    ),
    "warmup": option(
        "warmup", type=click.IntRange(min=0, max=1_000_000), help="Epochs in which the learning rate rises."
    ),
    "gradient_clipping": option(
        "gradient_clipping",
        type=NOT_NEGATIVE,
        help="Largest absolute value of a gradient's element; 0 for none.",
    ),
    "reduce_on_plateau": switch(
        "reduce_on_plateau", "Let the learning rate drop, too, after ten epochs without a better loss."
    ),
    "data_augmentation": switch("data_augmentation", "Shift and mirror the training images at random."),
    "subtract_pixel_mean": switch("subtract_pixel_mean", "Subtract the training images' mean."),
    "model_checkpoints": switch(
        "model_checkpoints",
        "Keep the network of the best validation accuracy and evaluate it, not the last; a test run, which "
        "validates nothing, keeps the last.",
    ),
    "test_run": switch("test_run", "Evaluate on test data, not on validation data."),
    "temp_scaling": switch("temp_scaling", "Set data aside for a temperature that scales the predictions."),
    "temperature": option(
        "temperature",
        type=click.Choice(config.TEMPERATURES),
        help="Choose it from the paper's grid by ECE, or by likelihood.",
    ),
    "validation_share": option(
        "validation_share",
        type=Share(),
        help="Share of the training data to validate on; the paper says 1/6.",
    ),
    "n_bins": option("n_bins", type=BINS, help="Bins of the calibration error."),
    "legacy_clip": switch("legacy_clip", "Clip probabilities to [1e-7, 1 - 1e-7], as the paper's code does."),
    "legacy_confidence_penalty": switch(
        "legacy_confidence_penalty", "Add the entropy to the loss, as the paper's code does, not subtract it."
    ),
    "legacy_temp_scaling": switch(
        "legacy_temp_scaling",
        "With temp_scaling, give logits to losses, and to ResNet's penalty, that want probabilities, as the "
        "paper's code does.",
    ),
    "legacy_schedule": switch(
        "legacy_schedule", "Let warmup and reduce_on_plateau have no effect, as in the paper's code."
    ),
    "legacy_checkpoints": switch(
        "legacy_checkpoints",
        "Keep model_checkpoints but evaluate the last network, as the paper's code does.",
    ),
}

# Where the values come from that are not on the command line.
_SOURCES = [
    switch("load_ext_params", "Take what is not given here from the paper's hyperparameters."),
    option(
        "hyperparams",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Take it from this file, in the same format.",
    ),
    switch("short", "Take it from a short schedule, for machines without a GPU."),
    switch(
        "legacy_hyperparams",
        "Of the paper's hyperparameters, take what its code has, not its supplement: VGG16 with the focal "
        "loss and the confidence penalty.",
    ),
]


def run_options(*without: str) -> Callable[[Command], Command]:
    """All options that determine a run, but for some; :func:`read_config` reads them."""

    def decorate(command: Command) -> Command:
        for source in reversed(_SOURCES):
            command = source(command)
        for name, decorator in reversed(_RUN.items()):
            if name not in without:
                command = decorator(command)
        return command

    return decorate


def read_config(given: Mapping[str, Any], **fixed: Any) -> RunConfig:
    """The run that the options ask for.

    Args:
        given: The values of all options of :func:`run_options` and perhaps more, None where one is not given.
        fixed: What the command decides.
    """
    options = {name: given[name] for name in _RUN if given.get(name) is not None} | fixed
    if "loss_name" in options:
        options["loss_name"] = LOSS_NAMES[options["loss_name"]]
    names = {name: options.get(name, _DEFAULTS[name]) for name in ("loss_name", "model_name", "dataset_name")}
    if names["dataset_name"] == "imagenet":
        raise click.BadParameter(
            "imagenet is not provided, as in the paper's code.", param_hint="'--dataset-name'"
        )
    path, short, legacy = given.get("hyperparams"), given.get("short"), given.get("legacy_hyperparams")
    if sum(map(bool, (path, short, legacy))) > 1:
        raise click.UsageError("of --hyperparams, --short and --legacy-hyperparams only one can be given")
    try:
        row: dict[str, Any] = {}
        if given.get("load_ext_params") or path or short or legacy:
            row = config.hyperparameters(**names, path=path, short=bool(short), legacy=bool(legacy))
        return RunConfig.from_dict({**row, **options}).effective()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
