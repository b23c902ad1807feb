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
    if missing.name != "torchmetrics":
        raise
    raise ImportError(
        'The streaming metrics need torchmetrics: pip install "lr-relax[torchmetrics]"'
    ) from missing


class _Sums(Metric):
    """Integers that are added up.

    A `MetricCollection` shares the state of metrics whose states have the same names and values. So the name
    says what is summed: only metrics that differ in what they make of the sums share them.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(self, n: int, what: str, from_logits: bool, ignore_index: int | None, **kwargs: Any) -> None:
        check_flag("from_logits", from_logits)
        if ignore_index is not None:
            check_integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
        super().__init__(**kwargs)
        self.from_logits, self.ignore_index = bool(from_logits), ignore_index
        rows = f"{'logits' if from_logits else 'probabilities'}_ignore_{ignore_index}".replace("-", "minus_")
        self._name = f"sums_{what}_{rows}"
        self._of_batch = False
        self.add_state(self._name, torch.zeros(n, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def sums(self) -> Tensor:
        """All digits and counts."""
        sums: Tensor = getattr(self, self._name)
        return sums

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # Digits follow to other devices, but stay integers; what was made of them is made anew.
        self._computed = None
        return super()._apply(
            lambda t: t.to(fn(t).device) if t.dtype == torch.int64 else fn(t), *args, **kwargs
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and return its own value: NaN for one without rows."""
        before, count = self.sums, self._update_count
        self._of_batch = True
        try:
            return super().forward(*args, **kwargs)
        except Exception:
            # What torchmetrics has set aside for the value of the batch is put back.
            setattr(self, self._name, before)
            self._update_count, self._computed = count, None
            self._is_synced, self._should_unsync = False, True
            self._to_sync, self._enable_grad = self.sync_on_compute, False
            raise
        finally:
            self._of_batch = False

    def _add(self, of_batch: Callable[[], Any]) -> None:
        try:
            sums = torch.from_numpy(np.ascontiguousarray(of_batch()))
        except Exception:
            self._update_count -= 1  # raised by torchmetrics before
            raise
        setattr(self, self._name, self.sums + sums.to(self.sums.device))

    def _result(self, of_sums: Callable[[Any], float]) -> Tensor:
        sums = self.sums.cpu().numpy()
        value = float("nan") if self._of_batch and not sums.any() else of_sums(sums)
        return torch.tensor(value, dtype=torch.float64, device=self.sums.device)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw values, by default the current one, as every `torchmetrics.Metric` does."""
        return self._plot(val, ax)


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
        if self._n_all > 2**22:
            raise ValueError(
                "Expected argument `n_bins` to make at most 4194304 bins for all classes, "
                f"but got {n_bins} for each of {num_classes}."
            )
        what = f"{n_bins}_{binning}_bins_{kind}"
        super().__init__(self._n_all * (1 + 3 * DIGITS), what, from_logits, ignore_index, **kwargs)
        self.n_bins, self.norm, self.binning, self.kind = n_bins, norm, binning, kind
        self.debias, self.num_classes = debias, num_classes

    def update(
        self, preds: Tensor | Array, target: Tensor | Array, sample_weight: Tensor | Array | None = None
    ) -> None:
        """Add a batch."""
        self._add(lambda: self._digits(preds, target, sample_weight))

    def _digits(
        self, preds: Tensor | Array, target: Tensor | Array, sample_weight: Tensor | Array | None
    ) -> Any:
        if self.debias and sample_weight is not None:
            raise ValueError("Expected argument `sample_weight` to be None with `debias`, but got weights.")
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
        return np.concatenate([counts, digits])

    def compute(self) -> Tensor:
        """The error of all rows so far."""

        def of_sums(sums: Any) -> float:
            counts, digits = sums[: self._n_all], sums[self._n_all :]
            return error(Bins.from_digits(counts, digits, self.n_bins), self.norm, self.debias)

        return self._result(of_sums)


class _MeanScore(_Sums):
    score: str

    def __init__(self, *, from_logits: bool = False, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(2 * DIGITS + 1, self.score, from_logits, ignore_index, **kwargs)

    def update(
        self, preds: Tensor | Array, target: Tensor | Array, sample_weight: Tensor | Array | None = None
    ) -> None:
        """Add a batch."""
        options = (sample_weight, self.from_logits, self.ignore_index)
        self._add(lambda: score_digits(self.score, preds, target, *options))

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self._result(mean_score)


class BrierScore(_MeanScore):
    """`lr_relax.metrics.brier_score` of a stream of batches; see `CalibrationError`."""

    score = "brier"
    plot_upper_bound = 2.0


class NegativeLogLikelihood(_MeanScore):
    """`lr_relax.metrics.negative_log_likelihood` of a stream of batches; see `CalibrationError`."""

    score = "log_likelihood"
