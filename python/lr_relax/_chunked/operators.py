"""The loss of a linear layer as an operator of PyTorch, which compiled and exported graphs call."""

from typing import Any

import torch
from torch import Tensor

from lr_relax._chunked import whole
from lr_relax._chunked.arguments import check_values
from lr_relax._chunked.chunks import Gradients, Head, chunks, kept, single
from lr_relax._operators import ARGUMENTS, to_arguments, to_options
from lr_relax._options import Options

_HEAD = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target"
_LOSS = f"({_HEAD}, {ARGUMENTS}, int? chunk_size, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"
_GRADIENTS = (
    f"(Tensor upstream, {_HEAD}, {ARGUMENTS}, int? chunk_size, bool[] wanted) -> (Tensor, Tensor, Tensor)"
)


def loss(head: Head, target: Tensor, options: Options, chunk_size: int | None) -> Tensor:
    """The loss, by the operator."""
    wanted = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in head]
    results = torch.ops.lr_relax.linear_loss(*head, target, *to_arguments(options), chunk_size, wanted)
    loss: Tensor = results[0]
    return loss


def _loss(*arguments: Any) -> tuple[Tensor, ...]:
    head, target, options, chunk_size, wanted = _unpack(arguments)
    if options.reduction == "none":  # the gradients need the upstream
        wanted = (False, False, False)
    if head.input.is_cpu and head.weight is not None:  # before a chunk is computed
        check_values(head.input, head.weight.shape[0], target, options)
    loss, gradients = chunks(head, target, options, wanted, None, chunk_size)
    return loss, *_packed(gradients, head)


def _gradients(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    head, target, options, chunk_size, wanted = _unpack(arguments)
    gradients = chunks(head, target, options, wanted, upstream, chunk_size)[1]
    return _packed(gradients, head)


def _loss_fake(*arguments: Any) -> tuple[Tensor, ...]:
    head, _, options, _, wanted = _unpack(arguments)
    is_none = options.reduction == "none"
    n_rows, dtype = head.input.shape[0], single(head.input.dtype)
    loss = head.input.new_empty((n_rows,) if is_none else (), dtype=dtype)
    return loss, *_fakes(head, (False, False, False) if is_none else wanted)


def _gradients_fake(_: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    head, *_others, wanted = _unpack(arguments)
    return _fakes(head, wanted)


def _unpack(arguments: tuple[Any, ...]) -> tuple[Head, Tensor, Options, int | None, Any]:
    input, weight, bias, target, *others, chunk_size, wanted = arguments
    return Head(input, weight, bias), target, to_options(*others), chunk_size, tuple(wanted)


def _packed(gradients: Gradients, head: Head) -> tuple[Tensor, ...]:
    """The gradients; an empty tensor in place of None."""
    results = []
    for grad in gradients[:3]:
        if grad is None:
            results.append(head.input.new_empty(0, dtype=kept(head.input.dtype)))
        else:
            results.append(grad.mul_(gradients.factor))
    return tuple(results)


def _fakes(head: Head, wanted: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return tuple(
        head.input.new_empty(x.shape if wants and x is not None else 0, dtype=kept(head.input.dtype))
        for x, wants in zip(head, wanted, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors = [x if isinstance(x, Tensor) else None for x in inputs]
    ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    kept, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    arguments = tuple(y if x is None else x for x, y in zip(tensors, ctx.others, strict=True))
    head, target, options, _chunk_size, wanted = _unpack(arguments)
    if upstream is None:
        return (None,) * len(arguments)
    if torch.is_grad_enabled():  # create_graph: the gradient must have a gradient itself
        results = whole.gradients(head, target, options, wanted, upstream)
    elif options.reduction == "none":
        results = torch.ops.lr_relax.linear_gradients(upstream, *arguments)
    else:
        results = [grad * upstream for grad in kept]
    results = [
        g.to(x.dtype) if wants and x is not None and g is not None else None
        for g, x, wants in zip(results, head, wanted, strict=True)
    ]
    return *results, *[None] * (len(arguments) - 3)


# Where this module is imported again, they are still there.
if not hasattr(torch.ops.lr_relax, "linear_loss"):
    for _name, _schema, _compute, _fake in (
        ("lr_relax::linear_loss", _LOSS, _loss, _loss_fake),
        ("lr_relax::linear_gradients", _GRADIENTS, _gradients, _gradients_fake),
    ):
        torch.library.define(_name, _schema, tags=torch.Tag.cudagraph_unsafe)
        torch.library.impl(_name, ("cpu", "cuda"), _compute)
        torch.library.register_fake(_name, _fake)
    torch.library.register_autograd("lr_relax::linear_loss", _backward, setup_context=_save)
