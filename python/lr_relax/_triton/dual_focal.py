"""The dual focal loss, see src/kernels/losses/dual_focal.rs:

    L = -f^g ln p_y,      f = 1 - p_y + p_j,      j the first class with the largest score below that of y,

or without p_j if there is no such class. A row that fits a block is read once, a longer one twice.
"""

import triton
import triton.language as tl

from lr_relax._triton.exponentials import without_infinity
from lr_relax._triton.log_odds import binary_view
from lr_relax._triton.rows import (
    class_weights,
    gradient_scale,
    is_class,
    row_offsets,
    store_losses,
    tile_offsets,
    total_weight,
)


@triton.jit(do_not_specialize=["n_rows", "n_counts"])
def dual_focal_kernel(
    input,
    grad,
    target,
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
    COUNT: tl.constexpr,
    OUT: tl.constexpr,
    FLAT: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):
    infinity = float("inf")
    gamma = tl.full([ROWS], parameter, F)
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
    total = total_weight(target, weight, counts, divisor, n_rows, n_classes, n_counts, ignore_index, COUNT)
    columns = tl.arange(0, BLOCK)
    if SINGLE:
        in_row = exists[:, None] & (columns < n_classes)[None, :]
        is_own = columns[None, :] == own_column
        z = tl.load(input + tile_offsets(offsets, columns, input_class), mask=in_row, other=-infinity).to(F)
        z = tl.where(is_own, -infinity, z)
        top = without_infinity(tl.max(z, 1))
        e = tl.exp(z - top[:, None])
        others = tl.sum(e, 1)
        below = tl.where(z < own[:, None], z, -infinity)
        best = tl.max(below, 1)
        place = tl.min(tl.where(below == best[:, None], columns[None, :], n_classes), 1)
    else:
        maxima = tl.full([ROWS, BLOCK], -infinity, F)
        sums = tl.zeros([ROWS, BLOCK], F)
        bests = tl.full([ROWS, BLOCK], -infinity, F)
        places = tl.full([ROWS, BLOCK], n_classes, tl.int32)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity).to(F)
            z = tl.where(block[None, :] == own_column, -infinity, z)
            raised = tl.maximum(maxima, z)
            shift = without_infinity(raised)
            sums = sums * tl.exp(maxima - shift) + tl.exp(z - shift)
            maxima = raised
            is_better = (z < own[:, None]) & (z > bests)
            bests = tl.where(is_better, z, bests)
            places = tl.where(is_better, block[None, :], places)
        top = without_infinity(tl.max(maxima, 1))
        others = tl.sum(sums * tl.exp(maxima - top[:, None]), 1)
        best = tl.max(bests, 1)
        place = tl.min(tl.where(bests == best[:, None], places, n_classes), 1)

    has_next = best > -infinity
    next_column = tl.where(has_next, place, -1)[:, None]
    q, ln_p, _ = binary_view(own - top - tl.log(others))
    # Where q is 0, all other classes have probability 0.
    scale = tl.where(q == 0, 0.0, q / others)
    p = 1.0 - q
    p_next = tl.where(has_next, scale * tl.exp(tl.where(has_next, best - top, 0.0)), 0.0)
    f = q + p_next
    power = tl.where(f == 0, 0.0, tl.exp(gamma * tl.log(tl.where(f == 0, 1.0, f))))
    power = tl.where(gamma == 0, 1.0, power)
    # At p = 0, p ln p is 0, and so is the probability of the next class, which is smaller.
    p_ln_p = tl.where(p == 0, 0.0, p * ln_p)
    next_ln_p = tl.where(p_next == 0, 0.0, p_next * ln_p)
    u = tl.where(f == 0, 0.0, -gamma * power / tl.where(f == 0, 1.0, f))
    loss = tl.where(power == 0, 0.0, -own_weight * power * ln_p)
    loss = tl.where(known, loss, float("nan"))
    store_losses(out, tl.where(counted, loss, 0.0), rows, exists, total, OUT)

    if grad is not None:
        factor = own_weight * gradient_scale(upstream, multiplier, total, F)
        gap = u * (p_ln_p - next_ln_p)
        of_others = (factor * scale * (power + gap))[:, None]
        of_own = (factor * (gamma * power * p_ln_p - power * q))[:, None]
        of_next = (factor * (p_next * (power + gap) + u * next_ln_p))[:, None]
        to = row_offsets(rows, inner, grad_outer, grad_inner, FLAT)
        if SINGLE:
            g = tl.where(columns[None, :] == next_column, of_next, e * of_others)
            g = tl.where(counted[:, None], tl.where(is_own, of_own, g), 0.0)
            tl.store(grad + tile_offsets(to, columns, grad_class), g, mask=in_row)
        else:
            n_blocks = tl.cdiv(n_classes, BLOCK)
            for i in range(0, n_blocks):
                block = (n_blocks - 1 - i) * BLOCK + columns
                in_row = exists[:, None] & (block < n_classes)[None, :]
                z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity)
                g = tl.exp(z.to(F) - top[:, None]) * of_others
                g = tl.where(block[None, :] == next_column, of_next, g)
                g = tl.where(block[None, :] == own_column, of_own, g)
                g = tl.where(counted[:, None], g, 0.0)
                tl.store(grad + tile_offsets(to, block, grad_class), g, mask=in_row)
