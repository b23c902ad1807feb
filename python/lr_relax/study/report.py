"""The paper's tables from results, beside published numbers, as Markdown, LaTeX or CSV.

Alpha is chosen on validation data; runs are averaged if they differ in nothing but seed and chosen alpha.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from .config import RunConfig
from .folder import Result, Statistic
from .grid import CRITERIA, best

LOSSES = ("cross-entropy", "label smoothing", "label relaxation", "focal", "confidence penalty")
METRICS = {"accuracy": "accuracy", "ece": "ECE"}
# Options in which the runs of one table may differ; the last four concern only some of the losses.
WITHIN = {"loss_name", "alpha", "seed", "test_run", "temp_scaling", "epochs"}
WITHIN |= {"temperature", "legacy_temp_scaling", "legacy_confidence_penalty", "legacy_clip"}


class Setting(NamedTuple):
    """The options that runs share if they can be compared; ``others`` are those that differ elsewhere."""

    dataset_name: str
    model_name: str
    epochs: int
    others: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        others = [f"{name} {_words(value)}" for name, value in self.others]
        return ", ".join([self.dataset_name, self.model_name, counted([self.epochs], "epoch"), *others])


class Method(NamedTuple):
    """A row of the tables: label smoothing is its own, and so is each loss with temperature scaling."""

    loss: str
    legacy: bool = False
    clipped: bool = False
    temperature: str | None = None  # None without scaling, "" as in the paper

    @classmethod
    def of(cls, config: RunConfig) -> Method:
        effective, temperature = config.effective(), None
        if config.temp_scaling:
            words = [config.temperature] * (config.temperature != "grid")
            temperature = ", ".join([*words, *["legacy"] * effective.legacy_temp_scaling])
        penalty, clip = effective.legacy_confidence_penalty, effective.legacy_clip
        return cls(config.loss_title, penalty, clip, temperature)

    @property
    def has_alpha(self) -> bool:
        return self.loss != "cross-entropy"

    @property
    def order(self) -> tuple[Any, ...]:
        loss = LOSSES.index(self.loss), self.legacy, self.clipped
        return (self.temperature is not None, *loss, self.temperature or "")

    def title(self, alpha: str = "") -> str:
        words = [self.loss, "(legacy)" * self.legacy, "(clipped)" * self.clipped, alpha]
        words += ["+ temperature" * (self.temperature is not None)]
        words += [f"({self.temperature})" if self.temperature else ""]
        return " ".join(filter(None, words))


class Source(NamedTuple):
    """The source of a column of published numbers."""

    text: str
    epochs: int | None


class Reference(NamedTuple):
    """A published number to compare with: a row of misc/published.json."""

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
    def column(self) -> Source:
        return Source(self.source, self.epochs)

    @property
    def loss(self) -> str:
        if self.loss_name == "cross_entropy":
            smoothed = self.alpha or (self.alpha is None and self.chosen_for is not None)
            return "label smoothing" if smoothed else "cross-entropy"
        return self.loss_name.replace("_", " ")


@dataclass(frozen=True)
class Row:
    """The test runs of a method, one per seed."""

    method: Method
    chosen: bool  # on validation data, else there is only this alpha
    runs: tuple[Result, ...]  # by seed
    missing: dict[int, float | None]  # seeds without a test run, and its alpha, if known
    references: dict[Source, Reference]

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def alphas(self) -> list[float]:
        return [run.config.alpha for run in self.runs]

    def statistic(self, metric: str) -> Statistic | None:
        return Statistic.of([getattr(run, metric) for run in self.runs]) if self.runs else None


class Table(NamedTuple):
    """The methods in one setting; without ``optimized_for`` there was no alpha to choose."""

    setting: Setting
    optimized_for: str | None
    rows: list[Row]
    sources: list[Source]


def by_setting(items: Iterable[Result]) -> dict[Setting, list[Result]]:
    """The runs that can be compared, in the order of data sets, models and hyperparameters."""
    of_model: dict[tuple[str, str], list[RunConfig]] = {}
    items = list(items)
    for item in items:
        of_model.setdefault((item.config.dataset_name, item.config.model_name), []).append(item.config)
    names = [field.name for field in fields(RunConfig) if field.name not in WITHIN]
    groups: dict[Setting, list[Result]] = {}
    for item in items:
        data, model = item.config.dataset_name, item.config.model_name
        differ = [name for name in names if len({getattr(c, name) for c in of_model[data, model]}) > 1]
        others = tuple((name, getattr(item.config, name)) for name in differ)
        groups.setdefault(Setting(data, model, item.config.epochs, others), []).append(item)
    return dict(sorted(groups.items()))


def by_method(items: Iterable[Result]) -> dict[Method, list[Result]]:
    """The runs of each method, in the paper's order; of equal method, seed and alpha the first."""
    groups: dict[Method, dict[Any, Result]] = {}
    for item in items:
        key = (item.config.seed, item.config.alpha, item.config.test_run)
        groups.setdefault(Method.of(item.config), {}).setdefault(key, item)
    return {method: [*groups[method].values()] for method in sorted(groups, key=lambda each: each.order)}


