"""The denominator of the mean before the losses, and the sum of the losses after them, in float64.

Both are sums of parts in a fixed order, so that the bits do not depend on the order in which programs run.
"""

import triton
import triton.language as tl

from lr_relax._triton.rows import (
    class_weights,
    is_class,
    row_offsets,
    tile_offsets,
    total_weight,
    weight_of_classes,
)


@triton.jit(do_not_specialize=["n_rows", "part"])
def count_classes_kernel(
    target, weight, counts, n_rows, n_classes, part, ignore_index: tl.int64, BLOCK: tl.constexpr
):
    """The weight of the rows of each part."""
    first = tl.program_id(0).to(tl.int64) * part
    end = tl.minimum(first + part, n_rows)
    total = tl.zeros([], tl.float64)
    for start in range(first, end, BLOCK):
        total += weight_of_classes(target, weight, start, end, n_classes, ignore_index, BLOCK)
    tl.store(counts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["n_rows", "part"])
def count_mixtures_kernel(
    target,
    second,
    weight,
    shares,
    counts,
    share: tl.float64,
    n_rows,
    n_classes,
    part,
    ignore_index: tl.int64,
    share_stride,
    BLOCK: tl.constexpr,
):
    """The weight of the rows of each part, of mixtures of two classes."""
    first = tl.program_id(0).to(tl.int64) * part
    end = tl.minimum(first + part, n_rows)
    total = tl.zeros([], tl.float64)
    for start in range(first, end, BLOCK):
        rows = start + tl.arange(0, BLOCK).to(tl.int64)
        a = tl.load(target + rows, mask=rows < end, other=0).to(tl.int64)
        b = tl.load(second + rows, mask=rows < end, other=0).to(tl.int64)
        counted = (rows < end) & (a != ignore_index) & (b != ignore_index)
        weights = tl.full([BLOCK], 1.0, tl.float64)
        if weight is not None:
            of_a = class_weights(weight, a, counted & is_class(a, n_classes), tl.float64)
            of_b = class_weights(weight, b, counted & is_class(b, n_classes), tl.float64)
            s = tl.full([BLOCK], share, tl.float64)
            if shares is not None:
                s = tl.load(shares + rows * share_stride, mask=counted, other=0.0).to(tl.float64)
            weights = s * of_a + (1.0 - s) * of_b
        total += tl.sum(tl.where(counted, weights, 0.0), 0)
    tl.store(counts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["n_rows", "part"])
def count_dense_kernel(
    target,
    weight,
    counts,
    n_rows,
    n_classes,
    part,
    inner,
    target_outer,
    target_inner,
    target_class,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weight of the rows of each part, of sets or distributions: the mean of their classes' weights."""
    first = tl.program_id(0).to(tl.int64) * part
    end = tl.minimum(first + part, n_rows)
    total = tl.zeros([], tl.float64)
    for start in range(first, end, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)
        offsets = row_offsets(rows, inner, target_outer, target_inner, FLAT)
        sums = tl.zeros([ROWS, BLOCK], tl.float64)
        weighted = tl.zeros([ROWS, BLOCK], tl.float64)
        for column in range(0, n_classes, BLOCK):
            columns = column + tl.arange(0, BLOCK)
            mask = (rows < end)[:, None] & (columns < n_classes)[None, :]
            t = tl.load(target + tile_offsets(offsets, columns, target_class), mask=mask, other=0.0)
            t = tl.maximum(t.to(tl.float64), 0.0)
            w = tl.load(weight + columns, mask=columns < n_classes, other=0.0).to(tl.float64)
            sums += t
            weighted += t * w[None, :]
        total += tl.sum(tl.where(rows < end, tl.sum(weighted, 1) / tl.sum(sums, 1), 0.0), 0)
    tl.store(counts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["n_rows", "n_counts", "n_partials"])
def sum_kernel(
    partials,
    target,
    weight,
    counts,
    out,
    divisor: tl.float64,
    n_partials,
    n_rows,
    n_classes,
    n_counts,
    ignore_index: tl.int64,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of the partial sums, divided by the denominator of the mean."""
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n_partials, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(partials + i, mask=i < n_partials, other=0.0)
    total = total_weight(target, weight, counts, divisor, n_rows, n_classes, n_counts, ignore_index, COUNT)
    tl.store(out, tl.sum(sums, 0) / total)
