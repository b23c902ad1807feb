"""Many runs: networks x data sets x losses x alphas x seeds, on an engine; then tests of the best alphas.

Every run has a folder of its own. A grid that is started again skips what has finished and goes on with the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from . import results, search
from .config import RunConfig
from .engines import Job, Outcome
from .results import Result, ResultError

Engine = Callable[[Sequence[Job]], Iterator[Outcome]]
"""Runs jobs somewhere and gives their outcomes as they come."""

CRITERIA = ("accuracy", "ece")
"""What the best alpha can be chosen by."""


def jobs(configs: Iterable[RunConfig], out: Path, data_dir: Path, command: str) -> list[Job]:
    """A job for each different run, in a folder of ``out``; workers may have another working folder."""
    distinct = {config.key: config for config in configs}
    out, data_dir = out.absolute(), data_dir.absolute()
    return [Job(config, out / key, data_dir, command) for key, config in distinct.items()]


def run(todo: Sequence[Job], engine: Engine) -> Iterator[Outcome]:
    """The outcomes of all jobs: first of those that have finished before, then the others' as they come."""
    open_jobs = []
    for job in todo:
        result = None
        with suppress(ResultError, OSError):  # the worker will tell
            result = results.load(job.folder)
        if result is None:
            open_jobs.append(job)
        else:
            yield Outcome(job, result, "")
    if open_jobs:
        yield from engine(open_jobs)


def best_tested(finished: Iterable[Result], criteria: Sequence[str]) -> list[RunConfig]:
    """The test runs of what validation runs show to be the best alphas, by each criterion.

    Runs that differ in their alpha only are compared, plain cross-entropy not with label smoothing, as the
    paper's tables have a line for each.
    """
    groups: dict[tuple[RunConfig, str], list[Result]] = {}
    for result in finished:
        config = result.config
        if not config.test_run:
            groups.setdefault((replace(config, alpha=0.0), config.loss_title), []).append(result)
    chosen = [
        search.final(search.best(group, by_ece=by == "ece").config)
        for group in groups.values()
        for by in criteria
    ]
    return list(dict.fromkeys(chosen))
