"""Each loss as a formula in torch operators.

Used on all devices other than the CPU, by everything that traces (`torch.compile`, `torch.export`,
`torch.func`, forward mode), for double backward, and as the reference of the tests.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lr_relax._options import SOFT, Options


@dataclass(frozen=True)
class _Rows:
    """Scores with the classes in the last dimension, and their targets."""

    scores: Tensor
    y: Tensor | None
    """The class of each row, (..., 1); None if `target` is given."""
    target: Tensor | None
    """A distribution or a set (bool) per row; None if `y` is given."""
    counted: Tensor
    """Whether a row is not ignored."""
    weight: Tensor | None
    """A weight for each class."""
    factor: Tensor
    """The weight of each row; 0 if it is ignored."""

    def own(self, x: Tensor) -> Tensor:
        """`x` at class y."""
        assert self.y is not None
        return x.gather(-1, self.y).squeeze(-1)

    @property
    def is_own(self) -> Tensor:
        """Marks class y, or the classes of the set."""
        if self.y is None:
            assert self.target is not None
            return self.target
        return torch.arange(self.scores.shape[-1], device=self.scores.device) == self.y


def loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss that `options` describes."""
    if options.loss == "binary_label_relaxation":  # of one score for an event, the last of two classes
        # On the CPU, another target than 0 and 1 has been refused.
        input = input.masked_fill(((target != 0) & (target != 1)).unsqueeze(-1), math.nan)
        other = torch.zeros_like(input) if options.from_logits else 1 - input
        input = torch.cat([other, input], options.dim)
        target, options = (target == 1).long(), options._replace(loss="label_relaxation")
    scores, parameter = _scores(input, options)
    rows = _rows(scores, target, options)
    from_logits = options.from_logits
    if options.loss == "uniform_penalty":
        losses = _uniform_penalty(rows, parameter, from_logits)
    elif options.loss in SOFT and rows.target is not None:
        losses = _of_soft_targets(rows, rows.target, **{SOFT[options.loss]: parameter})
    elif options.loss != "label_relaxation":
        losses = _OF_LOGITS[options.loss](rows, parameter)
    elif rows.target is None or rows.target.dtype == torch.bool:
        losses = _label_relaxation(rows, parameter, from_logits)
    else:
        losses = _of_distributions(rows, rows.target, parameter, from_logits)
    losses = _invalidate(losses, rows, from_logits)
    if options.reduction == "none":
        return losses
    return losses.sum() / rows.factor.sum() if options.reduction == "mean" else losses.sum()


