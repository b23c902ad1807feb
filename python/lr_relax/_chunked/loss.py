"""Checks the arguments of losses that are computed chunk by chunk, and computes them."""

from typing import Any

import torch
from torch import Tensor

from lr_relax import _dispatch, _native
from lr_relax._arguments import FLOATS, broadcasts, check
from lr_relax._chunked import autograd, parallel
from lr_relax._chunked.chunks import Head, Target
from lr_relax._options import Options
from lr_relax.topk import TopK


def loss_of_layer(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | TopK,
    options: Options,
    chunk_size: int | None,
    process_group: Any,
) -> Tensor:
    """The loss of the logits of a linear layer."""
    input, weight, bias = _cast(input, weight, bias)
    _check_layer(input, weight, bias)
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(
            f"Expected argument `chunk_size` to be an integer of at least 1, but got {chunk_size!r}."
        )
    group = None if process_group is None else parallel.Group(process_group, weight)
    n_classes = weight.shape[0] if group is None else group.n_classes
    options = _check_loss(input, n_classes, target, options)
    head = Head(input.reshape(-1, input.shape[-1]), weight, bias)
    target = _flat_target(target, n_classes)
    if group is None:
        losses = autograd.loss(head, target, options, chunk_size)
    else:
        compute = group.compute(target, options, chunk_size)
        losses = autograd.apply(head, target, options, compute, parallel.whole)
    return losses.reshape(input.shape[:-1]) if options.reduction == "none" else losses


def loss_of_topk(input: Tensor, target: TopK, options: Options) -> Tensor:
    """The loss of logits for targets that name a few classes."""
    if not isinstance(input, Tensor):
        raise TypeError(f"Expected argument `input` to be a tensor, but got {type(input).__name__}.")
    if options.inplace:
        raise ValueError("Expected argument `inplace` to be False for a `TopK` as target.")
    if -input.dim() <= options.dim < input.dim():
        input, options = input.movedim(options.dim, -1), options._replace(dim=-1)
    if input.dim() < 1:
        raise ValueError("Expected argument `input` to have a class dimension, but got shape ().")
    options = _check_loss(input, input.shape[-1], target, options)
    head = Head(input.reshape(-1, input.shape[-1]), None, None)
    losses = autograd.loss(head, _flat_target(target, input.shape[-1]), options, None)
    return losses.reshape(input.shape[:-1]) if options.reduction == "none" else losses


def _cast(*tensors: Any) -> Any:
    """The tensors of the linear layer in the type of autocast, as `F.linear` does it."""
    input = tensors[0]
    if not isinstance(input, Tensor) or not torch.is_autocast_enabled(input.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(input.device.type)
    casts = (torch.float16, torch.bfloat16, torch.float32)
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in casts else x for x in tensors]


def _check_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
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
    shape = tuple(weight.shape)
    if len(shape) != 2 or shape[0] < 1:
        raise ValueError(f"Expected argument `linear_weight` to have shape (C, d), but got {shape}.")
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


def _check_loss(input: Tensor, n_classes: int, target: Target, options: Options) -> Options:
    """Raise what the loss of the logits would raise. The options, with numbers for each flat row."""
    rows = tuple(input.shape[:-1])
    options = options._replace(
        parameter=_broadcast(options.parameter, rows), lam=_broadcast(options.lam, rows)
    )
    # Logits of the right shape that take no memory: their values are not read.
    logits = input.detach().new_empty(1).expand(*rows, n_classes)
    if isinstance(target, TopK):
        target.check(rows, n_classes, options.ignore_index, input.device)
        check(logits, logits, options._replace(ignore_index=-1))  # with the logits as a dense target
    else:
        _check_targets(rows, n_classes, target, options)
        if _dispatch.runs_natively(input):
            _native.check_loss(logits, target, options)
        else:
            check(logits, target, options)
    return options._replace(
        parameter=_flat(options.parameter), lam=_flat(options.lam), target_b=_flat(options.target_b)
    )


def _check_targets(rows: tuple[int, ...], n_classes: int, target: Tensor, options: Options) -> None:
    named = {"target": target}
    if options.target_b is not None:
        named = {"target_a": target, "target_b": options.target_b}
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(x).__name__}.")
        is_dense = x.dtype == torch.bool or x.is_floating_point()
        expected = (*rows, n_classes) if is_dense and options.target_b is None else rows
        if tuple(x.shape) != expected:
            raise ValueError(
                f"Expected argument `{name}` of type {x.dtype} to have shape {expected}, for rows of shape "
                f"{rows} and {n_classes} classes, but got {tuple(x.shape)}."
            )


def _flat_target(target: Target, n_classes: int) -> Target:
    if isinstance(target, TopK):
        return target.flat()
    is_dense = target.dtype == torch.bool or target.is_floating_point()
    return target.reshape(-1, n_classes) if is_dense else target.reshape(-1)


def _broadcast(numbers: Any, rows: tuple[int, ...]) -> Any:
    if isinstance(numbers, Tensor) and numbers.dim() > 0 and broadcasts(numbers.shape, rows):
        return numbers.broadcast_to(rows)
    return numbers


def _flat(numbers: Any) -> Any:
    return numbers.reshape(-1) if isinstance(numbers, Tensor) and numbers.dim() > 0 else numbers
