"""Losses of a distribution t as target, see src/kernels/losses/soft_target.rs:

    L = sum over k of w_k t_k (1 - p_k)^g (-ln p_k) - b W H,      W = sum over k of w_k t_k,
    u_k = w_k t_k (1 - p_k)^g (g p_k ln p_k / (1 - p_k) - 1),
    dL/dz_k = u_k - p_k (sum of u) + b W p_k (ln p_k + H).

The sum of exponentials leaves out the most probable class y, so that 1 - p_y does not cancel. All other
classes have p_k <= 1/2. A row that fits a block is read once, a longer one three times.
"""

import triton
import triton.language as tl

from lr_relax._triton.distributions import load_target
from lr_relax._triton.exponentials import without_infinity
from lr_relax._triton.log_odds import ln_1p
from lr_relax._triton.rows import gradient_scale, row_offsets, store_losses, tile_offsets, weights_of_columns


@triton.jit
def soft_terms(x, e, t, is_top, share, others, shift, gamma, IS_FOCAL: tl.constexpr):
    """The terms of the loss, and u."""
    surprise = shift[:, None] - x
    if IS_FOCAL:
        p = e * share[:, None]
        q = tl.where(is_top, (others * share)[:, None], 1.0 - p)
        some = q > 0
        power = tl.where(some, tl.exp(gamma[:, None] * tl.log(tl.where(some, q, 1.0))), 0.0)
        # Where p is 0, so is its product with ln p; p ln p / q is -1 where q is 0.
        ratio = tl.where(some, p * tl.minimum(surprise, 1000.0) / tl.where(some, q, 1.0), 1.0)
        t = t * power
        return tl.where(t > 0, t * surprise, 0.0), -t * (gamma[:, None] * ratio + 1.0)
    else:
        return tl.where(t > 0, t * surprise, 0.0), -t


@triton.jit
def soft_gradient(
    x, e, u, is_top, share, others, shift, top_slope, rest_slope, pull, entropy, IS_PENALIZED: tl.constexpr
):
    p = e * share[:, None]
    # Of the most probable class, u - p (sum of u) would cancel.
    own = (others * share)[:, None] * u - p * rest_slope[:, None]
    g = tl.where(is_top, own, u - p * (top_slope + rest_slope)[:, None])
    if IS_PENALIZED:
        g += pull[:, None] * p * (entropy[:, None] - tl.minimum(shift[:, None] - x, 1000.0))
    return g


