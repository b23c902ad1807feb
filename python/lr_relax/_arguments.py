"""Checks of arguments that no kernel makes: types, shapes and ranges.

The kernels' own checks are in src/untyped and raise the same messages.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from lr_relax import _native
from lr_relax._options import SOFT, Options
from lr_relax._warnings import warn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The hyperparameter of each loss: its name, its range in words, the end of the range, whether it is closed.
_HYPERPARAMETERS = dict(_native.hyperparameters())

_P = ParamSpec("_P")
_T = TypeVar("_T")


def also_logits(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Lets `input` also be passed as `logits`, its name in the package `label-relaxation`."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if "logits" in options and "input" not in options:
            options["input"] = options.pop("logits")
        return function(*args, **options)

    return call


def check_hyperparameters(loss: str, parameter: object, reduction: object) -> None:
    """Raise what the kernel raises for the loss with this name."""
    if loss != "label_relaxation" or not isinstance(parameter, Tensor):
        name, expected, end, is_closed = _HYPERPARAMETERS[loss]
        check_number(name, expected, lambda x: 0 <= x < end or (is_closed and x == end), parameter)
    elif not parameter.is_floating_point():
        raise TypeError(
            f"Expected argument `alpha` to be of a floating-point type, but got {parameter.dtype}."
        )
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"Expected argument `reduction` to be 'mean', 'sum' or 'none', but got {reduction!r}."
        )


def check_number(name: str, expected: str, in_range: Callable[[float], bool], number: object) -> None:
    error: type[Exception] | None
    try:
        if isinstance(number, str | bool | Tensor):
            raise TypeError
        error = None if in_range(float(number)) else ValueError  # type: ignore[arg-type]
    except OverflowError:
        error = ValueError
    except (TypeError, ValueError):
        error = TypeError
    if error:
        raise error(f"Expected argument `{name}` to be {expected}, but got {number!r}.")


def class_dim(input: Tensor, target: object, dim: int | None) -> int:
    """The dimension of the classes: `dim` or, if it is None, the last one. Refuses what might be dimension 1.

    Many calls come from code for `nn.CrossEntropyLoss`, which has the classes in dimension 1.
    """
    if dim is not None:
        return dim
    if not isinstance(input, Tensor) or not isinstance(target, Tensor) or input.dim() < 3:
        return -1
    layouts = "dim=1 for the layout of `nn.CrossEntropyLoss`, (N, C, d1, ...), or dim=-1"
    if target.dtype == torch.bool or target.is_floating_point():  # in the shape of the input
        if not torch.compiler.is_compiling():
            warn(f"The classes of `target` are taken to be in the last dimension. Pass {layouts}.")
        return -1
    if torch.compiler.is_exporting():  # where a comparison would restrict the sizes of dynamic dimensions
        return -1
    shape, rows = tuple(input.shape), tuple(target.shape)
    if _same(rows, shape[:1] + shape[2:]):
        if _same(rows, shape[:-1]):
            raise ValueError(
                f"Expected argument `dim` to be given for an `input` of shape {shape} and a target of shape "
                f"{rows}, whose classes may be in dimension 1 or the last one: pass {layouts}."
            )
        raise ValueError(
            f"Expected the target to have shape {shape[:-1]}, that of `input` {shape} without its classes in "
            f"the last dimension, but got {rows}. If the classes are in dimension 1, pass dim=1."
        )
    return -1


def check(input: Tensor, target: Tensor, options: Options) -> None:
    """Raise what the kernel raises, except for values in tensors."""
    loss, parameter, weight, dim = options.loss, options.parameter, options.weight, options.dim
    check_hyperparameters(loss, parameter, options.reduction)
    for name, integer in (("dim", dim), ("ignore_index", options.ignore_index)):
        if not isinstance(integer, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {integer!r}.")
        if not -(2**63) <= integer < 2**63:
            raise ValueError(f"Expected argument `{name}` to fit in 64 bits, but got {integer!r}.")
    for name, flag in (("from_logits", options.from_logits), ("inplace", options.inplace)):
        if not isinstance(flag, bool):
            raise TypeError(f"Expected argument `{name}` to be a bool, but got {flag!r}.")
    is_mixture = options.target_b is not None
    tensors = {"input": input, "target_a" if is_mixture else "target": target}
    numbers = {}
    if weight is not None:
        tensors["weight"] = weight
    if isinstance(parameter, Tensor):
        numbers["alpha"] = parameter
    if options.target_b is not None:
        tensors["target_b"] = options.target_b
        if isinstance(options.lam, Tensor):
            numbers["lam"] = options.lam
        else:
            check_number("lam", "a number in [0, 1]", lambda x: 0 <= x <= 1, options.lam)
    for name, tensor in (tensors | numbers).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(tensor).__name__}.")
        if tensor.device != input.device:
            raise TypeError(
                f"Expected argument `{name}` to be on {input.device}, the device of `input`, "
                f"but got {tensor.device}."
            )
        if hasattr(input, "device_mesh") and not hasattr(tensor, "device_mesh"):
            raise TypeError(f"Expected argument `{name}` to be a DTensor, as `input` is, but got a tensor.")
    shape = tuple(input.shape)
    if input.dtype not in FLOATS:
        raise TypeError(f"Expected argument `input` to be of a floating-point type, but got {input.dtype}.")
    if not shape:
        raise ValueError("Expected argument `input` to have a class dimension, but got shape ().")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"Expected argument `dim` to be in [{-len(shape)}, {len(shape) - 1}], but got {dim}."
        )
    n_classes = shape[dim]
    if n_classes < 2 and loss != "binary_label_relaxation":  # which has one logit for its two classes
        raise ValueError(
            f"Expected argument `input` to have at least 2 classes in dimension {dim}, but got shape {shape}."
        )
    rows = shape[:dim] + shape[dim:][1:]
    for name in ("target_a", "target_b") if is_mixture else ("target",):
        target = tensors[name]
        if loss == "binary_label_relaxation" and not target.is_complex():
            continue  # of any type; its shape has been checked
        is_distribution = target.dtype in FLOATS and loss in ("label_relaxation", *SOFT)
        is_set = target.dtype == torch.bool and loss == "label_relaxation"
        if (is_distribution or is_set) and not is_mixture:
            if loss != "label_relaxation" and options.ignore_index >= 0:
                raise ValueError(
                    "Expected argument `ignore_index` to be negative for distributions as `target`, "
                    f"which have no class to ignore, but got {options.ignore_index}."
                )
            if tuple(target.shape) != shape:
                raise ValueError(
                    f"Expected argument `target` of type {target.dtype} to have shape {shape}, that of "
                    f"`input`, but got {tuple(target.shape)}."
                )
        elif target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            takes_floats = target.dtype == torch.bool and loss in SOFT
            others = ", or distributions of a floating-point type" if takes_floats else ""
            raise TypeError(
                f"Expected argument `{name}` to hold class indices of an integer type{others}, "
                f"but got {target.dtype}."
            )
        elif tuple(target.shape) != rows:
            raise ValueError(
                f"Expected argument `{name}` to have shape {rows}, that of `input` {shape} without its "
                f"classes, but got {tuple(target.shape)}."
            )
    for name, tensor in numbers.items():
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"Expected argument `{name}` to be of a floating-point type, but got {tensor.dtype}."
            )
        if tensor.dim() > 0 and not _same(tensor.shape, rows):
            raise ValueError(
                f"Expected argument `{name}` to have shape {rows}, a number for each row, "
                f"but got {tuple(tensor.shape)}."
            )
    if weight is not None:
        if weight.dtype not in FLOATS:
            raise TypeError(
                f"Expected argument `weight` to be of a floating-point type, but got {weight.dtype}."
            )
        if tuple(weight.shape) != (n_classes,):
            raise ValueError(
                f"Expected argument `weight` to have shape ({n_classes},), a number for each class, "
                f"but got {tuple(weight.shape)}."
            )


def _same(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are the same. Compares size by size, because `torch.compile` may not know them."""
    return len(shape) == len(other) and all(n == m for n, m in zip(shape, other, strict=True))


