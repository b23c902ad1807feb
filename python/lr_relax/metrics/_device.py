"""Predictions on another device than the CPU, reduced there to the few numbers that a metric needs.

The kernels run on the CPU. A block of N rows and C classes does not travel to them: torch operators reduce
each row to its confidence and whether it is correct, or to its score, and these are copied in one transfer.
Sums over fixed bins are exact on any device. So they are computed there, and streams wait for nothing.

Rows that the kernels would refuse, or divide by their sum, are only recognized here. Then the kernels get the
whole block: they name the first wrong row, and round as they always do.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from lr_relax._arguments import FLOATS

from ._checks import sent

DIGITS = 8
"""The number of 32-bit digits of an exact sum, as in the kernels; digit 4 counts ones."""
ONES = 4
STEPS = 10
"""Steps of Newton's method for the temperature; 8 are enough for temperatures from 0.02 to 200."""
END = math.log(1e4)
"""The end of the range of its logarithm."""
_TARGETS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """As in the kernels: how far the sum of a row may be from 1 by rounding, and at all; how negative a
    probability may be."""
    if dtype in (torch.float16, torch.bfloat16):
        return 1e-2, 1e-2, 1e-3 if dtype == torch.float16 else 8e-3
    return 1e-3, 5e-3, 1e-6


