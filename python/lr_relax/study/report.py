"""The paper's tables from results, beside published numbers, as Markdown, LaTeX or CSV.

Alpha is chosen on validation data; runs are averaged if they differ in nothing but seed and chosen alpha.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, NamedTuple

from .config import RunConfig
from .folder import Result, Statistic
from .grid import CRITERIA, best

LOSSES = ("cross-entropy", "label smoothing", "label relaxation", "focal", "confidence penalty")
METRICS = {"accuracy": "accuracy", "ece": "ECE"}
NOTHING = "—"
VARIANTS = ("legacy_confidence_penalty", "legacy_clip", "legacy_temp_scaling")  # of some of the losses
# Options in which the runs of one table may differ.
WITHIN = {"loss_name", "alpha", "seed", "test_run", "temp_scaling", "epochs", "temperature", *VARIANTS}

Published = Mapping[str, Any]  # a row of misc/published.json


class Setting(NamedTuple):
    """The options that runs share if they can be compared; ``others`` are those that differ elsewhere."""

    dataset_name: str
    model_name: str
    epochs: int
    others: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        others = [f"{name} {value}" for name, value in self.others]
        return ", ".join([self.dataset_name, self.model_name, counted([self.epochs], "epoch"), *others])


class Method(NamedTuple):
    """A row of the tables, in their order: label smoothing is a loss of its own."""

    scaled: bool  # with temperature scaling
    rank: int  # of the loss in LOSSES
    variant: tuple[str, ...]  # the options that differ from the paper

    @classmethod
    def of(cls, config: RunConfig) -> Method:
        run = config.effective()
        variant = [name for name in VARIANTS if getattr(run, name)] + ["nll"] * (run.temperature == "nll")
        return cls(run.temp_scaling, LOSSES.index(run.loss_title), tuple(variant))

    @property
    def loss(self) -> str:
        return LOSSES[self.rank]

    @property
    def has_alpha(self) -> bool:
        return self.loss != "cross-entropy"

    def title(self, alpha: float | None = None) -> str:
        number = "" if alpha is None or not self.has_alpha else f" {alpha:g}"
        variant = f" ({', '.join(self.variant)})" if self.variant else ""
        return f"{self.loss}{number}{' + temperature' * self.scaled}{variant}"


@dataclass(frozen=True)
class Row:
    """The test runs of a method, one per seed."""

    method: Method
    chosen: bool  # on validation data, else there is only this alpha
    runs: list[Result]  # by seed
    published: dict[str, Published] = field(default_factory=dict)  # by source

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def alphas(self) -> list[float]:
        return [run.config.alpha for run in self.runs]

    def statistic(self, metric: str) -> Statistic | None:
        return Statistic.of([getattr(run, metric) for run in self.runs]) if self.runs else None

    def matches(self, published: Published, metric: str | None) -> bool:
        """Whether numbers are of this method, with its alpha or with one that was chosen for the metric."""
        loss, alpha = published["loss_name"].replace("_", " "), published["alpha"]
        if loss == "cross entropy":
            loss = "label smoothing" if alpha or published["chosen_for"] else "cross-entropy"
        if (loss, published["temp_scaling"]) != (self.method.loss, self.method.scaled):
            return False
        if not self.method.has_alpha or {*self.alphas} == {alpha}:
            return True
        return self.chosen and metric is not None and published["chosen_for"] == metric


class Table(NamedTuple):
    """The methods in one setting; without ``optimized_for`` there was no alpha to choose."""

    setting: Setting
    optimized_for: str | None
    rows: list[Row]
    sources: list[str]  # of published numbers, as numbered in the headings


def grouped(runs: Iterable[Result], key: Callable[[RunConfig], Any]) -> dict[Any, list[Result]]:
    """The runs with each value of a key, in their order."""
    groups: dict[Any, list[Result]] = {}
    for run in runs:
        groups.setdefault(key(run.config), []).append(run)
    return groups


def by_setting(items: Iterable[Result]) -> dict[Setting, list[Result]]:
    """The runs that can be compared, in the order of data sets, models and hyperparameters."""
    groups: dict[Setting, list[Result]] = {}
    for runs in grouped(items, lambda run: (run.dataset_name, run.model_name)).values():
        names = [field.name for field in fields(RunConfig) if field.name not in WITHIN]
        differ = [name for name in names if len({getattr(run.config, name) for run in runs}) > 1]
        for run in runs:
            config, others = run.config, tuple((name, getattr(run.config, name)) for name in differ)
            setting = Setting(config.dataset_name, config.model_name, config.epochs, others)
            groups.setdefault(setting, []).append(run)
    return dict(sorted(groups.items()))


def by_method(items: Iterable[Result]) -> dict[Method, list[Result]]:
    """The runs of each method, in the paper's order; of equal method, seed and alpha the first."""
    first: dict[Any, Result] = {}
    for item in items:
        run = item.config
        first.setdefault((Method.of(run), run.seed, run.alpha, run.test_run), item)
    return dict(sorted(grouped(first.values(), Method.of).items()))


