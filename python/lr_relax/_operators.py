"""The kernels as operators of PyTorch, which compiled and exported graphs call.

`lr_relax::loss` also computes the gradient, and returns an empty tensor that owns its memory. From that,
`lr_relax::gradient` makes the gradient in `backward`, without copying it. The memory is handed out once. A
compiler merges equal operators, so that two gradients may ask for the same memory, and hooks on saved tensors
may replace the tensor: then the gradient is computed again.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from lr_relax import _formulas
from lr_relax._fused import compute, keeps_graph, scaled
from lr_relax._options import Options

ARGUMENTS = (
    "str name, float parameter, Tensor? alphas, str reduction, int dim, int ignore_index, Tensor? weight, "
    "bool from_logits, Tensor? target_b, float? share, Tensor? shares"
)
_LOSS = f"(Tensor input, Tensor target, {ARGUMENTS}, bool wants_gradient) -> (Tensor, Tensor)"
_GRADIENT = f"(Tensor memory, Tensor upstream, Tensor input, Tensor target, {ARGUMENTS}) -> Tensor"

_unused: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
"""The memory of gradients that has not been handed out."""


def loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss, by the operator."""
    wants_gradient = input.requires_grad and torch.is_grad_enabled()
    result: Tensor = torch.ops.lr_relax.loss(input, target, *to_arguments(options), wants_gradient)[0]
    return result


def to_arguments(options: Options) -> tuple[Any, ...]:
    parameter, lam = options.parameter, options.lam
    alphas = parameter if isinstance(parameter, Tensor) else None
    shares = lam if isinstance(lam, Tensor) else None
    return (
        options.loss,
        0.0 if alphas is not None else float(parameter),
        alphas,
        options.reduction,
        options.dim,
        options.ignore_index,
        options.weight,
        options.from_logits,
        options.target_b,
        None if lam is None or shares is not None else float(lam),
        shares,
    )


def to_options(
    name: str,
    parameter: float,
    alphas: Tensor | None,
    reduction: Any,
    dim: int,
    ignore_index: int,
    weight: Tensor | None,
    from_logits: bool,
    target_b: Tensor | None,
    share: float | None,
    shares: Tensor | None,
) -> Options:
    number = parameter if alphas is None else alphas
    lam = share if shares is None else shares
    return Options(name, number, reduction, dim, ignore_index, weight, from_logits, False, target_b, lam)


def _loss(input: Tensor, target: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *arguments, wants_gradient = arguments  # type: ignore[assignment]
    loss, grad = compute(input, target, to_options(*arguments), 1.0 if wants_gradient else None)
    if grad is None:
        return loss, input.new_empty(0)
    grad = grad.contiguous()
    _unused.add(grad.untyped_storage())
    return loss, grad.as_strided((0,), (1,))


def _loss_fake(input: Tensor, target: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    options = to_options(*arguments[:-1])
    is_half = input.dtype in (torch.float16, torch.bfloat16)
    dtype, dim = torch.float32 if is_half else input.dtype, options.dim % input.dim()
    rows = input.shape[:dim] + input.shape[dim + 1 :] if options.reduction == "none" else ()
    return input.new_empty(rows, dtype=dtype), input.new_empty(0)


def _gradient(memory: Tensor, upstream: Tensor, input: Tensor, target: Tensor, *arguments: Any) -> Tensor:
    options, storage, keeps = to_options(*arguments), memory.untyped_storage(), keeps_graph()
    grad: Tensor | None
    if storage in _unused:
        grad = input.new_empty(0).set_(storage, 0, input.shape)  # type: ignore[call-overload]
        if not keeps:
            _unused.discard(storage)
    else:
        grad, keeps = compute(input, target, options, 1.0)[1], False
        assert grad is not None
        grad = grad.contiguous()
    return scaled(grad, upstream, options.dim, keeps, lambda: (input, target, options))


def _gradient_fake(memory: Tensor, upstream: Tensor, input: Tensor, *others: Any) -> Tensor:
    return input.new_empty(input.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, *arguments, _ = inputs
    ctx.arguments = [None if isinstance(x, Tensor) else x for x in arguments]
    ctx.save_for_backward(
        output[1], input, target, *[x if isinstance(x, Tensor) else None for x in arguments]
    )


def _backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    memory, input, target, *tensors = ctx.saved_tensors
    arguments = [x if x is not None else y for x, y in zip(tensors, ctx.arguments, strict=True)]
    if torch.is_grad_enabled():  # create_graph: the gradient must have a gradient itself
        loss = _formulas.loss(input, target, to_options(*arguments))
        (grad,) = torch.autograd.grad(loss, input, upstream, create_graph=True)
    else:
        grad = torch.ops.lr_relax.gradient(memory, upstream, input, target, *arguments)
    return grad, *[None] * (len(arguments) + 2)


if not hasattr(torch.ops.lr_relax, "loss"):  # where this module is imported again, they are still there
    for _name, _schema, _compute, _fake in (
        ("lr_relax::loss", _LOSS, _loss, _loss_fake),
        ("lr_relax::gradient", _GRADIENT, _gradient, _gradient_fake),
    ):
        torch.library.define(_name, _schema, tags=torch.Tag.cudagraph_unsafe)
        torch.library.impl(_name, ("cpu", "cuda"), _compute)
        torch.library.register_fake(_name, _fake)
    torch.library.register_autograd("lr_relax::loss", _backward, setup_context=_save)
