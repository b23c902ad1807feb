"""Each loss once in readable torch.

The oracle of the tests, and the path of every device but the CPU and of everything that traces:
`torch.compile`, `torch.export`, `torch.func`, forward mode and double backward.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Rows:
    """Scores with the classes last, and the class y of each row."""

    scores: Tensor
    y: Tensor
    counted: Tensor
    is_own: Tensor
    weight: Tensor | None
    """A factor for each class."""
    factor: Tensor
    """That of y; 0 where the row does not count."""

    def own(self, x: Tensor) -> Tensor:
        """The number of class y."""
        return x.gather(-1, self.y).squeeze(-1)


def loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    name: str,
    parameter: float,
    reduction: str,
    dim: int,
    ignore_index: int,
    from_logits: bool,
) -> Tensor:
    """The loss of that name, of which `parameter` is the hyperparameter."""
    scores = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    scores = scores.movedim(dim, -1)
    target = target.long()
    counted = target != ignore_index
    y = target.where(counted, 0).unsqueeze(-1)
    is_own = torch.arange(scores.shape[-1], device=scores.device) == y
    # In rows without loss nothing infinite may reach the gradient, not even as 0 * inf.
    scores = scores.where(counted.unsqueeze(-1), 0.0)
    factor = counted.to(scores.dtype)
    if weight is not None:
        weight = weight.detach().to(scores.dtype)
        factor = factor * weight[y.squeeze(-1)]
    rows = _Rows(scores, y, counted, is_own, weight, factor)
    if name == "label_relaxation":
        losses = _label_relaxation(rows, parameter, from_logits)
    else:
        losses = _OF_LOGITS[name](rows, parameter)
    if reduction == "none":
        return losses
    return losses.sum() / factor.sum() if reduction == "mean" else losses.sum()


def _label_relaxation(rows: _Rows, alpha: float, from_logits: bool) -> Tensor:
    """The loss of a class index y against all other classes, a coin of probabilities (p_y, 1 - p_y).

    Lienen & Hüllermeier (2021), eq. 7: ``(1 - a) ln((1 - a) / p_y) + a ln(a / (1 - p_y))`` where
    ``p_y < 1 - a``, else 0; ``ln(1 - p_y)`` comes from the sum without y, never from ``1 - p_y``.
    """
    if from_logits:
        d, certain = _log_odds(rows)
        outside = rows.counted & ~certain & ~(torch.sigmoid(-d) <= alpha)  # NaN counts as outside
    else:
        own, rest = rows.own(rows.scores), rows.scores.masked_fill(rows.is_own, 0.0).sum(-1)
        total = own + rest
        valid = (rows.scores >= 0).all(-1) & (total > 0) & (total < math.inf)
        outside = rows.counted & ~(valid & (rest <= alpha * total))
        own, rest = (part.where(outside, 1.0).where(valid, math.nan) for part in (own, rest))
        d = own.log() - rest.log()
    d = d.where(outside, 0.0)
    losses = (1 - alpha) * (math.log1p(-alpha) + _softplus(-d))
    if alpha > 0:
        losses = losses + alpha * (math.log(alpha) + _softplus(d))
    losses = losses + (-losses).clamp_min(0.0).detach()  # a divergence is not negative; rounded, it may be
    return losses.where(outside, 0.0) * rows.factor


def _cross_entropy(rows: _Rows, label_smoothing: float) -> Tensor:
    """Szegedy et al. (2016), section 7, with class weights as torch has them."""
    losses = (1 - label_smoothing) * _label_relaxation(rows, 0.0, from_logits=True)
    if label_smoothing == 0:
        return losses
    surprise = -rows.scores.log_softmax(-1)
    if rows.weight is not None:
        surprise = surprise * rows.weight
    smoothed = surprise.where(rows.counted.unsqueeze(-1), 0.0).mean(-1)
    return losses + label_smoothing * smoothed


def _focal(rows: _Rows, gamma: float) -> Tensor:
    """Lin et al. (2017), eq. 4: ``-(1 - p_y)^g ln p_y``."""
    d, certain = _log_odds(rows)
    d = d.where(~certain, 0.0)
    losses = (-gamma * _softplus(d)).exp() * _softplus(-d)
    return losses.where(~certain, 0.0) * rows.factor


def _confidence_penalty(rows: _Rows, beta: float) -> Tensor:
    """Pereyra et al. (2017), section 3: cross-entropy minus ``b`` times the entropy of the prediction."""
    ln_p = rows.scores.log_softmax(-1)
    ln_p = ln_p.masked_fill(ln_p == -math.inf, 0.0)  # where p is 0, p ln p is
    p = rows.scores.softmax(-1)
    return _label_relaxation(rows, 0.0, from_logits=True) + beta * (p * ln_p).sum(-1) * rows.factor


_OF_LOGITS = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "confidence_penalty": _confidence_penalty,
}


def _log_odds(rows: _Rows) -> tuple[Tensor, Tensor]:
    """``ln(p_y / (1 - p_y))``, and where it is infinite because no other class is possible."""
    # Relative to the maximum, so that what all logits have in common does not cancel digits.
    scores = rows.scores - rows.scores.detach().amax(-1, keepdim=True)
    rest = scores.exp().masked_fill(rows.is_own, 0.0).sum(-1)
    own = rows.own(scores)
    certain = (rest == 0) & ~own.isnan()
    return own - rest.where(rest != 0, 1.0).log(), certain


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) without the threshold of torch's, which is not exact beyond it."""
    return torch.logaddexp(x, torch.zeros_like(x))