def projection(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The projection of each row onto its set."""
    scores, alpha = _scores(input, options)
    rows = _rows(scores, target, options)
    ln_p = scores.log_softmax(-1) if options.from_logits else _ln_probabilities(scores)
    alphas = _of_rows(alpha)
    p = ln_p.exp()
    if rows.target is None or rows.target.dtype == torch.bool:
        own, others = (_shares(ln_p, mask) for mask in (rows.is_own, ~rows.is_own))
        q = (1 - alphas) * own + alphas * others
        inside = p.masked_fill(rows.is_own, 0.0).sum(-1) <= alpha
    else:
        bound = (1 - alphas) * rows.target / rows.target.sum(-1, keepdim=True)
        raised, c = water_fill(p, bound, alpha)
        q = bound.where(raised, c.unsqueeze(-1) * p)
        inside = ~raised.any(-1)
    q = p.where((inside | ~rows.counted).unsqueeze(-1), q)
    q = q.masked_fill(~_is_valid(scores, options.from_logits).unsqueeze(-1), math.nan)
    return q.movedim(-1, options.dim)


def _scores(input: Tensor, options: Options) -> tuple[Tensor, float | Tensor]:
    """The scores with the classes last, in float32 or better, and the hyperparameter of the same type."""
    scores = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    parameter = options.parameter
    parameter = parameter.to(scores.dtype) if isinstance(parameter, Tensor) else float(parameter)
    return scores.movedim(options.dim, -1), parameter


def _of_rows(numbers: float | Tensor) -> float | Tensor:
    """Numbers per row, with a class dimension to broadcast over."""
    return numbers.unsqueeze(-1) if isinstance(numbers, Tensor) and numbers.dim() > 0 else numbers


def _rows(scores: Tensor, target: Tensor, options: Options) -> _Rows:
    dim, ignore_index, target_b, lam = options.dim, options.ignore_index, options.target_b, options.lam
    weight = None if options.weight is None else options.weight.detach().to(scores.dtype)
    n_classes = scores.shape[-1]
    if target_b is not None:
        assert lam is not None
        counted = (target != ignore_index) & (target_b != ignore_index)
        first, second = (F.one_hot(y.long().where(counted, 0), n_classes) for y in (target, target_b))
        share = lam.detach().to(scores.dtype).unsqueeze(-1) if isinstance(lam, Tensor) else lam
        dense = share * first.to(scores.dtype) + (1 - share) * second.to(scores.dtype)
    elif target.dtype == torch.bool or target.is_floating_point():
        dense = target.detach().movedim(dim, -1)
        if dense.dtype == torch.bool:
            counted = ~dense.all(-1)  # the set of all classes has loss 0
        else:
            counted = dense.new_ones(scores.shape[:-1], dtype=torch.bool)
            dense = dense.to(scores.dtype).clamp_min(0.0)  # negative by rounding
    else:
        target = target.long()
        counted = target != ignore_index
        y = target.where(counted, 0)
        factor = counted.to(scores.dtype)
        if weight is not None:
            factor = factor * weight[y]
        # Replace the scores of ignored rows: the gradient of 0 * inf would be NaN.
        scores = scores.where(counted.unsqueeze(-1), 0.0)
        return _Rows(scores, y.unsqueeze(-1), None, counted, weight, factor)
    factor = (counted if target_b is not None else torch.ones_like(counted)).to(scores.dtype)
    if weight is not None and options.loss == "label_relaxation":  # the others weigh each class
        factor = factor * (dense * weight).sum(-1) / dense.sum(-1)
    return _Rows(scores.where(counted.unsqueeze(-1), 0.0), None, dense, counted, weight, factor)


def _label_relaxation(rows: _Rows, alpha: float | Tensor, from_logits: bool) -> Tensor:
    """The loss of a class or a set in the binary view: probability p against 1 - p for all other classes.

    Lienen & Hüllermeier (2021), eq. 7: ``(1 - a) ln((1 - a) / p) + a ln(a / (1 - p))`` where
    ``p < 1 - a``, else 0; ``ln(1 - p)`` comes from the sum of the others, never from ``1 - p``.
    """
    if from_logits:
        d, certain = _log_odds(rows)
        outside = rows.counted & ~certain & ~(torch.sigmoid(-d) <= alpha)  # NaN counts as outside
    else:
        own, rest = _split(rows, rows.scores)
        total = own + rest
        valid = _is_valid(rows.scores, from_logits)
        outside = rows.counted & ~(valid & (rest <= alpha * total))
        own, rest = (part.where(outside & valid, 1.0) for part in (own, rest))
        d = own.log() - rest.log()
    impossible = d == -math.inf
    d = d.where(outside & ~impossible if from_logits else outside, 0.0)
    losses = (1 - alpha) * (_ln(1 - alpha) + _softplus(-d)) + alpha * (_ln(alpha) + _softplus(d))
    losses = losses + (-losses).clamp_min(0.0).detach()  # rounding may make it negative
    if from_logits:
        losses = losses.where(~impossible, (1 - alpha) * _infinite(rows))
    return losses.where(outside, 0.0) * rows.factor


def _of_distributions(rows: _Rows, target: Tensor, alpha: float | Tensor, from_logits: bool) -> Tensor:
    """The divergence of the prediction from its projection, found by water-filling."""
    if from_logits:
        ln_p = rows.scores.log_softmax(-1)
        p = ln_p.exp()
    else:
        total = rows.scores.sum(-1, keepdim=True)
        total = total.where(total > 0, 1.0)
        p = rows.scores / total
    keep = 1 - _of_rows(alpha)
    bound = keep * target / target.sum(-1, keepdim=True)
    raised, _ = water_fill(p.detach(), bound.detach(), alpha)
    if not from_logits:  # of the raised classes only: the gradient of log 0 is infinite
        ln_p = rows.scores.where(raised, 1.0).log() - total.log()
    pulled = bound * (bound.where(raised, 1.0).log() - ln_p.where(raised, 0.0))
    left = alpha + bound.where(~raised, 0.0).sum(-1)  # the other classes share this, and had:
    free = p.where(~raised, 0.0).sum(-1)
    some = (left > 0) & (free > 0)
    left, free = (x.where(some, 1.0) for x in (left, free))
    spread = (left * (left.log() - free.log())).where(some, 0.0)
    losses = pulled.where(raised, 0.0).sum(-1) + spread
    losses = losses + (-losses).clamp_min(0.0).detach()  # as above
    return losses.where(raised.any(-1) & rows.counted, 0.0) * rows.factor


def water_fill(p: Tensor, bound: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """The classes that the projection of `p` raises to their lower bound, and the factor of the others.

    The nearest member of {q : q >= bound} by the Kullback-Leibler divergence is where(raised, bound, c * p).
    Sorted by ``bound / p``, the raised classes come first; c follows from how many they are.
    """
    ratio = (bound / p).where(bound > 0, 0.0)
    order = ratio.argsort(dim=-1, descending=True, stable=True)
    p_sorted, bound_sorted = p.gather(-1, order), bound.gather(-1, order)
    # If the classes before this one are raised, the others have probability `free` and must get `left`.
    free = p_sorted.flip(-1).cumsum(-1).flip(-1)
    left = bound_sorted.flip(-1).cumsum(-1).flip(-1)
    left = left + _of_rows(alpha)
    raised_sorted = bound_sorted * free > left * p_sorted
    is_raised = raised_sorted.scatter(-1, order, raised_sorted)
    is_raised = is_raised & (bound > p).any(-1, keepdim=True)
    left = (bound.where(~is_raised, 0.0).sum(-1)) + alpha
    free = p.where(~is_raised, 0.0).sum(-1)
    c = (left / free.where(free > 0, 1.0)).where(is_raised.any(-1), 1.0)
    return is_raised, c


def _uniform_penalty(rows: _Rows, alpha: float | Tensor, from_logits: bool) -> Tensor:
    """``(1 - a - p_y) KL(u || p)`` outside the set, with u the smoothed target: 1 - a, and a / (C - 1)."""
    ln_p = rows.scores.log_softmax(-1) if from_logits else _ln_probabilities(rows.scores)
    ln_own, each = rows.own(ln_p), alpha / (ln_p.shape[-1] - 1)
    others = ln_p.masked_fill(rows.is_own, 0.0).sum(-1)
    divergence = (1 - alpha) * (_ln(1 - alpha) - ln_own) + alpha * _ln(each) - each * others
    distance = 1 - alpha - ln_own.exp()
    outside = rows.counted & ~(distance <= 0)  # NaN counts as outside
    if isinstance(alpha, Tensor) or alpha == 0:
        outside = outside & (torch.as_tensor(alpha, device=ln_p.device) > 0)  # as in the paper's code
    return (distance * divergence.where(outside, 0.0)).where(outside, 0.0) * rows.factor


def _cross_entropy(rows: _Rows, label_smoothing: float | Tensor) -> Tensor:
    """Szegedy et al. (2016), section 7, with the class weights of `F.cross_entropy`."""
    losses = _label_relaxation(rows, 0.0, from_logits=True)
    if label_smoothing == 0:
        return losses
    losses = losses * (1 - label_smoothing) if label_smoothing < 1 else torch.zeros_like(losses)
    nll = -rows.scores.log_softmax(-1)
    if rows.weight is not None:
        nll = nll * rows.weight
    smoothed = nll.where(rows.counted.unsqueeze(-1), 0.0).mean(-1)
    return losses + label_smoothing * smoothed


def _focal(rows: _Rows, gamma: float | Tensor) -> Tensor:
    """Lin et al. (2017), eq. 4: ``-(1 - p_y)^g ln p_y``."""
    d, certain = _log_odds(rows)
    impossible = d == -math.inf
    d = d.where(~certain & ~impossible, 0.0)
    losses = (-gamma * _softplus(d)).exp() * _softplus(-d)
    losses = losses.where(~impossible, _infinite(rows))
    return losses.where(~certain, 0.0) * rows.factor


def _dual_focal(rows: _Rows, gamma: float | Tensor) -> Tensor:
    """Tao et al. (2023): ``-(1 - p_y + p_j)^g ln p_y``, j the class next below y in probability."""
    d, certain = _log_odds(rows)
    impossible = d == -math.inf
    d = d.where(~certain & ~impossible, 0.0)
    below = rows.scores < rows.own(rows.scores).unsqueeze(-1)
    # By the scores: the logarithms of their probabilities may be equal where they are not.
    best = rows.scores.masked_fill(~below, -math.inf).max(-1, keepdim=True)
    next = rows.scores.log_softmax(-1).gather(-1, best.indices).exp()
    next = next.where(best.values > -math.inf, 0.0).squeeze(-1)
    losses = ((-_softplus(d)).exp() + next) ** gamma * _softplus(-d)
    losses = losses.where(~impossible, _infinite(rows))
    return losses.where(~certain, 0.0) * rows.factor


def _confidence_penalty(rows: _Rows, beta: float | Tensor) -> Tensor:
    """Pereyra et al. (2017), section 3: cross-entropy minus ``b`` times the entropy of the prediction."""
    ln_p = rows.scores.log_softmax(-1)
    ln_p = ln_p.masked_fill(ln_p == -math.inf, 0.0)  # where p is 0, p ln p is
    p = rows.scores.softmax(-1)
    return _label_relaxation(rows, 0.0, from_logits=True) + beta * (p * ln_p).sum(-1) * rows.factor


def _of_soft_targets(
    rows: _Rows,
    target: Tensor,
    label_smoothing: float | Tensor = 0.0,
    gamma: float | Tensor = 0.0,
    beta: float | Tensor = 0.0,
) -> Tensor:
    """The loss of a distribution t: the sum of ``w t (1 - p)^g (-ln p)``, minus ``b`` times the entropy."""
    target = (1 - label_smoothing) * target / target.sum(-1, keepdim=True)
    target = target + label_smoothing / target.shape[-1]
    if rows.weight is not None:
        target = target * rows.weight
    ln_p = rows.scores.log_softmax(-1)
    finite = ln_p.masked_fill(ln_p == -math.inf, -1000.0)  # where p is 0, so is its product with ln p
    losses = -target * ln_p
    if gamma != 0:
        q = -finite.expm1()
        losses = losses * (gamma * q.where(q > 0, 1.0).log()).exp().where(q > 0, 0.0)
    losses = losses.where(target > 0, 0.0).sum(-1)
    return losses + beta * (finite.exp() * finite).sum(-1) * target.sum(-1)


_OF_LOGITS = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dual_focal": _dual_focal,
    "confidence_penalty": _confidence_penalty,
}


def _log_odds(rows: _Rows) -> tuple[Tensor, Tensor]:
    """``ln(p / (1 - p))``, and a mask where it is infinite because all other classes have probability 0."""
    # Relative to the maximum, so that a large common offset of the logits costs no digits.
    scores = rows.scores - rows.scores.detach().amax(-1, keepdim=True)
    if rows.y is None:
        inside, impossible = _ln_sum(scores, rows.is_own)
        outside, none = _ln_sum(scores, ~rows.is_own)
        d = (inside - outside).masked_fill(impossible, -math.inf)
        return d, none & ~inside.isnan()
    rest = scores.exp().masked_fill(rows.is_own, 0.0).sum(-1)
    own = rows.own(scores)
    certain = (rest == 0) & ~own.isnan()
    return own - rest.where(rest != 0, 1.0).log(), certain


def _infinite(rows: _Rows) -> Tensor:
    """The mean of -ln p over y, or over a set, of probability 0: infinite, with a finite gradient."""
    nll = -rows.scores.log_softmax(-1)
    return nll.where(rows.is_own, 0.0).sum(-1) / rows.is_own.sum(-1)


def _is_valid(scores: Tensor, from_logits: bool) -> Tensor:
    """Marks rows that have a softmax, or that can be divided by their sum."""
    if from_logits:
        return (scores < math.inf).all(-1) & (scores > -math.inf).any(-1)
    total = scores.sum(-1)
    return (scores >= 0).all(-1) & (total > 0) & (total < math.inf)


def _invalidate(losses: Tensor, rows: _Rows, from_logits: bool) -> Tensor:
    """Gives invalid rows loss and gradient NaN."""
    invalid = rows.counted & ~_is_valid(rows.scores, from_logits)
    nan = torch.zeros_like(losses).masked_fill(invalid, math.nan)
    return losses.where(~invalid, 0.0) + rows.scores.where(invalid.unsqueeze(-1), 0.0).sum(-1) * nan


def _ln_sum(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp over the mask, and a mask of the rows where it is -inf."""
    scores = scores.masked_fill(~mask, -math.inf)
    max = scores.detach().amax(-1, keepdim=True)
    none = max == -math.inf
    sum = (scores - max.where(~none, 0.0)).exp().sum(-1)
    none = none.squeeze(-1)
    return (sum.where(~none, 1.0).log() + max.squeeze(-1)), none


def _shares(ln_p: Tensor, mask: Tensor) -> Tensor:
    """The share of each class in the probability of the mask; equal shares if that is 0."""
    scores = ln_p.masked_fill(~mask, -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(nothing & mask, 0.0).softmax(-1).masked_fill(~mask, 0.0)


def _split(rows: _Rows, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the class or the set, and over the other classes."""
    rest = x.masked_fill(rows.is_own, 0.0).sum(-1)
    return (rows.own(x) if rows.y is not None else x.masked_fill(~rows.is_own, 0.0).sum(-1)), rest


def _ln_probabilities(scores: Tensor) -> Tensor:
    """The log-probabilities of rows after division by their sum; NaN for invalid rows."""
    total = scores.sum(-1, keepdim=True)
    valid = _is_valid(scores, from_logits=False).unsqueeze(-1)
    # The gradient of log 0 is infinite.
    positive = scores > 0
    ln_p = scores.where(positive, 1.0).log().where(positive, -math.inf) - total.where(valid, 1.0).log()
    return ln_p.where(valid, math.nan)


def _ln(x: float | Tensor) -> float | Tensor:
    """The logarithm, for what is multiplied by x: 0 of 0."""
    if isinstance(x, Tensor):
        return x.where(x > 0, 1.0).log()
    return math.log(x) if x > 0 else 0.0


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x). Unlike `F.softplus`, exact for large x."""
    return torch.logaddexp(x, torch.zeros_like(x))
