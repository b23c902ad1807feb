"""How and where a command runs: its options, and what is checked before anything is trained."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .. import data, mlflow_store
from ..config import RunConfig
from ..engines import Outcome
from ..mlflow_store import TrackingError
from ..results import Result
from ..tracking import Tracker
from ..training import Epoch
from .options import Command, option


def out_options(out: Path) -> Callable[[Command], Command]:
    """Where data come from and results go."""

    def decorate(command: Command) -> Command:
        command = option(
            "out",
            type=click.Path(path_type=Path),
            default=out,
            show_default=True,
            help="Every run has a folder here: an interrupted run goes on, a finished one is not repeated.",
        )(command)
        return option(
            "data_dir",
            type=click.Path(path_type=Path),
            default=Path("data"),
            show_default=True,
            help="Where the data set's files are, or are put.",
        )(command)

    return decorate


def tracking_options(command: Command) -> Command:
    """Where runs are tracked."""
    command = option(
        "experiment",
        default=mlflow_store.EXPERIMENT,
        show_default=True,
        help="The experiment's name in MLflow.",
    )(command)
    return option(
        "tracking_uri",
        show_default="MLFLOW_TRACKING_URI or sqlite:///mlflow.db",
        help="MLflow's store or server, as http://host:5000; none for no tracking.",
    )(command)


def load(name: str, data_dir: Path) -> data.Dataset:
    """The data set, or a usage error."""
    try:
        return data.load(name, data_dir)
    except data.DataError as error:
        raise click.UsageError(str(error)) from error


def writable(folder: Path, option: str = "--out") -> Path:
    """The folder, which is made, or a usage error if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise click.BadParameter(
            f"{folder} cannot be written to: {error.strerror}.", param_hint=f"'{option}'"
        ) from error
    return folder


def command_line() -> str:
    """What was called, for the record."""
    program = click.get_current_context().find_root().info_name
    return f"{program} {shlex.join(sys.argv[1:])}"


class Untracked:
    """A run that is not tracked."""

    run_id = ""

    def epoch(self, epoch: Epoch) -> None:
        pass

    def finished(
        self,
        result: Result | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        pass

    def failed(self, reason: str) -> None:
        pass


@dataclass(frozen=True)
class Tracking:
    """Where runs are tracked, if they are."""

    uri: str | None
    experiment: str
    every: int = 1
    """Of so many epochs the first is tracked."""

    @classmethod
    def prepare(cls, options: Mapping[str, Any]) -> Tracking:
        """A usage error at once where there is no store to write to."""
        uri = options["tracking_uri"] or mlflow_store.default_uri()
        if uri == "none":
            return cls(None, options["experiment"])
        if not options["experiment"].strip():
            raise click.BadParameter("a name is needed.", param_hint="'--experiment'")
        try:
            mlflow_store.check(uri, options["experiment"])
        except TrackingError as error:
            raise click.BadParameter(f"{error}.", param_hint="'--tracking-uri'") from error
        logging.basicConfig(format="%(message)s")  # one line, where a store fails later
        return cls(uri, options["experiment"], options.get("autolog_freq", 1))

    def run(
        self,
        config: RunConfig,
        folder: Path,
        command: str,
        parent: str = "",
        started: float | None = None,
    ) -> Tracker | Untracked:
        """A run's tracker."""
        if self.uri is None:
            return Untracked()
        return Tracker.of_run(
            config,
            self.uri,
            self.experiment,
            folder=folder,
            command=command,
            parent=parent or None,
            started=started,
            every=self.every,
        )

    def parent(self, folder: Path, kind: str, params: Mapping[str, Any], command: str) -> Tracker | Untracked:
        """The tracker of a search or a grid, whose runs point to it."""
        if self.uri is None:
            return Untracked()
        return Tracker(
            self.uri,
            self.experiment,
            folder=folder,
            params=params,
            name=folder.name,
            kind=kind,
            tags={"lr_relax.command": command},
        )

    def outcome(self, outcome: Outcome, parent: str = "") -> None:
        """Track a run that an engine has trained."""
        job, result = outcome.job, outcome.result
        if outcome.elsewhere:
            return
        started = None if result is None else time.time() - result.seconds
        tracker = self.run(job.config, job.folder, job.command, parent, started)
        if result is None:
            tracker.failed(outcome.error)
        else:
            tracker.finished(result)
