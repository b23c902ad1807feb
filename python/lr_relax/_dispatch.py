"""Chooses what computes a loss: the kernel, eagerly or as an operator, or the formulas."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from lr_relax import _formulas, _fused, _native, _operators, _triton
from lr_relax._arguments import broadcasts, check, check_constant
from lr_relax._options import Options

_TENSORS = (Tensor, Parameter)
FEW = 2**15
"""Up to about so many logits, a call of an operator from compiled code takes longer than the formula."""


def loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss that `options` describes."""
    is_native = runs_natively(input)
    if options.weight is not None:
        check_constant(options.weight, "weight")
    if type(options.parameter) is not float or options.lam is not None:
        options = broadcast(options, input)
        if is_native and wants_gradient(options.parameter):  # of alpha, which the kernel does not compute
            _native.check_loss(input, target, options)
            return _formulas.loss(input, target, options)
    if not is_native:
        check(input, target, options)
        has_kernel = input.is_cpu or _triton.supports(input, options)
        has_kernel = has_kernel and not wants_gradient(options.parameter)
        if has_kernel and is_compiled(input) and not _compiles_well(input, target, options):
            return _operators.loss(input, target, options)
        if not has_kernel or input.is_cpu or not is_eager(input):
            return _formulas.loss(input, target, options)
    if input.requires_grad and torch.is_grad_enabled():
        if options.inplace is True and (input.is_leaf or (input._is_view() and _is_leaf(input._base))):
            raise ValueError(
                "Expected argument `inplace` to be False for a leaf that requires a gradient, "
                "or a view of one, whose values the gradient would replace."
            )
        return _fused.apply(input, target, options)  # type: ignore[no-any-return, no-untyped-call]
    return _fused.compute(input, target, options, None)[0]


def with_gradient(
    input: Tensor, target: Tensor, options: Options, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss and, if wanted, its gradient, outside of autograd. The arguments have been checked."""
    if input.is_cpu or _triton.supports(input, options):
        in_place = options.inplace and wanted and input.dtype != torch.float16
        options = options._replace(inplace=in_place)
        loss, grad = _fused.compute(input, target, options, 1.0 if wanted else None)
        return loss, input if in_place else grad
    if not wanted:
        return _formulas.loss(input, target, options), None
    with torch.enable_grad():
        input = input.detach().requires_grad_()
        loss = _formulas.loss(input, target, options)
    return loss.detach(), torch.autograd.grad(loss, input, torch.ones_like(loss))[0]


def uniform_penalty(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The penalty that the paper's code can add to label relaxation. The arguments have been checked."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(
            "Expected argument `target` to hold class indices with a `uniform_penalty`, "
            f"but got {target.dtype}."
        )
    return _formulas.loss(input, target, broadcast(options, input)._replace(loss="uniform_penalty"))


def projection(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The projection of each row onto its set."""
    options = broadcast(options, input)
    if runs_natively(input):
        _native.check_loss(input, target, options)
    else:
        check(input, target, options)
    return _formulas.projection(input, target, options)


def broadcast(options: Options, input: Any) -> Options:
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


def wants_gradient(parameter: Any) -> bool:
    return isinstance(parameter, Tensor) and parameter.requires_grad and torch.is_grad_enabled()


def is_compiled(input: Tensor) -> bool:
    """Whether to call a kernel as an operator: in compiled and exported graphs, except for transforms."""
    return (
        torch.compiler.is_compiling()
        and (type(input) in _TENSORS or torch.compiler.is_exporting())  # in export, inputs have other types
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _compiles_well(input: Tensor, target: Tensor, options: Options) -> bool:
    """Whether compiled code for the formula takes less time than the call of an operator: for few logits.

    Only for class indices, whose values the compiled code checks, too.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # not before: it takes 0.4 s

    is_integer = not target.is_floating_point() and target.dtype != torch.bool
    return (
        input.is_cpu
        and is_integer
        and options.loss != "binary_label_relaxation"
        and options.target_b is None
        and not isinstance(options.parameter, Tensor)
        and not torch.compiler.is_exporting()
        and statically_known_true(input.numel() < FEW)
    )


def is_eager(input: Any) -> bool:
    """Whether this is a plain tensor, and nothing traces the call."""
    return (
        type(input) in _TENSORS
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
    )


def runs_natively(input: Any) -> bool:
    """Whether to call the kernel for the CPU."""
    return is_eager(input) and input.is_cpu
