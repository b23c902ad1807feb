"""Computes a loss with the kernel or with the reference, and connects it to autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from lr_relax import _native, _reference
from lr_relax._arguments import broadcasts, check
from lr_relax._options import Options

_TENSORS = (Tensor, Parameter)


def loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss that `options` describes."""
    is_native = runs_natively(input)
    if type(options.parameter) is not float or options.lam is not None:
        options = _broadcast(options, input)
        if is_native and _wants_gradient(options.parameter):  # of alpha, which the kernel does not compute
            _native.check_loss(input, target, options)
            return _reference.loss(input, target, options)
    if not is_native:
        check(input, target, options)
        return _reference.loss(input, target, options)
    if input.requires_grad and torch.is_grad_enabled():
        if options.inplace is True and (input.is_leaf or (input._is_view() and _is_leaf(input._base))):
            raise ValueError(
                "Expected argument `inplace` to be False for a leaf that requires a gradient, "
                "or a view of one, whose values the gradient would replace."
            )
        return _apply(input, target, options)  # type: ignore[no-any-return, no-untyped-call]
    return _native.loss(input, target, options, None)[0]


def uniform_penalty(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The penalty that the paper's code can add to label relaxation. The arguments have been checked."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(
            "Expected argument `target` to hold class indices with a `uniform_penalty`, "
            f"but got {target.dtype}."
        )
    return _reference.loss(input, target, _broadcast(options, input)._replace(loss="uniform_penalty"))


def projection(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The projection of each row onto its set."""
    options = _broadcast(options, input)
    if runs_natively(input):
        _native.check_loss(input, target, options)
    else:
        check(input, target, options)
    return _reference.projection(input, target, options)


def _broadcast(options: Options, input: Any) -> Options:
    """The options with numbers per row broadcast to the rows, where that is possible."""
    return options._replace(
        parameter=_broadcast_to_rows(options.parameter, input, options.dim),
        lam=_broadcast_to_rows(options.lam, input, options.dim),
    )


def _broadcast_to_rows(numbers: Any, input: Any, dim: Any) -> Any:
    if not isinstance(numbers, Tensor) or not isinstance(input, Tensor) or not isinstance(dim, int):
        return numbers
    if numbers.dim() == 0 or not -input.dim() <= dim < input.dim():
        return numbers
    rows = input.shape[:dim] + input.shape[dim:][1:]
    fits = broadcasts(numbers.shape, rows)
    return numbers.broadcast_to(rows) if fits and numbers.shape != rows else numbers


def _is_leaf(base: Tensor | None) -> bool:
    return base is not None and base.is_leaf and base.requires_grad


def _is_batched(upstream: Tensor) -> bool:
    """Whether a tensor stands for several: with `is_grads_batched`, or under `torch.func.vmap`."""
    functorch = torch._C._functorch
    batched: bool = functorch.is_legacy_batchedtensor(upstream) or functorch.is_batchedtensor(upstream)
    return batched


def _wants_gradient(parameter: Any) -> bool:
    return isinstance(parameter, Tensor) and parameter.requires_grad and torch.is_grad_enabled()


class _Fused(torch.autograd.Function):
    """Computes loss and gradient in one native call; backward returns the stored gradient.

    The classic form of a Function (ctx in forward) is the fastest that torch offers from Python. It cannot be
    traced; calls that trace use the reference.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, options: Options) -> Tensor:
        loss, grad = _native.loss(input, target, options, 1.0)
        if grad is None:  # it overwrote the input: torch must notice if another operator saved that
            torch.autograd.graph.increment_version(input)
            grad = input.detach()
        # Only a second derivative, or the loss scale of float16, needs the arguments again. Otherwise they
        # may change, as after `F.cross_entropy`, so only hooks (checkpoints, offloading) get them to save.
        if _top_hooks(True) is None:
            ctx.arguments = input, target, options, _version(input, target, options)
            ctx.save_for_backward(grad)
        else:
            ctx.arguments = None, None, options, None
            ctx.save_for_backward(grad, input, target)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        grad, *saved = ctx.saved_tensors
        keeps_graph = _keeps_graph()
        if torch.is_grad_enabled():  # create_graph: the gradient must have a gradient itself
            input, target, options = _again(ctx.arguments, saved)
            loss = _reference.loss(input, target, options)
            return torch.autograd.grad(loss, input, upstream, create_graph=True)[0], None, None
        scale = _native.scalar(upstream)
        if scale is None:  # one number per row, or a batch of upstreams (is_grads_batched)
            upstream = upstream.unsqueeze(ctx.arguments[2].dim) if upstream.dim() > 0 else upstream
            owned = not keeps_graph and not _is_batched(upstream)
            grad = grad.mul_(upstream) if owned else grad * upstream
        elif keeps_graph:  # another backward will use the same gradient
            grad = grad * scale
        elif scale != 1.0 and grad.dtype == torch.float16:
            # The scale must enter before rounding: small gradients of the mean would be 0 already.
            grad = _native.loss(*_again(ctx.arguments, saved), scale)[1]
        elif scale != 1.0:
            grad.mul_(scale)
        if not keeps_graph:
            ctx.arguments = None  # as torch frees saved tensors
        return grad, None, None


def _version(input: Tensor, target: Tensor, options: Options) -> int:
    """The sum of the versions of all tensors, which grows if one of them is changed."""
    version: int = input._version + target._version
    if type(options.parameter) is not float or options.weight is not None or options.target_b is not None:
        version += sum(x._version for x in options if isinstance(x, Tensor))
    return version


def _again(arguments: Any, saved: Any) -> tuple[Tensor, Tensor, Options]:
    """The arguments of the loss, if they still have their values."""
    input, target, options, version = arguments
    if options.inplace:
        raise RuntimeError("With inplace=True, the gradient of a loss has no gradient itself.")
    if saved:
        input, target = saved
    elif _version(input, target, options) != version:
        raise RuntimeError(
            "A tensor that the loss was computed from has been modified by an inplace operation, but is "
            "needed again: for the gradient of a gradient, or to scale the gradient in float16."
        )
    return input, target, options


_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
# `Function.apply` without its handling of functorch, whose transforms do not come here, and `backward`
# without the choice between it and `vjp`: saves 4 us.
_apply = super(torch.autograd.Function, _Fused).apply
_Fused._backward_cls.apply = _Fused.backward  # type: ignore[attr-defined]
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


def runs_natively(input: Any) -> bool:
    """Whether to call the kernel: for a plain CPU tensor, if nothing traces the call."""
    return (
        type(input) in _TENSORS
        and input.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
    )
