"""Losses of class-index targets, as in src/kernels/losses: binary.rs, accumulating.rs and what uses them.

With x_k = z_k - max and e_k = e^x_k over the classes other than y, every gradient is

    dL/dz_k = e_k (a + b x_k) + c w_k,

with the class weights w and a number for dL/dz_y. A row that fits a block is read once. A longer row is
read twice, the second time backward, so that most of it still is in the cache; its sums are kept lane by
lane (Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018), without a reduction inside
the loop.
"""

import triton
import triton.language as tl

from lr_relax._triton.exponentials import without_infinity
from lr_relax._triton.log_odds import binary_view, focal_loss, relaxed_loss
from lr_relax._triton.rows import (
    class_weights,
    gradient_scale,
    is_class,
    row_numbers,
    row_offsets,
    store_losses,
    tile_offsets,
    total_weight,
    weights_of_columns,
)


@triton.jit
def class_coefficients(own, others, extra, parameter, own_weight, weight_sum, n_classes, LOSS: tl.constexpr):
    """The loss, dL/dz_y, a, b and c."""
    ln_sum = tl.log(others)
    q, ln_p, ln_q = binary_view(own - ln_sum)
    zero = tl.zeros_like(q)
    if LOSS == "label_smoothing":
        spread = parameter / n_classes
        keep = (1.0 - parameter) * own_weight
        # -ln p_k = ln(sum over all classes) - x_k. -ln p_y is the most exact of them, unless p_y is 0.
        ln_all = tl.where(own == -float("inf"), ln_sum, own - ln_p)
        smoothed = -own_weight * ln_p + (weight_sum - own_weight) * ln_all - extra
        slope = keep + spread * weight_sum
        loss = tl.where(keep == 0, 0.0, -keep * ln_p) + spread * smoothed
        own_gradient = spread * (weight_sum - own_weight) - slope * q
        return loss, own_gradient, tl.where(q == 0, 0.0, slope * q / others), zero, zero - spread
    elif LOSS == "confidence_penalty":
        certain = q == 0  # 0 ln 0 is 0
        p_ln_p = tl.where(ln_p == -float("inf"), 0.0, (1.0 - q) * ln_p)
        q_ln_q = tl.where(certain, 0.0, q * ln_q)
        entropy = tl.where(certain, 0.0, q * (ln_sum - extra / others)) - p_ln_p - q_ln_q
        scale = tl.where(certain, 0.0, own_weight * q / others)
        shift = tl.where(certain, 0.0, parameter * (ln_q - ln_sum + entropy))
        loss = own_weight * (-ln_p - parameter * entropy)
        own_gradient = own_weight * (parameter * (p_ln_p + (1.0 - q) * entropy) - q)
        return loss, own_gradient, scale * (1.0 + shift), scale * parameter, zero
    else:
        if LOSS == "cross_entropy":
            loss = -ln_p
            slope = q
        elif LOSS == "focal":
            loss, slope = focal_loss(q, ln_p, ln_q, parameter)
        else:
            loss, slope = relaxed_loss(q, ln_p, ln_q, parameter)
        slope = slope * own_weight
        return loss * own_weight, zero - slope, tl.where(slope == 0, 0.0, slope / others), zero, zero


@triton.jit
def class_gradient(x, e, weights, a, b, c, LOSS: tl.constexpr):
    if LOSS == "label_smoothing":
        return e * a + weights * c
    elif LOSS == "confidence_penalty":
        return e * (a + b * tl.maximum(x, -1000.0))  # where p is 0, so is p ln p
    else:
        return e * a


