"""The paper's tables from tracked runs, as Markdown, LaTeX or CSV, beside published numbers."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .summary import METRICS, Row, Source, Statistic, Table, counted, summarise

if TYPE_CHECKING:
    from .tracked import Record

NAMES = {"accuracy": "accuracy", "ece": "ECE"}
NOTHING = "—"


def render(
    records: Iterable[Record], published: Mapping[str, Any] | None = None, format: str = "markdown"
) -> str:
    """Write down what the runs say of each loss, setting by setting.

    Args:
        records: Finished runs, one per config.
        published: What misc/published.json holds.
        format: "markdown", "latex" (for the package booktabs) or "csv" (all in one, in full precision).

    Raises:
        ValueError: no runs, an unknown format, or rows of `published` that lack something.
    """
    if format not in FORMATS:
        raise ValueError(f"Expected argument `format` to be one of {', '.join(FORMATS)}, but got {format!r}.")
    return FORMATS[format](summarise(records, published))


class Cell(NamedTuple):
    text: str
    bold: bool = False


class Sheet(NamedTuple):
    """A table as a reader sees it, in whichever language; the first line is the heading."""

    title: str
    lines: list[list[Cell]]
    notes: list[str]


def _sheet(table: Table) -> Sheet:
    title = table.setting.title
    if table.optimised_for is not None:
        title += f": alpha optimised for {NAMES[table.optimised_for]}"
    heading = ["loss", "alpha", "seeds", *NAMES.values()]
    heading += [f"{name} [{i}]" for i, _ in enumerate(table.sources, 1) for name in NAMES.values()]
    best = {metric: _best(table.rows, metric) for metric in METRICS}
    lines = [[Cell(word) for word in heading]]
    for row in table.rows:
        cells = [Cell(row.method.title()), Cell(_alphas(row)), Cell(str(len(row.runs)))]
        for metric in METRICS:
            statistic = row.statistic(metric)
            cells.append(
                Cell(_measured(statistic), statistic is not None and _four(statistic.mean) == best[metric])
            )
        for source in table.sources:
            cells += [Cell(_published(row, source, metric)) for metric in METRICS]
        lines.append(cells)
    return Sheet(title, lines, _notes(table))


def _best(rows: Sequence[Row], metric: str) -> str | None:
    """The best mean as it is shown: all that look equal are bold, and none where there is but one."""
    means = [statistic.mean for row in rows if (statistic := row.statistic(metric))]
    if len(means) < 2:
        return None
    return _four(max(means) if metric == "accuracy" else min(means))


def _four(number: float) -> str:
    return f"{number:.4f}"


def _measured(statistic: Statistic | None) -> str:
    if statistic is None:
        return NOTHING
    return " ± ".join(_four(number) for number in statistic if number is not None)


def _published(row: Row, source: Source, metric: str) -> str:
    """With three digits, as the paper has them, or with four if it takes them."""
    reference = row.references.get(source)
    if reference is None:
        return NOTHING
    numbers = getattr(reference, metric), getattr(reference, f"{metric}_std")
    words = [_four(number) for number in numbers if number is not None]
    digits = 3 if all(word.endswith("0") for word in words) else 4
    return " ± ".join(word[: word.index(".") + 1 + digits] for word in words)


def _alphas(row: Row) -> str:
    """Each alpha and, if there are several, the number of seeds that chose it."""
    counts = sorted(
        Counter(row.alphas or [alpha for alpha in row.missing.values() if alpha is not None]).items()
    )
    if not row.method.has_alpha or not counts:
        return NOTHING
    shown = ", ".join(f"{alpha:g}" + f" ({n})" * (len(counts) > 1) for alpha, n in counts)
    return shown if row.chosen else f"{shown}†"


def _notes(table: Table) -> list[str]:
    several = any(len(row.runs) > 1 for row in table.rows)
    notes = ["Test data" + "; mean ± sample standard deviation over seeds" * several + "."]
    if any(len({*row.alphas}) > 1 for row in table.rows):
        notes.append("In brackets after an alpha: the number of seeds for which it was chosen.")
    if any(row.method.has_alpha and not row.chosen for row in table.rows):
        notes.append("† Not chosen: this loss has no validation runs.")
    notes += [_missing(row) for row in table.rows if row.missing]
    if table.unusable:
        notes.append(f"Left out for want of accuracy or ECE: {', '.join(table.unusable)}.")
    for i, source in enumerate(table.sources, 1):
        notes.append(f"[{i}] {_source(source, table)}.")
    return notes


def _missing(row: Row) -> str:
    seeds, fixed = [], ""
    for seed, alpha in row.missing.items():
        if row.chosen:
            seeds.append(f"{seed} ({'no validation run' if alpha is None else f'alpha {alpha:g}'})")
        else:
            seeds.append(str(seed))
            fixed = f"{alpha:g}" if alpha else ""
    return f"{row.method.title(fixed)}: no test run of seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}."


def _source(source: Source, table: Table) -> str:
    parts = [source.text.rstrip(".")]
    if source.epochs is not None and (epochs := counted([source.epochs], "epoch")) not in source.text:
        parts.append(epochs)
    found = [row.references[source].seeds for row in table.rows if source in row.references]
    if seeds := [n for n in found if n is not None]:
        parts.append(counted(seeds, "seed"))
    return ", ".join(parts)


def _markdown(tables: Sequence[Table]) -> str:
    """Padded, so that it is legible as it stands."""
    return "\n".join(_markdown_of(_sheet(table)) for table in tables)


def _markdown_of(sheet: Sheet) -> str:
    lines = [
        [f"**{_for_markdown(text)}**" if bold else _for_markdown(text) for text, bold in line]
        for line in sheet.lines
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    rows = [f"| {' | '.join([line[0].ljust(first), *map(str.rjust, line[1:], others)])} |" for line in lines]
    rule = f"|:{'-' * first}-|{'|'.join('-' * (width + 1) + ':' for width in others)}|"
    notes = [f"- {_for_markdown(note)}" for note in sheet.notes]
    return "\n".join([f"### {_for_markdown(sheet.title)}", "", rows[0], rule, *rows[1:], "", *notes, ""])


def _for_markdown(text: str) -> str:
    return text.translate({ord(sign): f"\\{sign}" for sign in r"\`*<|"})


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(_latex_of(_sheet(table)) for table in tables)


def _latex_of(sheet: Sheet) -> str:
    lines = [
        " & ".join(rf"\textbf{{{_for_latex(text)}}}" if bold else _for_latex(text) for text, bold in line)
        + r" \\"
        for line in sheet.lines
    ]
    inner = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_for_latex(sheet.title)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(sheet.lines[0]) - 1)}}}",
            *(f"    {line}" for line in inner),
            r"  \end{tabular}",
            "",
            r"  \footnotesize",
            *(rf"  {_for_latex(note)}\par" for note in sheet.notes),
            r"\end{table}",
            "",
        ]
    )


LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ it would be an argument
    "±": r"$\pm$",
    "†": r"\dag{}",
    "—": "---",
}


def _for_latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def _csv(tables: Sequence[Table]) -> str:
    """A line per row of each table; lists of seeds and alphas are set apart by blanks."""
    sources = list(dict.fromkeys(source for table in tables for source in table.sources))
    file = io.StringIO()
    lines = [_csv_line(table, row, sources) for table in tables for row in table.rows]
    writer = csv.DictWriter(file, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _csv_line(table: Table, row: Row, sources: Sequence[Source]) -> dict[str, Any]:
    setting = table.setting
    line: dict[str, Any] = {
        "dataset_name": setting.dataset_name,
        "model_name": setting.model_name,
        "epochs": setting.epochs,
        "setting": "; ".join(f"{name}={value}" for name, value in setting.others),
        "optimised_for": table.optimised_for,
        "loss": row.method.title(),
        "alpha_chosen": row.chosen,
        "alphas": " ".join(map(str, row.alphas)),
        "seeds": " ".join(map(str, row.seeds)),
        "missing_seeds": " ".join(map(str, row.missing)),
        "n_seeds": len(row.runs),
    }
    for metric in METRICS:
        line[f"{metric}_mean"], line[f"{metric}_std"] = row.statistic(metric) or (None, None)
    for source in sources:
        reference = row.references.get(source)
        name = source.text + (f", {source.epochs} epochs" if source.epochs is not None else "")
        for field in ("accuracy", "accuracy_std", "ece", "ece_std", "seeds"):
            line[f"{name}: {field}"] = getattr(reference, field, None)
    return line


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
}