def summarize(results: Iterable[Result], published: Mapping[str, Any] | None = None) -> list[Table]:
    """Two tables per setting, with alpha chosen by accuracy and by ECE; one if there is nothing to choose.

    ``published`` is the content of misc/published.json. Raises ValueError if there are no runs.
    """
    try:
        rows_of = (published or {"rows": []})["rows"]
        references = [Reference(*[row[name] for name in Reference._fields]) for row in rows_of]
    except (TypeError, KeyError) as error:
        expected = "hold rows as misc/published.json does"
        raise ValueError(f"Expected argument `published` to {expected}, but got {error!r}.") from error
    groups, tables = by_setting(results), []
    if not groups:
        raise ValueError("There are no finished runs to make a table of.")
    for setting, runs in groups.items():
        methods, seeds = by_method(runs), sorted({run.config.seed for run in runs})
        here = [r for r in references if (r.dataset_name, r.model_name) == setting[:2]]
        exact = {r.source for r in here if r.epochs == setting.epochs}  # which are preferred within a source
        here = [r for r in here if r.epochs == setting.epochs or r.source not in exact]
        validated = [Counter(r.config.seed for r in g if not r.config.test_run) for g in methods.values()]
        choice = any(n > 1 for alphas in validated for n in alphas.values())
        for metric in CRITERIA if choice else (None,):
            rows = [
                row for method, group in methods.items() for row in _rows(method, group, seeds, metric, here)
            ]
            found = {source for row in rows for source in row.references}
            sources = [source for source in dict.fromkeys(r.column for r in here) if source in found]
            tables.append(Table(setting, metric, rows, sources))
    return tables


def _rows(
    method: Method, runs: list[Result], seeds: list[int], metric: str | None, references: list[Reference]
) -> list[Row]:
    """One row, or one per alpha if there are no validation runs to choose by."""
    test = {(run.config.seed, run.config.alpha): run for run in runs if run.config.test_run}
    validation: dict[int, list[Result]] = {}
    for run in runs:
        if not run.config.test_run:
            validation.setdefault(run.config.seed, []).append(run)
    chosen = method.has_alpha and bool(validation)
    alphas: list[dict[int, float | None]]  # of each row, by seed
    if chosen:
        choice = {seed: best(group, metric or "accuracy").config.alpha for seed, group in validation.items()}
        alphas = [{seed: choice.get(seed) for seed in seeds}]
    else:
        alphas = [dict.fromkeys(seeds, alpha) for alpha in sorted({run.config.alpha for run in runs})]
    rows = []
    for by_seed in alphas:
        there = {seed: test[seed, a] for seed, a in by_seed.items() if a is not None and (seed, a) in test}
        missing = {seed: alpha for seed, alpha in by_seed.items() if seed not in there}
        row = Row(method, chosen, tuple(there.values()), missing, {})
        for reference in references:
            if _matches(row, reference, metric):
                row.references.setdefault(reference.column, reference)
        rows.append(row)
    return rows


