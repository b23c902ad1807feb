"""The losses from their definitions, for all rows at once, in the longest floating-point type of NumPy.

On x86-64 that has 64 bits of mantissa and no overflow before 1e4932, so that no limit needs a formula of its
own. A target is a matrix: of bool for classes and sets, else of the shares of the classes.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Real = np.longdouble


class Rows(NamedTuple):
    """Of each row before the reduction."""

    loss: Array
    """(N,); NaN of rows without a softmax."""
    slope: Array
    """(N, C), its gradient by the scores."""
    terms: Array
    """(N, C), the size of the terms that the gradient is a difference of: rounding is relative to it."""
    share: Array
    """(N,), what the row counts in the mean."""
    by_alpha: Array
    """(2, N), the derivative of label relaxation by its alpha, and the size of the terms of that."""


def compute(
    loss: str,
    parameter: Any,
    scores: Array,
    target: Array,
    weight: Array | None,
    from_logits: bool,
    penalty: float = 0.0,
) -> Rows:
    """Rows of label relaxation, with the penalty of the paper's code, or of the other losses of logits."""
    scores = scores.astype(Real)
    parameter = np.broadcast_to(np.asarray(parameter, Real), len(scores))
    is_set = target.dtype == bool
    if not is_set:
        target = target.astype(Real)
        target = target / target.sum(1, keepdims=True)
    weights = np.ones(scores.shape[1], Real) if weight is None else weight.astype(Real)
    factor = (target * weights).sum(1) / target.sum(1)  # the expected weight
    share = np.ones(len(scores), Real) if weight is None else factor
    with np.errstate(all="ignore"):
        if loss == "label_relaxation":
            value, slope, terms, by_alpha = _label_relaxation(scores, target, parameter[:, None], from_logits)
            if penalty != 0:
                added = _uniform_penalty(scores, target, parameter[:, None])
                value, slope, terms = (
                    x + penalty * y for x, y in zip((value, slope, terms), added, strict=True)
                )
            free = target.all(1) if is_set else np.zeros(len(scores), bool)  # anything may be right
            value, slope, terms = (
                np.where(free.reshape(-1, *[1] * (x.ndim - 1)), 0, x) for x in (value, slope, terms)
            )
            by_alpha = factor * np.where(free, 0, by_alpha)
            return Rows(factor * value, factor[:, None] * slope, factor[:, None] * terms, share, by_alpha)
        ln_p, ln_rest = _softmax(scores)
        if is_set:
            of_class = {
                "cross_entropy": _smoothed,
                "focal": _focal,
                "dual_focal": partial(_dual_focal, scores),
                "confidence_penalty": _penalized,
            }[loss]
            value, slope = of_class(ln_p, ln_rest, target, parameter[:, None], weights, factor[:, None])
        else:
            share = np.ones(len(scores), Real)
            value, slope = _soft(loss, ln_p, ln_rest, target, parameter[:, None], weights)
        size = np.abs(weights).max() * (1 + parameter * (1 + np.abs(np.where(np.isfinite(value), value, 0))))
        terms = np.broadcast_to(size[:, None], slope.shape)
        return Rows(value, slope, terms, share, np.zeros((2, len(scores))))


def _ln_sum(x: Array) -> Array:
    """The logarithm of the sum of the exponentials of a row, (N, 1)."""
    top, sums = _sum(x)
    return top + np.log(sums)


def _sum(x: Array) -> tuple[Array, Array]:
    """The largest number of a row, and the sum of the exponentials relative to it, (N, 1)."""
    top = x.max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    return top, np.exp(x - top).sum(1, keepdims=True)


def _softmax(z: Array) -> tuple[Array, Array]:
    """ln p, and ln(1 - p) from the sum of the other classes; NaN for rows without a softmax."""
    top = z.max(1, keepdims=True)
    z = np.where(np.isfinite(top), z - top, np.nan)
    order = np.argsort(-z, 1, kind="stable")[:, :1]
    first = np.arange(z.shape[1]) == order
    # Of the largest, ln(1 - p) is that of the sum of the others; of all others, 1 - p does not cancel.
    odds = _ln_sum(np.where(first, -np.inf, z)) - _ln_sum(np.where(first, z, -np.inf))
    ln_largest = -np.log1p(np.exp(odds))
    ln_p = np.where(first, ln_largest, z + ln_largest)
    return ln_p, np.where(first, odds + ln_largest, np.log1p(-np.exp(ln_p)))


def _label_relaxation(
    scores: Array, target: Array, alpha: Array, from_logits: bool
) -> tuple[Array, Array, Array, Array]:
    """KL(q || p) of the nearest distribution q; p - q, its slope, or (p - q) / p; its slope by alpha."""
    if from_logits:
        ln_scores, total = scores, np.ones((len(scores), 1), Real)
    else:
        total = scores.sum(1, keepdims=True)
        valid = (scores >= 0).all(1, keepdims=True) & (total > 0) & (total < np.inf)
        total = np.where(valid, total, np.nan)
        ln_scores = np.log(np.abs(scores)) + 0 * total
    ln_p = _softmax(ln_scores)[0]
    p = np.exp(ln_p)
    if target.dtype == bool:
        # However far the set is below the other classes, its classes share its probability.
        (top, sums), (top_off, sums_off) = (
            _sum(np.where(mask, ln_scores, -np.inf)) for mask in (target, ~target)
        )
        shares = np.where(sums > 0, np.exp(ln_scores - top) / sums, 1 / target.sum(1, keepdims=True))
        odds = (top_off - top) + (np.log(sums_off) - np.log(sums))
        odds = np.where(np.isnan(ln_p).any(1, keepdims=True), np.nan, odds)
        on, off = -np.log1p(np.exp(odds)), -np.log1p(np.exp(-odds))
        on, off = np.where(odds > 1e3, -odds, on), np.where(odds < -1e3, odds, off)
        inside = np.exp(off) <= alpha
        value = (1 - alpha) * (np.log1p(-alpha) - on) + np.where(alpha > 0, alpha * (np.log(alpha) - off), 0)
        # (p - q) / p; of the set, exp(on) - (1 - a) is computed as a - exp(off).
        ratio = np.where(target, (alpha - np.exp(off)) / np.exp(on), 1 - alpha / np.exp(off))
        gap = np.where(target, shares * (alpha - np.exp(off)), p * ratio)
        terms = 1 + np.exp(-np.where(target, on, off))  # p - q has an error of 1 ulp of 1
        terms = np.where(np.isfinite(terms), terms, 1)
        by_alpha = np.concatenate([np.log(alpha), -off, -np.log1p(-alpha), on], 1)
    else:
        bound = (1 - alpha) * target
        ratios = np.where(bound > 0, bound / p, 0)
        order = np.argsort(np.where(np.isnan(ratios), np.inf, ratios), 1, kind="stable")
        left, free = (np.cumsum(np.take_along_axis(x, order, 1), 1) for x in (bound, p))
        quotients = (alpha + left) / free
        c = np.where(np.isnan(quotients), np.inf, quotients).min(1, keepdims=True)
        c = np.where(np.isnan(p).any(1, keepdims=True), np.nan, c)
        inside = (bound <= p).all(1, keepdims=True)
        raised = bound > c * p
        rest = alpha + np.where(raised, 0, bound).sum(1, keepdims=True)
        value = np.where(raised, bound * (np.log(bound) - ln_p), 0).sum(1, keepdims=True)
        value = value + np.where(rest > 0, rest * np.log(c), 0)
        gap = np.where(raised, p - bound, p * (1 - c))
        ratio = np.where(raised, 1 - bound / p, 1 - c)
        terms = np.where((p > 0) | (bound == 0), 1 / p, 1)
        # ln c has the error of 1 - p of the raised classes, which is divided by; it is among the terms twice.
        free = np.where(raised, 0, p).sum(1, keepdims=True)
        error = np.where(free > 0, 1 / free, 0)
        of_raised = [np.where(raised, target * x, 0) for x in (-np.log(bound), ln_p, np.log(c))]
        by_alpha = np.concatenate([*of_raised, error, -error], 1)
    value, gap, ratio = (np.where(inside, 0, x) for x in (value, gap, ratio))
    slope = gap if from_logits else ratio / total
    terms = np.ones_like(p) if from_logits else terms / total
    by_alpha = np.where(inside, 0, by_alpha)
    return value[:, 0], slope, terms, np.stack([by_alpha.sum(1), np.abs(by_alpha).sum(1)])


def _uniform_penalty(z: Array, own: Array, alpha: Array) -> tuple[Array, Array, Array]:
    """``(1 - a - p_y) KL(u || p)`` outside the set, u the smoothed target: 1 - a, and a / (C - 1)."""
    ln_p = _softmax(z)[0]
    p, u = np.exp(ln_p), np.where(own, 1 - alpha, alpha / (z.shape[1] - 1))
    divergence = np.where(u > 0, u * (np.log(u) - ln_p), 0).sum(1, keepdims=True)
    own_p = np.where(own, p, 0).sum(1, keepdims=True)
    distance = 1 - alpha - own_p
    outside = (distance > 0) & (alpha > 0)
    value = np.where(outside, distance * divergence, 0)
    slope = np.where(outside, distance * (p - u) - own_p * (own - p) * divergence, 0)
    return value[:, 0], slope, np.where(outside, 1 + 2 * np.abs(divergence), 0) + np.zeros_like(p)


def _smoothed(
    ln_p: Array, ln_rest: Array, own: Array, s: Array, weights: Array, factor: Array
) -> tuple[Array, Array]:
    p, n = np.exp(ln_p), ln_p.shape[1]
    ce = -np.where(own, ln_p, 0).sum(1, keepdims=True)
    spread = -np.where(weights > 0, weights * ln_p, 0).sum(1, keepdims=True) / n
    value = np.where(s < 1, (1 - s) * factor * ce, 0) + np.where(s > 0, s * spread, 0)
    slope = (1 - s) * factor * _minus_one_hot(p, ln_rest, own) + s / n * (p * weights.sum() - weights)
    return value[:, 0], slope


