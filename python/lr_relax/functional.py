"""The losses as functions: choose the native kernel or the reference, wire the gradient, reduce."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from lr_relax import _native, _reference

__all__ = [
    "confidence_penalty_loss",
    "cross_entropy_loss",
    "focal_loss",
    "label_relaxation_loss",
    "mixup_label_relaxation_loss",
]

_TENSORS = (Tensor, Parameter)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def label_relaxation_loss(
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor = 0.1,
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
        target: Class indices in [0, C), of the shape of `input` without its classes and any integer type; or,
            of the shape of `input`, sets of classes (bool: those that may be right, at least one; together
            they have at least ``1 - alpha``) or distributions (floating-point: rows without negative numbers
            that sum to 1; every class has at least ``(1 - alpha) * target``).
        alpha: The imprecision in [0, 1): the probability that the set leaves to the other classes. 0 is
            cross-entropy. Or a tensor with a number for each row, of the shape of the rows or a scalar; it
            may ask for a gradient.
        reduction: "mean" over the rows that count (weighted by `weight`), "sum" or "none".
        dim: The dimension of the classes; 1 for what `nn.CrossEntropyLoss` takes.
        ignore_index: Rows with this class have loss and gradient 0 and do not count.
        weight: A factor for each class, of shape (C,), taken as constant. That of a set is the mean over its
            classes, that of a distribution the expectation.
        from_logits: False if `input` holds probabilities. Rows are divided by their sum; a row that is
            negative somewhere, or all 0, has loss NaN.

    Returns:
        A scalar, or for "none" the losses in nats in the shape of the rows; float32 for half precision,
        else of the type of `input`. NaN or +inf in a row makes the loss of that row NaN; the mean of no
        rows is NaN, as in `F.cross_entropy`.

    Raises:
        ValueError: `alpha`, `reduction`, `dim` or a shape is wrong; a row of `target` is an empty set or no
            distribution (names the first one, where nothing traces).
        TypeError: an argument is of a wrong type, or not on the device of `input`.
        IndexError: a target is no class; names the first one (where nothing traces).

    Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7; sets as in
    Lienen & Hüllermeier, "Mitigating Label Noise through Data Ambiguation", AAAI 2024.

    >>> label_relaxation_loss(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0]), reduction="none")
    tensor([0.0018, 0.0000])
    """
    return _loss(
        input, target, weight, ("label_relaxation", alpha, reduction, dim, ignore_index, from_logits)
    )