@triton.jit(do_not_specialize=["n_rows", "n_counts"])
def class_kernel(
    input,
    grad,
    target,
    numbers,
    weight,
    counts,
    multiplier,
    out,
    parameter: tl.float64,
    upstream: tl.float64,
    divisor: tl.float64,
    n_rows,
    n_classes,
    n_counts,
    ignore_index: tl.int64,
    inner,
    input_outer,
    input_inner,
    input_class,
    grad_outer,
    grad_inner,
    grad_class,
    number_stride,
    LOSS: tl.constexpr,
    COUNT: tl.constexpr,
    OUT: tl.constexpr,
    FLAT: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LANE: tl.constexpr,
    SINGLE: tl.constexpr,
):
    SMOOTHED: tl.constexpr = LOSS == "label_smoothing"
    PENALIZED: tl.constexpr = LOSS == "confidence_penalty"
    infinity = float("inf")
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = rows < n_rows
    offsets = row_offsets(rows, inner, input_outer, input_inner, FLAT)
    y = tl.load(target + rows, mask=exists, other=0).to(tl.int64)
    counted = exists & (y != ignore_index)
    known = counted & is_class(y, n_classes)
    own = tl.load(input + offsets + y * input_class, mask=known, other=float("nan")).to(F)
    own = tl.where(own == infinity, float("nan"), own)  # the softmax of an infinite logit is NaN
    own_weight = class_weights(weight, y, known, F)
    own_column = tl.where(known, y, -1).to(tl.int32)[:, None]
    number = row_numbers(numbers, parameter, rows, exists, number_stride, F)
    total = total_weight(target, weight, counts, divisor, n_rows, n_classes, n_counts, ignore_index, COUNT)

    columns = tl.arange(0, BLOCK)
    weight_sum = n_classes * tl.full([1], 1.0, F)
    if SINGLE:
        in_row = exists[:, None] & (columns < n_classes)[None, :]
        is_own = columns[None, :] == own_column
        z = tl.load(input + tile_offsets(offsets, columns, input_class), mask=in_row, other=-infinity).to(F)
        z = tl.where(is_own, -infinity, z)
        top = without_infinity(tl.max(z, 1))
        x = z - top[:, None]
        e = tl.exp(x)
        others = tl.sum(e, 1)
        weights = None
        if SMOOTHED:
            weights = weights_of_columns(weight, columns, n_classes, F)[None, :]
            if weight is not None:
                weight_sum = tl.sum(weights, 1)
            extra = tl.sum(tl.where(in_row & (columns[None, :] != own_column), x * weights, 0.0), 1)
        elif PENALIZED:
            extra = tl.sum(e * tl.maximum(x, -1000.0), 1)
        else:
            extra = others
    else:
        LANES: tl.constexpr = BLOCK // LANE
        maxima = tl.full([ROWS, LANES], -infinity, F)
        sums = tl.zeros([ROWS, LANES], F)
        extras = tl.zeros([ROWS, LANES], F)
        all_weights = tl.zeros([BLOCK], F)
        # Scores are summed relative to one of them, so that a large common offset costs no digits.
        origin = tl.where(tl.abs(own) < infinity, own, 0.0)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            pointers = input + tile_offsets(offsets, block, input_class)
            z = tl.load(pointers, mask=in_row, other=-infinity, eviction_policy="evict_last").to(F)
            is_own = block[None, :] == own_column
            if SMOOTHED:
                weights = weights_of_columns(weight, block, n_classes, F)
                all_weights += weights
                terms = tl.where(is_own | ~in_row, 0.0, (z - origin[:, None]) * weights[None, :])
                extras += tl.sum(tl.reshape(terms, [ROWS, LANES, LANE]), 2)
            z = tl.reshape(tl.where(is_own, -infinity, z), [ROWS, LANES, LANE])
            raised = tl.maximum(maxima, tl.max(z, 2))
            shift = without_infinity(raised)
            factor = tl.exp(maxima - shift)
            x = z - shift[:, :, None]
            e = tl.exp(x)
            if PENALIZED:
                moved = tl.where(maxima == -infinity, 0.0, maxima - shift)
                extras = factor * (extras + sums * moved) + tl.sum(e * tl.maximum(x, -1000.0), 2)
            sums = sums * factor + tl.sum(e, 2)
            maxima = raised
        top = without_infinity(tl.max(maxima, 1))
        factor = tl.exp(maxima - top[:, None])
        others = tl.sum(sums * factor, 1)
        if SMOOTHED:
            if weight is not None:
                weight_sum = tl.sum(all_weights, 0) + tl.zeros([1], F)
            extra = tl.sum(extras, 1) + (weight_sum - own_weight) * (origin - top)
        elif PENALIZED:
            moved = tl.where(maxima == -infinity, 0.0, maxima - top[:, None])
            extra = tl.sum(factor * (extras + sums * moved), 1)
        else:
            extra = others

    loss, own_gradient, a, b, c = class_coefficients(
        own - top, others, extra, number, own_weight, weight_sum, n_classes, LOSS
    )
    store_losses(out, tl.where(counted, loss, 0.0), rows, exists, total, OUT)

    if grad is not None:
        scale = gradient_scale(upstream, multiplier, total, F)
        own_gradient = (own_gradient * scale)[:, None]
        a, b, c = (a * scale)[:, None], (b * scale)[:, None], (c * scale)[:, None]
        to = row_offsets(rows, inner, grad_outer, grad_inner, FLAT)
        if SINGLE:
            g = tl.where(is_own, own_gradient, class_gradient(x, e, weights, a, b, c, LOSS))
            g = tl.where(counted[:, None], g, 0.0)
            tl.store(grad + tile_offsets(to, columns, grad_class), g, mask=in_row)
        else:
            n_blocks = tl.cdiv(n_classes, BLOCK)
            for i in range(0, n_blocks):
                block = (n_blocks - 1 - i) * BLOCK + columns
                in_row = exists[:, None] & (block < n_classes)[None, :]
                pointers = input + tile_offsets(offsets, block, input_class)
                z = tl.load(pointers, mask=in_row, other=-infinity, eviction_policy="evict_first").to(F)
                x = z - top[:, None]
                weights = None
                if SMOOTHED:
                    weights = weights_of_columns(weight, block, n_classes, F)[None, :]
                g = class_gradient(x, tl.exp(x), weights, a, b, c, LOSS)
                g = tl.where(block[None, :] == own_column, own_gradient, g)
                g = tl.where(counted[:, None], g, 0.0)
                to_block = grad + tile_offsets(to, block, grad_class)
                tl.store(to_block, g, mask=in_row, eviction_policy="evict_first")
