"""The loss as an autograd function, for eager calls: the kernel computes the gradient with it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lr_relax import _formulas, _native, _triton
from lr_relax._options import Options


def compute(
    input: Tensor, target: Tensor, options: Options, upstream: float | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its gradient times `upstream`, with the kernel for the device."""
    if input.is_cpu:
        return _native.loss(input, target, options, upstream)
    return _triton.loss(input, target, options, upstream)


class _Loss(torch.autograd.Function):
    """Computes loss and gradient in one call; backward returns the stored gradient.

    The classic form of a Function (ctx in forward) is the fastest that torch offers from Python. It cannot be
    traced.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, options: Options) -> Tensor:
        loss, grad = compute(input, target, options, 1.0)
        if grad is None:  # it overwrote the input: torch must notice if another operator saved that
            torch.autograd.graph.increment_version(input)
            grad = input.detach()
        # Only a second derivative, or the loss scale of float16, needs the arguments again. Otherwise they
        # may change, as after `F.cross_entropy`, so only hooks (checkpoints, offloading) get them to save.
        if _top_hooks(True) is None:
            version = input._version + target._version + version_of(options)
            ctx.arguments = input, target, options, version
            ctx.save_for_backward(grad)
        else:
            ctx.arguments = None, None, options, None
            ctx.save_for_backward(grad, input, target)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        grad, *saved = ctx.saved_tensors
        keeps = keeps_graph()
        if torch.is_grad_enabled():  # create_graph: the gradient must have a gradient itself
            input, target, options = _again(ctx.arguments, saved)
            loss = _formulas.loss(input, target, options)
            return torch.autograd.grad(loss, input, upstream, create_graph=True)[0], None, None
        if keeps or not grad.is_cpu or _native.scalar(upstream) != 1.0:
            dim = ctx.arguments[2].dim
            grad = scaled(grad, upstream, dim, keeps, lambda: _again(ctx.arguments, saved))
        if not keeps:
            ctx.arguments = None  # as torch frees saved tensors
        return grad, None, None


def scaled(
    grad: Tensor,
    upstream: Tensor,
    dim: int,
    keeps: bool,
    arguments: Callable[[], tuple[Tensor, Tensor, Options]],
) -> Tensor:
    """The stored gradient times the upstream. `arguments` are those of the loss, for float16.

    In float16 the scale must enter before rounding: small gradients of the mean would be 0 already.
    """
    is_half, batched = grad.dtype == torch.float16, is_batched(upstream)
    if upstream.layout != torch.strided:  # whose product with a dense tensor torch does not broadcast right
        upstream = upstream.to_dense()
    if not batched and upstream.dim() > 0 and torch._C._is_alias_of(upstream, grad):  # type: ignore[attr-defined]
        upstream = upstream.clone()  # with inplace=True, a view of the logits, which are overwritten
    if grad.is_cpu and not batched and type(upstream) is Tensor and not torch._C._len_torch_dispatch_stack():
        # Our own kernel: torch's product waits forever in a forked process.
        number = _native.scalar(upstream)
        if number == 1.0 and not keeps:
            return grad
        scale = upstream.resolve_neg() if number is None else number
        with suppress(TypeError):  # a misaligned number, or what a hook has put in the place of the gradient
            if is_half and number != 1.0:
                again = compute(*arguments(), scale)[1]
                assert again is not None
                return again
            result = _native.scale(grad, scale, dim, keeps)
            if not keeps:  # with inplace=True, this was the memory of the logits
                torch.autograd.graph.increment_version(grad)
            return result
    if upstream.dim() > 0 or batched:  # one number per row, or a batch of upstreams (is_grads_batched)
        upstream = upstream.unsqueeze(dim) if upstream.dim() > 0 else upstream
        if is_half:  # the kernels take no batches, and that for GPUs one number for all rows
            input, target, options = arguments()
            wide = compute(input.float(), target, options, 1.0)[1]
            assert wide is not None
            return (wide * upstream).to(grad.dtype)
        return (grad * upstream).to(grad.dtype) if keeps or batched else grad.mul_(upstream)
    if is_half:  # on another device, the host does not know the number, and does not wait for it
        again = compute(*arguments(), float(upstream) if grad.is_cpu else upstream)[1]
        assert again is not None
        return again
    if keeps:
        return grad * upstream
    return grad.mul_(upstream) if grad.is_cpu else _triton.scale(grad, upstream)


def version_of(options: Options) -> int:
    """The sum of the versions of all tensors in the options, which grows if one of them is changed."""
    if type(options.parameter) is float and options.weight is None and options.target_b is None:
        return 0
    return sum(x._version for x in options if isinstance(x, Tensor))


def _again(arguments: Any, saved: Any) -> tuple[Tensor, Tensor, Options]:
    """The arguments of the loss, if they still have their values."""
    input, target, options, version = arguments
    if options.inplace:
        raise RuntimeError("With inplace=True, the gradient of a loss has no gradient itself.")
    if saved:
        input, target = saved
    elif input._version + target._version + version_of(options) != version:
        raise RuntimeError(
            "A tensor that the loss was computed from has been modified by an inplace operation, but is "
            "needed again: for the gradient of a gradient, or to scale the gradient in float16."
        )
    return input, target, options


def is_batched(upstream: Tensor) -> bool:
    """Whether a tensor stands for several: with `is_grads_batched`, or under `torch.func.vmap`."""
    functorch = torch._C._functorch
    batched: bool = functorch.is_legacy_batchedtensor(upstream) or functorch.is_batchedtensor(upstream)
    return batched


_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
# `Function.apply` without its handling of functorch, whose transforms do not come here, and `backward`
# without the choice between it and `vjp`: saves 4 us.
apply = super(torch.autograd.Function, _Loss).apply
_Loss._backward_cls.apply = _Loss.backward  # type: ignore[attr-defined]
keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph
