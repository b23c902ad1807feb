"""Formulas that give their slope along with their value, as autograd functions."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor
WithSlopes: TypeAlias = tuple[Tensor, ...]
"""A value for each row, its derivative by the first argument, and by the second one if that is a tensor."""


def with_slope(
    formula: Callable[..., WithSlopes],
    x: Tensor,
    parameter: Number | None = None,
    target: Tensor | None = None,
    p: Tensor | None = None,
    scores: Tensor | None = None,
) -> Tensor:
    """The value of a formula of x and what else is given, with the slopes as its derivatives.

    The scores are not saved: derivatives of slopes are computed without them.
    """
    arguments = formula, x, parameter, target, p, scores
    if torch.compiler.is_compiling():  # which takes no function with a `jvp`
        return _Sloped.apply(*arguments)[0]  # type: ignore[no-any-return, no-untyped-call]
    if torch._C._are_functorch_transforms_active():
        if _is_forward_in_another():
            return _Sloped.forward(*arguments)[0]
        return _SlopedInForwardMode.apply(*arguments)[0]  # type: ignore[no-any-return, no-untyped-call]
    return _apply(*arguments)[0]  # type: ignore[no-any-return, no-untyped-call]


def _is_forward_in_another() -> bool:
    """Whether forward mode is inside another derivative, which takes the slopes of a `jvp` for constants."""
    forward, reverse = torch._C._functorch.TransformType.Jvp, torch._C._functorch.TransformType.Grad
    stack = torch._C._functorch.get_interpreter_stack() or []
    derivatives = [transform.key() for transform in stack if transform.key() in (forward, reverse)]
    return forward in derivatives[1:]


class _Sloped(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Any, *arguments: Any) -> WithSlopes:
        given = [argument for argument in arguments if argument is not None]
        slopes: WithSlopes = formula(*given)
        return slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: WithSlopes) -> None:
        value, *slopes = output
        *inputs, _ = inputs  # type: ignore[assignment]
        tensors = [argument if isinstance(argument, Tensor) else None for argument in inputs]
        ctx.numbers = [None if isinstance(argument, Tensor) else argument for argument in inputs]
        ctx.has_classes = value.dim() < slopes[0].dim()
        for save in (ctx.save_for_backward, ctx.save_for_forward):  # vmap wants the same for both
            save(*tensors, *slopes)
        ctx.mark_non_differentiable(*slopes)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None, None, None
        saved = ctx.saved_tensors  # may be unpacked once, under checkpoints
        tensors, slopes = saved[:5], saved[5:]
        if torch.is_grad_enabled():  # the slopes must have derivatives themselves
            inputs = [n if t is None else t for t, n in zip(tensors, ctx.numbers, strict=True)]
            slopes = _Sloped.forward(*inputs)[1:]
        by_x = (upstream.unsqueeze(-1) if ctx.has_classes else upstream) * slopes[0]
        return None, by_x, upstream * slopes[1] if len(slopes) > 1 else None, None, None, None


class _SlopedInForwardMode(_Sloped):
    @staticmethod
    def jvp(ctx: Any, _: None, x: Tensor | None, parameter: Tensor | None, *__: Any) -> tuple[Any, ...]:
        slopes = ctx.saved_tensors[5:]
        tangent = 0.0 if x is None else x * slopes[0]
        tangent = tangent.sum(-1) if ctx.has_classes and isinstance(tangent, Tensor) else tangent
        tangent = tangent if parameter is None else tangent + parameter * slopes[1]
        return tangent, *(None for _ in slopes)


# `Function.apply` without its handling of functorch and of defaults, which takes as long as a formula.
_apply = super(torch.autograd.Function, _SlopedInForwardMode).apply
