"""Streaming metrics as `torchmetrics.Metric`, with O(bins) state and bitwise the results of a single call.

The state holds exact sums as integer digits. So it depends neither on the order of the rows nor on how they
were split into batches, and the states of several processes are added exactly (``dist_reduce_fx="sum"``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ._bins import (
    KINDS,
    Binning,
    Bins,
    Kind,
    Norm,
    bin_digits,
    check_bins,
    check_norm,
    digits_elsewhere,
    errors,
    mean,
)
from ._checks import Array, ArrayLike, check_choice, check_integer, on_device
from ._device import DIGITS
from ._inputs import Options, check_options, read
from ._predictions import Predictions
from .scores import mean_score, score_digits

try:
    from torchmetrics import Metric
except ModuleNotFoundError as missing:
    if missing.name != "torchmetrics":
        raise
    raise ImportError(
        'The streaming metrics need torchmetrics: pip install "lr-relax[torchmetrics]"'
    ) from missing


_NONE = np.zeros(1, np.int64)


class _Sums(Metric):
    """A metric whose state is a tensor of integer sums.

    A `MetricCollection` shares the state of metrics whose states have the same names and values. So the name
    of the state depends on all options that affect the sums.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(self, n: int, what: str, kwargs: dict[str, Any]) -> None:
        options: Any = {name: kwargs.pop(name) for name in Options.__annotations__ if name in kwargs}
        check_options(**options)
        super().__init__(**kwargs)
        self.options: Options = options
        names = dict(options)
        if "labels" in options:  # the text of an array leaves out its middle
            names["labels"] = np.asarray(options["labels"]).tolist()
        self._name = f"sums_{what}_{crc32(repr(sorted(names.items())).encode()):08x}"
        self._of_batch = False
        # The last number counts invalid rows: on the CPU, these raise at once.
        self.add_state(self._name, torch.zeros(n + 1, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def sums(self) -> Tensor:
        """The state: all digits and counts, and the number of invalid rows."""
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

    def update(
        self,
        preds: Tensor | ArrayLike,
        target: Tensor | ArrayLike,
        sample_weight: Tensor | ArrayLike | None = None,
    ) -> None:
        """Add a batch."""
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.disable(self._add)(preds, target, sample_weight)  # type: ignore[no-untyped-call]
        else:
            self._add(preds, target, sample_weight)

    def _add(self, *arguments: Any) -> None:
        try:
            rows = read(*arguments, **self.options)
            sums = self._digits_elsewhere(rows)
            if sums is None:
                sums = torch.from_numpy(self._digits(rows))
        except Exception:
            self._update_count -= 1  # torchmetrics has incremented it
            raise
        setattr(self, self._name, self.sums + sums.to(self.sums.device))

    def _result(self, of_sums: Callable[[Any], float]) -> Tensor:
        sums = self.sums.cpu().numpy()
        sums, n_invalid = sums[:-1], sums[-1]
        if n_invalid:
            raise ValueError(
                "Expected arguments `preds` and `target` to hold distributions, or logits with a softmax, "
                f"and classes in [0, C), but got {n_invalid} other rows; `update` on the CPU names the first."
            )
        value = float("nan") if self._of_batch and not sums.any() else of_sums(sums)
        return on_device(value, self.sums.device)

    def _digits(self, rows: Predictions) -> Any:
        """The sums of a batch."""
        raise NotImplementedError

    def _digits_elsewhere(self, rows: Predictions) -> Tensor | None:
        """The same and the number of invalid rows, on the device of the batch; None if the kernels sum it."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments that were given, as `print(metric)` shows them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot values, by default the current one, as in every `torchmetrics.Metric`."""
        return self._plot(val, ax)


class CalibrationError(_Sums):
    """The streaming version of `lr_relax.metrics.calibration_error`.

    Args:
        n_bins, norm, kind, debias: As in the function.
        binning: "uniform" or "paper"; the edges of "quantile" depend on all rows.
        num_classes: C, required for kind "classwise", 2 for binary events; the number of labels, required
            for the task "multilabel".
        **kwargs: `task`, `from_logits`, `dim`, `labels`, `normalize` and `ignore_index` as in the function,
            and options of `torchmetrics.Metric`.

    `update(preds, target, sample_weight=None)` accepts the arguments of the function, and empty batches;
    `compute()` returns a float64 scalar, bitwise equal to a single call on all rows. A batch with an invalid
    row raises and leaves the state unchanged.

    On another device than the CPU, `update` sums predictions of classes there without waiting for the device.
    So it cannot raise if a row is invalid: `compute` then raises a ValueError, until `reset`. Nor does it
    warn of logits that seem to be probabilities. Batches with weights, of other tasks and of kind "classwise"
    are copied to the CPU instead, and raise at once.

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
        n_bins: int | Sequence[float] | Array = 15,
        norm: Norm = "l1",
        binning: Binning = "uniform",
        kind: Kind = "top_label",
        debias: bool = False,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        n, self._binning = check_bins(n_bins, binning)
        check_norm(norm, debias)
        check_choice("kind", kind, KINDS)
        if binning == "quantile":
            raise ValueError(
                "Expected argument `binning` to be 'uniform' or 'paper', but got 'quantile', "
                "whose edges depend on all rows."
            )
        has_groups = kind == "classwise" or kwargs.get("task") == "multilabel"
        if has_groups or num_classes is not None:
            num_classes = check_integer("num_classes", num_classes, 1, 2**31)
        self._n_all = n * (num_classes if has_groups and num_classes else 1)
        if self._n_all > 2**22:
            raise ValueError(
                "Expected argument `n_bins` to make at most 4194304 bins for all classes, "
                f"but got {n} for each of {num_classes}."
            )
        bins = (
            f"{n}_{binning}"
            if isinstance(self._binning, str)
            else f"{crc32(repr(self._binning).encode()):08x}"
        )
        super().__init__(self._n_all * (1 + 3 * DIGITS), f"{bins}_bins_{kind}", kwargs)
        self.n_bins, self.norm, self.binning, self.kind = n, norm, binning, kind
        self.debias, self.num_classes = debias, num_classes

    def update(
        self,
        preds: Tensor | ArrayLike,
        target: Tensor | ArrayLike,
        sample_weight: Tensor | ArrayLike | None = None,
    ) -> None:
        """Add a batch."""
        if self.debias and sample_weight is not None:
            self._update_count -= 1  # torchmetrics has incremented it
            raise ValueError("Expected argument `sample_weight` to be None with `debias`, but got weights.")
        super().update(preds, target, sample_weight)

    def _digits(self, rows: Predictions) -> Any:
        _, counts, digits = bin_digits(rows, self.n_bins, self._binning, self.kind)
        n_classes = len(counts) // self.n_bins
        if self.kind == "top_label" and self.options.get("task") != "multilabel":
            n_classes = 2 if rows.n_labels else rows.preds.shape[-1]
        self._check_classes(n_classes)
        return np.concatenate([counts, digits, _NONE])

    def _digits_elsewhere(self, rows: Predictions) -> Tensor | None:
        found = digits_elsewhere(rows, self.n_bins, self._binning, self.kind)
        if found is None:
            return None
        self._check_classes(rows.preds.shape[-1])
        return found[1][:-1]

    def _check_classes(self, n_classes: int) -> None:
        if self.num_classes not in (None, n_classes):
            raise ValueError(
                f"Expected argument `preds` to have {self.num_classes} classes, as in `num_classes`, "
                f"but got {n_classes}."
            )

    def compute(self) -> Tensor:
        """The error of all rows so far."""

        def of_sums(sums: Any) -> float:
            counts, digits = sums[: self._n_all], sums[self._n_all :]
            return mean(errors(Bins.from_digits(counts, digits, self.n_bins), self.norm, self.debias))

        return self._result(of_sums)

    def extra_repr(self) -> str:
        defaults = {"n_bins": 15, "norm": "l1", "binning": "uniform", "kind": "top_label", "debias": False}
        own = {name: getattr(self, name) for name in defaults}
        if not isinstance(self._binning, str):
            own["n_bins"] = self._binning
        shown = [f"{name}={value!r}" for name, value in own.items() if value != defaults[name]]
        return ", ".join([*shown, *filter(None, [super().extra_repr()])])


class _MeanScore(_Sums):
    score: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2 * DIGITS + 1, self.score, kwargs)

    def _digits(self, rows: Predictions) -> Any:
        return np.concatenate([score_digits(self.score, rows), _NONE])

    def _digits_elsewhere(self, rows: Predictions) -> Tensor | None:
        if rows.elsewhere is None or rows.weight is not None:
            return None
        return rows.elsewhere.score_digits(self.score)

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
