"""Each loss once in readable torch.

The oracle of the tests, and the path of every device but the CPU and of everything that traces:
`torch.compile`, `torch.export`, `torch.func`, forward mode and double backward.
"""

import math

import torch
from torch import Tensor


def label_relaxation_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    alpha: float,
    reduction: str,
    dim: int,
    ignore_index: int,
    from_logits: bool,
) -> Tensor:
    """The loss of a class index y against all other classes, a coin of probabilities (p_y, 1 - p_y).

    Lienen & Hüllermeier (2021), eq. 7: ``(1 - a) ln((1 - a) / p_y) + a ln(a / (1 - p_y))`` where
    ``p_y < 1 - a``, else 0; ``ln(1 - p_y)`` comes from the sum without y, never from ``1 - p_y``.
    """
    scores = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    scores = scores.movedim(dim, -1)
    target = target.long()
    counted = target != ignore_index
    y = target.where(counted, 0).unsqueeze(-1)
    is_own = torch.arange(scores.shape[-1], device=scores.device) == y

    # d = ln(p_y / (1 - p_y)), the log-odds of y; 0 in rows without loss, of which nothing infinite may reach
    # the gradient, not even as 0 * inf. NaN counts as outside of the set.
    own = scores.gather(-1, y).squeeze(-1)
    if from_logits:
        d = own - scores.masked_fill(is_own, -math.inf).logsumexp(-1)
        outside = counted & ~(torch.sigmoid(-d) <= alpha)
        d = d.where(outside, 0.0)
    else:
        rest = scores.masked_fill(is_own, 0.0).sum(-1)
        outside = counted & ~(rest <= alpha * (own + rest))
        d = own.where(outside, 1.0).log() - rest.where(outside, 1.0).log()
    loss = (1 - alpha) * (math.log1p(-alpha) + _softplus(-d))
    if alpha > 0:
        loss = loss + alpha * (math.log(alpha) + _softplus(d))
    loss = loss.where(outside, 0.0)

    factor = counted.to(loss.dtype)
    if weight is not None:
        factor = factor * weight.to(loss.dtype)[y.squeeze(-1)]
        loss = loss * factor
    if reduction == "none":
        return loss
    return loss.sum() / factor.sum() if reduction == "mean" else loss.sum()


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) without the threshold of torch's, which is not exact beyond it."""
    return torch.logaddexp(x, torch.zeros_like(x))
