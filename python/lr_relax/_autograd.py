"""How a loss is computed: by the kernel or by the reference, and wired into autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from lr_relax import _native, _reference
from lr_relax._arguments import check

_TENSORS = (Tensor, Parameter)


def loss(
    input: Tensor, target: Tensor, weight: Tensor | None, inplace: bool, options: Any, *mixed: Any
) -> Tensor:
    """The loss that `options` tells: name, hyperparameter, reduction, dim, ignore_index, from_logits.

    `mixed` is the second class of each row, and the share of the first. With `inplace`, the kernel writes the
    gradient over the input.
    """
    name, parameter, reduction, dim, *others = options
    if type(parameter) is not float:
        parameter = for_each_row(parameter, input, dim)
        options = (name, parameter, reduction, dim, *others)
    if mixed:
        mixed = (mixed[0], for_each_row(mixed[1], input, dim))
    natively = runs_natively(input)
    if not natively or (type(parameter) is not float and _wants_gradient(parameter)):
        if natively:  # the kernel has no gradient of alpha, but checks the values too
            _native.loss(input, target, None, weight, inplace, *options, *mixed)
        check(input, target, weight, *options, *mixed, inplace=inplace)
        parameter = parameter if isinstance(parameter, Tensor) else float(parameter)
        return _reference.loss(input, target, weight, name, parameter, *options[2:], *mixed)
    if input.requires_grad and torch.is_grad_enabled():
        if inplace is True and (input.is_leaf or (input._is_view() and _is_leaf(input._base))):
            raise ValueError(
                "Expected argument `inplace` to be False for a leaf that requires a gradient, "
                "or a view of one, whose values the gradient would replace."
            )
        apply = _apply(input, target, weight, inplace, options, *mixed)  # type: ignore[no-untyped-call]
        return apply  # type: ignore[no-any-return]
    return _native.loss(input, target, None, weight, inplace, *options, *mixed)[0]


def uniform_penalty(
    input: Tensor, target: Tensor, weight: Tensor | None, alpha: Any, *options: Any
) -> Tensor:
    """What the paper's code can add to label relaxation, which has checked the arguments."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(
            "Expected argument `target` to hold class indices with a `uniform_penalty`, "
            f"but got {target.dtype}."
        )
    alpha = for_each_row(alpha, input, options[1])
    return _reference.loss(input, target, weight, "uniform_penalty", alpha, *options)


def projection(
    input: Tensor, target: Tensor, alpha: Any, dim: int, ignore_index: int, from_logits: bool
) -> Tensor:
    """The projection of each row onto its set."""
    alpha = for_each_row(alpha, input, dim)
    options = ("label_relaxation", alpha, "none", dim, ignore_index, from_logits)
    if runs_natively(input):
        _native.loss(input, target, None, None, False, *options)  # checks the values too
    else:
        check(input, target, None, *options)
    alpha = alpha if isinstance(alpha, Tensor) else float(alpha)
    return _reference.projection(input, target, alpha, dim, ignore_index, from_logits)


def for_each_row(numbers: Any, input: Any, dim: Any) -> Any:
    """A tensor of numbers, broadcast to the rows if it can be."""
    if not isinstance(numbers, Tensor) or not isinstance(input, Tensor) or not isinstance(dim, int):
        return numbers
    if numbers.dim() == 0 or not -input.dim() <= dim < input.dim():
        return numbers
    rows = input.shape[:dim] + input.shape[dim:][1:]
    sizes = zip(reversed(numbers.shape), reversed(rows), strict=False)
    fits = numbers.dim() <= len(rows) and all(size in (1, n) for size, n in sizes)
    return numbers.broadcast_to(rows) if fits and numbers.shape != rows else numbers


def _is_leaf(base: Tensor | None) -> bool:
    return base is not None and base.is_leaf and base.requires_grad


def _is_batched(upstream: Tensor) -> bool:
    """Whether a tensor stands for several: of `is_grads_batched`, or of `torch.func.vmap`."""
    functorch = torch._C._functorch
    batched: bool = functorch.is_legacy_batchedtensor(upstream) or functorch.is_batchedtensor(upstream)
    return batched


def _wants_gradient(parameter: Any) -> bool:
    return isinstance(parameter, Tensor) and parameter.requires_grad and torch.is_grad_enabled()


class _Fused(torch.autograd.Function):
    """One native call computes the loss and the gradient, which backward hands on.

    This classic form of a Function (ctx in forward) is the fastest that torch offers from Python, and
    does not trace; what traces takes the reference.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        inplace: bool,
        options: Any,
        *mixed: Any,
    ) -> Tensor:
        loss, grad = _native.loss(input, target, 1.0, weight, inplace, *options, *mixed)
        if grad is None:  # it lies where the input was: whoever saved that for backward is told by torch
            torch.autograd.graph.increment_version(input)
            grad, input = input.detach(), None  # type: ignore[assignment]
        # All tensors are saved, so that torch notices where one of them has changed since.
        others = [x for x in (options[1], *mixed) if isinstance(x, Tensor)]
        ctx.save_for_backward(input, target, weight, grad, *others)
        ctx.options = (*options, *mixed)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight, grad, *_ = ctx.saved_tensors
        constants = (None,) * (len(ctx.needs_input_grad) - 1)
        if torch.is_grad_enabled():  # create_graph: the gradient must itself have one
            if input is None:
                raise RuntimeError("With inplace=True, the gradient of a loss has no gradient itself.")
            loss = _reference.loss(input, target, weight, *ctx.options)
            return *torch.autograd.grad(loss, input, upstream, create_graph=True), *constants
        scale = _native.scalar(upstream)
        if scale is None:  # one for each row, or one that stands for several (is_grads_batched)
            upstream = upstream.unsqueeze(ctx.options[3]) if upstream.dim() > 0 else upstream
            own = not _keeps_graph() and not _is_batched(upstream)
            grad = grad.mul_(upstream) if own else grad * upstream
        elif _keeps_graph():  # another backward wants the same gradient
            grad = grad * scale
        elif scale != 1.0 and grad.dtype == torch.float16:
            # A loss scale must enter before the rounding: the mean's small gradients would be 0 by now.
            grad = _native.loss(input, target, scale, weight, False, *ctx.options)[1]
        elif scale != 1.0:
            grad.mul_(scale)
        return grad, *constants


# `Function.apply` without what it does for functorch, whose transforms do not come here: 3 us.
_apply = super(torch.autograd.Function, _Fused).apply
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


def runs_natively(input: Any) -> bool:
    """Whether to call the kernel: a plain tensor on the CPU, and nothing that traces."""
    return (
        type(input) in _TENSORS
        and input.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
    )