def _focal(
    ln_p: Array, ln_rest: Array, own: Array, gamma: Array, _: Array, factor: Array
) -> tuple[Array, Array]:
    value, by_ln_p = _focal_terms(ln_p, ln_rest, gamma)
    value, by_ln_p = (np.where(own, x, 0).sum(1, keepdims=True) for x in (value, by_ln_p))
    return (factor * value)[:, 0], -factor * by_ln_p * _minus_one_hot(np.exp(ln_p), ln_rest, own)


def _focal_terms(ln_p: Array, ln_rest: Array, gamma: Array) -> tuple[Array, Array]:
    """``-(1 - p)^g ln p`` and its derivative by ln p."""
    power = np.where(gamma > 0, np.exp(gamma * ln_rest), 1)
    ln_surprise = np.where(ln_rest < -50, ln_rest, np.log(-ln_p))  # ln(-ln p), which is about 1 - p near 1
    lower = np.where(gamma > 0, -gamma * np.exp(ln_p + (gamma - 1) * ln_rest + ln_surprise), 0)
    lower = np.where(np.exp(ln_p) > 0, lower, np.where(np.isnan(ln_p), np.nan, 0))  # p ln p
    value = np.where((ln_rest == -np.inf) & (gamma > 0), 0, -power * ln_p)
    return value, np.where((ln_rest == -np.inf) & (gamma > 0), 0, lower - power)


def _dual_focal(
    scores: Array, ln_p: Array, ln_rest: Array, own: Array, gamma: Array, _: Array, factor: Array
) -> tuple[Array, Array]:
    p = np.exp(ln_p)
    ln_own = np.where(own, ln_p, 0).sum(1, keepdims=True)
    # By the scores: their exponentials may be equal where they are not.
    below = np.where(scores < np.where(own, scores, -np.inf).max(1, keepdims=True), scores, -np.inf)
    second = (below == below.max(1, keepdims=True)) & (below > -np.inf)
    second &= np.cumsum(second, 1) == 1
    p_own, p_second = np.exp(ln_own), np.where(second, p, 0).sum(1, keepdims=True)
    d = np.exp(np.where(own, ln_rest, 0).sum(1, keepdims=True)) + p_second
    power, lower = d**gamma, np.where(gamma > 0, gamma * d ** (gamma - 1), 0)
    p_ce = np.where(p_own > 0, -p_own * ln_own, np.where(np.isnan(p_own), np.nan, 0))
    by_own, by_second = -power - lower * p_ce, -lower * ln_own * p_second
    by_own, by_second = (np.where((d == 0) & (ln_own == 0), 0, x) for x in (by_own, by_second))
    by_second = np.where(p_second > 0, by_second, 0)
    value = np.where(ln_own == 0, 0, -power * ln_own)
    slope = -by_own * _minus_one_hot(p, ln_rest, own) - by_second * _minus_one_hot(p, ln_rest, second)
    return (factor * value)[:, 0], factor * slope


def _penalized(
    ln_p: Array, ln_rest: Array, own: Array, beta: Array, _: Array, factor: Array
) -> tuple[Array, Array]:
    ce = -np.where(own, ln_p, 0).sum(1, keepdims=True)
    entropy, slope = _negative_entropy(ln_p)
    value = ce + beta * entropy
    return (factor * value)[:, 0], factor * (_minus_one_hot(np.exp(ln_p), ln_rest, own) + beta * slope)


def _negative_entropy(ln_p: Array) -> tuple[Array, Array]:
    p = np.exp(ln_p)
    terms = np.where(p == 0, 0, p * ln_p)
    value = terms.sum(1, keepdims=True)
    return value, terms - p * value


def _soft(
    loss: str, ln_p: Array, ln_rest: Array, target: Array, parameter: Array, weights: Array
) -> tuple[Array, Array]:
    """The expected loss of a class drawn from the target."""
    if loss == "cross_entropy":
        target = (1 - parameter) * target + parameter / target.shape[1]
    target = target * weights
    gamma = parameter if loss == "focal" else np.zeros_like(parameter)
    value, by_ln_p = _focal_terms(ln_p, ln_rest, gamma)
    value = np.where(target == 0, 0 * np.where(np.isnan(ln_p), np.nan, 0), target * value).sum(
        1, keepdims=True
    )
    weighted = target * by_ln_p
    # The sum over classes k of t_k m_k (1_jk - p_j), whose own term has 1 - p_k.
    others = weighted.sum(1, keepdims=True) - weighted
    slope = weighted * np.exp(ln_rest) - others * np.exp(ln_p)
    if loss == "confidence_penalty":
        entropy, by_logits = _negative_entropy(ln_p)
        total = target.sum(1, keepdims=True)
        value, slope = value + parameter * total * entropy, slope + parameter * total * by_logits
    return value[:, 0], slope


def _minus_one_hot(p: Array, ln_rest: Array, own: Array) -> Array:
    """p - 1 of the row's class, p of the others."""
    return np.where(own, -np.exp(ln_rest), p)
