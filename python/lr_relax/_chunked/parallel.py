"""The loss of a linear layer whose classes are split over processes.

Each process has the logits of its slice of the classes. The maximum of a row, the sum of its exponentials and
what else a loss needs of it are reduced over the processes; then each computes the gradient of its slice.
All sums are in double precision.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lr_relax import _formulas
from lr_relax._chunked.chunks import Gradients, Head, OfLogits, Wanted, chunks, double, single
from lr_relax._options import Options


class Group:
    """The processes, and the classes of this one."""

    def __init__(self, process_group: Any, weight: Tensor) -> None:
        if not isinstance(process_group, dist.ProcessGroup):
            raise TypeError(
                "Expected argument `process_group` to be a group of torch.distributed, "
                f"but got {type(process_group).__name__}."
            )
        self._group = process_group
        counts = torch.zeros(dist.get_world_size(process_group), dtype=torch.int64, device=weight.device)
        rank = dist.get_rank(process_group)
        counts[rank] = weight.shape[0]
        self.sum(counts)
        self.n_classes, self.first = int(counts.sum()), int(counts[:rank].sum())

    def sum(self, x: Tensor) -> None:
        dist.all_reduce(x, group=self._group)

    def compute(self, chunk_size: int | None) -> Callable[..., tuple[Tensor, Gradients]]:
        """Computes the loss and the gradients of this process's slice, and of the whole input."""

        def computed(
            head: Head, target: Tensor, options: Options, wanted: Wanted, upstream: Tensor | None
        ) -> tuple[Tensor, Gradients]:
            loss, gradients = chunks(head, target, options, wanted, upstream, chunk_size, self._of_logits)
            if gradients.input is not None:
                whole = gradients.input.to(single(gradients.input.dtype))
                self.sum(whole)
                gradients.input.copy_(whole)
            return loss, gradients

        return computed

    def _of_logits(self, logits: Tensor, target: Tensor, options: Options, wants_gradient: bool) -> OfLogits:
        """The losses of rows, the same in every process, and the gradient of this process's logits."""
        y, n = target.long() - self.first, logits.shape[1]
        is_own, own = (y >= 0) & (y < n), y.clamp(0, n - 1).unsqueeze(1)

        z = logits.to(double(logits))
        top = z.amax(1, keepdim=True)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self._group)
        z = z.sub_(top.where(top.abs() < math.inf, 0.0)) if z is not logits else z - top
        e = z.exp()
        # The sum without the class of the row, so that nothing cancels where that is nearly certain.
        e_own, z_own = (x.gather(1, own).squeeze(1).where(is_own, 0.0) for x in (e, z))
        others = e.scatter(1, own, e.gather(1, own).where(~is_own.unsqueeze(1), 0.0)).sum(1)
        terms = [others, e_own, z_own, *_further_sums(z, e, options, self.first)]
        sums = torch.stack(terms)
        self.sum(sums)
        loss, coefficients = _of_sums(sums, target, options, self.n_classes)
        loss = loss.masked_fill(top.squeeze(1) == math.inf, math.nan).to(single(logits.dtype))
        if not wants_gradient:
            return loss, None, None
        logits.copy_(_gradient(z, e, sums, own, is_own, coefficients, options, self.first))
        active = coefficients.target != 0 if options.loss == "label_relaxation" else None
        return loss, logits, active


def whole(*_: Any) -> Tensor:
    """Gradients of gradients, and batches of upstreams, would need the logits of all processes."""
    raise RuntimeError(
        "With a `process_group`, the gradient of a loss has no gradient itself, "
        "and takes no batch of upstreams."
    )


class _Coefficients(NamedTuple):
    """Those of the gradient ``total p - target t - each w + penalty p (ln p - h)``, t one-hot, (N,)."""

    total: Tensor
    target: Tensor
    each: float
    penalty: Tensor | None
    h: Tensor | None


def _further_sums(z: Tensor, e: Tensor, options: Options, first: int) -> list[Tensor]:
    if options.loss == "cross_entropy" and options.parameter:
        weight = _slice(options, first, z)
        return [z.sum(1) if weight is None else z @ weight]
    if options.loss == "confidence_penalty":
        return [(e * z.clamp_min(-1e4)).sum(1)]
    return []


def _slice(options: Options, first: int, z: Tensor) -> Tensor | None:
    return None if options.weight is None else options.weight[first : first + z.shape[1]].to(z.dtype)


def _of_sums(sums: Tensor, target: Tensor, options: Options, n_classes: int) -> tuple[Tensor, _Coefficients]:
    """The losses of rows, and what their gradients need."""
    others, e_own, z_own = sums[:3]
    ln_total = (others + e_own).log()
    ce = torch.where(others < e_own, (others / e_own).log1p(), ln_total - z_own)
    parameter = float(options.parameter)
    weight = None if options.weight is None else options.weight.to(ce.dtype)
    own_weight = torch.ones_like(ce) if weight is None else weight[target.long()]
    if options.loss == "label_relaxation" and parameter > 0:
        loss, slope = _formulas.of_one_class(ce, parameter)
    elif options.loss == "focal" and parameter > 0:
        loss, slope = _formulas.focal(ce, parameter)
    else:
        loss, slope = ce, torch.ones_like(ce)
    loss, slope = loss * own_weight, slope * own_weight
    if options.loss == "cross_entropy" and parameter > 0:
        mean = 1.0 if weight is None else float(weight.mean())
        smoothed = parameter * (mean * ln_total - sums[3] / n_classes)
        loss = smoothed if parameter == 1 else (1 - parameter) * loss + smoothed
        slope = (1 - parameter) * slope
        return loss, _Coefficients(slope + parameter * mean, slope, parameter / n_classes, None, None)
    if options.loss == "confidence_penalty":
        h = sums[3] / (others + e_own) - ln_total
        factor = parameter * own_weight
        return loss + factor * h, _Coefficients(slope, slope, 0.0, factor, h)
    return loss, _Coefficients(slope, slope, 0.0, None, None)


def _gradient(
    z: Tensor,
    e: Tensor,
    sums: Tensor,
    own: Tensor,
    is_own: Tensor,
    by: _Coefficients,
    options: Options,
    first: int,
) -> Tensor:
    """The gradient of the logits, in the memory of their exponentials."""
    others, e_own = sums[:2]
    total = others + e_own
    p = e.div_(total.unsqueeze(1))
    factors = by.total.unsqueeze(1)
    if by.penalty is not None and by.h is not None:
        ln_p = z.clamp_min(-1e4).sub_(total.log().unsqueeze(1))
        factors = ln_p.sub_(by.h.unsqueeze(1)).mul_(by.penalty.unsqueeze(1)).add_(factors)
    p_own, own_factors = e_own / total, factors.expand_as(p).gather(1, own).squeeze(1)
    grad = p.mul_(factors)
    # Of the class of the row, p - 1 is minus the sum of the others.
    grad_own = p_own * (own_factors - by.target) - by.target * (others / total)
    grad.scatter_(1, own, grad_own.unsqueeze(1).where(is_own.unsqueeze(1), grad.gather(1, own)))
    if by.each:
        weight = _slice(options, first, z)
        grad.sub_(by.each if weight is None else by.each * weight)
    return grad
