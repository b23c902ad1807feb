"""Commands with one-line errors and grouped help, option types, and the options of `RunConfig`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from fractions import Fraction
from functools import reduce
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from .. import config as configs
from .. import processes
from ..config import ConfigError, RunConfig
from ..data import DataError
from ..engines import EngineError
from ..files import RunError
from ..tracking import TrackingError

Decorator = Callable[[Any], Any]
ERRORS = (ConfigError, DataError, EngineError, TrackingError, RunError, OSError)  # told in one line


def command_line(without: str = "") -> str:
    """The command line as it was called."""
    program = click.get_current_context().find_root().info_name
    return f"{program} {shlex.join(word for word in sys.argv[1:] if word != without)}"


class Command(click.Command):
    """A command with one-line errors, also when it is run as a module, and options grouped in its help."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # for terminals without ±
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}))
        except (click.ClickException, *ERRORS) as caught:
            error = caught if isinstance(caught, click.ClickException) else click.UsageError(str(caught))
            processes.wait_for_the_first()  # of several processes it reports the error
            asks_for_help = isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ()))
            kind = type(error) if asks_for_help else click.ClickException  # a usage error's has the usage
            kind.show(error)
            sys.exit(error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            processes.wait_for_the_first()
            again = command_line(without="--restart")
            click.echo(f"Interrupted. To resume from the last complete epoch, run: {again}", err=True)
            ctx.exit(130)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class Group(Command, click.Group):
    """A group of commands with the same behavior."""


def option(name: str, *more: str, group: str = "Options", **known: Any) -> Decorator:
    """An option under a heading of the help, in both spellings: --model-name and --model_name."""
    spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}", *more])
    return click.option(*spellings, name, cls=type("Option", (click.Option,), {"group": group}), **known)


def switch(name: str, help: str, **known: Any) -> Decorator:
    """A boolean: ``--name``, or ``--name True`` as in the paper's code."""
    return option(name, type=click.BOOL, is_flag=False, flag_value=True, help=help, **known)


def all_of(*decorators: Decorator) -> Decorator:
    """Several options as one decorator."""
    return lambda command: reduce(lambda done, decorate: decorate(done), reversed(decorators), command)


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """A type from a function of a string, whose ValueError explains what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


def list_of(name: str, parse: Callable[[str], Any]) -> Parsed:
    """Comma-separated values."""
    return Parsed(f"{name},...", lambda text: tuple(parse(p.strip()) for p in text.split(",") if p.strip()))


def choice(known: Mapping[str, str] | tuple[str, ...]) -> Callable[[str], str]:
    """A function that checks a name and returns it, or what it maps to."""
    values = known if isinstance(known, Mapping) else {name: name for name in known}

    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError(f"{text!r} is not one of {', '.join(values)}")
        return values[text.lower()]

    return parse


def _number(text: str) -> float:
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{text!r} is not a number or a fraction such as 1/6") from None


def _integers(text: str) -> tuple[int, ...]:
    integers: list[int] = []
    for part in text.split(","):
        if (found := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)) is None:
            raise ValueError(f"{part!r} is not an integer or a range such as 0-4")
        least, most = int(found[1]), int(found[2] or found[1])
        if not least <= most < least + 10_000:
            raise ValueError(f"{part!r} is not an increasing range of at most 10,000")
        integers += range(least, most + 1)
    return tuple(dict.fromkeys(integers))


def _loss(text: str) -> tuple[str, float | None]:
    name, colon, alpha = text.partition(":")
    return LOSS(name), _number(alpha) if colon else None


def _legacy(text: str) -> tuple[str, ...]:
    names = tuple(choice(("all", *configs.LEGACY))(part.strip()) for part in text.split(","))
    return ("all", *configs.LEGACY) if "all" in names else names


LOSS = choice({"lr": "label_relaxation", **{name: name for name in configs.LOSSES}})
NUMBER, INTEGERS = Parsed("number", _number), Parsed("integers", _integers)
NUMBERS, LOSSES = list_of("number", _number), list_of("loss[:alpha]", _loss)
FOLDER = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1, max=1_000_000)
RUN_OPTIONS = {field.name: field for field in fields(RunConfig) if field.metadata}


def run_option(name: str, *more: str, choices: tuple[str, ...] | None = None, **known: Any) -> Decorator:
    """The option of a field of `RunConfig`, which also checks its range."""
    field = RUN_OPTIONS[name]
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
    known = {name: field.metadata[name] for name in ("group", "help")} | {"show_default": default} | known
    if field.type == "bool":
        return switch(name, **known)
    if choices := choices or field.metadata.get("choices"):
        is_loss = name == "loss_name"
        known["metavar"] = f"[{'|'.join(['lr'] * is_loss + [*choices])}]"
        return option(name, *more, type=Parsed("name", LOSS if is_loss else choice(choices)), **known)
    types = {"int": click.INT, "float": NUMBER}
    return option(name, *more, type=types.get(str(field.type), INTEGERS), **known)


_GROUP = {"group": "Hyperparameters"}
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_LEGACY = "Behave as the paper's code where it differs from the paper or fails: all, or some of "
_LEGACY += f"{', '.join(configs.LEGACY)}."
_SOURCES = all_of(
    switch("load_ext_params", "Use the paper's hyperparameters for options not given here.", **_GROUP),
    option("hyperparams", help="Use those of a file in the same format.", type=_FILE, **_GROUP),
    switch("short", "Use those of a short schedule for machines without a GPU.", **_GROUP),
    option("legacy", help=_LEGACY, type=Parsed("name,...", _legacy), default=(), **_GROUP),
)


def run_options(*without: str) -> Decorator:
    """The options that determine a run, except some; :func:`read_config` reads them."""
    return all_of(*[run_option(name) for name in RUN_OPTIONS if name not in without], _SOURCES)


def read_config(given: Mapping[str, Any], **fixed: Any) -> RunConfig:
    """The configuration from the options, None where one is not given, and from what the command fixes."""
    options = {name: given[name] for name in RUN_OPTIONS if given.get(name) is not None} | fixed
    task = ("loss_name", "model_name", "dataset_name")
    names = {name: options.get(name, RUN_OPTIONS[name].default) for name in task}
    path, short, legacy = given["hyperparams"], bool(given["short"]), given["legacy"]
    papers = bool(given["load_ext_params"]) and not path and not short
    if path and short:
        raise click.UsageError("--hyperparams and --short cannot be combined")
    if "hyperparams" in legacy and "all" not in legacy and not papers:
        raise click.UsageError("--legacy hyperparams needs --load_ext_params alone")
    switches = {f"legacy_{name.replace('-', '_')}" for name in legacy}
    options |= dict.fromkeys(switches & RunConfig.__dataclass_fields__.keys(), True)
    row: dict[str, Any] = {}
    if papers or path or short:
        old = papers and "hyperparams" in legacy
        row = configs.hyperparameters(**names, path=path, short=short, legacy=old)
    return RunConfig.from_dict({**row, **options}).effective()
