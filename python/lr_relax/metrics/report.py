"""The report of a model's calibration: the metrics that matter, with their uncertainty, in one table."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ._bins import Bins, bin_digits, check_bins, errors
from ._checks import Array, ArrayLike, check_resampling
from ._inputs import Options, read
from ._metric import reads_options
from ._predictions import Predictions
from .bootstrap import BootstrapInterval, bootstrap_ci
from .chance import ChanceLevel, chance_level
from .hypothesis_test import CalibrationTest, calibration_test
from .reliability import ReliabilityCurve, reliability_curve
from .scores import mean_score, score_digits
from .temperature import TemperatureScaling, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from typing_extensions import Unpack

NAMES = {
    "accuracy": "accuracy",
    "negative_log_likelihood": "negative log-likelihood",
    "brier_score": "Brier score",
    "expected_calibration_error": "expected calibration error",
    "maximum_calibration_error": "maximum calibration error",
}
BY_CHANCE = ("expected_calibration_error", "maximum_calibration_error")


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """The metrics of predictions, what a calibrated model would show, and what temperature scaling brings."""

    n: int
    """The number of predictions."""
    mean_confidence: float
    """The mean confidence; for binary events, the mean probability of class 1."""
    frequency: float
    """The fraction of correct predictions; for binary events, of class 1."""
    intervals: dict[str, BootstrapInterval]
    """The intervals of accuracy, negative log-likelihood, Brier score, expected and maximum calibration
    error, by the name of the metric; without the negative log-likelihood where it is infinite, because a
    target has probability 0."""
    chance: dict[str, ChanceLevel]
    """The calibration errors of a calibrated model with the same confidences."""
    test: CalibrationTest
    """Spiegelhalter's test of calibration."""
    temperature: float | None
    """The temperature of maximum likelihood for these predictions; None if a target has probability 0."""
    after_scaling: dict[str, float]
    """The same metrics of the predictions divided by the temperature, which was fitted to them."""
    curve: ReliabilityCurve = field(repr=False)
    """The reliability curve."""

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as Python floats; the negative log-likelihood may be infinite."""
        metrics: dict[str, Any] = {}
        for name in NAMES:
            interval, chance = self.intervals.get(name), self.chance.get(name)
            row: dict[str, Any] = {"estimate": math.inf, "low": None, "high": None}
            if interval is not None:
                row = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
            if chance is not None:
                row |= {"by_chance": chance.mean, "p_value": chance.p_value}
            if name in self.after_scaling:
                row["after_scaling"] = self.after_scaling[name]
            metrics[name] = row
        return {
            "n": self.n,
            "mean_confidence": self.mean_confidence,
            "frequency": self.frequency,
            "confidence_level": next(iter(self.intervals.values())).confidence_level,
            "temperature": self.temperature,
            "test": {
                "method": self.test.method,
                "statistic": self.test.statistic,
                "p_value": self.test.p_value,
            },
            "metrics": metrics,
        }

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Draw the reliability diagram; see :func:`lr_relax.plots.reliability_diagram`."""
        return self.curve.plot(ax, title=title)

    def _table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """The headings, the lines of cells, and the sentences below."""
        values = self.to_dict()
        level = f"{100 * values['confidence_level']:.4g} % interval"
        scaling = [] if self.temperature is None else [f"T = {self.temperature:.4g}"]
        lines = []
        for name, row in values["metrics"].items():
            interval = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
            cells = [NAMES[name], f"{row['estimate']:.4f}", interval, _number(row.get("by_chance"))]
            lines.append([*cells, *[_number(row.get("after_scaling"))] * len(scaling)])
        notes = [
            f"{self.n} predictions with a mean confidence of {self.mean_confidence:.4f}, "
            f"of which {self.frequency:.4f} came true.",
            f"Spiegelhalter's test: z = {self.test.statistic:.3g}, p = {self.test.p_value:.3g}.",
            "By chance: the mean error of a calibrated model with these confidences.",
        ]
        if scaling:
            notes.append("The temperature T is fitted to these predictions; on others, it brings less.")
        return ["", "estimate", level, "by chance", *scaling], lines, notes

    def __repr__(self) -> str:
        heading, lines, notes = self._table()
        first, *others = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
        rows = [
            "  ".join([cells[0].ljust(first), *map(str.rjust, cells[1:], others)]).rstrip()
            for cells in (heading, *lines)
        ]
        return "\n".join([*rows, *notes])

    def _repr_html_(self) -> str:
        heading, lines, notes = self._table()

        def row(cells: list[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row(cells, "td") for cells in lines)
        below = "<br>".join(map(html.escape, notes))
        return f"<table><thead>{row(heading, 'th')}</thead><tbody>{body}</tbody></table><p>{below}</p>"


@reads_options
def calibration_report(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
    **options: Unpack[Options],
) -> CalibrationReport:
    """Compute all headline metrics of predictions, with intervals; print the result to see a table.

    Equivalent to calls of `bootstrap_ci` for each metric, `chance_level`, `calibration_test` and
    `reliability_curve`, and of ``TemperatureScaling().fit``.

    Args:
        preds, target, n_bins, **options: As in `calibration_error`.
        n_resamples, confidence_level, seed: As in `bootstrap_ci`.

    Raises:
        ValueError, TypeError, IndexError: As in `bootstrap_ci`.

    >>> rng = np.random.default_rng(0)
    >>> logits = 3 * rng.normal(size=(2000, 4))
    >>> target = (logits / 2 + rng.gumbel(size=(2000, 4))).argmax(1)  # calibrated for a temperature of 2
    >>> print(calibration_report(logits, target, from_logits=True))  # doctest: +NORMALIZE_WHITESPACE
                                estimate     95 % interval  by chance  T = 1.963
    accuracy                      0.6400  0.6187 to 0.6605                0.6400
    negative log-likelihood       1.0657  1.0009 to 1.1300                0.9085
    Brier score                   0.5303  0.5020 to 0.5557                0.4956
    expected calibration error    0.1472  0.1194 to 0.1663     0.0208     0.0329
    maximum calibration error     0.2352  0.0000 to 0.4801     0.2355     0.0684
    2000 predictions with a mean confidence of 0.7811, of which 0.6400 came true.
    Spiegelhalter's test: z = 24.1, p = 4.19e-128.
    By chance: the mean error of a calibrated model with these confidences.
    The temperature T is fitted to these predictions; on others, it brings less.
    """
    check_resampling(n_resamples, confidence_level, seed)
    common: Any = {"n_bins": n_bins, "n_resamples": n_resamples, "seed": seed, **options}
    common["confidence_level"] = confidence_level
    rows = read(preds, target, **options)
    confidence, correct = rows.top_labels()
    can_scale = not math.isinf(mean_score(score_digits("log_likelihood", rows)))
    names = [name for name in NAMES if can_scale or name != "negative_log_likelihood"]
    temperature, after = None, {}
    if can_scale:
        fit_options: Any = {"from_logits": False, **options}
        temperature = TemperatureScaling().fit(preds, target, **fit_options).temperature.item()
        after = _metrics(scaled(rows, temperature), n_bins)
    return CalibrationReport(
        n=len(correct),
        mean_confidence=float(confidence.mean()),
        frequency=float(correct.mean()),
        intervals={name: bootstrap_ci(preds, target, metric=name, **common) for name in names},
        chance={name: chance_level(preds, target, metric=name, **common) for name in BY_CHANCE},
        test=calibration_test(preds, target, **options),
        temperature=temperature,
        after_scaling=after,
        curve=reliability_curve(preds, target, n_bins=n_bins, confidence_level=confidence_level, **options),
    )


def _metrics(rows: Predictions, n_bins: int | Sequence[float] | Array) -> dict[str, float]:
    n, edges = check_bins(n_bins, "uniform")
    _, counts, digits = bin_digits(rows, n, edges, "top_label")
    bins = Bins.from_digits(counts, digits, n)
    return {
        "accuracy": float(np.mean(rows.is_correct(*rows.top_labels()))),
        "negative_log_likelihood": mean_score(score_digits("log_likelihood", rows)),
        "brier_score": mean_score(score_digits("brier", rows)),
        "expected_calibration_error": float(errors(bins, "l1", False)[0]),
        "maximum_calibration_error": float(errors(bins, "max", False)[0]),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
