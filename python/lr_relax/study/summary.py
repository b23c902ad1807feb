"""What tracked runs say of each loss: alpha chosen on validation data, mean and deviation over seeds.

Runs are averaged only if nothing differs but the seed, and the alpha chosen for it. tables.py writes it down.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .config import RunConfig

if TYPE_CHECKING:
    from .tracked import Record

LOSSES = ("cross-entropy", "label smoothing", "label relaxation", "focal", "confidence penalty")
METRICS = ("accuracy", "ece")

# In these the runs of one table may differ; the last four concern only some of the losses.
WITHIN = {"loss_name", "alpha", "seed", "test_run", "temp_scaling"}
WITHIN |= {"temperature", "legacy_temp_scaling", "legacy_confidence_penalty", "legacy_clip"}


class Configured(Protocol):
    """A record or a result: what a run of this config has left."""

    @property
    def config(self) -> RunConfig: ...


T = TypeVar("T", bound=Configured)


@dataclass(frozen=True)
class Setting:
    """What runs have to share to be compared."""

    dataset_name: str
    model_name: str
    epochs: int
    others: tuple[tuple[str, Any], ...]  # what else differs between settings of this data set and model

    @classmethod
    def of(cls, config: RunConfig, others: Iterable[str]) -> Setting:
        values = tuple((name, getattr(config, name)) for name in others)
        return cls(config.dataset_name, config.model_name, config.epochs, values)

    @property
    def title(self) -> str:
        others = [f"{name} {_words(value)}" for name, value in self.others]
        return ", ".join([self.dataset_name, self.model_name, counted([self.epochs], "epoch"), *others])


@dataclass(frozen=True)
class Method:
    """A loss as the tables have it: smoothing is one of its own, and so is each with temperature scaling."""

    loss: str
    legacy: bool = False
    clipped: bool = False
    temperature: str | None = None  # None where there is none, "" where it is chosen as in the paper

    @classmethod
    def of(cls, config: RunConfig) -> Method:
        loss = config.loss_title
        effective, temperature = config.effective(), None
        if config.temp_scaling:
            words = [config.temperature] * (config.temperature != "grid")
            words += ["legacy"] * effective.legacy_temp_scaling
            temperature = ", ".join(words)
        return cls(loss, effective.legacy_confidence_penalty, effective.legacy_clip, temperature)

    @property
    def has_alpha(self) -> bool:
        return self.loss != "cross-entropy"

    @property
    def order(self) -> tuple[Any, ...]:
        loss = LOSSES.index(self.loss), self.legacy, self.clipped
        return (self.temperature is not None, *loss, self.temperature or "")

    def title(self, alpha: str = "") -> str:
        words = [self.loss, *["(legacy)"] * self.legacy, *["(clipped)"] * self.clipped]
        words += [alpha] * (alpha != "")
        words += ["+ temperature"] * (self.temperature is not None)
        words += [f"({self.temperature})"] * bool(self.temperature)
        return " ".join(words)


class Statistic(NamedTuple):
    """Mean and sample standard deviation over seeds, None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Reference:
    """A published or measured number to compare with: a row of misc/published.json."""

    dataset_name: str
    model_name: str
    loss_name: str
    alpha: float | None
    chosen_for: str | None
    temp_scaling: bool
    epochs: int | None
    seeds: int | None
    accuracy: float
    accuracy_std: float | None
    ece: float
    ece_std: float | None
    source: str

    @property
    def loss(self) -> str:
        if self.loss_name == "cross_entropy":
            smoothed = self.alpha or (self.alpha is None and self.chosen_for is not None)
            return "label smoothing" if smoothed else "cross-entropy"
        return self.loss_name.replace("_", " ")


class Source(NamedTuple):
    """Where the references of a column come from."""

    text: str
    epochs: int | None


@dataclass(frozen=True)
class Row:
    """The test runs of a method, one per seed."""

    method: Method
    chosen: bool  # on validation data, else there is only this alpha
    runs: tuple[Record, ...]  # by seed
    missing: dict[int, float | None]  # seeds without a test run, and the alpha it should have, if known
    references: dict[Source, Reference]

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def alphas(self) -> list[float]:
        """Of each seed."""
        return [run.config.alpha for run in self.runs]

    def statistic(self, metric: str) -> Statistic | None:
        return Statistic.of([value(run, metric) for run in self.runs]) if self.runs else None


@dataclass(frozen=True)
class Table:
    """The methods in one setting."""

    setting: Setting
    optimised_for: str | None  # the metric by which alphas were chosen, None if there was no choice
    rows: list[Row]
    sources: list[Source]
    unusable: list[str]  # keys of runs that lack a metric


def value(record: Record, metric: str) -> float:
    """The accuracy or ECE of a run, on the data it was evaluated on."""
    if metric == "accuracy":
        metric = "test_accuracy" if record.config.test_run else "validation_accuracy"
    return record.metrics.get(metric, math.nan)


def usable(record: Record) -> bool:
    return all(math.isfinite(value(record, metric)) for metric in METRICS)


def best(runs: Iterable[Record], metric: str) -> Record:
    """The run with the highest accuracy or the lowest ECE; of equal ones, that with the smallest alpha."""
    sign = -1 if metric == "accuracy" else 1
    return min(runs, key=lambda run: (sign * value(run, metric), run.config.alpha))


