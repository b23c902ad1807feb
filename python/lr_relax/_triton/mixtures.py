"""Label relaxation of a mixture of two classes, see src/kernels/losses/label_relaxation/mixture.rs.

Water-filling takes at most two rounds over three parts: a, b and all other classes. Their log-probabilities
are relative to the largest of the three, so that none of them underflows. A mixture of one class is a
class.
"""

import triton
import triton.language as tl

from lr_relax._triton.exponentials import add_exponentials, without_infinity
from lr_relax._triton.log_odds import binary_view, ln_add, relaxed_loss
from lr_relax._triton.rows import (
    class_weights,
    gradient_scale,
    is_class,
    row_numbers,
    row_offsets,
    store_losses,
    tile_offsets,
    total_weight,
)


@triton.jit
def projected(ln_a, ln_b, ln_rest, share_a, share_b, alpha):
    """The loss, and p - q of the three parts, given their log-probabilities."""
    least = -float("inf")
    p_a, p_b, p_rest = tl.exp(ln_a), tl.exp(ln_b), tl.exp(ln_rest)
    bound_a, bound_b = (1.0 - alpha) * share_a, (1.0 - alpha) * share_b
    is_a, is_b = bound_a > p_a, bound_b > p_b
    none = ~(is_a | is_b)
    # What is not raised has probability e^ln_free, and must get `rest`.
    for _ in tl.static_range(2):
        rest = alpha + tl.where(is_a, 0.0, bound_a) + tl.where(is_b, 0.0, bound_b)
        ln_free = ln_add(ln_add(ln_rest, tl.where(is_a, least, ln_a)), tl.where(is_b, least, ln_b))
        some = ln_free > least
        level = tl.where(some, ln_free, 0.0)
        is_a = is_a | (bound_a > tl.where(some, rest * tl.exp(ln_a - level), 0.0))
        is_b = is_b | (bound_b > tl.where(some, rest * tl.exp(ln_b - level), 0.0))
    rest = alpha + tl.where(is_a, 0.0, bound_a) + tl.where(is_b, 0.0, bound_b)
    ln_free = ln_add(ln_add(ln_rest, tl.where(is_a, least, ln_a)), tl.where(is_b, least, ln_b))
    left = (rest > 0) & (ln_free > least)
    level = tl.where(left, ln_free, 0.0)
    loss = tl.where(left, rest * (tl.log(rest) - level), 0.0)
    loss += tl.where(is_a, bound_a * (tl.log(bound_a) - ln_a), 0.0)
    loss += tl.where(is_b, bound_b * (tl.log(bound_b) - ln_b), 0.0)
    q_a = tl.where(is_a, bound_a, tl.where(left, rest * tl.exp(ln_a - level), 0.0))
    q_b = tl.where(is_b, bound_b, tl.where(left, rest * tl.exp(ln_b - level), 0.0))
    q_rest = tl.where(left, rest * tl.exp(ln_rest - level), 0.0)
    loss = tl.where(none | (loss < 0), 0.0, loss)  # rounding may make it negative
    return (
        loss,
        tl.where(none, 0.0, p_a - q_a),
        tl.where(none, 0.0, p_b - q_b),
        tl.where(none, 0.0, p_rest - q_rest),
    )