def _matches(row: Row, reference: Reference, metric: str | None) -> bool:
    if (reference.loss, reference.temp_scaling) != (row.method.loss, row.method.temperature is not None):
        return False
    if not row.method.has_alpha or {*row.alphas} == {reference.alpha}:
        return True
    return row.chosen and reference.chosen_for is not None and reference.chosen_for == metric


def counted(numbers: Collection[int], what: str) -> str:
    """Format a range: "3 seeds" or "1 to 3 seeds"."""
    fewest, most = min(numbers), max(numbers)
    return f"{fewest} to " * (fewest < most) + f"{most} {what}{'s' * (most != 1)}"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_words, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def render(
    results: Iterable[Result], published: Mapping[str, Any] | None = None, format: str = "markdown"
) -> str:
    """The tables as "markdown", "latex" (with the package booktabs) or "csv" (in full precision)."""
    if format not in FORMATS:
        raise ValueError(f"Expected argument `format` to be one of {', '.join(FORMATS)}, but got {format!r}.")
    return FORMATS[format](summarize(results, published))


NOTHING = "—"
Sheet = tuple[str, list[list[tuple[str, bool]]], list[str]]  # title, lines of text and whether bold, notes


def _sheet(table: Table) -> Sheet:
    """The text of a table; the first line is the heading."""
    title = table.setting.title
    if table.optimized_for is not None:
        title += f": alpha optimized for {METRICS[table.optimized_for]}"
    heading = ["loss", "alpha", "seeds", *METRICS.values()]
    heading += [f"{name} [{i}]" for i, _ in enumerate(table.sources, 1) for name in METRICS.values()]
    lines = [[(word, False) for word in heading]]
    for row in table.rows:
        cells = [(row.method.title(), False), (_alphas(row), False), (str(len(row.runs)), False)]
        for metric in METRICS:
            found = row.statistic(metric)
            text = NOTHING if found is None else " ± ".join(f"{n:.4f}" for n in found if n is not None)
            cells.append((text, found is not None and f"{found.mean:.4f}" == _best(table.rows, metric)))
        cells += [(_published(row, source, m), False) for source in table.sources for m in METRICS]
        lines.append(cells)
    return title, lines, _notes(table)


def _best(rows: Sequence[Row], metric: str) -> str | None:
    """The best mean as it is printed: all equal ones are bold, and none if there is only one row."""
    means = [statistic.mean for row in rows if (statistic := row.statistic(metric))]
    return f"{max(means) if metric == 'accuracy' else min(means):.4f}" if len(means) > 1 else None


def _published(row: Row, source: Source, metric: str) -> str:
    """A published number with three digits, as in the paper, or four if needed."""
    if (reference := row.references.get(source)) is None:
        return NOTHING
    numbers = getattr(reference, metric), getattr(reference, f"{metric}_std")
    words = [f"{number:.4f}" for number in numbers if number is not None]
    return " ± ".join(word[:-1] for word in words) if all(w[-1] == "0" for w in words) else " ± ".join(words)


def _alphas(row: Row) -> str:
    """The alphas and, if there are several, the number of seeds of each."""
    counts = Counter(row.alphas or [alpha for alpha in row.missing.values() if alpha is not None])
    if not row.method.has_alpha or not counts:
        return NOTHING
    shown = ", ".join(f"{alpha:g}" + f" ({n})" * (len(counts) > 1) for alpha, n in sorted(counts.items()))
    return shown if row.chosen else f"{shown}†"


