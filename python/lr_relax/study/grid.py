"""Many runs: the paper's grids of alpha, the choice of the best, and runs on an engine.

Every run has a folder of its own. A grid that is started again skips finished runs and resumes the others.
Source of the grids: the code of Lienen and Hüllermeier, AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .config import RunConfig
from .engines import Job, Outcome
from .files import RunError
from .folder import Result, load_result

Engine = Callable[[Sequence[Job]], Iterator[Outcome]]
"""Runs jobs somewhere and yields their outcomes as they finish."""

_WEIGHTS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4)
GRIDS = {  # the alphas to choose from
    "label_relaxation": _WEIGHTS,
    "cross_entropy": (0.0, *_WEIGHTS),
    "focal": (0.1, 0.2, 0.5, 1.0, 2.0, 3.5, 5.0),
    "confidence_penalty": (0.1, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0),
}
LEGACY_GRIDS = {**GRIDS, "cross_entropy": _WEIGHTS}  # the paper's code omits plain cross-entropy
CRITERIA = ("accuracy", "ece")


def best(results: Iterable[Result], criterion: str) -> Result:
    """The result with the highest accuracy or the lowest ECE; of ties, the one with the smallest alpha."""
    sign = -1 if criterion == "accuracy" else 1
    return min(results, key=lambda result: (sign * getattr(result, criterion), result.config.alpha))


def best_tested(finished: Iterable[Result], criteria: Sequence[str]) -> list[RunConfig]:
    """The test runs of the alphas that are best on validation data, by each criterion.

    Only runs that differ in nothing but alpha are compared, and plain cross-entropy not with label smoothing,
    because the paper's tables have a row for each.
    """
    groups: dict[tuple[RunConfig, str], list[Result]] = {}
    for result in finished:
        if not result.config.test_run:
            alike = replace(result.config, alpha=0.0), result.config.loss_title
            groups.setdefault(alike, []).append(result)
    chosen = [best(group, criterion).config for group in groups.values() for criterion in criteria]
    return [replace(config, test_run=True) for config in dict.fromkeys(chosen)]


def run(
    configs: Iterable[RunConfig], out: Path, data_dir: Path, command: str, engine: Engine
) -> Iterator[Outcome]:
    """The outcomes of all distinct runs: first of those that have finished before, then as the others finish.

    Paths become absolute, because workers may have another working folder.
    """
    out, data_dir, remaining = out.absolute(), data_dir.absolute(), []
    for config in dict.fromkeys(configs):
        job, result = Job(config, out / config.key, data_dir, command), None
        with suppress(RunError, OSError):  # the worker reports them
            result = load_result(job.folder)
        if result is None:
            remaining.append(job)
        else:
            yield Outcome(job, result)
    if remaining:
        yield from engine(remaining)
