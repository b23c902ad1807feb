"""The losses that are computed chunk by chunk over the rows."""

from typing import Any

from torch import Tensor

from lr_relax import _dispatch
from lr_relax._arguments import check_constant
from lr_relax._chunked import autograd, parallel
from lr_relax._chunked.arguments import (
    cast,
    check_chunk_size,
    check_group,
    check_layer,
    check_loss,
    check_topk,
    flat_numbers,
    flat_rows,
    flat_target,
)
from lr_relax._chunked.chunks import Head, Target
from lr_relax._options import Options
from lr_relax.topk import TopK


def loss_of_layer(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Target,
    options: Options,
    chunk_size: int | None,
    process_group: Any,
) -> Tensor:
    """The loss of the logits of a linear layer."""
    chunk_size = check_chunk_size(chunk_size)
    input, weight, bias = cast(input, weight, bias)
    check_layer(input, weight, bias, 2 if process_group is None else 0)
    if process_group is None:
        options = check_loss(input, weight.shape[0], target, options)
        head = Head(flat_rows(input), weight, bias)
        losses = autograd.loss(head, flat_target(target), options, chunk_size)
    else:
        check_group(target, options, input, weight, bias)
        group = parallel.Group(process_group, weight)
        options = check_loss(input, group.n_classes, target, options)
        head = Head(flat_rows(input), weight, bias)
        losses = autograd.apply(head, flat_target(target), options, group.compute(chunk_size), parallel.whole)
    return losses.reshape(input.shape[:-1]) if options.reduction == "none" else losses


def loss_of_topk(input: Tensor, target: TopK, options: Options) -> Tensor:
    """The loss of logits for targets that name a few classes."""
    if not isinstance(input, Tensor):
        raise TypeError(f"Expected argument `input` to be a tensor, but got {type(input).__name__}.")
    if options.inplace:
        raise ValueError("Expected argument `inplace` to be False for a `TopK` as target.")
    check_constant(options.weight, "weight")
    options = _dispatch.broadcast(options, input)
    check_topk(input, target, options)
    input, options = input.movedim(options.dim, -1), flat_numbers(options._replace(dim=-1))
    losses = autograd.loss(Head(flat_rows(input), None, None), flat_target(target), options, None)
    return losses.reshape(input.shape[:-1]) if options.reduction == "none" else losses