@triton.jit(do_not_specialize=["n_rows"])
def soft_target_kernel(
    input,
    grad,
    target,
    weight,
    multiplier,
    out,
    parameter: tl.float64,
    upstream: tl.float64,
    divisor: tl.float64,
    tolerance: tl.float64,
    n_rows,
    n_classes,
    inner,
    input_outer,
    input_inner,
    input_class,
    grad_outer,
    grad_inner,
    grad_class,
    target_outer,
    target_inner,
    target_class,
    LOSS: tl.constexpr,
    OUT: tl.constexpr,
    FLAT: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    IS_FOCAL: tl.constexpr = LOSS == "focal"
    IS_PENALIZED: tl.constexpr = LOSS == "confidence_penalty"
    infinity = float("inf")
    number = tl.full([ROWS], parameter, F)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = rows < n_rows
    offsets = row_offsets(rows, inner, input_outer, input_inner, FLAT)
    target_offsets = row_offsets(rows, inner, target_outer, target_inner, FLAT)
    columns = tl.arange(0, BLOCK)
    if SINGLE:
        in_row = exists[:, None] & (columns < n_classes)[None, :]
        z = tl.load(input + tile_offsets(offsets, columns, input_class), mask=in_row, other=-infinity).to(F)
        t, negative = load_target(target + tile_offsets(target_offsets, columns, target_class), in_row, F)
        faults = tl.sum(negative.to(tl.int32), 1)
        sum = tl.sum(t, 1)
        top = without_infinity(tl.max(z, 1))
        top_column = tl.min(tl.where(z == top[:, None], columns[None, :], n_classes), 1)
        is_top = columns[None, :] == top_column[:, None]
        x = z - top[:, None]
        e = tl.exp(x)
        others = tl.sum(tl.where(is_top, 0.0, e), 1)
    else:
        maxima = tl.full([ROWS, BLOCK], -infinity, F)
        rest = tl.zeros([ROWS, BLOCK], F)
        places = tl.full([ROWS, BLOCK], n_classes, tl.int32)
        target_sums = tl.zeros([ROWS, BLOCK], F)
        negatives = tl.zeros([ROWS, BLOCK], tl.int32)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity).to(F)
            t, negative = load_target(target + tile_offsets(target_offsets, block, target_class), in_row, F)
            negatives += negative.to(tl.int32)
            target_sums += t
            # The sum leaves out the maximum of its lane, which joins it when there is a larger one.
            is_higher = z > maxima
            smaller = tl.exp(-tl.abs(tl.where(z == maxima, 0.0, z - maxima)))
            smaller = tl.where((z == -infinity) & (maxima == -infinity), 0.0, smaller)
            rest = tl.where(is_higher, (rest + 1.0) * smaller, rest + smaller)
            places = tl.where(is_higher, block[None, :], places)
            maxima = tl.where(is_higher, z, maxima)
        top = without_infinity(tl.max(maxima, 1))
        top_column = tl.min(tl.where(maxima == top[:, None], places, n_classes), 1)
        is_lane = places == top_column[:, None]
        others = tl.sum((rest + tl.where(is_lane, 0.0, 1.0)) * tl.exp(maxima - top[:, None]), 1)
        faults = tl.sum(negatives, 1)
        sum = tl.sum(target_sums, 1)

    # A row without a softmax, or whose target is no distribution, is NaN.
    valid = (others < infinity) & (tl.abs(top) < infinity) & (top_column < n_classes)
    valid = valid & (faults == 0) & (tl.abs(sum - 1.0) <= tolerance)
    share = 1.0 / (1.0 + others)
    shift = tl.where(others > 1, tl.log(1.0 + others), ln_1p(tl.minimum(others, 1.0)))
    keep = 1.0 / tl.where(valid, sum, 1.0)
    spread = (number * 0.0)[:, None]
    if LOSS == "cross_entropy":
        keep = keep * (1.0 - number)
        spread = (number / n_classes)[:, None]
    if SINGLE:
        weights = weights_of_columns(weight, columns, n_classes, F)[None, :]
        t = (t * keep[:, None] + spread) * weights
        terms, u = soft_terms(x, e, t, is_top, share, others, shift, number, IS_FOCAL)
        value = tl.sum(terms, 1)
        top_slope = tl.sum(tl.where(is_top, u, 0.0), 1)
        rest_slope = tl.sum(tl.where(is_top, 0.0, u), 1)
        entropy = share * tl.sum(e * tl.minimum(shift[:, None] - x, 1000.0), 1)
    else:
        values = tl.zeros([ROWS, BLOCK], F)
        top_slopes = tl.zeros([ROWS, BLOCK], F)
        rest_slopes = tl.zeros([ROWS, BLOCK], F)
        entropies = tl.zeros([ROWS, BLOCK], F)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity).to(F)
            t, _ = load_target(target + tile_offsets(target_offsets, block, target_class), in_row, F)
            t = (t * keep[:, None] + spread) * weights_of_columns(weight, block, n_classes, F)[None, :]
            x = z - top[:, None]
            e = tl.exp(x)
            is_top = block[None, :] == top_column[:, None]
            terms, u = soft_terms(x, e, t, is_top, share, others, shift, number, IS_FOCAL)
            values += terms
            top_slopes += tl.where(is_top, u, 0.0)
            rest_slopes += tl.where(is_top, 0.0, u)
            if IS_PENALIZED:
                entropies += e * tl.minimum(shift[:, None] - x, 1000.0)
        value = tl.sum(values, 1)
        top_slope = tl.sum(top_slopes, 1)
        rest_slope = tl.sum(rest_slopes, 1)
        entropy = share * tl.sum(entropies, 1)

    pull = tl.zeros_like(value)
    if IS_PENALIZED:
        pull = -number * (top_slope + rest_slope)  # b W
        value -= pull * entropy
    store_losses(out, tl.where(valid, value, float("nan")), rows, exists, divisor, OUT)

    if grad is not None:
        scale = gradient_scale(upstream, multiplier, divisor, F)
        to = row_offsets(rows, inner, grad_outer, grad_inner, FLAT)
        if SINGLE:
            g = soft_gradient(
                x, e, u, is_top, share, others, shift, top_slope, rest_slope, pull, entropy, IS_PENALIZED
            )
            g = tl.where(valid[:, None], g * scale, float("nan"))
            tl.store(grad + tile_offsets(to, columns, grad_class), g, mask=in_row)
        else:
            for start in range(0, n_classes, BLOCK):
                block = start + columns
                in_row = exists[:, None] & (block < n_classes)[None, :]
                z = tl.load(
                    input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity
                ).to(F)
                t, _ = load_target(target + tile_offsets(target_offsets, block, target_class), in_row, F)
                t = (t * keep[:, None] + spread) * weights_of_columns(weight, block, n_classes, F)[None, :]
                x = z - top[:, None]
                e = tl.exp(x)
                is_top = block[None, :] == top_column[:, None]
                _, u = soft_terms(x, e, t, is_top, share, others, shift, number, IS_FOCAL)
                g = soft_gradient(
                    x, e, u, is_top, share, others, shift, top_slope, rest_slope, pull, entropy, IS_PENALIZED
                )
                g = tl.where(valid[:, None], g * scale, float("nan"))
                tl.store(grad + tile_offsets(to, block, grad_class), g, mask=in_row)
