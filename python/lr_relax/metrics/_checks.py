"""Checks of single arguments, and conversions between tensors and arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
ArrayLike = npt.ArrayLike
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@contextmanager
def named(name: str) -> Iterator[None]:
    """Lets errors that name `preds` name the argument that the caller has passed."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as error:
        raise type(error)(str(error).replace("`preds`", f"`{name}`")) from None


def as_array(name: str, values: Any, on_any_device: bool = False) -> Tensor | Array:
    """A tensor, by default on the CPU, or an array."""
    if isinstance(values, Tensor):
        if values.is_meta or values.is_nested or values.layout != torch.strided:
            what = "on the meta device" if values.is_meta else "sparse or nested"
            raise TypeError(
                f"Expected argument `{name}` to be a dense tensor with memory, but got one {what}."
            )
        tensor: Tensor = values.detach()
        return (tensor if on_any_device else tensor.cpu()).resolve_neg()
    return as_numpy(name, values)


def as_numpy(name: str, values: Any) -> Array:
    """An aligned array in native byte order."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"Expected argument `{name}` to be an array without a mask, but got a MaskedArray.")
    try:
        array = np.asarray(values)
    except Exception as error:
        raise TypeError(
            f"Expected argument `{name}` to be a tensor or an array, but got {type(values).__name__}, which "
            f"NumPy cannot convert: {error}"
        ) from error
    size = max(array.dtype.itemsize, 1)
    if array.flags.aligned and array.dtype.isnative and not any(s % size for s in array.strides):
        return array
    return array.astype(array.dtype.newbyteorder("="))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for it.

    Drivers copy pageable memory before they return; only Apple's reads it later, when it may be gone.
    """
    if device.type == "cpu":
        return tensor
    return tensor.to(device, non_blocking=device.type != "mps")


def on_device(value: Any, device: torch.device) -> Tensor:
    """A tensor in double precision; in single precision where the device has no other, as Apple's GPUs."""
    try:
        return sent(torch.as_tensor(value, dtype=torch.float64), device)
    except (TypeError, RuntimeError):
        return sent(torch.as_tensor(value, dtype=torch.float32), device)


def as_number(value: Any) -> float:
    """The value of a metric, which must be a single one."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", None)
        got = type(value).__name__
        if shape is not None:
            got = f"shape {tuple(shape)}; average='macro' gives the mean over classes"
        raise TypeError(f"Expected argument `metric` to return a single number, but got {got}.") from None


def check_not_empty(n_rows: float) -> None:
    if not n_rows > 0:
        raise ValueError(
            "Expected argument `preds` to hold at least one row that counts, but got none "
            "(of a weight that is not 0)."
        )


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


def check_resampling(n_resamples: object, confidence_level: object, seed: object) -> tuple[int, float, int]:
    """The arguments that every function with resamples has."""
    return (
        check_integer("n_resamples", n_resamples, 2, 2**24),
        check_share("confidence_level", confidence_level),
        check_integer("seed", seed, 0, 2**64 - 1),
    )
