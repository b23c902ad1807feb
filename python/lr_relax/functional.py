"""The losses as functions: choose the native kernel or the reference, wire the gradient, reduce."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from lr_relax import _native, _reference

__all__ = ["label_relaxation_loss"]

_TENSORS = (Tensor, Parameter)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def label_relaxation_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.1,
    reduction: str = "mean",
    *,
    dim: int = -1,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    from_logits: bool = True,
) -> Tensor:
    r"""The divergence of the prediction from the set of distributions with ``p[target] >= 1 - alpha``.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)[range(N), target]
        loss = (1 - alpha) * log((1 - alpha) / p) + alpha * log(alpha / (1 - p))
        where(p >= 1 - alpha, 0, loss).mean()

    Loss and gradient are exactly 0 inside the set. The gradient is the prediction minus its projection onto
    the set. Both are computed in one pass over the logits, in float32 or better.

    Args:
        input: Logits of shape (..., C), C >= 2, with the classes in dimension `dim`; float16, bfloat16,
            float32 or float64, any strides.
        target: Class indices in [0, C), of the shape of `input` without its classes and any integer type.
        alpha: The imprecision in [0, 1): the probability that the set leaves to the other classes. 0 is
            cross-entropy.
        reduction: "mean" over the rows that count (weighted by `weight`), "sum" or "none".
        dim: The dimension of the classes; 1 for what `nn.CrossEntropyLoss` takes.
        ignore_index: Rows with this target have loss and gradient 0 and do not count.
        weight: A factor for each class, of shape (C,), taken as constant.
        from_logits: False if `input` holds probabilities. Rows are divided by their sum; a row that is
            negative somewhere, or all 0, has loss NaN.

    Returns:
        A scalar, or for "none" the losses in nats in the shape of `target`; float32 for half precision,
        else of the type of `input`. NaN or +inf in a row makes the loss of that row NaN; the mean of no
        rows is NaN, as in `F.cross_entropy`.

    Raises:
        ValueError: `alpha`, `reduction`, `dim` or a shape is wrong.
        TypeError: an argument is of a wrong type, or not on the device of `input`.
        IndexError: a target is no class; names the first one (where nothing traces).

    Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7.

    >>> label_relaxation_loss(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0]), reduction="none")
    tensor([0.0018, 0.0000])
    """
    if not _runs_natively(input):
        _check(input, target, weight, alpha, reduction, dim, ignore_index, from_logits)
        return _reference.label_relaxation_loss(
            input, target, weight, float(alpha), reduction, dim, ignore_index, from_logits
        )
    options: Any = (alpha, reduction, dim, ignore_index, from_logits)
    if input.requires_grad and torch.is_grad_enabled():
        return _apply(input, target, weight, options)  # type: ignore[no-untyped-call, no-any-return]
    return _native.label_relaxation(input, target, None, weight, *options)[0]


class _LabelRelaxation(torch.autograd.Function):
    """One native call computes the loss and the gradient, which backward hands on.

    This classic form of a Function (ctx in forward) is the fastest that torch offers from Python, and
    does not trace; what traces takes the reference.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any) -> Tensor:
        loss, grad = _native.label_relaxation(input, target, 1.0, weight, *options)
        ctx.save_for_backward(input, target, weight, grad)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight, grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the gradient must itself have one
            loss = _reference.label_relaxation_loss(input, target, weight, *ctx.options)
            return *torch.autograd.grad(loss, input, upstream, create_graph=True), None, None, None
        scale = _native.scalar(upstream)
        if scale is None:  # one for each row, or one that stands for several (is_grads_batched)
            grad = grad * (upstream.unsqueeze(ctx.options[2]) if upstream.dim() > 0 else upstream)
        elif _keeps_graph():  # another backward wants the same gradient
            grad = grad * scale
        elif scale != 1.0 and grad.dtype == torch.float16:
            # A loss scale must enter before the rounding: the mean's small gradients would be 0 by now.
            grad = _native.label_relaxation(input, target, scale, weight, *ctx.options)[1]
        elif scale != 1.0:
            grad.mul_(scale)
        return grad, None, None, None


# `Function.apply` without what it does for functorch, whose transforms do not come here: 3 us.
_apply = super(torch.autograd.Function, _LabelRelaxation).apply
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


def _runs_natively(input: Any) -> bool:
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


def check_hyperparameters(alpha: object, reduction: object) -> None:
    """Raises what the kernel would raise."""
    try:
        if isinstance(alpha, str | Tensor):
            raise TypeError
        in_range = 0.0 <= float(alpha) < 1.0  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected argument `alpha` to be a number in [0, 1), but got {alpha!r}.") from error
    if not in_range:
        raise ValueError(f"Expected argument `alpha` to be a number in [0, 1), but got {alpha!r}.")
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"Expected argument `reduction` to be 'mean', 'sum' or 'none', but got {reduction!r}."
        )


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    alpha: float,
    reduction: str,
    dim: int,
    ignore_index: int,
    from_logits: bool,
) -> None:
    """What the kernel checks by itself, but for the values of the targets."""
    check_hyperparameters(alpha, reduction)
    for name, integer in (("dim", dim), ("ignore_index", ignore_index)):
        if not isinstance(integer, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {integer!r}.")
        if not -(2**63) <= integer < 2**63:
            raise ValueError(f"Expected argument `{name}` to fit in 64 bits, but got {integer!r}.")
    if not isinstance(from_logits, bool):
        raise TypeError(f"Expected argument `from_logits` to be a bool, but got {from_logits!r}.")
    for name, tensor in (("input", input), ("target", target), ("weight", weight)):
        if tensor is None and name == "weight":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(tensor).__name__}.")
        if tensor.device != input.device:
            raise TypeError(
                f"Expected argument `{name}` to be on {input.device}, the device of `input`, "
                f"but got {tensor.device}."
            )
    shape = tuple(input.shape)
    if input.dtype not in _FLOATS:
        raise TypeError(f"Expected argument `input` to be of a floating-point type, but got {input.dtype}.")
    if not shape:
        raise ValueError("Expected argument `input` to have a class dimension, but got shape ().")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"Expected argument `dim` to be in [{-len(shape)}, {len(shape) - 1}], but got {dim}."
        )
    n_classes = shape[dim]
    if n_classes < 2:
        raise ValueError(
            f"Expected argument `input` to have at least 2 classes in dimension {dim}, but got shape {shape}."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(
            f"Expected argument `target` to hold class indices of an integer type, but got {target.dtype}."
        )
    rows = shape[:dim] + shape[dim:][1:]
    if tuple(target.shape) != rows:
        raise ValueError(
            f"Expected argument `target` to have shape {rows}, that of `input` {shape} without its classes, "
            f"but got {tuple(target.shape)}."
        )
    if weight is not None:
        if weight.dtype not in _FLOATS:
            raise TypeError(
                f"Expected argument `weight` to be of a floating-point type, but got {weight.dtype}."
            )
        if tuple(weight.shape) != (n_classes,):
            raise ValueError(
                f"Expected argument `weight` to have shape ({n_classes},), a number for each class, "
                f"but got {tuple(weight.shape)}."
            )
