"""The soft-binned calibration error, which is differentiable and can be used for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from lr_relax._arguments import FLOATS, check_number
from lr_relax._dispatch import runs_natively

from ._checks import Array, ArrayLike, as_numpy, check_choice, check_integer, check_not_empty
from ._device import limits
from ._inputs import Task, arranged, check_normalize, check_options, read
from ._predictions import warn_of_probabilities
from ._targets import class_indices

_INTEGERS = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}


@overload
def soft_calibration_error(
    preds: Tensor,
    target: Tensor | ArrayLike,
    *,
    n_bins: int = 15,
    temperature: float = 0.01,
    norm: Literal["l1", "l2"] = "l2",
    task: Literal["multiclass", "binary"] | None = None,
    from_logits: bool = False,
    dim: int | None = None,
    labels: Sequence[Any] | Array | None = None,
    normalize: bool = False,
    ignore_index: int | None = None,
) -> Tensor: ...
@overload
def soft_calibration_error(
    preds: ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int = 15,
    temperature: float = 0.01,
    norm: Literal["l1", "l2"] = "l2",
    task: Literal["multiclass", "binary"] | None = None,
    from_logits: bool = False,
    dim: int | None = None,
    labels: Sequence[Any] | Array | None = None,
    normalize: bool = False,
    ignore_index: int | None = None,
) -> np.float64: ...
def soft_calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int = 15,
    temperature: float = 0.01,
    norm: Literal["l1", "l2"] = "l2",
    task: Literal["multiclass", "binary"] | None = None,
    from_logits: bool = False,
    dim: int | None = None,
    labels: Sequence[Any] | Array | None = None,
    normalize: bool = False,
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
        preds, target, task, from_logits, dim, labels, normalize: As in `calibration_error`, without the task
            "multilabel". The confidence of an event is the probability of class 1. Text, `labels` and one-hot
            targets are for the CPU, outside of `torch.compile` and `torch.func`.
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
    check_options(task=task, from_logits=from_logits, dim=dim, normalize=normalize, ignore_index=ignore_index)
    if task not in ("multiclass", "binary", None):
        raise ValueError(f"Expected argument `task` to be 'multiclass' or 'binary', but got {task!r}.")
    n_bins = check_integer("n_bins", n_bins, 1, 2**20)
    check_number("temperature", "a finite number above 0", lambda x: 0 < x < math.inf, temperature)
    check_choice("norm", norm, ("l1", "l2"))
    scores, classes, ignore_index = _tensors(preds, target, task, dim, labels, ignore_index)
    is_native = runs_natively(scores)
    if normalize:
        check_normalize(from_logits, is_event=scores.dim() == 1)
    if from_logits and is_native:
        warn_of_probabilities("preds", scores.detach(), classes, ignore_index)
    keep = None if ignore_index is None else classes != ignore_index
    dtype = torch.float32 if isinstance(preds, Tensor) and preds.dtype != torch.float64 else torch.float64
    confidence, correct, invalid_row, invalid_class = _soft_top_labels(
        scores, classes, dtype, from_logits, normalize, keep
    )
    if is_native and ((invalid_row | invalid_class).any() or (keep is not None and not keep.any())):
        # Raises the error of the first invalid row.
        last = -1 if scores.dim() > 1 else None
        rows = read(scores, classes, dim=last, normalize=normalize, ignore_index=ignore_index)
        replace(rows, from_logits=from_logits).top_labels()

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


def _tensors(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    task: Task | None,
    dim: int | None,
    labels: Sequence[Any] | Array | None,
    ignore_index: int | None,
) -> tuple[Tensor, Tensor, int | None]:
    """Both as tensors on one device, with checked types and shapes and the classes last; events are flat.

    Also the class of ignored rows.
    """
    scores: Any = preds
    classes: Any = target
    if not isinstance(preds, Tensor):
        array = as_numpy("preds", preds)
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"Expected argument `preds` to be of a floating-point type, but got {array.dtype}."
            )
        scores = torch.from_numpy(np.array(array, order="C"))
    elif preds.dtype not in FLOATS:
        raise TypeError(f"Expected argument `preds` to be of a floating-point type, but got {preds.dtype}.")
    if not isinstance(target, Tensor):
        classes = as_numpy("target", target)
    elif classes.device != scores.device:
        raise TypeError(
            f"Expected argument `target` to be on {scores.device}, the device of `preds`, "
            f"but got {classes.device}."
        )
    task, scores, classes, _ = arranged("preds", task, scores, classes, None, dim)
    n_classes = scores.shape[-1] if task == "multiclass" and scores.dim() else 2
    is_one_hot = task == "multiclass" and scores.shape == classes.shape
    if not isinstance(target, Tensor) or (runs_natively(scores) and not target.is_meta):
        classes, ignore_index = class_indices(classes, n_classes, is_one_hot, labels, ignore_index)
        if not isinstance(classes, Tensor):
            _check_integers(classes.dtype, classes.dtype.kind in "iub")
            classes = torch.from_numpy(
                classes.astype(np.int64 if classes.dtype.kind == "u" else classes.dtype)
            )
            classes = classes.to(scores.device)
    elif labels is not None or is_one_hot:
        raise ValueError(
            f"Expected argument `{'target' if is_one_hot else 'labels'}` to be "
            f"{'class indices' if is_one_hot else 'None'} for tensors on other devices than the CPU and in "
            "traced code, where the values of targets are not read."
        )
    elif classes.dtype == torch.bool and n_classes == 2:
        classes = classes.to(torch.uint8)
    _check_integers(classes.dtype, classes.dtype in _INTEGERS)
    if task == "binary":
        scores, classes = scores.reshape(-1), classes.reshape(-1)
    elif scores.dim() < 2 or n_classes < 2:
        raise ValueError(
            f"Expected argument `preds` to have at least 2 classes, but got shape {tuple(scores.shape)}; "
            "for binary events, pass their probabilities with shape (N,)."
        )
    elif classes.shape != scores.shape[:-1]:
        raise ValueError(
            f"Expected argument `target` to have shape {tuple(scores.shape[:-1])}, that of `preds` "
            f"without its classes, but got {tuple(classes.shape)}."
        )
    check_not_empty(scores.numel())
    return scores, classes.long(), ignore_index


def _check_integers(dtype: object, is_integer: bool) -> None:
    if not is_integer:
        raise TypeError(
            f"Expected argument `target` to hold class indices of an integer type, but got {dtype}."
        )


def _soft_top_labels(
    scores: Tensor,
    classes: Tensor,
    dtype: torch.dtype,
    from_logits: bool,
    normalize: bool,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each row: the confidence, and whether it is correct, invalid, or has an invalid target."""
    is_binary = scores.dim() == classes.dim()
    p = scores.to(dtype)
    rounding, tolerance, slack = limits(scores.dtype)
    if keep is not None:  # ignored rows must not reach the gradient: 0 times NaN is NaN
        blank = 0.0 if from_logits or is_binary else 1.0 / scores.shape[-1]
        p = torch.where(keep if is_binary else keep.unsqueeze(-1), p, blank)
    if normalize:  # by absolute values: rows of log-probabilities stay negative
        p = p / p.sum(-1, keepdim=True).abs()
    if is_binary:
        n_classes = 2
        confidence = torch.sigmoid(p) if from_logits else p.clamp(0, 1)
        correct = classes == 1
        invalid_row = confidence.isnan() if from_logits else ~((p >= -slack) & (p <= 1 + slack))
    else:
        n_classes = scores.shape[-1]
        p = p.softmax(-1) if from_logits else p
        confidence, label = p.max(-1)
        correct = label == classes
        if from_logits:
            invalid_row = confidence.isnan()
        else:
            total = p.sum(-1)
            distance = (total.detach() - 1).abs()
            # Written so that NaN is invalid.
            invalid_row = ~((p.amin(-1) >= -slack) & (distance <= tolerance))
            confidence = torch.where(distance > rounding, confidence / total, confidence).clamp(max=1)
    invalid_class = (classes < 0) | (classes >= n_classes)
    if keep is not None:
        invalid_class = invalid_class & keep
    return confidence, correct, invalid_row, invalid_class