def mixup_label_relaxation_loss(
    logits: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    alpha: float | Tensor = 0.1,
    reduction: str = "mean",
    *,
    dim: int = -1,
    ignore_index: int = -100,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Label relaxation of inputs that are mixed of two classes, without a dense target.

    Equivalent to, for logits of shape (N, C)::

        one_hot = lambda target: F.one_hot(target, C).to(logits)
        label_relaxation_loss(logits, lam * one_hot(target_a) + (1 - lam) * one_hot(target_b), alpha)

    The set has ``p[target_a] >= (1 - alpha) * lam`` and ``p[target_b] >= (1 - alpha) * (1 - lam)``. With
    ``lam`` 1 or 0, and where both classes are the same, it is `label_relaxation_loss` of that class.

    Args:
        target_a, target_b: Class indices in [0, C), of the shape of `logits` without its classes.
        lam: The share of `target_a`, in [0, 1]: a number, or a tensor with one for each row.
        logits, alpha, reduction, dim, ignore_index, weight: As in `label_relaxation_loss`, as are the result
            and the errors.

    Source: Lienen & Hüllermeier, AAAI 2021, of the targets of Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", ICLR 2018; the same as in the package `label-relaxation`.

    >>> logits, target_a, target_b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
    >>> mixup_label_relaxation_loss(logits, target_a, target_b, lam=0.5)
    tensor(0.2060)
    """
    options = ("label_relaxation", alpha, reduction, dim, ignore_index, True)
    return _loss(logits, target_a, weight, options, target_b, lam)


def cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    dim: int = -1,
    ignore_index: int = -100,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy with label smoothing, in one pass over the logits.

    Equivalent to, for logits of shape (N, C)::

        F.cross_entropy(input, target, label_smoothing=label_smoothing)

    also in what `weight` and "mean" do.

    Args:
        label_smoothing: How much of the target is spread evenly over all classes, in [0, 1].
        input, target, reduction, dim, ignore_index, weight: As in `label_relaxation_loss`, as are the result
            and the errors.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.

    >>> cross_entropy_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 0.1)
    tensor(0.2269)
    """
    return _loss(
        input, target, weight, ("cross_entropy", label_smoothing, reduction, dim, ignore_index, True)
    )


def focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    dim: int = -1,
    ignore_index: int = -100,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy that counts a row the less the surer it is of its class.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)[range(N), target]
        (-((1 - p) ** gamma) * log(p)).mean()

    Args:
        gamma: How much the rows that are sure of their class are discounted, at least 0; 0 is cross-entropy.
        input, target, reduction, dim, ignore_index, weight: As in `label_relaxation_loss`, as are the result
            and the errors; `weight` is the alpha of the paper.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, of a softmax; its effect on
    calibration: Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020.

    >>> focal_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.1733)
    """
    return _loss(input, target, weight, ("focal", gamma, reduction, dim, ignore_index, True))


def confidence_penalty_loss(
    input: Tensor,
    target: Tensor,
    beta: float = 0.1,
    reduction: str = "mean",
    *,
    dim: int = -1,
    ignore_index: int = -100,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy minus `beta` times the entropy of the prediction.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)
        (-log(p[range(N), target]) + beta * (p * log(p)).sum(1)).mean()

    Args:
        beta: How much the entropy counts, at least 0; 0 is cross-entropy.
        input, target, reduction, dim, ignore_index, weight: As in `label_relaxation_loss`, as are the result
            and the errors.

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017,
    section 3.

    >>> confidence_penalty_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6238)
    """
    return _loss(input, target, weight, ("confidence_penalty", beta, reduction, dim, ignore_index, True))


def _loss(input: Tensor, target: Tensor, weight: Tensor | None, options: Any, *mixed: Any) -> Tensor:
    """The loss that `options` tells: name, hyperparameter, reduction, dim, ignore_index, from_logits.

    `mixed` is the second class of each row, and the share of the first.
    """
    parameter = options[1]
    if not _runs_natively(input) or (type(parameter) is not float and _wants_gradient(parameter)):
        _check(input, target, weight, *options, *mixed)
        parameter = parameter if isinstance(parameter, Tensor) else float(parameter)
        return _reference.loss(input, target, weight, options[0], parameter, *options[2:], *mixed)
    if input.requires_grad and torch.is_grad_enabled():
        return _apply(input, target, weight, options, *mixed)  # type: ignore[no-untyped-call, no-any-return]
    return _native.loss(input, target, None, weight, False, *options, *mixed)[0]


def _wants_gradient(parameter: Any) -> bool:
    return isinstance(parameter, Tensor) and parameter.requires_grad and torch.is_grad_enabled()


