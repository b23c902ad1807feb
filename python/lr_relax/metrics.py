"""Calibration metrics: exact counts and sums, for torch tensors and NumPy arrays alike."""

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lr_relax import _native

__all__ = ["ReliabilityCurve", "expected_calibration_error", "reliability_curve"]

Array = npt.NDArray[Any]

_MAX_BINS = 2**20  # the kernel's, too


@dataclass(frozen=True)
class ReliabilityCurve:
    """How often predictions of each confidence are right: what a reliability diagram shows.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """

    edges: npt.NDArray[np.float64]
    """The borders of the bins, shape (n_bins + 1,); a bin holds its left border, the last one both.

    With "paper" binning, rounding may put a confidence on a border into the bin before."""
    counts: npt.NDArray[np.int64]
    """The number of predictions in each bin, shape (n_bins,)."""
    confidence: npt.NDArray[np.float64]
    """Their mean confidence, NaN where there are none."""
    accuracy: npt.NDArray[np.float64]
    """The fraction of them that is right, NaN where there are none."""
    expected_calibration_error: float
    """The mean distance of confidence and accuracy, each bin weighted by its predictions."""


@overload
def expected_calibration_error(
    preds: Tensor, target: Tensor, *, from_logits: bool = False, n_bins: int = 15, binning: str = "uniform"
) -> Tensor: ...
@overload
def expected_calibration_error(
    preds: Array, target: Array, *, from_logits: bool = False, n_bins: int = 15, binning: str = "uniform"
) -> np.float64: ...
def expected_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    binning: str = "uniform",
) -> Tensor | np.float64:
    """The mean distance of confidence and accuracy over bins of confidence (ECE).

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``hit = preds.argmax(1) == target``::

        sum(abs(hit[in_bin].sum() - c[in_bin].sum()) for in_bin in bins) / N

    Counts are integers and the confidences are summed without rounding: the result depends neither on the
    order of the rows nor on the number of threads.

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`; a torch tensor or a NumPy array
            of 16, 32 or 64 bit floats, any strides.
        target: Classes in [0, C), of the shape of `preds` without its last dimension, any integer type.
        from_logits: Whether `preds` holds logits. It is never guessed.
        n_bins: The number of bins, at least 1.
        binning: "uniform": bins of equal width, [k/n, (k+1)/n), the last one closed. "paper": as the code of
            Lienen & Hüllermeier (2021) assigns them, `min(int(c // (1/n)), n - 1)` with its rounding.

    Returns:
        A value in [0, 1]: a float64 scalar tensor on the device of `preds`, or a NumPy float64 for arrays.

    Raises:
        ValueError: no rows, a row that is no distribution (the first one is named), a wrong shape, `n_bins`
            or `binning`.
        TypeError: an argument is of a wrong type.
        IndexError: a target is no class; names the first one.

    Source: Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015; Guo et al., ICML 2017, eq. 3.

    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> round(float(expected_calibration_error(preds, np.array([0, 1, 1]))), 6)
    0.4
    """
    *_, error = _bins(preds, target, from_logits, n_bins, binning)
    if isinstance(preds, Tensor):
        return torch.tensor(error, dtype=torch.float64, device=preds.device)
    return np.float64(error)


def reliability_curve(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    binning: str = "uniform",
) -> ReliabilityCurve:
    """Confidence and accuracy over bins of confidence; arguments as in `expected_calibration_error`.

    >>> curve = reliability_curve(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), n_bins=2)
    >>> curve.counts, curve.accuracy
    (array([0, 2]), array([nan, 0.5]))
    """
    counts, correct, confidence, error = _bins(preds, target, from_logits, n_bins, binning)
    with np.errstate(invalid="ignore"):
        return ReliabilityCurve(
            edges=np.arange(n_bins + 1) / n_bins,
            counts=counts,
            confidence=confidence / counts,
            accuracy=correct / counts,
            expected_calibration_error=error,
        )


def _bins(
    preds: Tensor | Array, target: Tensor | Array, from_logits: bool, n_bins: int, binning: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    if not isinstance(n_bins, int | np.integer) or isinstance(n_bins, bool) or not 1 <= n_bins <= _MAX_BINS:
        raise ValueError(
            f"Expected argument `n_bins` to be an integer in [1, {_MAX_BINS}], but got {n_bins!r}."
        )
    if binning not in ("uniform", "paper"):
        raise ValueError(f"Expected argument `binning` to be 'uniform' or 'paper', but got {binning!r}.")
    for name, value in (("preds", preds), ("target", target)):
        if not isinstance(value, Tensor | np.ndarray) or isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"Expected argument `{name}` to be a torch tensor or a NumPy array, "
                f"but got {type(value).__name__}."
            )
    return _native.calibration_bins(_on_cpu(preds), _on_cpu(target), from_logits, int(n_bins), binning)


def _on_cpu(array: Tensor | Array) -> Tensor | Array:
    return array.cpu() if isinstance(array, Tensor) and not array.is_cpu else array
