"""Losses of class-index targets with few classes, whose rows are neighbors in memory, see classes.py.

A program reads its rows as one block, with no gap between them, and turns it so that a thread has all
classes of its rows: what is computed once per row would otherwise be computed by every thread that has one
of its classes.
"""

import triton
import triton.language as tl

from lr_relax._triton.classes import (
    class_coefficients,
    class_gradient,
)
from lr_relax._triton.exponentials import without_infinity
from lr_relax._triton.rows import (
    class_weights,
    gradient_scale,
    is_class,
    row_numbers,
    store_losses,
    total_weight,
    weights_of_columns,
)


@triton.jit(do_not_specialize=["n_rows", "n_counts"])
def few_classes_kernel(
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
    n_counts,
    ignore_index: tl.int64,
    number_stride,
    n_classes: tl.constexpr,
    LOSS: tl.constexpr,
    COUNT: tl.constexpr,
    OUT: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    infinity = float("inf")
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = first + tl.arange(0, ROWS)
    exists = rows < n_rows
    y = tl.load(target + rows, mask=exists, other=0).to(tl.int64)
    counted = exists & (y != ignore_index)
    known = counted & is_class(y, n_classes)
    own_weight = class_weights(weight, y, known, F)
    own_column = tl.where(known, y, -1).to(tl.int32)[None, :]
    number = row_numbers(numbers, parameter, rows, exists, number_stride, F)
    total = total_weight(target, weight, counts, divisor, n_rows, n_classes, n_counts, ignore_index, COUNT)

    # Element i of the block is class i % C of row i // C; turned, class i // ROWS of row i % ROWS.
    i = tl.arange(0, ROWS * BLOCK)
    inside = i < tl.minimum(n_rows - first, ROWS).to(tl.int32) * n_classes
    z = tl.load(input + first * n_classes + i, mask=inside, other=0.0)
    columns = tl.arange(0, BLOCK)[:, None]
    z = tl.gather(z, tl.minimum((i % ROWS) * n_classes + i // ROWS, ROWS * BLOCK - 1), 0)
    z = tl.reshape(z, [BLOCK, ROWS]).to(F)
    is_own = columns == own_column
    own = tl.sum(tl.where(is_own, z, 0.0), 0)
    own = tl.where(known & (own < infinity), own, float("nan"))  # the softmax of an infinite logit is NaN
    z = tl.where(is_own | (columns >= n_classes), -infinity, z)
    top = without_infinity(tl.max(z, 0))
    x = z - top[None, :]
    e = tl.exp(x)
    others = tl.sum(e, 0)
    weight_sum = n_classes * tl.full([1], 1.0, F)
    weights = None
    extra = others
    if LOSS == "label_smoothing":
        weights = weights_of_columns(weight, tl.arange(0, BLOCK), n_classes, F)[:, None]
        weight_sum = tl.sum(weights, 0)
        extra = tl.sum(tl.where(is_own | (columns >= n_classes), 0.0, x * weights), 0)
    elif LOSS == "confidence_penalty":
        extra = tl.sum(e * tl.maximum(x, -1000.0), 0)
    loss, own_gradient, a, b, c = class_coefficients(
        own - top, others, extra, number, own_weight, weight_sum, n_classes, LOSS
    )
    store_losses(out, tl.where(counted, loss, 0.0), rows, exists, total, OUT)

    if grad is not None:
        scale = gradient_scale(upstream, multiplier, total, F)
        a, b, c = (a * scale)[None, :], (b * scale)[None, :], (c * scale)[None, :]
        g = tl.where(is_own, (own_gradient * scale)[None, :], class_gradient(x, e, weights, a, b, c, LOSS))
        g = tl.where(counted[None, :], g, 0.0).to(grad.dtype.element_ty)
        j = (i % n_classes) * ROWS + i // n_classes
        g = tl.gather(tl.reshape(g, [ROWS * BLOCK]), tl.minimum(j, ROWS * BLOCK - 1), 0)
        tl.store(grad + first * n_classes + i, g, mask=inside)