@functools.cache
def widest(device: torch.device) -> torch.dtype:
    """Double precision, or single where the device has no other, as Apple's GPUs."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def can_reduce(scores: Tensor, classes: Any) -> bool:
    """Whether these are predictions of classes and their targets, on one device and of the right types."""
    return (
        isinstance(classes, Tensor)
        and scores.device == classes.device
        and scores.dtype in FLOATS
        and classes.dtype in _TARGETS
        and scores.shape[:-1] == classes.shape
        and scores.dim() > 1
        and scores.shape[-1] > 1
        and scores.numel() > 0
    )


class Rows:
    """Rows on a device. Methods return tensors there with a number per row, unless they say otherwise."""

    def __init__(self, scores: Tensor, classes: Tensor, from_logits: bool, ignore_index: int | None) -> None:
        classes, n_classes = classes.flatten().long(), scores.shape[-1]
        self.scores, self.from_logits = scores.reshape(-1, n_classes), from_logits
        self.wide = widest(scores.device)
        self.target = classes.clamp(0, n_classes - 1)
        self.is_class = classes == self.target
        self.ignored = torch.zeros_like(self.is_class) if ignore_index is None else classes == ignore_index

    def top_labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """The divisor, the confidence, not yet divided, and whether the prediction is correct."""
        score, label = self.scores.max(-1)  # the first of equal classes
        p = self._probabilities()
        if self.from_logits:
            p = p.gather(-1, label.unsqueeze(-1))
            score = p.squeeze(-1)
        return self._divisor(p), score, label == self.target

    def in_top(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The divisor, the target, and whether it is among the k most probable classes."""
        divisor = self._divisor(self._probabilities())
        return divisor, self.target, is_in_top(self.scores, self.target, k)

    def of_targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """The divisor, the probability of the target, not yet divided, and that it is an event."""
        own = _gathered(self.scores, self.target)
        return self._divisor(self.scores), own, torch.ones_like(self.is_class)

    def row_scores(self, name: str) -> tuple[Tensor, Tensor]:
        """The divisor and the scores of that name, in the widest type."""
        if name == "log_likelihood" and self.from_logits:
            log_p = self.scores.log_softmax(-1, dtype=self._dtype())
            own = _gathered(log_p, self.target).to(self.wide)
            # As in the kernels, what is too large for an exact sum counts as infinite.
            return self._divisor(own.unsqueeze(-1)), (0 - own).masked_fill(own <= -(2.0**64), math.inf)
        p = self._probabilities()
        divisor = self._divisor(p)
        own = _gathered(p, self.target).to(self.wide) / divisor
        if name == "log_likelihood":
            return divisor, 0 - own.clamp(0, 1).log()
        norm = torch.linalg.vector_norm(p, dim=-1, dtype=self.wide) / divisor
        return divisor, (1 - own) ** 2 + (norm**2 - own**2).clamp(min=0)

    def temperature(self) -> tuple[float, bool]:
        """As numbers: the temperature of maximum likelihood of logits, and whether it has been found.

        As in the kernels, Newton's method finds the root of the derivative, in the logarithm of the inverse
        temperature. But the number of steps is fixed: the host would have to wait to decide on another one.
        """
        z = self.scores.to(self._dtype())
        below = (z - z.amax(-1, keepdim=True)).clamp(min=-1e15)  # 0 times infinity is NaN
        own = _gathered(below, self.target)
        at = torch.zeros((), dtype=self.wide, device=z.device)
        low, high, is_last = at - END, at + END, at > 0
        for _ in range(STEPS):
            inverse = at.exp()
            weight = (below * inverse.to(z.dtype)).exp_()
            total = weight.sum(-1)
            mean = weight.mul_(below).sum(-1) / total
            square = weight.mul_(below).sum(-1) / total
            first = (mean - own).masked_fill(self.ignored, 0).sum(dtype=self.wide)
            second = (square - mean**2).clamp(min=0).masked_fill(self.ignored, 0).sum(dtype=self.wide)
            step = -first / (inverse * second)
            low, high = torch.where(first < 0, at, low), torch.where(first < 0, high, at)
            is_last = step.abs() < 1e-5  # squares the error
            at = at + step.clamp(-1.5, 1.5)
            at = torch.where(is_last | (low < at) & (at < high), at, (low + high) / 2)
        valid = (self.ignored | self.is_class).all() & ~self._seem_probabilities()
        temperature, is_found = torch.stack([(-at).exp(), (is_last & valid).to(at.dtype)]).tolist()
        return temperature, bool(is_found)

    def fetched(self, divisor: Tensor, *columns: Tensor) -> list[Tensor] | None:
        """Columns and which rows are ignored, on the CPU; None if the kernels have to see the rows.

        Wider types come first, so that each column is aligned in the one copy that is made.
        """
        parts = [*columns, self.ignored, self._are_plain(divisor).reshape(1)]
        packed = torch.cat([part.contiguous().view(torch.uint8) for part in parts]).cpu()
        sizes = [part.numel() * part.element_size() for part in parts]
        *copies, plain = (
            copy.view(part.dtype) for copy, part in zip(torch.split(packed, sizes), parts, strict=True)
        )
        return copies if plain.item() else None

    def bin_digits(self, edges: Tensor) -> Tensor:
        """One tensor: the counts and the digits of bins with these edges, the number of invalid rows, and
        whether the kernels have to see the rows."""
        divisor, confidence, correct = self.top_labels()
        confidence = (confidence.to(self.wide) / divisor).clamp(max=1)
        n = len(edges) - 1
        inner = edges[1:-1]
        if self.wide == torch.float32:  # the least number of single precision that is not below the edge
            single = inner.float()
            inner = torch.where(single < inner, single.nextafter(torch.ones_like(single)), single)
        inner = sent(inner, confidence.device)
        invalid = divisor.isnan()
        bins = torch.bucketize(confidence, inner, right=True).masked_fill(self.ignored | invalid, n)
        columns = [torch.ones_like(bins), correct.long(), *_digits(confidence, 3, 1)]
        # Copies of the bins take turns, so that few rows add to the same address at a time.
        copies = max(4096 // (n + 1), 1)
        turns = torch.arange(len(bins), device=bins.device) % copies
        sums = torch.zeros(copies * (n + 1), len(columns), dtype=torch.int64, device=bins.device)
        sums.index_add_(0, bins * copies + turns, torch.stack(columns, -1))
        count, n_correct, *fraction = sums.view(n + 1, copies, -1).sum(1)[:n].unbind(-1)
        digits = torch.zeros(3, n, DIGITS, dtype=torch.int64, device=bins.device)
        digits[0, :, ONES], digits[1, :, ONES] = count, n_correct
        for i, digit in zip((3, 2, 1), fraction, strict=True):
            digits[2, :, i] = digit
        flags = torch.stack([invalid.sum(), (~self._are_plain(divisor)).long()])
        return torch.cat([count, _carried(digits).flatten(), flags])

    def score_digits(self, name: str) -> Tensor:
        """One tensor: the digits of the sums of the scores and of the rows, and the numbers of infinite
        scores and of invalid rows."""
        divisor, scores = self.row_scores(name)
        invalid, is_infinite = divisor.isnan(), scores.isinf()
        scores = scores.masked_fill(self.ignored | invalid | is_infinite, 0)
        digits = torch.zeros(2, DIGITS, dtype=torch.int64, device=scores.device)
        for i, digit in zip(range(5, -1, -1), _digits(scores, 5, 0), strict=True):
            digits[0, i] = digit.sum()
        counted = ~(self.ignored | invalid)
        digits[1, ONES] = counted.sum()
        counts = torch.stack([(is_infinite & counted).sum(), invalid.sum()])
        return torch.cat([_carried(digits).flatten(), counts])

    def _are_plain(self, divisor: Tensor) -> Tensor:
        """Whether the rows can be reduced without the kernels."""
        return (divisor == 1).all() & ~self._seem_probabilities()

    def _dtype(self) -> torch.dtype:
        """The type of a softmax."""
        return torch.float64 if self.scores.dtype == torch.float64 else torch.float32

    def _probabilities(self) -> Tensor:
        return self.scores.softmax(-1, dtype=self._dtype()) if self.from_logits else self.scores

    def _divisor(self, p: Tensor) -> Tensor:
        """What to divide a row by: 1, or its sum if that is close to 1; NaN if the row is invalid.

        Of a softmax, a part of each row will do: that of an invalid row is NaN throughout.
        """
        if self.from_logits:
            divisor = torch.where(p[..., 0].isnan(), math.nan, 1.0)
        else:
            rounding, tolerance, slack = limits(p.dtype)
            total = p.sum(-1, dtype=self.wide)
            distance = (total - 1).abs()
            margin = 32 * torch.finfo(self.wide).eps  # the sum has a rounding error of its own
            divisor = torch.where(distance > rounding - margin, total, 1.0)
            valid = (distance <= tolerance) & (p.amin(-1).float() >= -slack)
            divisor = divisor.masked_fill(~valid, math.nan)
        divisor = divisor.masked_fill(~self.is_class, math.nan)
        return divisor.masked_fill(self.ignored, 1.0)

    def _seem_probabilities(self) -> Tensor:
        """Whether the first row of logits that counts is a distribution: then all have to be looked at."""
        if not self.from_logits:
            return self.is_class.new_zeros(())
        first = self.scores.index_select(0, (~self.ignored).int().argmax().reshape(1))
        return (first >= 0).all() & ((first.sum(dtype=torch.float32) - 1).abs() < 2e-2)


def is_in_top(scores: Tensor, target: Tensor, k: int) -> Tensor:
    """Whether the target of each row is among the k most probable classes; of equal ones, the first are."""
    target = target.unsqueeze(-1)
    own = scores.gather(-1, target)
    first = (scores == own) & (torch.arange(scores.shape[-1], device=scores.device) < target)
    return ((scores > own) | first).sum(-1).flatten() < k


def _gathered(rows: Tensor, index: Tensor) -> Tensor:
    """An element of each row."""
    return rows.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _digits(x: Tensor, first: int, last: int) -> list[Tensor]:
    """The 32-bit digits of numbers, from the first down to the last; without rounding, in any precision."""
    digits, rest = [], x * 2.0 ** (32 * (ONES - first))
    for _ in range(first, last - 1, -1):
        whole = rest.floor()
        digits.append(whole.long())
        rest = (rest - whole) * 2.0**32
    return digits


def _carried(digits: Tensor) -> Tensor:
    """The same sums with digits below 2^33, so that many batches can be added."""
    carry = digits >> 32
    digits = digits & 0xFFFFFFFF
    digits[..., 1:] += carry[..., :-1]
    return digits