def broadcasts(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a shape broadcasts to another one. Compares size by size, as above."""
    sizes = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(size == 1 or size == n for size, n in sizes)


def check_constant(weight: object, name: str) -> None:
    """Raise if a weight is to have a gradient, which no loss computes."""
    if isinstance(weight, Tensor) and weight.requires_grad is True and torch.is_grad_enabled():
        raise ValueError(
            f"Expected argument `{name}` not to require a gradient, which the loss does not compute; "
            f"pass `{name}.detach()`."
        )


def binary_weight(input: Tensor, weight: object, name: str) -> Tensor:
    """A weight of a binary loss, which broadcasts to the input, in the type of the loss."""
    check_constant(weight, name)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"Expected argument `{name}` to be a tensor of a floating-point type, but got {got}.")
    if weight.device != input.device:
        raise TypeError(
            f"Expected argument `{name}` to be on {input.device}, the device of `input`, "
            f"but got {weight.device}."
        )
    if not broadcasts(weight.shape, input.shape):
        raise ValueError(
            f"Expected argument `{name}` to broadcast to {tuple(input.shape)}, the shape of `input`, "
            f"but got {tuple(weight.shape)}."
        )
    is_half = input.dtype in (torch.float16, torch.bfloat16)
    return weight.detach().to(torch.float32 if is_half else input.dtype)


def check_classes(target: Tensor, n_classes: int, ignore_index: int) -> None:
    """Raise what the kernel raises for a class that does not exist. Reads the values."""
    target = target.long()
    wrong = ((target < 0) | (target >= n_classes)) & (target != ignore_index)
    if wrong.any():
        row = int(wrong.flatten().int().argmax())
        value = int(target.flatten()[row])
        others = int((target == value).sum()) - 1
        is_mark = others or value in (-100, 255)
        raise IndexError(
            f"Expected argument `target` to hold classes in [0, {n_classes}), but got {value} at row {row}"
            + (f" and {others} more." if others else ".")
            + (f" Pass ignore_index={value} if such rows are to be ignored." if is_mark else "")
        )
