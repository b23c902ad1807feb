"""Checks of the arguments of the metrics: predictions, targets, weights and options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lr_relax import _native
from lr_relax._arguments import FLOATS

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_WEIGHT = 2.0**32
"""The largest weight of a row, as in the kernels."""

_REAL_TYPES = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)} | {
    torch.bool,
    *FLOATS,
}


def top_labels(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
) -> tuple[Floats, Bools]:
    """The confidence of each row that is not ignored, and whether its prediction is correct.

    Arguments and errors are as in `calibration_error`.
    """
    check_flag("from_logits", from_logits)
    preds, target = check_predictions(preds, target, ignore_index)
    confidence, outcome = _native.top_labels(preds, target, bool(from_logits), ignore_index)
    if ignore_index is not None:
        counted = outcome >= 0
        confidence, outcome = confidence[counted], outcome[counted]
    check_not_empty(len(outcome))
    return confidence, outcome == 1


def is_correct(preds: Tensor | Array, target: Tensor | Array, confidence: Floats, correct: Bools) -> Bools:
    """Whether the predicted class is the target, from the results of `top_labels`.

    For a binary event, these are the probability of class 1 and whether the target is 1. Class 1 is predicted
    if its probability is above 1/2.
    """
    return (confidence > 0.5) == correct if tuple(preds.shape) == tuple(target.shape) else correct


def check_predictions(
    preds: Tensor | Array, target: Tensor | Array, ignore_index: int | None, *, name: str = "preds"
) -> tuple[Tensor | Array, Tensor | Array]:
    """Both arrays on the CPU. The kernels check their types, shapes and values."""
    if ignore_index is not None:
        check_integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    preds, target = on_cpu(name, preds), on_cpu("target", target)
    return preds, as_classes(preds, target)


def as_classes(preds: Tensor | Array, target: Tensor | Array) -> Tensor | Array:
    """The target; for binary events, bools become 0 and 1."""
    if tuple(preds.shape) != tuple(target.shape):
        return target
    if isinstance(target, Tensor):
        return target.view(torch.uint8) if target.dtype == torch.bool else target
    return target.view(np.uint8) if target.dtype == np.bool_ else target


def check_not_empty(n_rows: float) -> None:
    if not n_rows > 0:
        raise ValueError(
            "Expected argument `preds` to hold at least one row that counts, but got none "
            "(of a weight that is not 0)."
        )


def on_cpu(name: str, array: Tensor | Array) -> Tensor | Array:
    if not isinstance(array, Tensor | np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"Expected argument `{name}` to be a torch tensor or a NumPy array, "
            f"but got {type(array).__name__}."
        )
    if not isinstance(array, Tensor):
        return array
    if array.is_meta or array.is_nested or array.layout != torch.strided:
        what = "on the meta device" if array.is_meta else "sparse or nested"
        raise TypeError(f"Expected argument `{name}` to be a dense tensor with memory, but got one {what}.")
    return array.detach().cpu().resolve_neg()


def check_weights(
    sample_weight: Tensor | Array | None, target: Tensor | Array, rows: Bools | None = None
) -> Floats | None:
    """The weights in double precision, of all rows or of the given ones."""
    if sample_weight is None:
        return None
    weight = on_cpu("sample_weight", sample_weight)
    is_real = (
        weight.dtype in _REAL_TYPES
        if isinstance(weight, Tensor)
        else weight.dtype.kind in "fiub" and weight.dtype.itemsize <= 8
    )
    if not is_real:
        raise TypeError(f"Expected argument `sample_weight` to hold real numbers, but got {weight.dtype}.")
    if tuple(weight.shape) != tuple(target.shape):
        raise ValueError(
            f"Expected argument `sample_weight` to have shape {tuple(target.shape)}, that of `target`, "
            f"but got {tuple(weight.shape)}."
        )
    if isinstance(weight, Tensor):
        weight = weight.double().numpy()
    weights = np.ascontiguousarray(weight, dtype=np.float64).reshape(-1)
    invalid = ~((weights >= 0) & (weights <= MAX_WEIGHT))
    if invalid.any():
        row = int(invalid.argmax())
        raise ValueError(
            "Expected argument `sample_weight` to hold numbers in [0, 2^32], "
            f"but got {weights[row]} at row {row}."
        )
    return weights if rows is None else weights[rows]


def counted_rows(target: Tensor | Array, ignore_index: int | None) -> Bools | None:
    """A mask of the rows that are not ignored, or None without `ignore_index`."""
    if ignore_index is None:
        return None
    classes = target.numpy() if isinstance(target, Tensor) else target
    counted: Bools = (classes != ignore_index).reshape(-1)
    return counted


def scalar_like(preds: Tensor | Array, value: float) -> Any:
    """A float64 scalar: a tensor on the device of `preds`, or a NumPy number."""
    if isinstance(preds, Tensor):
        return torch.tensor(value, dtype=torch.float64, device=preds.device)
    return np.float64(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"Expected argument `{name}` to be {', '.join(most)} or {last}, but got {value!r}.")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"Expected argument `{name}` to be a bool, but got {value!r}.")


def check_integer(name: str, value: object, low: int, high: int) -> int:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not low <= int(value) <= high:  # type: ignore[call-overload]
        raise ValueError(
            f"Expected argument `{name}` to be an integer in [{low}, {high}], but got {value!r}."
        )
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_share(name: str, value: object) -> float:
    """A number strictly between 0 and 1."""
    if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a number in (0, 1), but got {value!r}.")
    if not (0 < value < 1 and math.isfinite(value)):
        raise ValueError(f"Expected argument `{name}` to be a number in (0, 1), but got {value!r}.")
    return float(value)