def by_setting(items: Iterable[T]) -> dict[Setting, list[T]]:
    """What may be compared, together; in the order of data sets, models and hyperparameters."""
    of_model: dict[tuple[str, str], list[T]] = {}
    for item in items:
        of_model.setdefault((item.config.dataset_name, item.config.model_name), []).append(item)
    names = [field.name for field in fields(RunConfig) if field.name not in {*WITHIN, "epochs"}]
    groups: dict[Setting, list[T]] = {}
    for here in of_model.values():
        differ = [name for name in names if len({getattr(item.config, name) for item in here}) > 1]
        for item in here:
            groups.setdefault(Setting.of(item.config, differ), []).append(item)
    return dict(sorted(groups.items(), key=lambda group: astuple(group[0])))


def by_method(items: Iterable[T]) -> dict[Method, list[T]]:
    """In the order of the paper. Of runs that differ in nothing which matters to their method, the first."""
    groups: dict[Method, dict[Any, T]] = {}
    for item in items:
        config = item.config
        group = groups.setdefault(Method.of(config), {})
        group.setdefault((config.seed, config.alpha, config.test_run), item)
    return {method: [*groups[method].values()] for method in sorted(groups, key=lambda each: each.order)}


def summarise(records: Iterable[Record], published: Mapping[str, Any] | None = None) -> list[Table]:
    """Two tables per setting, with alpha chosen for accuracy and for ECE; one if there is nothing to choose.

    Args:
        records: Finished runs, one per config; what :func:`lr_relax.study.tracked.records` gives.
        published: What misc/published.json holds.

    Raises:
        ValueError: no runs, or rows of `published` that lack something.
    """
    references = _references(published)
    groups = by_setting(records)
    if not groups:
        raise ValueError("There are no finished runs to make a table of.")
    found = []
    for setting, everything in groups.items():
        runs = [run for run in everything if usable(run)]
        unusable = sorted(run.key for run in everything if not usable(run))
        methods = by_method(runs)
        seeds = sorted({run.config.seed for run in runs})
        here = _of_setting(references, setting)
        # Whether a seed has several alphas to choose from.
        grids = [Counter(r.config.seed for r in group if not r.config.test_run) for group in methods.values()]
        choice = any(n > 1 for grid in grids for n in grid.values())
        for optimised_for in METRICS if choice else (None,):
            rows = [
                row
                for method, group in methods.items()
                for row in _rows(method, group, seeds, optimised_for, here)
            ]
            sources = sorted(
                {source for row in rows for source in row.references},
                key=lambda source: [Source(each.source, each.epochs) for each in here].index(source),
            )
            found.append(Table(setting, optimised_for, rows, sources, unusable))
    return found


def _rows(
    method: Method,
    runs: Sequence[Record],
    seeds: Sequence[int],
    optimised_for: str | None,
    references: Sequence[Reference],
) -> list[Row]:
    """One, or one per alpha if none can be chosen for want of validation runs."""
    validation: dict[int, list[Record]] = {}
    test: dict[tuple[int, float], Record] = {}
    for run in runs:
        if run.config.test_run:
            test[run.config.seed, run.config.alpha] = run
        else:
            validation.setdefault(run.config.seed, []).append(run)
    chosen = method.has_alpha and bool(validation)
    alphas: list[dict[int, float | None]]  # of each row, by seed
    if chosen:
        choice = {seed: best(group, optimised_for or "accuracy") for seed, group in validation.items()}
        alphas = [{seed: choice[seed].config.alpha if seed in choice else None for seed in seeds}]
    else:
        alphas = [dict.fromkeys(seeds, alpha) for alpha in sorted({run.config.alpha for run in runs})]
    rows = []
    for by_seed in alphas:
        there = {seed: test[seed, a] for seed, a in by_seed.items() if a is not None and (seed, a) in test}
        missing = {seed: alpha for seed, alpha in by_seed.items() if seed not in there}
        row = Row(method, chosen, tuple(there.values()), missing, {})
        for reference in references:
            if _matches(row, reference, optimised_for):
                row.references.setdefault(Source(reference.source, reference.epochs), reference)
        rows.append(row)
    return rows


def _references(published: Mapping[str, Any] | None) -> list[Reference]:
    try:
        names = [field.name for field in fields(Reference)]
        return [
            Reference(**{name: row[name] for name in names}) for row in (published or {"rows": []})["rows"]
        ]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"Expected argument `published` to hold rows as misc/published.json does, but got {error!r}."
        ) from error


def _of_setting(references: Sequence[Reference], setting: Setting) -> list[Reference]:
    """Those of its data set and model; of a source that has numbers for its epochs, no others."""
    here = [
        each
        for each in references
        if (each.dataset_name, each.model_name) == (setting.dataset_name, setting.model_name)
    ]
    exact = {each.source for each in here if each.epochs == setting.epochs}
    return [each for each in here if each.epochs == setting.epochs or each.source not in exact]


def _matches(row: Row, reference: Reference, optimised_for: str | None) -> bool:
    if (reference.loss, reference.temp_scaling) != (row.method.loss, row.method.temperature is not None):
        return False
    if not row.method.has_alpha or {*row.alphas} == {reference.alpha}:
        return True
    return row.chosen and reference.chosen_for is not None and reference.chosen_for == optimised_for


def counted(numbers: Collection[int], what: str) -> str:
    """As in "3 seeds" or "1 to 3 seeds"."""
    fewest, most = min(numbers), max(numbers)
    return f"{fewest} to " * (fewest < most) + f"{most} {what}{'s' * (most != 1)}"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_words, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
