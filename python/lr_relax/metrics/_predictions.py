"""Predictions as the metrics read them: on the CPU, or reduced on the device where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lr_relax import _native
from lr_relax._arguments import FLOATS
from lr_relax._warnings import warn

from ._checks import Array, Bools, Floats, as_array, check_not_empty, on_device
from ._device import Rows, is_in_top


class ProbabilitiesWarning(UserWarning):
    """Every row of what is said to be logits is already a probability distribution."""


@dataclass(frozen=True)
class Predictions:
    """Checked predictions, in the form that the kernels take, which check their values."""

    preds: Tensor | Array
    """(..., C); for events, (N,)."""
    target: Tensor | Array
    """(...); for events, (N,)."""
    weight: Floats | None
    """(N,), of all rows."""
    from_logits: bool
    ignore_index: int | None
    n_labels: int
    """0 for classes, 1 for binary events, K for events of K labels, which alternate."""
    device: torch.device | None
    """The device of the results; None if they are NumPy numbers."""

    @property
    def elsewhere(self) -> Rows | None:
        """The rows, if they are not on the CPU."""
        return None

    @property
    def on_cpu(self) -> Predictions:
        """The same on the CPU."""
        return self

    @property
    def top_events(self) -> Predictions:
        """Predictions on the CPU with the same top labels, perhaps as binary events."""
        return self

    def counted(self) -> Bools | None:
        """A mask of the rows that are not ignored; None if none are."""
        if self.ignore_index is None:
            return None
        rows = self.top_events
        mask: Bools = (np.asarray(rows.target) != rows.ignore_index).reshape(-1)
        return mask

    def of_rows(self, values: Array) -> Array:
        """The values of the rows that are not ignored."""
        counted = self.counted()
        return values if counted is None else values[counted]

    def weights(self) -> Floats | None:
        """The weights of the rows that are not ignored."""
        return None if self.weight is None else self.of_rows(self.weight)

    def top_labels(self) -> tuple[Floats, Bools]:
        """The confidence of each row that is not ignored, and whether its prediction is correct.

        For events, these are the probability of class 1 and whether the target is 1.
        """
        rows = self.top_events
        confidence, outcome = _native.top_labels(rows.preds, rows.target, rows.from_logits, rows.ignore_index)
        confidence, outcome = self.of_rows(confidence), self.of_rows(outcome)
        check_not_empty(len(outcome))
        return confidence, outcome == 1

    def is_correct(self, confidence: Floats, correct: Bools) -> Bools:
        """Whether the predicted class is the target, from the results of `top_labels`.

        Of an event, class 1 is predicted if its probability is above 1/2.
        """
        return (confidence > 0.5) == correct if self.n_labels else correct

    def in_top(self, k: int) -> Bools:
        """Whether the target of each row that is not ignored is among the k most probable classes."""
        self.top_labels()  # checks the values
        preds, target = (
            array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
            for array in (self.preds, self.target)
        )
        # Ignored rows may have any target.
        in_top: Bools = is_in_top(preds, target.long().clamp(0, preds.shape[-1] - 1), k).numpy()
        return self.of_rows(in_top)

    def row_scores(self, name: str) -> Floats:
        """The score of each row that is not ignored, "brier" or "log_likelihood"."""
        return self.of_rows(
            _native.row_scores(self.preds, self.target, self.from_logits, self.ignore_index, name)
        )

    def binned(self, binning: object) -> Predictions:
        """Predictions on the CPU that fall into the same bins of confidence."""
        return self

    def by_label(self) -> list[Predictions]:
        """The events of each label; one element for classes and binary events."""
        if self.n_labels < 2:
            return [self]

        def column(array: Any, k: int) -> Any:
            return None if array is None else array.reshape(-1, self.n_labels)[:, k]

        return [
            replace(
                self,
                preds=column(self.preds, k),
                target=column(self.target, k),
                weight=column(self.weight, k),
                n_labels=1,
            )
            for k in range(self.n_labels)
        ]

    def result(self, value: Any) -> Any:
        """A number or an array in double precision, as a tensor or as NumPy has it."""
        return np.float64(value) if self.device is None else on_device(value, self.device)


@dataclass(frozen=True)
class PredictionsElsewhere(Predictions):
    """Predictions of classes on another device, whose rows are reduced there.

    The kernels get the block itself, as `on_cpu`, where they have to see it.
    """

    preds: Tensor
    target: Tensor
    name: str
    """The argument that held them, for warnings."""

    @cached_property
    def elsewhere(self) -> Rows:
        return Rows(self.preds, self.target, self.from_logits, self.ignore_index)

    @cached_property
    def on_cpu(self) -> Predictions:
        preds, target = as_array(self.name, self.preds), as_array("target", self.target)
        if self.from_logits:
            warn_of_probabilities(self.name, preds, target, self.ignore_index)
        return self._with(preds, target, self.from_logits, self.ignore_index)

    @cached_property
    def top_events(self) -> Predictions:
        return self._events(*self.elsewhere.top_labels()) or self.on_cpu

    def in_top(self, k: int) -> Bools:
        rows = self._events(*self.elsewhere.in_top(k))
        if rows is None:
            return self.on_cpu.in_top(k)
        in_top = rows.of_rows(np.asarray(rows.target) == 1)
        check_not_empty(len(in_top))
        return in_top

    def row_scores(self, name: str) -> Floats:
        if name == "log_likelihood" and not self.from_logits:
            # The kernels take the logarithm.
            return (self._events(*self.elsewhere.of_targets()) or self.on_cpu).row_scores(name)
        found = self.elsewhere.fetched(*self.elsewhere.row_scores(name))
        if not found:
            return self.on_cpu.row_scores(name)
        scores, ignored = found
        floats: Floats = scores[~ignored].double().numpy()
        return floats

    def binned(self, binning: object) -> Predictions:
        # Edges are rounded to the type of the predictions; the softmax of half precision has another one.
        is_same = binning == "quantile" or self.top_events.preds.dtype == self.preds.dtype
        return self.top_events if is_same else self.on_cpu

    def _events(self, divisor: Tensor, probability: Tensor, outcome: Tensor) -> Predictions | None:
        """Binary events on the CPU; None if the kernels have to see the rows."""
        found = self.elsewhere.fetched(divisor, probability, outcome)
        if not found:
            return None
        probability, outcome, ignored = found
        outcome = outcome.to(torch.int8).masked_fill(ignored, -1)
        return self._with(probability.clamp(0, 1), outcome, False, -1)

    def _with(self, preds: Any, target: Any, from_logits: bool, ignore_index: int | None) -> Predictions:
        return Predictions(preds, target, self.weight, from_logits, ignore_index, 0, self.device)


def warn_of_probabilities(name: str, scores: Any, classes: Any, ignore_index: int | None) -> None:
    is_float = scores.dtype in FLOATS if isinstance(scores, Tensor) else scores.dtype.kind == "f"
    is_counted = None if ignore_index is None else np.asarray(classes != ignore_index).reshape(-1)
    if is_float and _are_probabilities(scores, is_counted):
        warn(
            f"Every row of `{name}` is a probability distribution, but from_logits=True: pass "
            "from_logits=False for probabilities.",
            ProbabilitiesWarning,
        )


def _are_probabilities(scores: Any, is_counted: Bools | None) -> bool:
    """Whether all of at least 2 rows that count are distributions, or all of at least 32 events in [0, 1]."""
    is_event = scores.ndim == 1
    rows = tuple(scores.shape) if is_event else tuple(scores.shape[:-1])
    n_rows = math.prod(rows)
    if is_counted is not None:
        n_rows = int(is_counted.sum()) if len(is_counted) == n_rows else 0  # the kernel refuses the shape
    if scores.ndim == 0 or n_rows < (32 if is_event else 2) or scores.shape[-1] < 2:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        if is_event:
            fits = (scores >= 0) & (scores <= 1)
        else:
            # Of logits, already the first row is no distribution, nearly always.
            first = np.unravel_index(0 if is_counted is None else int(is_counted.argmax()), rows)
            if not abs(float(scores[first].sum()) - 1) < 5e-3:
                return False
            fits = (scores >= 0).all(-1) & (abs(scores.sum(-1) - 1) < 5e-3)
    fits = np.asarray(fits).reshape(-1)
    return bool((fits if is_counted is None else fits[is_counted]).all())
