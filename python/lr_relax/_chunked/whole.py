"""The loss of all rows at once: for transforms of `torch.func`, and for gradients of gradients."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lr_relax import _dispatch
from lr_relax._chunked.chunks import Head, Target, Wanted
from lr_relax._options import Options
from lr_relax.topk import TopK


def loss(head: Head, target: Target, options: Options) -> Tensor:
    logits = head.input if head.weight is None else F.linear(head.input, head.weight, head.bias)
    if not isinstance(target, TopK):
        return _dispatch.loss(logits, target, options)
    ignored = target.ignored(options.ignore_index)
    dense = target.filled(ignored).dense(logits.shape[-1], torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(ignored.unsqueeze(-1), 1.0)
    losses = _dispatch.loss(logits, dense, options._replace(reduction="none", ignore_index=-100))
    losses = losses.masked_fill(ignored, 0.0)
    if options.reduction == "none":
        return losses
    if options.reduction == "sum":
        return losses.sum()
    is_weighted = options.weight is not None and options.loss == "label_relaxation"
    return losses.sum() / (target.row_weights(options, losses.dtype) if is_weighted else ~ignored).sum()


def gradients(
    head: Head,
    target: Target,
    options: Options,
    wanted: Wanted,
    upstream: Tensor,
    loss: Callable[[Head, Target, Options], Tensor] = loss,
) -> list[Tensor | None]:
    """The gradients that are wanted; they have gradients of their own where these are enabled."""
    creates = torch.is_grad_enabled()
    inputs = [x for x, wants in zip(head, wanted, strict=True) if wants and x is not None]
    with torch.enable_grad():
        value = loss(head, target, options)
        found = iter(torch.autograd.grad(value, inputs, upstream, create_graph=creates))
    return [next(found) if wants else None for wants in wanted]