class _Fused(torch.autograd.Function):
    """One native call computes the loss and the gradient, which backward hands on.

    This classic form of a Function (ctx in forward) is the fastest that torch offers from Python, and
    does not trace; what traces takes the reference.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, options: Any, *mixed: Any
    ) -> Tensor:
        loss, grad = _native.loss(input, target, 1.0, weight, False, *options, *mixed)
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
            loss = _reference.loss(input, target, weight, *ctx.options)
            return *torch.autograd.grad(loss, input, upstream, create_graph=True), *constants
        scale = _native.scalar(upstream)
        if scale is None:  # one for each row, or one that stands for several (is_grads_batched)
            grad = grad * (upstream.unsqueeze(ctx.options[3]) if upstream.dim() > 0 else upstream)
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


# The hyperparameter of each loss, what it is to be, and whether a number is that.
_PARAMETERS: dict[str, tuple[str, str, Callable[[float], bool]]] = {
    "label_relaxation": ("alpha", "a number in [0, 1)", lambda x: 0 <= x < 1),
    "cross_entropy": ("label_smoothing", "a number in [0, 1]", lambda x: 0 <= x <= 1),
    "focal": ("gamma", "a finite number of at least 0", lambda x: 0 <= x < math.inf),
    "confidence_penalty": ("beta", "a finite number of at least 0", lambda x: 0 <= x < math.inf),
}


def check_hyperparameters(name: str, parameter: object, reduction: object) -> None:
    """Raises what the kernel would raise for the loss of that name."""
    if name != "label_relaxation" or not isinstance(parameter, Tensor):
        _check_number(*_PARAMETERS[name], parameter)
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"Expected argument `reduction` to be 'mean', 'sum' or 'none', but got {reduction!r}."
        )


def _check_number(name: str, expected: str, in_range: Callable[[float], bool], number: object) -> None:
    error: type[Exception] | None
    try:
        if isinstance(number, str | Tensor):
            raise TypeError
        error = None if in_range(float(number)) else ValueError  # type: ignore[arg-type]
    except (TypeError, ValueError):
        error = TypeError
    if error:
        raise error(f"Expected argument `{name}` to be {expected}, but got {number!r}.")


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: str,
    parameter: float | Tensor,
    reduction: str,
    dim: int,
    ignore_index: int,
    from_logits: bool,
    *mixed: Any,
) -> None:
    """What the kernel checks by itself, but for the values in tensors."""
    check_hyperparameters(loss, parameter, reduction)
    for name, integer in (("dim", dim), ("ignore_index", ignore_index)):
        if not isinstance(integer, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {integer!r}.")
        if not -(2**63) <= integer < 2**63:
            raise ValueError(f"Expected argument `{name}` to fit in 64 bits, but got {integer!r}.")
    if not isinstance(from_logits, bool):
        raise TypeError(f"Expected argument `from_logits` to be a bool, but got {from_logits!r}.")
    tensors = {"input": input, "target_a" if mixed else "target": target}
    numbers = {}
    if weight is not None:
        tensors["weight"] = weight
    if isinstance(parameter, Tensor):
        numbers["alpha"] = parameter
    if mixed:
        tensors["target_b"], lam = mixed
        if isinstance(lam, Tensor):
            numbers["lam"] = lam
        else:
            _check_number("lam", "a number in [0, 1]", lambda x: 0 <= x <= 1, lam)
    for name, tensor in (tensors | numbers).items():
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
    rows = shape[:dim] + shape[dim:][1:]
    for name in ("target_a", "target_b") if mixed else ("target",):
        target = tensors[name]
        if target.dtype in (*_FLOATS, torch.bool) and loss == "label_relaxation" and not mixed:
            if tuple(target.shape) != shape:
                raise ValueError(
                    f"Expected argument `target` of type {target.dtype} to have shape {shape}, that of "
                    f"`input`, but got {tuple(target.shape)}."
                )
        elif target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(
                f"Expected argument `{name}` to hold class indices of an integer type, "
                f"but got {target.dtype}."
            )
        elif tuple(target.shape) != rows:
            raise ValueError(
                f"Expected argument `{name}` to have shape {rows}, that of `input` {shape} without its "
                f"classes, but got {tuple(target.shape)}."
            )
    for name, tensor in numbers.items():
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"Expected argument `{name}` to be of a floating-point type, but got {tensor.dtype}."
            )
        if tuple(tensor.shape) not in (rows, ()):
            raise ValueError(
                f"Expected argument `{name}` to have shape {rows}, a number for each row, "
                f"but got {tuple(tensor.shape)}."
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
