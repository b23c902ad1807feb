"""Checks of the arguments of losses that are computed in chunks, and their flat shape."""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lr_relax import _dispatch, _native
from lr_relax._arguments import FLOATS, check, check_constant
from lr_relax._chunked.chunks import Target
from lr_relax._options import Options
from lr_relax.topk import TopK


def cast(*tensors: Any) -> Any:
    """The tensors of the linear layer in the type of autocast, as `F.linear` does it."""
    input = tensors[0]
    if not isinstance(input, Tensor) or input.is_meta or not torch.is_autocast_enabled(input.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(input.device.type)
    casts = (torch.float16, torch.bfloat16, torch.float32)
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in casts else x for x in tensors]


def check_chunk_size(chunk_size: object) -> int | None:
    if chunk_size is None:
        return None
    try:
        size = None if isinstance(chunk_size, bool) else operator.index(chunk_size)  # type: ignore[arg-type]
    except TypeError:
        size = None
    if size is None or size < 1:
        raise ValueError(
            f"Expected argument `chunk_size` to be an integer of at least 1, but got {chunk_size!r}."
        )
    return size


def check_layer(input: Tensor, weight: Tensor, bias: Tensor | None, fewest_classes: int) -> None:
    tensors = {"input": input, "linear_weight": weight}
    if bias is not None:
        tensors["linear_bias"] = bias
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(x).__name__}.")
        if x.dtype not in FLOATS:
            raise TypeError(f"Expected argument `{name}` to be of a floating-point type, but got {x.dtype}.")
        if x.dtype != input.dtype or x.device != input.device:
            raise TypeError(
                f"Expected argument `{name}` to be of type {input.dtype} on {input.device}, as `input` is, "
                f"but got {x.dtype} on {x.device}."
            )
        if x.layout != torch.strided or x.is_nested:
            raise TypeError(f"Expected argument `{name}` to be dense, but got the layout {x.layout}.")
    shape = tuple(weight.shape)
    if len(shape) != 2 or shape[0] < fewest_classes:
        raise ValueError(
            f"Expected argument `linear_weight` to have shape (C, d) with at least {fewest_classes} classes, "
            f"but got {shape}."
        )
    if input.dim() < 1 or input.shape[-1] != shape[1]:
        raise ValueError(
            f"Expected argument `input` to have shape (..., {shape[1]}), for a `linear_weight` of shape "
            f"{shape}, but got {tuple(input.shape)}."
        )
    if bias is not None and tuple(bias.shape) != shape[:1]:
        raise ValueError(
            f"Expected argument `linear_bias` to have shape ({shape[0]},), a number for each class, "
            f"but got {tuple(bias.shape)}."
        )


def check_group(target: Target, options: Options, *tensors: Tensor | None) -> None:
    """Raise for what cannot be computed with classes that are split over processes."""
    for x in tensors:
        if x is not None and type(x) not in (Tensor, Parameter):
            raise TypeError(
                f"Expected plain tensors with a `process_group`, but got {type(x).__name__}: pass its "
                "`to_local()`, and the group of its mesh."
            )
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("With a `process_group`, losses cannot be transformed by `torch.func`.")
    if not isinstance(target, Tensor) or target.dim() >= tensors[0].dim() or options.target_b is not None:  # type: ignore[union-attr]
        raise ValueError("Expected argument `target` to hold class indices with a `process_group`.")
    if isinstance(options.parameter, Tensor):
        raise TypeError("Expected argument `alpha` to be a number with a `process_group`, but got a tensor.")


def check_loss(input: Tensor, n_classes: int, target: Target, options: Options) -> Options:
    """Raise what the loss of the logits would raise. The options, with numbers for each flat row."""
    rows = tuple(input.shape[:-1])
    check_constant(options.weight, "weight")
    options = _dispatch.broadcast(options, input)
    if isinstance(target, TopK):
        check_topk(input.detach().new_empty(1).expand(*rows, n_classes), target, options)
    else:
        _check_targets(rows, n_classes, target, options)
        if _dispatch.runs_natively(input):
            check_values(input, n_classes, target, options)
        else:
            check(input.detach().new_empty(1).expand(*rows, n_classes), target, options)
    return flat_numbers(options)


def flat_numbers(options: Options) -> Options:
    """With numbers, and second classes, for each flat row."""
    return options._replace(
        parameter=_flat(options.parameter),
        lam=_flat(options.lam),
        target_b=None if options.target_b is None else options.target_b.long().reshape(-1),
    )


def check_values(input: Tensor, n_classes: int, target: Tensor, options: Options) -> None:
    """Raise what the kernel raises for these rows of logits, whose values it does not need."""
    _native.check_loss(input.detach().new_empty(1).expand(*input.shape[:-1], n_classes), target, options)


def check_topk(logits: Tensor, target: TopK, options: Options) -> None:
    """Raise if something is wrong about the loss of a `TopK`. Reads no logits."""
    ignore_index: Any = options.ignore_index
    # Distributions have none.
    none = -1 if isinstance(ignore_index, int) and 0 <= ignore_index < 2**63 else ignore_index
    check(logits, logits, options._replace(ignore_index=none))
    rows = logits.shape[: options.dim] + logits.shape[options.dim :][1:]
    target.check(rows, logits.shape[options.dim], ignore_index, logits.device)


def _check_targets(rows: tuple[int, ...], n_classes: int, target: Tensor, options: Options) -> None:
    named = {"target": target}
    if options.target_b is not None:
        named = {"target_a": target, "target_b": options.target_b}
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(x).__name__}.")
        expected = (*rows, n_classes) if _is_dense(x) and options.target_b is None else rows
        if tuple(x.shape) != expected:
            raise ValueError(
                f"Expected argument `{name}` of type {x.dtype} to have shape {expected}, for rows of shape "
                f"{rows} and {n_classes} classes, but got {tuple(x.shape)}."
            )


def flat_rows(x: Tensor) -> Tensor:
    """With one dimension of rows, (N, ...)."""
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)


def flat_target(target: Target) -> Target:
    if isinstance(target, TopK):
        return TopK(flat_rows(target.indices), flat_rows(target.shares), target.rest)
    # Class indices in a type that also holds every `ignore_index`.
    return flat_rows(target) if _is_dense(target) else target.reshape(-1).long()


def _is_dense(target: Tensor) -> bool:
    return target.dtype == torch.bool or target.is_floating_point()


def _flat(numbers: Any) -> Any:
    return numbers.reshape(-1) if isinstance(numbers, Tensor) and numbers.dim() > 0 else numbers
