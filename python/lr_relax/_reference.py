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
    alpha: float,
    reduction: str,
    dim: int,
    ignore_index: int,
    weight: Tensor | None,
    from_logits: bool,
) -> Tensor:
    """The loss of a class index y against all other classes, a coin of probabilities (p_y, 1 - p_y).

    Lienen & Hüllermeier (2021), eq. 7: ``(1 - a) ln((1 - a) / p_y) + a ln(a / (1 - p_y))`` where
    ``p_y < 1 - a``, else 0; ``ln(1 - p_y)`` comes from the sum without y, never from ``1 - p_y``.
    """
    scores = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    scores = scores.movedim(dim, -1)
    z = scores if from_logits else scores.log()
    target = target.long()
    counted = target != ignore_index
    y = target.where(counted, 0).unsqueeze(-1)

    own = torch.arange(z.shape[-1], device=z.device) == y
    # d = ln(p_y / (1 - p_y)), the log-odds of y.
    d = z.gather(-1, y).squeeze(-1) - z.masked_fill(own, -math.inf).logsumexp(-1)
    outside = ~(torch.sigmoid(-d) <= alpha)  # NaN is outside
    # Rows inside the set, whose logarithms may be infinite, must not reach the gradient even as 0 * inf.
    d = d.where(outside & counted, 0.0)
    loss = (1 - alpha) * (math.log1p(-alpha) + _softplus(-d))
    if alpha > 0:
        loss = loss + alpha * (math.log(alpha) + _softplus(d))
    loss = loss.where(outside & counted, 0.0)

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
