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
    # In rows without loss nothing infinite may reach the gradient, not even as 0 * inf.
    scores = scores.where(counted.unsqueeze(-1), 0.0)

    # d = ln(p_y / (1 - p_y)), the log-odds of y. NaN counts as outside of the set.
    if from_logits:
        # Relative to the maximum, so that what all logits have in common does not cancel digits.
        scores = scores - scores.detach().amax(-1, keepdim=True)
        rest = scores.exp().masked_fill(is_own, 0.0).sum(-1)
        own = scores.gather(-1, y).squeeze(-1)
        certain = (rest == 0) & ~own.isnan()
        d = own - rest.where(rest != 0, 1.0).log()
        outside = counted & ~certain & ~(torch.sigmoid(-d) <= alpha)
    else:
        own, rest = scores.gather(-1, y).squeeze(-1), scores.masked_fill(is_own, 0.0).sum(-1)
        total = own + rest
        valid = (scores >= 0).all(-1) & (total > 0) & (total < math.inf)
        outside = counted & ~(valid & (rest <= alpha * total))
        own, rest = (part.where(outside, 1.0).where(valid, math.nan) for part in (own, rest))
        d = own.log() - rest.log()
    d = d.where(outside, 0.0)
    loss = (1 - alpha) * (math.log1p(-alpha) + _softplus(-d))
    if alpha > 0:
        loss = loss + alpha * (math.log(alpha) + _softplus(d))
    loss = loss + (-loss).clamp_min(0.0).detach()  # a divergence is not negative; rounded, it may be
    loss = loss.where(outside, 0.0)

    factor = counted.to(loss.dtype)
    if weight is not None:
        factor = factor * weight.detach().to(loss.dtype)[y.squeeze(-1)]
        loss = loss * factor
    if reduction == "none":
        return loss
    return loss.sum() / factor.sum() if reduction == "mean" else loss.sum()


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) without the threshold of torch's, which is not exact beyond it."""
    return torch.logaddexp(x, torch.zeros_like(x))
