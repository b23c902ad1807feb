"""The loop over chunks of rows: neither the logits of a linear layer nor a dense target are ever whole.

For each chunk X of rows: logits ``X W'``, in place their gradient G, and the products ``G W`` and ``G' X``
for the gradients of input and weight. Rows without a gradient are left out of the products: those that are
ignored of all three, those inside their credal set of the last two. Without a layer, X holds the logits.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lr_relax import _dispatch, _formulas
from lr_relax._options import Options
from lr_relax.topk import TopK

Target: TypeAlias = Tensor | TopK


class Head(NamedTuple):
    """A linear layer with a batch of input; without a weight, the input holds the logits."""

    input: Tensor
    """(N, d)."""
    weight: Tensor | None
    """(C, d)."""
    bias: Tensor | None
    """(C,)."""


class Gradients(NamedTuple):
    """The gradients of what is wanted in a `Head`."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    factor: float | Tensor
    """By which they are still to be multiplied; those of float16 are in float32 until then."""


Wanted: TypeAlias = tuple[bool, bool, bool]
OfLogits: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]
"""The losses of rows, the gradients of their logits, and which rows have one; None if all may have."""


def of_logits(logits: Tensor, target: Target, options: Options, wants_gradient: bool) -> OfLogits:
    """Computes what a chunk needs; the gradient may overwrite the logits."""
    if isinstance(target, TopK):
        target = target.dense(logits.shape[1], single(logits.dtype))
        options = options._replace(ignore_index=-100)  # which distributions do not have
    losses, grad = _dispatch.with_gradient(logits, target, options, wants_gradient)
    if grad is None or options.loss != "label_relaxation":
        return losses, grad, None
    if target.dim() == 1 and options.target_b is None:  # the class of a row has its largest gradient
        return losses, grad, grad.gather(1, target.unsqueeze(1)).squeeze(1) != 0
    return losses, grad, (grad.amax(1) != 0) | (grad.amin(1) != 0)


