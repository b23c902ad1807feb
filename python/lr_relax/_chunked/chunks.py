"""The loop over chunks of rows: neither the logits of a linear layer nor a dense target are ever whole.

For each chunk X of rows: logits ``X W'``, in place their gradient G, and the products ``G W`` and ``G' X``
for the gradients of input and weight. Rows without a gradient are left out of the products: those that are
ignored of all three, those inside their credal set of the last two. Without a layer, X holds the logits.
"""

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
    factor: float
    """By which they are still to be multiplied: float16 would lose small numbers."""


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
    if target.dim() == 1 and options.target_b is None:  # where the gradient is 0, so is that of the class
        return losses, grad, grad.gather(1, target.long().unsqueeze(1)).squeeze(1) != 0
    return losses, grad, grad.amax(1) != 0  # the sum of a row is 0


def chunk_size_of(head: Head) -> int:
    """The rows in a chunk: as many as fit 24 MiB, but enough for a fast matrix product."""
    on_cpu = head.input.is_cpu
    if head.weight is None:  # a dense target that stays in the cache
        return max((1 if on_cpu else 256) * 2**20 // (4 * max(head.input.shape[1], 1)), 1)
    row = head.weight.shape[0] * head.input.element_size()
    return max((24 if on_cpu else 256) * 2**20 // max(row, 1), 224 if on_cpu else 1024)


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
    total = _total(target, options, n_counted)
    scale = 1.0 if options.reduction != "mean" else 1 / total if total else float("nan")
    if upstream is not None and counted is not None:
        upstream = upstream[counted]

    losses = head.input.new_zeros(n_rows, dtype=dtype)
    sums = _Sums(head, wanted, scale)
    size = min(chunk_size or chunk_size_of(head), max(n_counted, 1))
    logits = None if head.weight is None else head.input.new_empty(size, head.weight.shape[0])
    options = options._replace(inplace=logits is not None)
    for start in range(0, n_counted, size):
        chunk: slice | Tensor = slice(start, min(start + size, n_counted))
        factors = None if upstream is None else upstream[chunk]
        if counted is not None:
            chunk = counted[chunk]
        x = head.input[chunk]
        z = x if logits is None else _linear(x, head, logits[: len(x)])
        losses[chunk], grad, active = of_logits(z, target[chunk], _of_rows(options, chunk), any(wanted))
        if grad is not None:
            sums.add(chunk, x, grad, factors, active)
    if options.reduction == "none":
        return losses, sums.gradients()
    loss = losses.sum(dtype=double(losses)).mul_(scale).to(dtype)
    return loss, sums.gradients()


def _linear(x: Tensor, head: Head, into: Tensor) -> Tensor:
    assert head.weight is not None
    if head.bias is None:
        return torch.mm(x, head.weight.t(), out=into)
    return torch.addmm(head.bias, x, head.weight.t(), out=into)


class _Sums:
    """The gradients, summed over chunks; of half-precision weights in float32."""

    def __init__(self, head: Head, wanted: Wanted, scale: float) -> None:
        self._head = head
        self._scale, self._factor = (1.0, scale) if head.input.dtype == torch.float16 else (scale, 1.0)
        input, weight, bias = wanted
        self._input = torch.zeros_like(head.input, memory_format=torch.contiguous_format) if input else None
        dtype = single(head.input.dtype)
        self._weight = torch.zeros_like(head.weight, dtype=dtype) if weight else None  # type: ignore[arg-type]
        self._bias = torch.zeros_like(head.bias, dtype=dtype) if bias else None  # type: ignore[arg-type]

    def add(
        self, chunk: slice | Tensor, x: Tensor, grad: Tensor, factors: Tensor | None, active: Tensor | None
    ) -> None:
        """Adds what a chunk contributes, with a factor for each row; `active` says which rows count."""
        if active is not None and self._head.weight is not None:
            order = _compact(grad, active)
            grad, x = grad[: len(order)], x[order]
            factors = None if factors is None else factors[order]
            if isinstance(chunk, slice):
                order += chunk.start
                chunk = order
            else:
                chunk = chunk[order]
        if self._input is not None:
            self._add_to_input(self._input, chunk, grad, factors)
        if self._weight is not None or self._bias is not None:
            ones = x.new_ones(len(x)) if factors is None else factors.to(x.dtype)
            if self._weight is not None:
                self._add_to_weight(self._weight, grad, x if factors is None else x * ones.unsqueeze(1))
            if self._bias is not None:
                self._bias.add_(torch.mv(grad.t(), ones), alpha=self._scale)

    def _add_to_input(self, sum: Tensor, chunk: slice | Tensor, grad: Tensor, factors: Tensor | None) -> None:
        into = sum[chunk] if isinstance(chunk, slice) else sum.new_empty(len(grad), sum.shape[1])
        if self._head.weight is None:
            torch.mul(grad, self._scale, out=into)
        else:
            torch.addmm(into, grad, self._head.weight, beta=0, alpha=self._scale, out=into)
        if factors is not None:
            into.mul_(factors.unsqueeze(1))
        if not isinstance(chunk, slice):
            sum[chunk] = into

    def _add_to_weight(self, sum: Tensor, grad: Tensor, x: Tensor) -> None:
        if sum.dtype == x.dtype:
            sum.addmm_(grad.t(), x, alpha=self._scale)
            return
        for start in range(0, len(sum), BLOCK):  # of classes: the product in half precision is never whole
            part = slice(start, start + BLOCK)
            sum[part].add_(torch.mm(grad[:, part].t(), x), alpha=self._scale)

    def gradients(self) -> Gradients:
        dtype = self._head.input.dtype
        if dtype == torch.float16:  # rounded after the last factor
            dtype = torch.float32
        weight, bias = self._weight, self._bias
        return Gradients(
            self._input,
            None if weight is None else weight.to(dtype),
            None if bias is None else bias.to(dtype),
            self._factor,
        )


BLOCK = 8192


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
    if options.weight is None or options.reduction != "mean":
        return n_counted
    dtype = double(options.weight)
    if isinstance(target, TopK):
        weights = target.row_weights(options, dtype) if options.loss == "label_relaxation" else None
    else:
        weights = _formulas.row_weights(target, options, dtype)
    return n_counted if weights is None else float(weights.sum())


def single(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def double(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # which that device lacks
