"""The loss of a linear layer as an autograd function, and the choice of what computes it."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lr_relax import _dispatch
from lr_relax._chunked import operators, whole
from lr_relax._chunked.chunks import Gradients, Head, Target, Wanted, chunks
from lr_relax._fused import is_batched, keeps_graph, version_of
from lr_relax._options import Options

Compute: TypeAlias = Callable[[Head, Any, Options, Wanted, Tensor | None], tuple[Tensor, Gradients]]
"""The loss, and the gradients that are wanted; those of the losses of rows times the last argument."""
Whole: TypeAlias = Callable[[Head, Any, Options], Tensor]
"""The same loss by operators that autograd knows."""


def loss(head: Head, target: Target, options: Options, chunk_size: int | None) -> Tensor:
    """The loss of arguments that have been checked."""
    tensors = [x for x in head if x is not None]
    if not _dispatch.wants_gradient(options.parameter) and not head.input.is_meta:  # of alpha: all logits
        if all(_dispatch.is_eager(x) for x in tensors):
            compute = partial(chunks, chunk_size=chunk_size)
            return apply(head, target, options, compute, whole.loss)
        if isinstance(target, Tensor) and all(_dispatch.is_compiled(x) for x in tensors):
            return operators.loss(head, target, options, chunk_size)
    return whole.loss(head, target, options)


def apply(head: Head, target: Target, options: Options, compute: Compute, of_whole: Whole) -> Tensor:
    """The loss that `compute` gives, with its gradients; `of_whole` is for gradients of gradients."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in head):
        return _Loss.apply(*head, target, options, compute, of_whole)  # type: ignore[no-any-return, no-untyped-call]
    return compute(head, target, options, (False, False, False), None)[0]


class _Loss(torch.autograd.Function):
    """Computes the gradients with the loss. For "none", which needs the upstream, backward starts again."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        target: Target,
        options: Options,
        compute: Compute,
        of_whole: Whole,
    ) -> Tensor:
        head, wanted = Head(input, weight, bias), tuple(ctx.needs_input_grad[:3])
        ctx.arguments, ctx.version = (target, options, wanted), _version(target, options)
        ctx.compute, ctx.of_whole = compute, of_whole
        ctx.save_for_backward(*head)
        if options.reduction == "none":
            wanted = (False, False, False)
        loss, ctx.gradients = compute(head, target, options, wanted, None)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        head, (target, options, wanted) = Head(*ctx.saved_tensors), ctx.arguments
        starts_again = torch.is_grad_enabled() or is_batched(upstream) or options.reduction == "none"
        if starts_again and _version(target, options) != ctx.version:
            raise RuntimeError(
                "A tensor that the loss was computed from has been modified by an inplace operation, but is "
                'needed again: for the gradient of a gradient, or with reduction="none".'
            )
        if torch.is_grad_enabled() or is_batched(upstream):
            return *whole.gradients(head, target, options, wanted, upstream, ctx.of_whole), *[None] * 4
        if options.reduction == "none":
            _, gradients = ctx.compute(head, target, options, wanted, upstream)
            return *_scaled(gradients, head, None, False), *[None] * 4
        gradients, keeps = ctx.gradients, keeps_graph()
        if not keeps:
            ctx.gradients = None  # as torch frees saved tensors
        return *_scaled(gradients, head, upstream, keeps), *[None] * 4


def _version(target: Target, options: Options) -> int:
    """The sum of the versions of all tensors of the loss, which grows if one of them is changed."""
    tensors = [target] if isinstance(target, Tensor) else [target.indices, target.shares]
    return version_of(options) + sum(x._version for x in tensors)


def _scaled(gradients: Gradients, head: Head, upstream: Tensor | None, keeps: bool) -> list[Tensor | None]:
    """The gradients times the upstream, in the types of what they belong to."""
    scale: float | Tensor = gradients.factor
    if upstream is not None:  # on the CPU a number: 1 needs no product
        scale = scale * (float(upstream) if upstream.is_cpu else upstream)
    results: list[Tensor | None] = []
    for grad, x in zip(gradients[:3], head, strict=True):
        if grad is not None and x is not None:
            if not isinstance(scale, float) or scale != 1.0:
                grad = grad * scale if keeps else grad.mul_(scale)
            elif keeps:
                grad = grad.clone()
            grad = grad.to(x.dtype)
        results.append(grad)
    return results