def chunk_size_of(head: Head) -> int:
    """The rows in a chunk: as many as fit 24 MiB, but enough for a fast matrix product."""
    on_cpu = head.input.is_cpu
    if head.weight is None:  # a dense target that stays in the cache
        return max((1 if on_cpu else 256) * 2**20 // (4 * max(head.input.shape[1], 1)), 1)
    row = head.weight.shape[0] * head.input.element_size()
    return max((24 if on_cpu else 256) * 2**20 // max(row, 1), 240 if on_cpu else 1024)


@torch.no_grad()
def chunks(
    head: Head,
    target: Target,
    options: Options,
    wanted: Wanted,
    upstream: Tensor | None,
    chunk_size: int | None,
    of_logits: Callable[[Tensor, Any, Options, bool], OfLogits] = of_logits,
) -> tuple[Tensor, Gradients]:
    """The loss, and the gradients that are wanted.

    Args:
        head, target, options: Flat: (N, d), (N,) or (N, C).
        upstream: For "none", the gradient of the loss of each row, (N,).
    """
    with torch.autocast(head.input.device.type, enabled=False):  # which would cast in every product
        return _chunks(head, target, options, wanted, upstream, chunk_size, of_logits)


def _chunks(
    head: Head,
    target: Target,
    options: Options,
    wanted: Wanted,
    upstream: Tensor | None,
    chunk_size: int | None,
    of_logits: Callable[[Tensor, Any, Options, bool], OfLogits],
) -> tuple[Tensor, Gradients]:
    n_rows, dtype = head.input.shape[0], single(head.input.dtype)
    counted = _counted(target, options)
    n_counted = n_rows if counted is None else len(counted)
    total = _total(target, options, n_counted) if options.reduction == "mean" else 1.0
    scale = 1 / total if total else math.nan
    options, unit = _in_range(options, head.input.dtype)
    top: float | Tensor = 1.0
    if upstream is not None:
        upstream = upstream if counted is None else upstream[counted]
        if head.input.dtype == torch.float16 and n_counted:  # its products shall not overflow
            top = upstream.abs().amax()
            top = torch.where(top > 0, top, 1.0)
            upstream = upstream / top

    losses = head.input.new_zeros(n_rows, dtype=dtype)
    sums = _Sums(head, wanted, scale * unit if n_counted else 1.0)
    size = min(chunk_size or chunk_size_of(head), max(n_counted, 1))
    logits = None if head.weight is None else head.input.new_empty(size, head.weight.shape[0])
    options = options._replace(inplace=logits is not None)
    for start in range(0, n_counted, size):
        chunk: slice | Tensor = slice(start, min(start + size, n_counted))
        factors = None if upstream is None else upstream[chunk]
        if counted is not None:
            chunk = counted[chunk]
        x = head.input[chunk]
        z = x.to(sums.kept) if logits is None else _linear(x, head, logits[: len(x)])
        losses[chunk], grad, active = of_logits(z, target[chunk], _of_rows(options, chunk), any(wanted))
        if grad is not None:  # all rows count if the scale is NaN
            sums.add(chunk, x, grad, factors, active if total else None)
    gradients = sums.gradients()
    gradients = gradients._replace(factor=gradients.factor * top)
    if options.reduction == "none":
        return losses.mul_(unit), gradients
    return losses.sum(dtype=double(losses)).mul_(scale * unit).to(dtype), gradients


def _in_range(options: Options, dtype: torch.dtype) -> tuple[Options, float]:
    """Options whose class weights are at most 1 for float16, and the power of 2 that they were divided by."""
    if dtype != torch.float16 or options.weight is None:
        return options, 1.0
    top = float(options.weight.abs().amax())
    if not 0 < top < math.inf:
        return options, 1.0
    unit = 2.0 ** math.ceil(math.log2(top))
    return options._replace(weight=options.weight.to(double(options.weight)) / unit), unit


def _linear(x: Tensor, head: Head, into: Tensor) -> Tensor:
    assert head.weight is not None
    if head.bias is None:
        return torch.mm(x, head.weight.t(), out=into)
    return torch.addmm(head.bias, x, head.weight.t(), out=into)


BLOCK = 8192  # classes: the gradient of a weight in half precision is never whole


class _Sums:
    """The gradients. In half precision the products are rounded, but their sums are in float32."""

    def __init__(self, head: Head, wanted: Wanted, scale: float) -> None:
        self._head, self.kept, of_sums = head, kept(head.input.dtype), single(head.input.dtype)
        self._is_half = of_sums != head.input.dtype
        # float16 has no room for numbers that are divided by the rows, and multiplied by a loss scale later.
        self._scale, self._factor = (1.0, scale) if head.input.dtype == torch.float16 else (scale, 1.0)
        self._input, self._weight, self._bias = (
            torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            if wants and x is not None
            else None
            for x, wants, dtype in zip(head, wanted, (self.kept, of_sums, of_sums), strict=True)
        )

    def add(
        self, chunk: slice | Tensor, x: Tensor, grad: Tensor, factors: Tensor | None, active: Tensor | None
    ) -> None:
        """Adds what a chunk contributes, with a factor for each row; `active` says which rows count."""
        if active is not None and self._head.weight is not None:
            order = _compact(grad, active)
            grad, x = grad[: len(order)], x[order]
            factors = None if factors is None else factors[order]
            chunk = order + chunk.start if isinstance(chunk, slice) else chunk[order]
        if len(x) == 0:
            return
        if self._input is not None:
            product = self._of_input(grad)
            product = product if factors is None else product * factors.unsqueeze(1)
            self._input[chunk] = product.to(self.kept)
        ones = x.new_ones(len(x)) if factors is None else factors.to(x.dtype)
        if self._weight is not None:
            self._add_to_weight(self._weight, grad, x if factors is None else x * ones.unsqueeze(1))
        if self._bias is not None:
            self._add(self._bias, torch.addmv, grad.t(), ones)

    def _of_input(self, grad: Tensor) -> Tensor:
        if self._head.weight is None:
            return grad * self._scale
        return torch.addmm(grad.new_zeros(()), grad, self._head.weight, beta=0, alpha=self._scale)

    def _add_to_weight(self, sum: Tensor, grad: Tensor, x: Tensor) -> None:
        if not self._is_half:
            sum.addmm_(grad.t(), x, alpha=self._scale)
            return
        for start in range(0, len(sum), BLOCK):
            part = slice(start, start + BLOCK)
            self._add(sum[part], torch.addmm, grad[:, part].t(), x)

    def _add(self, sum: Tensor, product: Callable[..., Tensor], a: Tensor, b: Tensor) -> None:
        """Adds a product with a sum over rows: a mean in half precision cannot overflow, a sum can."""
        n = a.shape[1] if self._is_half else 1
        sum.add_(product(a.new_zeros(()), a, b, beta=0, alpha=1 / n), alpha=n * self._scale)

    def gradients(self) -> Gradients:
        weight = None if self._weight is None else self._weight.to(self.kept)
        bias = None if self._bias is None else self._bias.to(self.kept)
        return Gradients(self._input, weight, bias, self._factor)


def _compact(rows: Tensor, active: Tensor) -> Tensor:
    """Moves the rows that are active to the front, as few as possible. Returns which rows lie there."""
    n_active = int(active.sum())
    order = torch.arange(n_active, device=rows.device)
    holes = (~active[:n_active]).nonzero().squeeze(1)
    tails = n_active + active[n_active:].nonzero().squeeze(1)
    order[holes] = tails
    for start in range(0, len(holes), 16):  # copies of few rows at a time
        rows[holes[start : start + 16]] = rows[tails[start : start + 16]]
    return order


def _counted(target: Target, options: Options) -> Tensor | None:
    """The indices of the rows that are not ignored; None if none is."""
    if isinstance(target, TopK):
        counted = ~target.ignored(options.ignore_index)
    elif target.dim() > 1:
        return None
    else:
        counted = target != options.ignore_index
    if options.target_b is not None:
        counted &= options.target_b != options.ignore_index
    return None if counted.all() else counted.nonzero().squeeze(1)


def _of_rows(options: Options, chunk: slice | Tensor) -> Options:
    """The options of a chunk, without a mean."""
    parameter, target_b, lam = options.parameter, options.target_b, options.lam
    return options._replace(
        reduction="none",
        parameter=parameter[chunk] if isinstance(parameter, Tensor) and parameter.dim() else parameter,
        target_b=None if target_b is None else target_b[chunk],
        lam=lam[chunk] if isinstance(lam, Tensor) and lam.dim() else lam,
    )


def _total(target: Target, options: Options, n_counted: int) -> float:
    """What "mean" divides by."""
    if options.weight is None or (options.loss != "label_relaxation" and not _is_of_classes(target)):
        return n_counted
    dtype, n_classes = double(options.weight), len(options.weight)
    if isinstance(target, TopK):
        return float(target.row_weights(options, dtype).sum())
    total, size = 0.0, len(target)
    if target.dim() > 1:  # 2 MiB of a dense target at a time
        size = max(2**18 // n_classes, 1)
    for start in range(0, len(target), max(size, 1)):
        part = slice(start, start + size)
        weights = _formulas.row_weights(target[part], _of_rows(options, part), dtype)
        total += 0.0 if weights is None else float(weights.sum())
    return total


def _is_of_classes(target: Target) -> bool:
    return isinstance(target, Tensor) and target.dim() == 1


def kept(dtype: torch.dtype) -> torch.dtype:
    """The type of gradients until they have been multiplied by the upstream."""
    return torch.float32 if dtype == torch.float16 else dtype


def single(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def double(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # which that device lacks
