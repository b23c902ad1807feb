"""Label relaxation of a set of classes, see src/kernels/losses/label_relaxation/set.rs.

The loss is that of a class with the probability of the set in place of p_y. Each part, the set and the
other classes, is relative to its own maximum, because either may be far below the other.
"""

import triton
import triton.language as tl

from lr_relax._triton.exponentials import add_exponentials, without_infinity
from lr_relax._triton.log_odds import binary_view, relaxed_loss
from lr_relax._triton.rows import (
    gradient_scale,
    row_numbers,
    row_offsets,
    store_losses,
    tile_offsets,
    total_weight,
    weights_of_columns,
)


@triton.jit(do_not_specialize=["n_rows", "n_counts"])
def set_kernel(
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
    number_stride,
    COUNT: tl.constexpr,
    OUT: tl.constexpr,
    FLAT: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LANE: tl.constexpr,
    SINGLE: tl.constexpr,
):
    infinity = float("inf")
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = rows < n_rows
    offsets = row_offsets(rows, inner, input_outer, input_inner, FLAT)
    target_offsets = row_offsets(rows, inner, target_outer, target_inner, FLAT)
    alpha = row_numbers(numbers, parameter, rows, exists, number_stride, F)
    total = total_weight(None, weight, counts, divisor, n_rows, n_classes, n_counts, 0, COUNT)
    columns = tl.arange(0, BLOCK)
    if SINGLE:
        in_row = exists[:, None] & (columns < n_classes)[None, :]
        z = tl.load(input + tile_offsets(offsets, columns, input_class), mask=in_row, other=-infinity).to(F)
        t = tl.load(target + tile_offsets(target_offsets, columns, target_class), mask=in_row, other=0) != 0
        inner_top = without_infinity(tl.max(tl.where(t, z, -infinity), 1))
        outer_top = without_infinity(tl.max(tl.where(t, -infinity, z), 1))
        e = tl.exp(z - tl.where(t, inner_top[:, None], outer_top[:, None]))
        own = tl.sum(tl.where(t, e, 0.0), 1)
        others = tl.sum(tl.where(t, 0.0, e), 1)
        size = tl.sum(t.to(tl.int32), 1)
        row_weight = tl.full([1], 1.0, F)
        if weight is not None:
            weights = weights_of_columns(weight, columns, n_classes, F)[None, :]
            row_weight = tl.sum(tl.where(t, weights, 0.0), 1) / size
    else:
        LANES: tl.constexpr = BLOCK // LANE
        inner_tops = tl.full([ROWS, LANES], -infinity, F)
        outer_tops = tl.full([ROWS, LANES], -infinity, F)
        owns = tl.zeros([ROWS, LANES], F)
        rest = tl.zeros([ROWS, LANES], F)
        sizes = tl.zeros([ROWS, LANES], tl.int32)
        all_weights = tl.zeros([ROWS, LANES], F)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            pointers = input + tile_offsets(offsets, block, input_class)
            z = tl.load(pointers, mask=in_row, other=-infinity, eviction_policy="evict_last").to(F)
            pointers = target + tile_offsets(target_offsets, block, target_class)
            t = tl.load(pointers, mask=in_row, other=0, eviction_policy="evict_last") != 0
            if weight is not None:
                weights = weights_of_columns(weight, block, n_classes, F)[None, :]
                all_weights += tl.sum(tl.reshape(tl.where(t, weights, 0.0), [ROWS, LANES, LANE]), 2)
            sizes += tl.sum(tl.reshape(t.to(tl.int32), [ROWS, LANES, LANE]), 2)
            inside = tl.reshape(tl.where(t, z, -infinity), [ROWS, LANES, LANE])
            outside = tl.reshape(tl.where(t, -infinity, z), [ROWS, LANES, LANE])
            inner_tops, owns = add_exponentials(inner_tops, owns, inside)
            outer_tops, rest = add_exponentials(outer_tops, rest, outside)
        inner_top = without_infinity(tl.max(inner_tops, 1))
        outer_top = without_infinity(tl.max(outer_tops, 1))
        own = tl.sum(owns * tl.exp(inner_tops - inner_top[:, None]), 1)
        others = tl.sum(rest * tl.exp(outer_tops - outer_top[:, None]), 1)
        size = tl.sum(sizes, 1)
        row_weight = tl.full([1], 1.0, F)
        if weight is not None:
            row_weight = tl.sum(all_weights, 1) / size

    # The softmax of an infinite logit is NaN.
    invalid = inner_top * 0.0 + outer_top * 0.0
    d = (inner_top - outer_top) + tl.log(own) - tl.log(others) + invalid
    q, ln_p, ln_q = binary_view(d)
    loss, excess = relaxed_loss(q, ln_p, ln_q, alpha)
    is_all = size == n_classes
    row_weight = tl.where(size == 0, float("nan"), row_weight)
    loss = tl.where(is_all, 0.0, loss * row_weight)
    store_losses(out, loss, rows, exists, total, OUT)

    if grad is not None:
        excess = tl.where(is_all, 0.0, excess * row_weight * gradient_scale(upstream, multiplier, total, F))
        # Where every class of the set has underflowed, the projection divides the set evenly.
        nothing = own == 0
        up = tl.where(excess == 0, 0.0, excess / others)[:, None]
        down = tl.where(excess == 0, 0.0, -excess / tl.where(nothing, size.to(F), own))[:, None]
        to = row_offsets(rows, inner, grad_outer, grad_inner, FLAT)
        if SINGLE:
            g = tl.where(t, down * tl.where(nothing[:, None], 1.0, e), up * e)
            tl.store(grad + tile_offsets(to, columns, grad_class), g, mask=in_row)
        else:
            n_blocks = tl.cdiv(n_classes, BLOCK)
            for i in range(0, n_blocks):
                block = (n_blocks - 1 - i) * BLOCK + columns
                in_row = exists[:, None] & (block < n_classes)[None, :]
                pointers = input + tile_offsets(offsets, block, input_class)
                z = tl.load(pointers, mask=in_row, other=-infinity, eviction_policy="evict_first").to(F)
                pointers = target + tile_offsets(target_offsets, block, target_class)
                t = tl.load(pointers, mask=in_row, other=0, eviction_policy="evict_first") != 0
                e = tl.exp(z - tl.where(t, inner_top[:, None], outer_top[:, None]))
                g = tl.where(t, down * tl.where(nothing[:, None], 1.0, e), up * e)
                g = tl.where(excess[:, None] == 0, 0.0, g)
                pointers = grad + tile_offsets(to, block, grad_class)
                tl.store(pointers, g, mask=in_row, eviction_policy="evict_first")
