"""The soft-binned calibration error: differentiable, for training."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lr_relax._arguments import FLOATS, check_number
from lr_relax._autograd import runs_natively

from ._inputs import Array, as_classes, check_choice, check_flag, check_integer, check_not_empty, on_cpu

_INTEGERS = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}


@overload
def soft_calibration_error(
    preds: Tensor,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    temperature: float = 0.01,
    norm: str = "l2",
    ignore_index: int | None = None,
) -> Tensor: ...
@overload
def soft_calibration_error(
    preds: Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    temperature: float = 0.01,
    norm: str = "l2",
    ignore_index: int | None = None,
) -> np.float64: ...
def soft_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    temperature: float = 0.01,
    norm: str = "l2",
    ignore_index: int | None = None,
) -> Tensor | np.float64:
    """The calibration error over soft bins (SB-ECE), which has a gradient: a metric and a training penalty.

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``hit = preds.argmax(1) == target``::

        centers = (torch.arange(n_bins) + 0.5) / n_bins
        share = torch.softmax(-((c[:, None] - centers) ** 2) / temperature, 1)  # of each row in each bin
        size = share.sum(0)
        gap = abs((share * hit[:, None]).sum(0) - (share * c[:, None]).sum(0)) / size
        (size / N * gap).sum()                # norm="l1"
        (size / N * gap**2).sum().sqrt()      # norm="l2"

    With a temperature towards 0, it is the error over bins of equal width. The gradient goes through the
    confidences; what is predicted, and whether it is right, are constants. It is finite wherever the
    predictions are, also where the error is 0 (there it is 0, too). Made of torch's own operations: on any
    device, under `torch.compile` and `torch.func`, and differentiable more than once. To train with it::

        loss = cross_entropy(logits, y) + weight * soft_calibration_error(logits, y, from_logits=True)

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`, the highest of which is the
            confidence; or the probability of class 1 (or its logit), of the shape of `target`, which then is
            the confidence itself. A torch tensor or a NumPy array of 16, 32 or 64 bit floats.
        target: Classes in [0, C), of the shape of `preds` without its last dimension; or 0 and 1.
        from_logits: Whether `preds` holds logits. It is never guessed.
        n_bins: The number of bins, at least 1.
        temperature: How soft the bins are, above 0: a confidence at a distance of its square root from the
            centre of a bin counts there less by a factor e.
        norm: "l1" or "l2": the p of the paper, 1 or 2.
        ignore_index: Rows with this target do not count.

    Returns:
        A value in [0, 1]: a scalar tensor with a gradient, on the device of `preds` and of its type (float32
        for 16 bit floats), or a NumPy float64 for arrays.

    Raises:
        ValueError: no rows, a row that is no distribution (the first one is named), a wrong shape, `n_bins`,
            `temperature` or `norm`.
        TypeError: an argument is of a wrong type.
        IndexError: a target is no class; names the first one.

        The values in tensors are read where that is free, on the CPU outside of `torch.compile` and
        `torch.func`. Elsewhere, the result is NaN where these errors would be.

    Source: Karandikar, Cain, Tran, Lakshminarayanan, Shlens, Mozer & Roelofs, "Soft Calibration Objectives
    for Neural Networks", NeurIPS 2021.

    >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> error = soft_calibration_error(logits, torch.tensor([0, 1, 1]), from_logits=True)
    >>> round(error.item(), 6)
    0.16846
    >>> error.backward()  # `logits.grad` is there now
    """
    check_flag("from_logits", from_logits)
    n_bins = check_integer("n_bins", n_bins, 1, 2**20)
    check_number("temperature", "a finite number above 0", lambda x: 0 < x < math.inf, temperature)
    check_choice("norm", norm, ("l1", "l2"))
    if ignore_index is not None:
        check_integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    scores, classes = _tensors(preds, target)
    keep = None if ignore_index is None else classes != ignore_index
    dtype = torch.float32 if isinstance(preds, Tensor) and preds.dtype != torch.float64 else torch.float64
    confidence, hit, wrong_row, wrong_class = _soft_top_labels(scores, classes, dtype, from_logits, keep)
    if runs_natively(scores):
        _check_values(scores, classes, from_logits, keep, wrong_row, wrong_class)

    residual = torch.where(wrong_row | wrong_class, math.nan, hit.to(confidence.dtype) - confidence).flatten()
    count: Tensor | int = residual.numel()
    centers = (torch.arange(n_bins, device=scores.device, dtype=confidence.dtype) + 0.5) / n_bins
    tiny = torch.finfo(confidence.dtype).tiny
    distance = confidence.flatten().unsqueeze(-1) - centers
    share = torch.softmax(-(distance**2) / max(float(temperature), tiny), -1)
    if keep is not None:
        share, count = share * keep.flatten().unsqueeze(-1), keep.sum()
    # No product of matrices: on GPUs, torch may be set to round what it multiplies.
    gap = (share * residual.unsqueeze(-1)).sum(0)
    # Unlike the square root of a sum, torch's norm has the gradient 0 at 0.
    if norm == "l1":
        error = torch.linalg.vector_norm(gap / count, 1)
    else:  # an empty bin has no gap
        error = torch.linalg.vector_norm(gap / (share.sum(0).clamp_min(tiny) * count).sqrt())
    return error if isinstance(preds, Tensor) else np.float64(error.item())


def _tensors(preds: Tensor | Array, target: Tensor | Array) -> tuple[Tensor, Tensor]:
    """Both as tensors on one device, their types and shapes checked."""
    if not isinstance(preds, Tensor):
        preds = on_cpu("preds", preds)
        if preds.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"Expected argument `preds` to be of a floating-point type, but got {preds.dtype}."
            )
        preds = torch.from_numpy(np.array(preds, order="C"))
    elif preds.dtype not in FLOATS:
        raise TypeError(f"Expected argument `preds` to be of a floating-point type, but got {preds.dtype}.")
    if not isinstance(target, Tensor):
        array: Any = as_classes(preds, on_cpu("target", target))
        _check_integers(array.dtype, array.dtype.kind in "iu")
        target = torch.from_numpy(np.array(array, np.int64)).to(preds.device)
    else:
        if target.dtype == torch.bool and target.shape == preds.shape:  # a binary event
            target = target.to(torch.uint8)
        _check_integers(target.dtype, target.dtype in _INTEGERS)
    if target.device != preds.device:
        raise TypeError(
            f"Expected argument `target` to be on {preds.device}, the device of `preds`, "
            f"but got {target.device}."
        )
    if target.shape != preds.shape:
        *rows, n_classes = preds.shape or (0,)
        if not rows or n_classes == 0:
            raise ValueError(
                "Expected argument `preds` to have shape (N, C) with at least one class, "
                f"or that of `target`, but got {tuple(preds.shape)}."
            )
        if list(target.shape) != rows:
            raise ValueError(
                f"Expected argument `target` to have shape {tuple(rows)}, that of `preds` "
                f"without its classes, but got {tuple(target.shape)}."
            )
    check_not_empty(preds.numel())
    return preds, target.long()


def _check_integers(dtype: object, is_integer: bool) -> None:
    if not is_integer:
        raise TypeError(
            f"Expected argument `target` to hold class indices of an integer type, but got {dtype}."
        )


def _soft_top_labels(
    scores: Tensor, classes: Tensor, dtype: torch.dtype, from_logits: bool, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each row the confidence, which has a gradient, whether it is a hit, and what is wrong with it."""
    is_binary = scores.dim() == classes.dim()
    p = scores.to(dtype)
    tolerance = 1e-2 if scores.dtype in (torch.float16, torch.bfloat16) else 1e-3  # the kernels', too
    if keep is not None:  # what is in these rows must not come into the gradient: 0 times NaN is NaN
        blank = 0.0 if from_logits or is_binary else 1.0 / scores.shape[-1]
        p = torch.where(keep if is_binary else keep.unsqueeze(-1), p, blank)
    if is_binary:
        n_classes = 2
        confidence = torch.sigmoid(p) if from_logits else p
        hit = classes == 1
        wrong_row = confidence.isnan() if from_logits else ~((p >= 0) & (p <= 1))
    else:
        n_classes = scores.shape[-1]
        p = p.softmax(-1) if from_logits else p
        confidence, label = p.max(-1)
        hit = label == classes
        if from_logits:
            wrong_row = confidence.isnan()
        else:
            # NaN is in no range.
            wrong_row = ~((p.amin(-1) >= 0) & ((p.detach().sum(-1) - 1).abs() <= tolerance))
            confidence = confidence.clamp(max=1)
    wrong_class = (classes < 0) | (classes >= n_classes)
    if keep is not None:
        wrong_class = wrong_class & keep
    return confidence, hit, wrong_row, wrong_class


def _check_values(
    scores: Tensor,
    classes: Tensor,
    from_logits: bool,
    keep: Tensor | None,
    wrong_row: Tensor,
    wrong_class: Tensor,
) -> None:
    is_binary = scores.dim() == classes.dim()
    if keep is not None:
        check_not_empty(int(keep.any()))
    if wrong_class.any():
        row = int(wrong_class.flatten().int().argmax())
        n_classes = 2 if is_binary else scores.shape[-1]
        raise IndexError(
            f"Expected argument `target` to hold classes in [0, {n_classes}), "
            f"but got {classes.flatten()[row].item()} at row {row}."
        )
    if wrong_row.any():
        if from_logits:
            what = (
                "logits that are not NaN"
                if is_binary
                else "logits that have a softmax (no NaN, no +inf, not all -inf)"
            )
        else:
            what = (
                "probabilities in [0, 1]" if is_binary else "probabilities that are not negative and sum to 1"
            )
            what += " (pass `from_logits=True` for logits)"
        row = int(wrong_row.flatten().int().argmax())
        raise ValueError(f"Expected argument `preds` to hold {what}, but row {row} does not.")
