"""The metrics of a stream of batches, as `torchmetrics.Metric`: O(bins) state, the bits of one call.

A state is the digits of sums that are not rounded, as integers. So it depends neither on how the rows were
cut into batches nor on their order, and the states of several processes are added exactly
(``dist_reduce_fx="sum"``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._bins import BINNINGS, DIGITS, KINDS, MAX_BINS, Bins, bin_digits, check_norm, error
from ._inputs import Array, check_choice, check_flag, check_integer
from .scores import mean_score, score_digits

try:
    from torchmetrics import Metric
except ModuleNotFoundError as missing:
    raise ImportError(
        'The streaming metrics need torchmetrics: pip install "lr-relax[torchmetrics]"'
    ) from missing


class _Sums(Metric):
    """Integers that are added up."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    sums: Tensor

    def __init__(self, n: int, from_logits: bool, ignore_index: int | None, **kwargs: Any) -> None:
        check_flag("from_logits", from_logits)
        if ignore_index is not None:
            check_integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
        super().__init__(**kwargs)
        self.from_logits, self.ignore_index = from_logits, ignore_index
        self.add_state("sums", torch.zeros(n, dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # Moves to devices are followed; what would make digits floating-point is not.
        return super()._apply(
            lambda t: fn(t).to(torch.int64) if t.dtype == torch.int64 else fn(t), *args, **kwargs
        )

    def _add(self, sums: Any) -> None:
        self.sums = self.sums + torch.from_numpy(np.ascontiguousarray(sums)).to(self.sums.device)

    def _result(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.sums.device)


class CalibrationError(_Sums):
    """`lr_relax.metrics.calibration_error` of a stream of batches.

    Args:
        n_bins, norm, kind, debias, from_logits, ignore_index: as of the function.
        binning: "uniform" or "paper"; the borders of "quantile" depend on all rows.
        num_classes: C, for kind "classwise".
        **kwargs: what every `torchmetrics.Metric` takes.

    `update(preds, target, sample_weight=None)` takes what the function takes, and an empty batch; `compute()`
    returns a float64 scalar, bit for bit that of one call on all rows. A batch with a wrong row raises and
    counts nothing.

    >>> metric = CalibrationError(n_bins=15)
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[0.3, 0.7]]), torch.tensor([1]))
    >>> round(metric.compute().item(), 6)
    0.4
    """

    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        n_bins: int = 15,
        norm: str = "l1",
        binning: str = "uniform",
        kind: str = "top_label",
        debias: bool = False,
        num_classes: int | None = None,
        from_logits: bool = False,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        n_bins = check_integer("n_bins", n_bins, 1, MAX_BINS)
        check_norm(norm, debias)
        check_choice("binning", binning, BINNINGS)
        check_choice("kind", kind, KINDS)
        if binning == "quantile":
            raise ValueError(
                "Expected argument `binning` to be 'uniform' or 'paper', but got 'quantile', "
                "whose borders depend on all rows."
            )
        if kind == "classwise" or num_classes is not None:
            num_classes = check_integer("num_classes", num_classes, 1, 2**31)
        self._n_all = n_bins * (num_classes if kind == "classwise" and num_classes else 1)
        check_integer("n_bins * num_classes", self._n_all, 1, 2**28)
        super().__init__(self._n_all * (1 + 3 * DIGITS), from_logits, ignore_index, **kwargs)
        self.n_bins, self.norm, self.binning, self.kind = n_bins, norm, binning, kind
        self.debias, self.num_classes = debias, num_classes

    def update(
        self, preds: Tensor | Array, target: Tensor | Array, sample_weight: Tensor | Array | None = None
    ) -> None:
        """Add a batch."""
        if self.debias and sample_weight is not None:
            raise ValueError("Expected argument `sample_weight` to be None with `debias`.")
        _, counts, digits = bin_digits(
            preds,
            target,
            sample_weight,
            from_logits=self.from_logits,
            n_bins=self.n_bins,
            binning=self.binning,
            kind=self.kind,
            ignore_index=self.ignore_index,
        )
        if len(counts) != self._n_all:
            raise ValueError(
                f"Expected argument `preds` to have {self.num_classes} classes, which `num_classes` says, "
                f"but got shape {tuple(preds.shape)}."
            )
        self._add(np.concatenate([counts, digits]))

    def compute(self) -> Tensor:
        """The error of all rows so far."""
        sums = self.sums.cpu().numpy()
        counts, digits = sums[: self._n_all], sums[self._n_all :]
        return self._result(error(Bins.from_digits(counts, digits, self.n_bins), self.norm, self.debias))


class _MeanScore(_Sums):
    score: str

    def __init__(self, *, from_logits: bool = False, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(2 * DIGITS + 1, from_logits, ignore_index, **kwargs)

    def update(
        self, preds: Tensor | Array, target: Tensor | Array, sample_weight: Tensor | Array | None = None
    ) -> None:
        """Add a batch."""
        self._add(score_digits(self.score, preds, target, sample_weight, self.from_logits, self.ignore_index))

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self._result(mean_score(self.sums.cpu().numpy()))


class BrierScore(_MeanScore):
    """`lr_relax.metrics.brier_score` of a stream of batches; see `CalibrationError`."""

    score = "brier"
    plot_upper_bound = 2.0


class NegativeLogLikelihood(_MeanScore):
    """`lr_relax.metrics.negative_log_likelihood` of a stream of batches; see `CalibrationError`."""

    score = "log_likelihood"
