"""Label relaxation of a distribution t, see src/kernels/losses/label_relaxation/distribution.rs.

The projection is found by water-filling. With the lower bounds l = (1 - a) t,

    q_k = l_k where l_k > c p_k, else c p_k,      c = (1 - sum of those l_k) / (sum of the other p_k).

Starting with c = 1, more and more classes are at their bound, and c only falls, so the first c that adds no
class is the solution, after two to four rounds. A row that fits a block is read once, a longer row once for
each round.
"""

import triton
import triton.language as tl

from lr_relax._triton.exponentials import add_exponentials, without_infinity
from lr_relax._triton.rows import (
    gradient_scale,
    row_numbers,
    row_offsets,
    store_losses,
    tile_offsets,
    total_weight,
    weights_of_columns,
)


@triton.jit
def load_target(pointers, mask, F: tl.constexpr):
    """Negative numbers, which are errors of rounding, become 0; NaN stays."""
    t = tl.load(pointers, mask=mask, other=0.0).to(F)
    return tl.where(t < 0, 0.0, t), t < -1e-6


@triton.jit
def is_raised(ratio, e, t):
    """l > c p, with l = keep t, c p = level e, and ratio = keep / level."""
    return t * ratio[:, None] > e


@triton.jit
def next_level(level, active, other, free, keep, alpha):
    """The level after a round, and the rows that need another one."""
    # Where the classes that would get what is left have all underflowed, they get nothing.
    next = tl.where(free > 0, (alpha + keep * other) / tl.where(free > 0, free, 1.0), 0.0)
    active = active & (next < level)
    return tl.where(active, next, level), active


@triton.jit
def raised_terms(raised, t, x, constant):
    """t ln(l / p) where raised."""
    ln = tl.log(tl.where(t > 0, t, 1.0))
    return tl.where(raised, t * (ln + (constant[:, None] - x)), 0.0)