def _notes(table: Table) -> list[str]:
    several = any(len(row.runs) > 1 for row in table.rows)
    notes = ["Test data" + "; mean ± sample standard deviation over seeds" * several + "."]
    if any(len({*row.alphas}) > 1 for row in table.rows):
        notes.append("In parentheses after an alpha: the number of seeds for which it was chosen.")
    if any(row.method.has_alpha and not row.chosen for row in table.rows):
        notes.append("† Not chosen: this loss has no validation runs.")
    for row in filter(lambda row: row.missing, table.rows):
        why = {s: "no validation run" if a is None else f"alpha {a:g}" for s, a in row.missing.items()}
        seeds = [f"{seed} ({why[seed]})" if row.chosen else str(seed) for seed in row.missing]
        fixed = "" if row.chosen else "".join({f"{alpha:g}" for alpha in row.missing.values() if alpha})
        plural = "s" * (len(seeds) > 1)
        notes.append(f"{row.method.title(fixed)}: no test run of seed{plural} {', '.join(seeds)}.")
    for i, source in enumerate(table.sources, 1):
        parts = [source.text.rstrip(".")]
        if source.epochs and (epochs := counted([source.epochs], "epoch")) not in source.text:
            parts.append(epochs)
        found = [row.references[source].seeds for row in table.rows if source in row.references]
        if seen := [n for n in found if n is not None]:
            parts.append(counted(seen, "seed"))
        notes.append(f"[{i}] {', '.join(parts)}.")
    return notes


def _markdown(tables: Sequence[Table]) -> str:
    """Padded, so that the source is readable."""
    texts = []
    for title, lines, notes in map(_sheet, tables):
        cells = [[f"**{_escaped(t)}**" if bold else _escaped(t) for t, bold in line] for line in lines]
        first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = [f"| {' | '.join([c[0].ljust(first), *map(str.rjust, c[1:], others)])} |" for c in cells]
        rule = f"|:{'-' * first}-|{'|'.join('-' * (width + 1) + ':' for width in others)}|"
        bullets = [f"- {_escaped(note)}" for note in notes]
        texts.append("\n".join([f"### {_escaped(title)}", "", rows[0], rule, *rows[1:], "", *bullets, ""]))
    return "\n".join(texts)


def _escaped(text: str) -> str:
    return text.translate({ord(sign): f"\\{sign}" for sign in r"\`*<|"})


_TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"\dag{}"}
_TEX |= {"—": "---", "[": "{[}"}  # which would be an argument after a line's end


def _latex(tables: Sequence[Table]) -> str:
    texts = []
    for title, lines, notes in map(_sheet, tables):
        cells = [[rf"\textbf{{{_tex(t)}}}" if bold else _tex(t) for t, bold in line] for line in lines]
        rows = [" & ".join(line) + r" \\" for line in cells]
        inner = [r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
        texts += [r"\begin{table}", r"  \centering", rf"  \caption{{{_tex(title)}}}"]
        texts += [rf"  \begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", *(f"    {line}" for line in inner)]
        texts += [r"  \end{tabular}", "", r"  \footnotesize", *(rf"  {_tex(note)}\par" for note in notes)]
        texts += [r"\end{table}", ""]
    return "\n".join(texts)


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _csv(tables: Sequence[Table]) -> str:
    """A line per row of each table; seeds and alphas are separated by spaces."""
    sources, lines = list(dict.fromkeys(source for table in tables for source in table.sources)), []
    for (setting, metric, _, _), row in [(table, row) for table in tables for row in table.rows]:
        line: dict[str, Any] = dict(zip(Setting._fields[:3], setting[:3], strict=True))
        line["setting"] = "; ".join(f"{name}={value}" for name, value in setting.others)
        line |= {"optimized_for": metric, "loss": row.method.title(), "alpha_chosen": row.chosen}
        lists: dict[str, Iterable[Any]] = {
            "alphas": row.alphas,
            "seeds": row.seeds,
            "missing_seeds": row.missing,
        }
        line |= {name: " ".join(map(str, values)) for name, values in lists.items()}
        line["n_seeds"] = len(row.runs)
        for each in METRICS:
            line[f"{each}_mean"], line[f"{each}_std"] = row.statistic(each) or (None, None)
        for source in sources:
            name = source.text + (f", {source.epochs} epochs" if source.epochs is not None else "")
            for field in ("accuracy", "accuracy_std", "ece", "ece_std", "seeds"):
                line[f"{name}: {field}"] = getattr(row.references.get(source), field, None)
        lines.append(line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": _markdown, "latex": _latex, "csv": _csv}
