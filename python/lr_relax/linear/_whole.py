"""The loss of the logits all at once: for transforms of `torch.func`, and for gradients of gradients."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lr_relax import _dispatch
from lr_relax._options import Options
from lr_relax.linear._chunks import Head, Wanted


def loss(head: Head, target: Tensor, options: Options) -> Tensor:
    return _dispatch.loss(F.linear(*head), target, options)


def gradients(
    head: Head,
    target: Tensor,
    options: Options,
    wanted: Wanted,
    upstream: Tensor,
    loss: Callable[[Head, Tensor, Options], Tensor] = loss,
) -> list[Tensor | None]:
    """The gradients that are wanted; they have gradients of their own where these are enabled."""
    creates = torch.is_grad_enabled()
    inputs = [x for x, wants in zip(head, wanted, strict=True) if wants and x is not None]
    with torch.enable_grad():
        value = loss(head, target, options)
        found = iter(torch.autograd.grad(value, inputs, upstream, create_graph=creates))
    return [next(found) if wants else None for wants in wanted]
