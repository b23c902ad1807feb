"""Streaming metrics as `torchmetrics.Metric`, with O(bins) state and bitwise the results of a single call.

The state holds exact sums as integer digits. So it depends neither on the order of the rows nor on how they
were split into batches, and the states of several processes are added exactly (``dist_reduce_fx="sum"``).
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
    """A metric whose state is a tensor of integer sums.

    A `MetricCollection` shares the state of metrics whose states have the same names and values. So the name
    of the state lists all options that affect the sums.
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
        """The state: all digits and counts."""
        sums: Tensor = getattr(self, self._name)
        return sums

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # The state moves to other devices, but it stays an integer tensor; the cached result is dropped.
        self._computed = None
        return super()._apply(
            lambda t: t.to(fn(t).device) if t.dtype == torch.int64 else fn(t), *args, **kwargs
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its value, NaN for an empty batch."""
        before, count = self.sums, self._update_count
        self._of_batch = True
        try:
            return super().forward(*args, **kwargs)
        except Exception:
            # Restore the state that torchmetrics saved before it computed the value of the batch.
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
            self._update_count -= 1  # torchmetrics has incremented it
            raise
        setattr(self, self._name, self.sums + sums.to(self.sums.device))

    def _result(self, of_sums: Callable[[Any], float]) -> Tensor:
        sums = self.sums.cpu().numpy()
        value = float("nan") if self._of_batch and not sums.any() else of_sums(sums)
        return torch.tensor(value, dtype=torch.float64, device=self.sums.device)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot values, by default the current one, as in every `torchmetrics.Metric`."""
        return self._plot(val, ax)


class CalibrationError(_Sums):
    """The streaming version of `lr_relax.metrics.calibration_error`.

    Args:
        n_bins, norm, kind, debias, from_logits, ignore_index: As in the function.
        binning: "uniform" or "paper"; the edges of "quantile" depend on all rows.
        num_classes: C, required for kind "classwise".
        **kwargs: Options of `torchmetrics.Metric`.

    `update(preds, target, sample_weight=None)` accepts the arguments of the function, and empty batches;
    `compute()` returns a float64 scalar, bitwise equal to a single call on all rows. A batch with an invalid
    row raises and leaves the state unchanged.

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
                "whose edges depend on all rows."
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
                f"Expected argument `preds` to have {self.num_classes} classes, as in `num_classes`, "
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
    """The streaming version of `lr_relax.metrics.brier_score`; see `CalibrationError`."""

    score = "brier"
    plot_upper_bound = 2.0


class NegativeLogLikelihood(_MeanScore):
    """The streaming version of `lr_relax.metrics.negative_log_likelihood`; see `CalibrationError`."""

    score = "log_likelihood"