@triton.jit(do_not_specialize=["n_rows", "n_counts"])
def distribution_kernel(
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
    tolerance: tl.float64,
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
    row_weight = tl.full([1], 1.0, F)
    if SINGLE:
        in_row = exists[:, None] & (columns < n_classes)[None, :]
        z = tl.load(input + tile_offsets(offsets, columns, input_class), mask=in_row, other=-infinity).to(F)
        t, negative = load_target(target + tile_offsets(target_offsets, columns, target_class), in_row, F)
        faults = tl.sum(negative.to(tl.int32), 1)
        sum = tl.sum(t, 1)
        if weight is not None:
            row_weight = tl.sum(t * weights_of_columns(weight, columns, n_classes, F)[None, :], 1) / sum
        top = without_infinity(tl.max(z, 1))
        x = z - top[:, None]
        e = tl.exp(x)
        whole = tl.sum(e, 1)
    else:
        LANES: tl.constexpr = BLOCK // LANE
        maxima = tl.full([ROWS, LANES], -infinity, F)
        wholes = tl.zeros([ROWS, LANES], F)
        target_sums = tl.zeros([ROWS, LANES], F)
        weighted = tl.zeros([ROWS, LANES], F)
        negatives = tl.zeros([ROWS, LANES], tl.int32)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity).to(F)
            t, negative = load_target(target + tile_offsets(target_offsets, block, target_class), in_row, F)
            negatives += tl.sum(tl.reshape(negative.to(tl.int32), [ROWS, LANES, LANE]), 2)
            target_sums += tl.sum(tl.reshape(t, [ROWS, LANES, LANE]), 2)
            if weight is not None:
                weights = weights_of_columns(weight, block, n_classes, F)[None, :]
                weighted += tl.sum(tl.reshape(t * weights, [ROWS, LANES, LANE]), 2)
            maxima, wholes = add_exponentials(maxima, wholes, tl.reshape(z, [ROWS, LANES, LANE]))
        top = without_infinity(tl.max(maxima, 1))
        whole = tl.sum(wholes * tl.exp(maxima - top[:, None]), 1)
        faults = tl.sum(negatives, 1)
        sum = tl.sum(target_sums, 1)
        if weight is not None:
            row_weight = tl.sum(weighted, 1) / sum

    # A row without a softmax, or whose target is no distribution, is NaN.
    valid = (whole > 0) & (whole < infinity) & (faults == 0) & (tl.abs(sum - 1.0) <= tolerance)
    valid = valid & (alpha == alpha)
    keep = (1.0 - alpha) / tl.where(valid, sum, 1.0)
    whole = tl.where(valid, whole, 1.0)
    level = 1.0 / whole
    active = exists & valid
    outside = tl.zeros([ROWS], tl.int1)
    other = tl.zeros([ROWS], F)
    free = tl.zeros([ROWS], F)
    while tl.max(active.to(tl.int32), 0) > 0:
        ratio = keep / level
        if SINGLE:
            raised = is_raised(ratio, e, t)
            n_raised = tl.sum(raised.to(tl.int32), 1)
            other = tl.sum(tl.where(raised, 0.0, t), 1)
            free = tl.sum(tl.where(raised, 0.0, e), 1)
        else:
            others = tl.zeros([ROWS, BLOCK], F)
            frees = tl.zeros([ROWS, BLOCK], F)
            any_raised = tl.zeros([ROWS, BLOCK], tl.int32)
            for start in range(0, n_classes, BLOCK):
                block = start + columns
                in_row = exists[:, None] & (block < n_classes)[None, :]
                z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity)
                t, _ = load_target(target + tile_offsets(target_offsets, block, target_class), in_row, F)
                e = tl.exp(z.to(F) - top[:, None])
                raised = is_raised(ratio, e, t)
                any_raised += raised.to(tl.int32)
                others += tl.where(raised, 0.0, t)
                frees += tl.where(raised, 0.0, e)
            n_raised = tl.sum(any_raised, 1)
            other = tl.sum(others, 1)
            free = tl.sum(frees, 1)
        outside = outside | (n_raised > 0)
        active = active & outside
        level, active = next_level(level, active, other, free, keep, alpha)

    ratio = keep / level
    rest = alpha + keep * other
    some = (rest > 0) & (free > 0)
    spread = tl.where(some, rest * tl.log(tl.where(some, rest * whole / free, 1.0)), 0.0)
    constant = tl.log(keep) + tl.log(whole)
    scale = row_weight * gradient_scale(upstream, multiplier, total, F)
    own = (scale / whole)[:, None]
    shrink = (scale * (1.0 / whole - level))[:, None]
    pull = (scale * keep)[:, None]
    to = row_offsets(rows, inner, grad_outer, grad_inner, FLAT)
    if SINGLE:
        raised = is_raised(ratio, e, t)
        value = tl.sum(raised_terms(raised, t, x, constant), 1)
        if grad is not None:
            g = tl.where(raised, e * own - t * pull, e * shrink)
            g = tl.where(outside[:, None], g, 0.0)
            g = tl.where(valid[:, None], g, float("nan"))
            tl.store(grad + tile_offsets(to, columns, grad_class), g, mask=in_row)
    else:
        values = tl.zeros([ROWS, BLOCK], F)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            z = tl.load(input + tile_offsets(offsets, block, input_class), mask=in_row, other=-infinity)
            t, _ = load_target(target + tile_offsets(target_offsets, block, target_class), in_row, F)
            x = z.to(F) - top[:, None]
            e = tl.exp(x)
            raised = is_raised(ratio, e, t)
            values += raised_terms(raised, t, x, constant)
            if grad is not None:
                g = tl.where(raised, e * own - t * pull, e * shrink)
                g = tl.where(outside[:, None], g, 0.0)
                g = tl.where(valid[:, None], g, float("nan"))
                tl.store(grad + tile_offsets(to, block, grad_class), g, mask=in_row)
        value = tl.sum(values, 1)
    loss = keep * value + spread
    loss = tl.where(outside & (loss > 0), loss, 0.0) * row_weight  # rounding may make it negative
    loss = tl.where(valid, loss, float("nan"))
    store_losses(out, loss, rows, exists, total, OUT)