def summarize(results: Iterable[Result], published: Iterable[Published] = ()) -> list[Table]:
    """Two tables per setting, with alpha chosen by accuracy and by ECE; one if there is nothing to choose.

    ``published`` are the rows of misc/published.json. Raises ValueError if there are no runs.
    """
    groups, tables = by_setting(results), []
    if not groups:
        raise ValueError("There are no finished runs to make a table of.")
    for setting, runs in groups.items():
        methods = by_method(runs)
        beside = [row for row in published if (row["dataset_name"], row["model_name"]) == setting[:2]]
        beside = [row for row in beside if row["epochs"] == setting.epochs] or beside
        choice = any(len(runs) > 1 for group in methods.values() for runs in _validated(group).values())
        for metric in CRITERIA if choice else (None,):
            rows = [row for each in methods.items() for row in _rows(*each, metric or "accuracy")]
            sources = []
            for each, row in product(beside, rows):
                if row.matches(each, metric):
                    sources.append(f"{each['source']}, {counted([each['epochs']], 'epoch')}")
                    row.published.setdefault(sources[-1], each)
            tables.append(Table(setting, metric, rows, list(dict.fromkeys(sources))))
    return tables


def _validated(runs: Iterable[Result]) -> dict[int, list[Result]]:
    """The validation runs, by seed."""
    return grouped((run for run in runs if not run.config.test_run), lambda run: run.seed)


def _rows(method: Method, runs: list[Result], metric: str) -> list[Row]:
    """One row, or one per alpha if there are no validation runs to choose by."""
    tested = sorted((run for run in runs if run.config.test_run), key=lambda run: run.config.seed)
    choice = {seed: best(group, metric).config.alpha for seed, group in _validated(runs).items()}
    if method.has_alpha and choice:
        return [Row(method, True, [r for r in tested if choice.get(r.config.seed) == r.config.alpha])]
    groups = grouped(tested, lambda run: run.alpha)
    return [Row(method, False, groups.get(alpha, [])) for alpha in sorted({r.config.alpha for r in runs})]


def counted(numbers: Collection[int], what: str) -> str:
    """Format a range: "3 seeds" or "1 to 3 seeds"."""
    fewest, most = min(numbers), max(numbers)
    return f"{fewest} to " * (fewest < most) + f"{most} {what}{'s' * (most != 1)}"


def plus_minus(numbers: Iterable[float | None]) -> str:
    """Format a mean and its deviation, if there is one: "0.9219 ± 0.0221"."""
    return " ± ".join(f"{number:.4f}" for number in numbers if number is not None)


def _sheet(table: Table, escapes: dict[int, str], bold: str) -> tuple[str, list[list[str]], list[str]]:
    """The title, the lines of cells and the notes; the first line is the heading, the best means are bold."""
    title = table.setting.title
    if table.optimized_for is not None:
        title += f": alpha optimized for {METRICS[table.optimized_for]}"
    heading = ["loss", "alpha", "seeds", *METRICS.values()]
    heading += [f"{name} [{i}]" for i, _ in enumerate(table.sources, 1) for name in METRICS.values()]
    lines = [[text.translate(escapes) for text in heading]]
    for row in table.rows:
        cells = [row.method.title(), _alphas(row), str(len(row.runs))]
        cells += [plus_minus(row.statistic(metric) or ()) or NOTHING for metric in METRICS]
        cells += [_published(row.published.get(s), metric) for s in table.sources for metric in METRICS]
        cells = [text.translate(escapes) for text in cells]
        lines.append(cells)
    for column, extreme in (3, max), (4, min):  # the best accuracy and ECE
        means = [line[column][:6] for line in lines[1:] if line[column] != NOTHING.translate(escapes)]
        for line in lines[1:] if len(means) > 1 else ():
            if line[column].startswith(extreme(means)):
                line[column] = bold.format(line[column])
    return title.translate(escapes), lines, [note.translate(escapes) for note in _notes(table)]


