"""Each loss as a formula in torch operators.

Used on all devices other than the CPU, by everything that traces (`torch.compile`, `torch.export`,
`torch.func`, forward mode), and for double backward.

On a GPU every operator is a kernel to launch. So the logits pass through torch's fused operators, and a
formula gives its slope along with its value, since both have the same terms. The operators and the memory
of each loss are limited by tests/python/test_formulas.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lr_relax._options import SOFT, Options
from lr_relax._slopes import Number, WithSlopes, with_slope


def loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss that `options` describes."""
    losses, factor = _losses(input, target, options)
    if options.reduction == "none":
        return losses
    if options.reduction == "sum":
        return losses.sum()
    return losses.mean() if factor is None else losses.sum() / factor.sum()


def projection(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """The projection of each row onto its set."""
    scores = _single(_last(input, options.dim))
    alpha = _of_rows(_parameter(options, scores)) + torch.finfo(scores.dtype).tiny  # to divide by
    ln_p = scores.log_softmax(-1) if options.from_logits else _ln_probabilities(scores)
    p = ln_p.exp()
    if target.is_floating_point():
        target = _distributions(target, scores, options)
        bound = (1 - alpha) * target
        inside = (bound <= p).all(-1)
        q = torch.maximum(bound, _shrinkage(p, target, alpha) * p)
    else:
        if target.dtype == torch.bool:
            own = _last(target, options.dim)
            free = own.all(-1)
        else:
            y = target.long()
            free = y == options.ignore_index
            y = y.masked_fill(free, 0)
            own = torch.arange(p.shape[-1], device=p.device) == y.unsqueeze(-1)
        ratios = scores if options.from_logits else ln_p
        shares, others = (_shares_within(mask, ratios).masked_fill(~mask, 0.0) for mask in (own, ~own))
        inside = (p.masked_fill(own, 0.0).sum(-1, keepdim=True) <= alpha).squeeze(-1) | free
        q = (1 - alpha) * shares + alpha * others + 0.0 * p  # NaN where p is
    return p.where(inside.unsqueeze(-1), q).movedim(-1, options.dim)


def _losses(input: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, and the weights by whose sum "mean" divides: None if all are 1."""
    if not options.from_logits:
        input = input + 0.0  # of -0.0, the slope of the logarithm would have the wrong sign
    if options.loss == "binary_label_relaxation":
        return _of_events(_single(input.squeeze(options.dim)), target, options), None
    scores = _last(input, options.dim)
    if options.target_b is not None:
        return _of_mixtures(scores, target.long(), options.target_b.long(), options)
    if target.dtype == torch.bool:
        return _of_sets(scores, _last(target, options.dim), options)
    if target.is_floating_point():
        return _of_distributions(_single(scores), target, options)
    return _of_classes(scores, target.long(), options)


# The kinds of targets.


class _Classes(NamedTuple):
    """Rows with a class as target."""

    scores: Tensor
    y: Tensor
    ignored: Tensor
    ln_p: Tensor
    ce: Tensor
    """-ln p_y; 0 for rows that are ignored."""
    weight: Tensor | None
    """The weight of each class."""


def _of_classes(scores: Tensor, y: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    ignored = y == options.ignore_index
    parameter, weight = _parameter(options, scores), _weight(options, scores)
    if options.from_logits:
        ln_p = _counted(scores, ignored.unsqueeze(-1)).log_softmax(-1)
        ce = _cross_entropy_of(ln_p, y, options.ignore_index)
    else:
        scores = _counted(scores, ignored.unsqueeze(-1))
        own, ln_total = scores.gather(-1, y.masked_fill(ignored, 0).unsqueeze(-1)), _total(scores).log()
        ln_p = scores.log() - ln_total
        ce = (ln_total - own.log()).squeeze(-1).masked_fill(ignored, 0.0)
    losses = _OF_CLASSES[options.loss](_Classes(scores, y, ignored, ln_p, ce, weight), parameter)
    if weight is None:
        return losses, ~ignored
    factor = _weights_of_classes(y, ignored, weight)
    return losses if options.loss == "cross_entropy" else losses * factor, factor


def _cross_entropy_of(ln_p: Tensor, y: Tensor, ignore_index: int) -> Tensor:
    if y.dim() > 1:
        return _cross_entropy_of(ln_p.flatten(0, -2), y.flatten(), ignore_index).view(y.shape)
    return F.nll_loss(ln_p, y, reduction="none", ignore_index=ignore_index)


def _of_sets(scores: Tensor, sets: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
    ignored = sets.all(-1, keepdim=True)  # the set of all classes has loss 0
    alpha, weight = _parameter(options, scores), _weight(options, scores)
    if options.from_logits:
        ln_p = with_slope(_ln_sum, _counted(scores, ignored).log_softmax(-1), None, sets, scores=scores)
    else:
        scores = _counted(scores, ignored)
        ln_p = scores.masked_fill(~sets, 0.0).sum(-1).log() - _total(scores).log().squeeze(-1)
    losses = _label_relaxation(-ln_p.masked_fill(ignored.squeeze(-1), 0.0), alpha)
    if weight is None:
        return losses, None
    factor = _weights_of_sets(sets, weight)
    return losses * factor, factor


def _of_mixtures(scores: Tensor, a: Tensor, b: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    y = torch.stack((a, b), -1)
    ignored = (y == options.ignore_index).any(-1, keepdim=True)
    y = y.masked_fill(ignored, 0)
    ln_p = _counted(scores, ignored).log_softmax(-1).gather(-1, y)
    alpha, weight, lam = _parameter(options, scores), _weight(options, scores), options.lam
    target = _shares(a, b, lam, ln_p.dtype).masked_fill(ignored, 0.0)
    losses = _relaxation_of(_of_two_classes, ln_p, alpha, target)
    if weight is None:
        return losses, ~ignored
    factor = (weight[y] * target).sum(-1)
    return losses * factor, factor


def _of_distributions(scores: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
    parameter, weight = _parameter(options, scores), _weight(options, scores)
    if options.loss != "label_relaxation":
        return _of_soft_targets(scores, target, options, **{SOFT[options.loss]: parameter}), None
    target = _distributions(target, scores, options)
    if options.from_logits:
        losses = _relaxation_of(_of_all_classes, scores.log_softmax(-1), parameter, target)
    else:
        ln_p, p = _ln_probabilities(scores, target), scores / _total(scores)
        losses = _relaxation_of(_of_all_classes, ln_p, parameter, target, p)
    if weight is None:
        return losses, None
    factor = (weight * target).sum(-1)
    return losses * factor, factor


def row_weights(target: Tensor, options: Options, dtype: torch.dtype) -> Tensor | None:
    """The weights of the rows by whose sum "mean" divides, (...); None if all are 1."""
    weight, b = options.weight, options.target_b
    if weight is None or (target.is_floating_point() and options.loss != "label_relaxation"):
        return None
    weight = weight.detach().to(dtype)
    if target.dtype == torch.bool:
        return _weights_of_sets(target, weight)
    if target.is_floating_point():
        target = target.to(dtype)
        return (weight * target).sum(-1) / target.sum(-1)
    ignored = target == options.ignore_index
    if b is None:
        return _weights_of_classes(target.long(), ignored, weight)
    ignored |= b == options.ignore_index
    y = torch.stack((target, b), -1).long().masked_fill(ignored.unsqueeze(-1), 0)
    return (weight[y] * _shares(target, b, options.lam, dtype)).sum(-1).masked_fill(ignored, 0.0)


def _weights_of_classes(y: Tensor, ignored: Tensor, weight: Tensor) -> Tensor:
    return weight[y.masked_fill(ignored, 0)].masked_fill(ignored, 0.0)


def _weights_of_sets(sets: Tensor, weight: Tensor) -> Tensor:
    return (weight * sets).sum(-1) / sets.sum(-1)


def _shares(a: Tensor, b: Tensor, lam: float | Tensor | None, dtype: torch.dtype) -> Tensor:
    """The shares of the two classes of a mixture, (..., 2)."""
    is_tensor = isinstance(lam, Tensor)
    share = lam.detach().to(dtype) if is_tensor else torch.full_like(a, lam, dtype=dtype)  # type: ignore
    share = share.masked_fill(a == b, 1.0)
    return torch.stack((share, 1 - share), -1)


def _of_events(input: Tensor, target: Tensor, options: Options) -> Tensor:
    is_one = target == 1
    wrong = ~is_one & (target != 0)  # on the CPU, such a target has been refused
    if options.from_logits:
        wrong = wrong | (input == math.inf)  # has no softmax with the logit 0 of the other class
        ln_p = F.logsigmoid(torch.where(is_one, input, -input))
    else:
        wrong = wrong | ~((input >= 0) & (input <= 1))
        ln_p = torch.where(is_one, input, 1 - input).log()
    ln_p = ln_p * torch.ones_like(ln_p).masked_fill(wrong, math.nan)  # so that its slope is NaN, too
    return _label_relaxation(-ln_p, _parameter(options, input))


# Label relaxation.


def _label_relaxation(ce: Tensor, alpha: Number) -> Tensor:
    """The loss of a class, or of a set, whose probability is e^-ce."""
    if isinstance(alpha, float) and alpha == 0:
        return ce.clamp_min(0.0)
    return _relaxation_of(of_one_class, ce, alpha)


def _relaxation_of(
    formula: Callable[..., WithSlopes], x: Tensor, alpha: Number, target: Tensor | None = None, *p: Tensor
) -> Tensor:
    alpha = alpha + torch.finfo(x.dtype).tiny  # no difference, but it can be divided by
    if isinstance(alpha, Tensor):
        alpha = alpha.expand(x.shape if target is None else x.shape[:-1])
    return with_slope(formula, x, alpha, target, *p)


def of_one_class(ce: Tensor, alpha: Number) -> WithSlopes:
    """Lienen & Hüllermeier (2021), eq. 7: ``(1 - a) ln((1 - a) / p) + a ln(a / (1 - p))``, 0 if p >= 1 - a.

    With u = ln((1 - a) / p), ``(1 - p) / a`` is ``1 + (1 - a) / a (1 - e^-u)``: nothing cancels where both
    are near 1. The slope is 1 minus the inverse of it.
    """
    ln_keep = torch.log1p(-alpha) if isinstance(alpha, Tensor) else math.log1p(-alpha)
    u = (ce + ln_keep).clamp_min(0.0)  # 0 inside the set
    more = torch.expm1(-u) * ((alpha - 1) / alpha)
    v = torch.log1p(more)
    value = ((1 - alpha) * u - alpha * v).clamp_min(0.0)
    slope = more / (1 + more)
    return (value, slope, -(u + v)) if isinstance(alpha, Tensor) else (value, slope)


def _of_two_classes(ln_p: Tensor, alpha: Number, target: Tensor) -> WithSlopes:
    """The loss of a mixture of two classes from their log-probabilities, (..., 2)."""
    p, tiny, alphas = ln_p.exp(), torch.finfo(ln_p.dtype).tiny, _of_rows(alpha)
    bound = (1 - alphas) * target
    # As in `_shrinkage`, for the three ways to raise one class or both.
    one = (alphas + bound) / (1 - p.flip(-1)).clamp_min(tiny)
    both = alphas / (1 - p.sum(-1, keepdim=True)).clamp_min(tiny)
    return _divergence(ln_p, p, alpha, bound, torch.minimum(one.amin(-1, keepdim=True), both))


def _of_all_classes(ln_p: Tensor, alpha: Number, target: Tensor, p: Tensor | None = None) -> WithSlopes:
    """The loss of a distribution over all classes."""
    p, alphas = ln_p.exp() if p is None else p, _of_rows(alpha)
    c = _shrinkage(p, target, alphas)
    return _divergence(ln_p, p, alpha, (1 - alphas) * target, c)


def _divergence(ln_p: Tensor, p: Tensor, alpha: Number, bound: Tensor, c: Tensor) -> WithSlopes:
    """KL(q || p) of the projection q, which is the larger of `bound` and c p."""
    c = c.clamp_max(1.0)  # 1 inside the set
    ln_c = c.log()
    slope = (c * p - bound).clamp_max(0.0)
    rest = slope >= 0  # the classes that are not raised, which have alpha in addition to their bounds
    ln_ratio = torch.where(rest, ln_c, bound.masked_fill(rest, 1.0).log() - ln_p)
    value = ((bound * ln_ratio).sum(-1) + alpha * ln_c.squeeze(-1)).clamp_min(0.0)
    if isinstance(alpha, Tensor):
        return value, slope, (bound * (ln_c - ln_ratio)).sum(-1) / (1 - alpha)
    return value, slope


def _shrinkage(p: Tensor, target: Tensor, alpha: Number) -> Tensor:
    """The factor c of the classes that the projection does not raise to their bound ``(1 - a) target``.

    A set of classes that has the probability `free` and would share `left` has the factor left / free. That
    of the projection is the least of all. The classes of the set are those with the least target / p.
    Sorting finds them exactly; a fixed number of steps of an iteration would not for all targets.
    """
    tiny = torch.finfo(p.dtype).tiny  # in place of 0, which it takes from gradients too
    order = (target / p.clamp_min(tiny)).argsort(-1)
    free, left = p.gather(-1, order).cumsum(-1).clamp_min(tiny), target.gather(-1, order)
    del order  # which takes twice the memory of p
    return ((alpha + (1 - alpha) * left.cumsum(-1)) / free).amin(-1, keepdim=True)


# The other losses.


def _cross_entropy(rows: _Classes, label_smoothing: float) -> Tensor:
    """Szegedy et al. (2016), section 7, with the class weights of `F.cross_entropy`."""
    losses, ln_p = rows.ce, rows.ln_p
    if rows.weight is not None:
        losses = losses * rows.weight[rows.y.masked_fill(rows.ignored, 0)]
        ln_p = ln_p * rows.weight
    if label_smoothing == 0:
        return losses
    smoothed = -label_smoothing * ln_p.mean(-1).masked_fill(rows.ignored, 0.0)
    return smoothed if label_smoothing == 1 else (1 - label_smoothing) * losses + smoothed


def focal(ce: Tensor, gamma: float) -> WithSlopes:
    """Lin et al. (2017), eq. 4: ``-(1 - p)^g ln p``."""
    q = (-torch.expm1(-ce)).clamp_min(torch.finfo(ce.dtype).tiny)
    power = q ** (gamma - 1)
    # Where ce is infinite, p ce is 0.
    return power * q * ce, power * q.addcmul(1 - q, ce.clamp_max(torch.finfo(ce.dtype).max), value=gamma)


def _dual_focal(rows: _Classes, gamma: float) -> Tensor:
    """Tao et al. (2023): ``-(1 - p_y + p_j)^g ln p_y``, j the class next below y in probability."""
    scores = rows.scores.detach()
    own = scores.gather(-1, rows.y.masked_fill(rows.ignored, 0).unsqueeze(-1))
    # By the scores: the logarithms of their probabilities may be equal where they are not.
    best = scores.masked_fill(scores >= own, -math.inf).max(-1, keepdim=True)
    p_j = rows.ln_p.gather(-1, best.indices).exp().masked_fill(best.values == -math.inf, 0.0).squeeze(-1)
    finite = rows.ce.masked_fill(rows.ce == math.inf, 1000.0)
    # The least number lets a power below 1 have a derivative at 0.
    q = p_j + torch.finfo(p_j.dtype).tiny - torch.expm1(-finite)
    return q**gamma * rows.ce


def _confidence_penalty(rows: _Classes, beta: float) -> Tensor:
    """Pereyra et al. (2017), section 3: cross-entropy minus ``b`` times the entropy of the prediction."""
    penalty = with_slope(_negative_entropy, rows.ln_p).masked_fill(rows.ignored, 0.0)
    return rows.ce + beta * penalty


def _negative_entropy(ln_p: Tensor) -> WithSlopes:
    ln_p = ln_p.clamp_min(-1000.0)  # where p is 0, p ln p is
    p = ln_p.exp()
    terms = p * ln_p
    return terms.sum(-1), terms.add_(p)


def _of_soft_targets(
    scores: Tensor,
    target: Tensor,
    options: Options,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    beta: float = 0.0,
) -> Tensor:
    """The loss of a distribution t: the sum of ``w t (1 - p)^g (-ln p)``, minus ``b`` times the entropy."""
    ln_p, weight = scores.log_softmax(-1), _weight(options, scores)
    penalty = None if beta == 0 else beta * with_slope(_negative_entropy, ln_p)
    target = _distributions(target, scores, options)
    if label_smoothing != 0:
        target = (1 - label_smoothing) * target + label_smoothing / target.shape[-1]
    if weight is not None:
        target = target * weight
    if gamma != 0:
        return with_slope(_soft_focal, ln_p, gamma, target)
    losses = -ln_p.masked_fill(target == 0, 0.0).mul_(target).sum(-1)
    return losses if penalty is None else losses + penalty * target.sum(-1)


def _soft_focal(ln_p: Tensor, gamma: float, target: Tensor) -> WithSlopes:
    """The sum of `focal` over the classes, weighted by the target; in little memory."""
    q = (-torch.expm1(ln_p)).clamp_min(torch.finfo(ln_p.dtype).tiny)
    weighted = q ** (gamma - 1) * target
    value = -(weighted * q * ln_p.masked_fill(target == 0, 0.0)).sum(-1)
    finite = ln_p.clamp_min(torch.finfo(ln_p.dtype).min)
    return value, -weighted * torch.addcmul(q, q - 1, finite, value=gamma)


def _uniform_penalty(rows: _Classes, alpha: Number) -> Tensor:
    """``(1 - a - p_y) KL(u || p)`` outside the set, with u the smoothed target: 1 - a, and a / (C - 1)."""
    each = alpha / (rows.ln_p.shape[-1] - 1)
    is_own = torch.arange(rows.ln_p.shape[-1], device=rows.y.device) == rows.y.unsqueeze(-1)
    others = rows.ln_p.masked_fill(is_own, 0.0).sum(-1)
    divergence = (1 - alpha) * (_ln(1 - alpha) + rows.ce) + alpha * _ln(each) - each * others
    distance = 1 - alpha - torch.exp(-rows.ce)
    outside = ~rows.ignored & ~(distance <= 0)  # NaN counts as outside
    if isinstance(alpha, Tensor) or alpha == 0:
        outside = outside & (torch.as_tensor(alpha, device=distance.device) > 0)  # as in the paper's code
    return (distance * divergence.where(outside, 0.0)).where(outside, 0.0)


_OF_CLASSES: dict[str, Callable[[_Classes, Any], Tensor]] = {
    "label_relaxation": lambda rows, alpha: _label_relaxation(rows.ce, alpha),
    "uniform_penalty": _uniform_penalty,
    "cross_entropy": _cross_entropy,
    "focal": lambda rows, gamma: rows.ce if gamma == 0 else with_slope(focal, rows.ce, gamma),
    "dual_focal": _dual_focal,
    "confidence_penalty": _confidence_penalty,
}


# Scores and targets.


def _last(x: Tensor, dim: int) -> Tensor:
    """With the classes in the last dimension."""
    return x if dim in (-1, x.dim() - 1) else x.movedim(dim, -1)


def _single(x: Tensor) -> Tensor:
    """In float32 or better."""
    return x.to(_dtype(x))


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _counted(scores: Tensor, ignored: Tensor) -> Tensor:
    """Equal scores for rows that are ignored: the gradient of 0 times infinite ones would be NaN."""
    return _single(scores.masked_fill(ignored, 1.0))


def _distributions(target: Tensor, scores: Tensor, options: Options) -> Tensor:
    target = _last(target.detach(), options.dim).to(_dtype(scores)).clamp_min(0.0)  # negative by rounding
    return target / target.sum(-1, keepdim=True)


def _total(scores: Tensor) -> Tensor:
    """What probabilities are to be divided by, (..., 1); NaN if they cannot be."""
    total = scores.sum(-1, keepdim=True)
    valid = (scores >= 0).all(-1, keepdim=True) & (total > 0) & (total < math.inf)
    return total * torch.ones_like(total).masked_fill(~valid, math.nan)


def _ln_probabilities(scores: Tensor, target: Tensor | None = None) -> Tensor:
    """The log-probabilities of rows after division by their sum."""
    # The gradient of log 0 is infinite, which is right only for a class that the target demands.
    zero = scores == 0 if target is None else (scores == 0) & (target == 0)
    return scores.masked_fill(zero, 1.0).log().masked_fill(zero, -math.inf) - _total(scores).log()


def _ln_sum(ln_p: Tensor, sets: Tensor, scores: Tensor | None = None) -> WithSlopes:
    """The log-probability of a set. Its slope is the share of each class, equal if the set is impossible.

    Log-probabilities have the rounding error of the largest logit: shares of the scores, if given, are exact.
    """
    shares = _shares_within(sets, ln_p if scores is None else scores)
    return ln_p.masked_fill(~sets, -math.inf).logsumexp(-1), shares


def _shares_within(sets: Tensor, scores: Tensor) -> Tensor:
    """The softmax over the classes of a set: equal shares if all scores are -inf, finite ones of NaN."""
    return _single(scores).nan_to_num().masked_fill(~sets, -math.inf).softmax(-1)


# Hyperparameters.


def _parameter(options: Options, scores: Tensor) -> Any:
    parameter = options.parameter
    return parameter.to(_dtype(scores)) if isinstance(parameter, Tensor) else float(parameter)


def _weight(options: Options, scores: Tensor) -> Tensor | None:
    return None if options.weight is None else options.weight.detach().to(_dtype(scores))


def _of_rows(numbers: Number) -> Number:
    """Numbers per row, with a class dimension to broadcast over."""
    return numbers.unsqueeze(-1) if isinstance(numbers, Tensor) and numbers.dim() > 0 else numbers


def _ln(x: Number) -> Number:
    """The logarithm, for what is multiplied by x: 0 of 0."""
    if isinstance(x, Tensor):
        return x.where(x > 0, 1.0).log()
    return math.log(x) if x > 0 else 0.0
