"""The soft-binned calibration error, which is differentiable and can be used for training."""

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
    """The soft-binned calibration error (SB-ECE), a differentiable metric and training penalty.

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``correct = preds.argmax(1) == target``::

        centers = (torch.arange(n_bins) + 0.5) / n_bins
        share = torch.softmax(-((c[:, None] - centers) ** 2) / temperature, 1)  # of each row in each bin
        size = share.sum(0)
        gap = abs((share * correct[:, None]).sum(0) - (share * c[:, None]).sum(0)) / size
        (size / N * gap).sum()                # norm="l1"
        (size / N * gap**2).sum().sqrt()      # norm="l2"

    As the temperature approaches 0, it becomes the error over bins of equal width. The gradient flows through
    the confidences; the predicted class and its correctness are constants. The gradient is finite for finite
    predictions, and 0 where the error is 0. The function uses torch operations only: it runs on any device,
    under `torch.compile` and `torch.func`, and is differentiable more than once. To train with it::

        loss = cross_entropy(logits, y) + weight * soft_calibration_error(logits, y, from_logits=True)

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`: the confidence is the highest
            probability. Or, with the shape of `target`, the probability (or logit) of class 1 of binary
            events, which is the confidence. A torch tensor or a NumPy array of 16, 32 or 64 bit floats.
        target: Classes in [0, C), of the shape of `preds` without its last dimension; or 0 and 1.
        from_logits: Whether `preds` holds logits.
        n_bins: The number of bins, at least 1.
        temperature: The softness of the bins, above 0: the share of a bin falls by a factor e at a distance
            of ``sqrt(temperature)`` from its center.
        norm: "l1" or "l2", the p of the paper.
        ignore_index: Rows with this target are ignored.

    Returns:
        A value in [0, 1]: a scalar tensor with a gradient, on the device of `preds` and of its type (float32
        for 16 bit floats), or a NumPy float64 for arrays.

    Raises:
        ValueError: If there are no rows, if a row is not a distribution (the first one is named), or if a
            shape, `n_bins`, `temperature` or `norm` is wrong.
        TypeError: If an argument has a wrong type.
        IndexError: If a target is not in [0, C); the first one is named.

        The values of tensors are checked on the CPU, outside of `torch.compile` and `torch.func`. Elsewhere,
        the result is NaN if a value is invalid.

    Source: Karandikar, Cain, Tran, Lakshminarayanan, Shlens, Mozer & Roelofs, "Soft Calibration Objectives
    for Neural Networks", NeurIPS 2021.

    >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> error = soft_calibration_error(logits, torch.tensor([0, 1, 1]), from_logits=True)
    >>> round(error.item(), 6)
    0.16846
    >>> error.backward()  # sets `logits.grad`
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
    confidence, correct, invalid_row, invalid_class = _soft_top_labels(
        scores, classes, dtype, from_logits, keep
    )
    if runs_natively(scores):
        _check_values(scores, classes, from_logits, keep, invalid_row, invalid_class)

    residual = torch.where(
        invalid_row | invalid_class, math.nan, correct.to(confidence.dtype) - confidence
    ).flatten()
    count: Tensor | int = residual.numel()
    centers = (torch.arange(n_bins, device=scores.device, dtype=confidence.dtype) + 0.5) / n_bins
    tiny = torch.finfo(confidence.dtype).tiny
    distance = confidence.flatten().unsqueeze(-1) - centers
    share = torch.softmax(-(distance**2) / max(float(temperature), tiny), -1)
    if keep is not None:
        share, count = share * keep.flatten().unsqueeze(-1), keep.sum()
    # Not a matrix product: on GPUs, torch may compute those in reduced precision.
    gap = (share * residual.unsqueeze(-1)).sum(0)
    # Unlike the square root of a sum of squares, torch's norm has gradient 0 at 0.
    if norm == "l1":
        error = torch.linalg.vector_norm(gap / count, 1)
    else:  # the gap of an empty bin is 0
        error = torch.linalg.vector_norm(gap / (share.sum(0).clamp_min(tiny) * count).sqrt())
    return error if isinstance(preds, Tensor) else np.float64(error.item())


def _tensors(preds: Tensor | Array, target: Tensor | Array) -> tuple[Tensor, Tensor]:
    """Both as tensors on one device, with checked types and shapes."""
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
    """For each row: the confidence, and whether it is correct, invalid, or has an invalid target."""
    is_binary = scores.dim() == classes.dim()
    p = scores.to(dtype)
    tolerance = 1e-2 if scores.dtype in (torch.float16, torch.bfloat16) else 1e-3  # as in the kernels
    if keep is not None:  # ignored rows must not reach the gradient: 0 times NaN is NaN
        blank = 0.0 if from_logits or is_binary else 1.0 / scores.shape[-1]
        p = torch.where(keep if is_binary else keep.unsqueeze(-1), p, blank)
    if is_binary:
        n_classes = 2
        confidence = torch.sigmoid(p) if from_logits else p
        correct = classes == 1
        invalid_row = confidence.isnan() if from_logits else ~((p >= 0) & (p <= 1))
    else:
        n_classes = scores.shape[-1]
        p = p.softmax(-1) if from_logits else p
        confidence, label = p.max(-1)
        correct = label == classes
        if from_logits:
            invalid_row = confidence.isnan()
        else:
            # Written so that NaN is invalid.
            invalid_row = ~((p.amin(-1) >= 0) & ((p.detach().sum(-1) - 1).abs() <= tolerance))
            confidence = confidence.clamp(max=1)
    invalid_class = (classes < 0) | (classes >= n_classes)
    if keep is not None:
        invalid_class = invalid_class & keep
    return confidence, correct, invalid_row, invalid_class


def _check_values(
    scores: Tensor,
    classes: Tensor,
    from_logits: bool,
    keep: Tensor | None,
    invalid_row: Tensor,
    invalid_class: Tensor,
) -> None:
    is_binary = scores.dim() == classes.dim()
    if keep is not None:
        check_not_empty(int(keep.any()))
    if invalid_class.any():
        row = int(invalid_class.flatten().int().argmax())
        n_classes = 2 if is_binary else scores.shape[-1]
        raise IndexError(
            f"Expected argument `target` to hold classes in [0, {n_classes}), "
            f"but got {classes.flatten()[row].item()} at row {row}."
        )
    if invalid_row.any():
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
        row = int(invalid_row.flatten().int().argmax())
        raise ValueError(f"Expected argument `preds` to hold {what}, but row {row} does not.")