def _published(row: Published | None, metric: str) -> str:
    numbers = [] if row is None else [row[metric], row[f"{metric}_std"]]
    return " ± ".join(f"{number:g}" for number in numbers if number is not None) or NOTHING


def _alphas(row: Row) -> str:
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({*row.alphas}))
    return alphas + "†" * (not row.chosen) if row.method.has_alpha and alphas else NOTHING


def _notes(table: Table) -> list[str]:
    notes = ["Test data; mean ± sample standard deviation over seeds (validated ones if alpha was chosen)."]
    if any(row.method.has_alpha and not row.chosen for row in table.rows):
        notes.append("† Not chosen: this loss has no validation runs.")
    for i, source in enumerate(table.sources, 1):
        seen = [row.published[source]["seeds"] for row in table.rows if source in row.published]
        notes.append(f"[{i}] {source}, {counted(seen, 'seed')}.")
    return notes


_MARKDOWN = {ord(sign): f"\\{sign}" for sign in r"\`*<|"}
_LATEX = {ord(sign): f"\\{sign}" for sign in "&%$#_{}"}
_LATEX |= {ord(sign): tex for sign, tex in zip("±†—[", (r"$\pm$", r"\dag{}", "---", "{[}"), strict=True)}


def padded(lines: list[list[str]]) -> list[str]:
    """The lines of a Markdown table that is readable as text, too; the first line is the heading."""
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [f"| {' | '.join([c[0].ljust(first), *map(str.rjust, c[1:], others)])} |" for c in lines]
    return [rows[0], f"|:{'-' * first}-|{'|'.join('-' * (width + 1) + ':' for width in others)}|", *rows[1:]]


def _markdown(tables: Iterable[Table]) -> str:
    texts = []
    for table in tables:
        title, lines, notes = _sheet(table, _MARKDOWN, "**{}**")
        texts += [f"### {title}", "", *padded(lines), "", *(f"- {note}" for note in notes), ""]
    return "\n".join(texts)


def _latex(tables: Iterable[Table]) -> str:
    texts = []
    for table in tables:
        title, lines, notes = _sheet(table, _LATEX, r"\textbf{{{}}}")
        first, *rows = [f"    {' & '.join(line)} \\\\" for line in lines]
        texts += [r"\begin{table}", r"  \centering", rf"  \caption{{{title}}}"]
        texts += [rf"  \begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"    \toprule", first]
        texts += [r"    \midrule", *rows, r"    \bottomrule", r"  \end{tabular}", "", r"  \footnotesize"]
        texts += [*(rf"  {note}\par" for note in notes), r"\end{table}", ""]
    return "\n".join(texts)


def _csv(tables: Iterable[Table]) -> str:
    """A line per row of each table; seeds and alphas are separated by spaces."""
    pairs = [(table, row) for table in tables for row in table.rows]
    sources, lines = dict.fromkeys(source for table, _ in pairs for source in table.sources), []
    for table, row in pairs:
        *names, others = table.setting
        line: dict[str, Any] = dict(zip(Setting._fields, names, strict=False))
        line["setting"] = "; ".join(f"{name}={value}" for name, value in others)
        line |= {"optimized_for": table.optimized_for, "loss": row.method.title(), "alpha_chosen": row.chosen}
        line |= {name: " ".join(map(str, getattr(row, name))) for name in ("alphas", "seeds")}
        line["n_seeds"] = len(row.runs)
        for each in METRICS:
            line[f"{each}_mean"], line[f"{each}_std"] = row.statistic(each) or (None, None)
        for source, name in product(sources, ("accuracy", "accuracy_std", "ece", "ece_std", "seeds")):
            line[f"{source}: {name}"] = row.published.get(source, {}).get(name)
        lines.append(line)
    writer = csv.DictWriter(file := io.StringIO(), list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


FORMATS: dict[str, Callable[[Iterable[Table]], str]] = {"markdown": _markdown, "latex": _latex, "csv": _csv}


def render(results: Iterable[Result], published: Iterable[Published] = (), format: str = "markdown") -> str:
    """The tables as "markdown", "latex" (with the package booktabs) or "csv" (in full precision)."""
    return FORMATS[format](summarize(results, published))