@triton.jit(do_not_specialize=["n_rows", "n_counts"])
def mixture_kernel(
    input,
    grad,
    target,
    second,
    numbers,
    shares,
    weight,
    counts,
    multiplier,
    out,
    parameter: tl.float64,
    share: tl.float64,
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
    share_stride,
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
    a = tl.load(target + rows, mask=exists, other=0).to(tl.int64)
    b = tl.load(second + rows, mask=exists, other=0).to(tl.int64)
    counted = exists & (a != ignore_index) & (b != ignore_index)
    alpha = row_numbers(numbers, parameter, rows, exists, number_stride, F)
    s = tl.full([ROWS], share, F)
    if shares is not None:
        s = tl.load(shares + rows * share_stride, mask=exists, other=0.0).to(F)
    known = counted & is_class(a, n_classes) & is_class(b, n_classes) & (s >= 0) & (s <= 1)
    # A mixture of one class: that is a, and there is no b.
    a = tl.where(s == 0, b, a)
    one = (a == b) | (s == 1)
    two = known & ~one
    share_a, share_b = tl.where(one, 1.0, s), tl.where(one, 0.0, 1.0 - s)
    own_a = tl.load(input + offsets + a * input_class, mask=known, other=float("nan")).to(F)
    own_b = tl.load(input + offsets + b * input_class, mask=two, other=-infinity).to(F)
    row_weight = class_weights(weight, a, known, F)
    if weight is not None:
        row_weight = tl.where(
            two, share_a * row_weight + share_b * class_weights(weight, b, two, F), row_weight
        )
    a_column = tl.where(known, a, -1).to(tl.int32)[:, None]
    b_column = tl.where(two, b, -1).to(tl.int32)[:, None]
    total = total_weight(target, weight, counts, divisor, n_rows, n_classes, n_counts, ignore_index, COUNT)

    columns = tl.arange(0, BLOCK)
    if SINGLE:
        in_row = exists[:, None] & (columns < n_classes)[None, :]
        is_a, is_b = columns[None, :] == a_column, columns[None, :] == b_column
        z = tl.load(input + tile_offsets(offsets, columns, input_class), mask=in_row, other=-infinity).to(F)
        z = tl.where(is_a | is_b, -infinity, z)
        highest = tl.max(z, 1)
        top = without_infinity(highest)
        e = tl.exp(z - top[:, None])
        others = tl.sum(e, 1)
    else:
        LANES: tl.constexpr = BLOCK // LANE
        maxima = tl.full([ROWS, LANES], -infinity, F)
        sums = tl.zeros([ROWS, LANES], F)
        for start in range(0, n_classes, BLOCK):
            block = start + columns
            in_row = exists[:, None] & (block < n_classes)[None, :]
            pointers = input + tile_offsets(offsets, block, input_class)
            z = tl.load(pointers, mask=in_row, other=-infinity, eviction_policy="evict_last").to(F)
            z = tl.where((block[None, :] == a_column) | (block[None, :] == b_column), -infinity, z)
            maxima, sums = add_exponentials(maxima, sums, tl.reshape(z, [ROWS, LANES, LANE]))
        highest = tl.max(maxima, 1)
        top = without_infinity(highest)
        others = tl.sum(sums * tl.exp(maxima - top[:, None]), 1)

    # Relative to the largest of all. The softmax of an infinite logit is NaN.
    highest = tl.maximum(tl.maximum(highest, own_a), own_b)
    level = without_infinity(highest)
    ln_a, ln_b, ln_rest = own_a - level, own_b - level, (top - level) + tl.log(others)
    ln_total = ln_add(ln_add(ln_a, ln_b), ln_rest)
    loss, slope_a, slope_b, slope = projected(
        ln_a - ln_total, ln_b - ln_total, ln_rest - ln_total, share_a, share_b, alpha
    )
    q, ln_p, ln_q = binary_view(ln_a - ln_add(ln_b, ln_rest))
    class_loss, excess = relaxed_loss(q, ln_p, ln_q, alpha)
    loss = tl.where(two, loss, class_loss)
    slope_a, slope = tl.where(two, slope_a, 0.0 - excess), tl.where(two, slope, excess)
    valid = known & (ln_total > -infinity)
    loss = tl.where(valid, loss * row_weight, float("nan"))
    store_losses(out, tl.where(counted, loss, 0.0), rows, exists, total, OUT)

    if grad is not None:
        scale = row_weight * gradient_scale(upstream, multiplier, total, F)
        slope_a, slope_b = (slope_a * scale)[:, None], (slope_b * scale)[:, None]
        slope = tl.where(slope == 0, 0.0, slope * scale / others)[:, None]
        to = row_offsets(rows, inner, grad_outer, grad_inner, FLAT)
        if SINGLE:
            g = tl.where(is_a, slope_a, tl.where(is_b, slope_b, e * slope))
            g = tl.where(valid[:, None], g, float("nan"))
            g = tl.where(counted[:, None], g, 0.0)
            tl.store(grad + tile_offsets(to, columns, grad_class), g, mask=in_row)
        else:
            n_blocks = tl.cdiv(n_classes, BLOCK)
            for i in range(0, n_blocks):
                block = (n_blocks - 1 - i) * BLOCK + columns
                in_row = exists[:, None] & (block < n_classes)[None, :]
                pointers = input + tile_offsets(offsets, block, input_class)
                z = tl.load(pointers, mask=in_row, other=-infinity, eviction_policy="evict_first").to(F)
                g = tl.exp(z - top[:, None]) * slope
                g = tl.where(block[None, :] == a_column, slope_a, g)
                g = tl.where(block[None, :] == b_column, slope_b, g)
                g = tl.where(valid[:, None], g, float("nan"))
                g = tl.where(counted[:, None], g, 0.0)
                pointers = grad + tile_offsets(to, block, grad_class)
                tl.store(pointers, g, mask=in_row, eviction_policy="evict_first")
