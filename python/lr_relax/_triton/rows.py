"""Rows of scores: where they lie, their scale, and what becomes of their losses."""

import triton
import triton.language as tl

COUNTED: tl.constexpr = tl.constexpr(512)
"""At most this many targets are counted by every program that needs their number."""
PARTS: tl.constexpr = tl.constexpr(128)
"""The number of parts in which more targets are counted beforehand."""


@triton.jit
def row_offsets(rows, inner, outer_stride, inner_stride, FLAT: tl.constexpr):
    """The offsets of the first scores of rows; with FLAT, of rows at equal distances."""
    if FLAT:
        return rows * inner_stride
    else:
        i = rows.to(tl.int32)  # a division of 64 bits is a function call
        return (i // inner).to(tl.int64) * outer_stride + (i % inner).to(tl.int64) * inner_stride


@triton.jit
def tile_offsets(offsets, columns, class_stride):
    return offsets[:, None] + (columns.to(tl.int64) * class_stride)[None, :]


@triton.jit
def row_numbers(numbers, number, rows, exists, stride, F: tl.constexpr):
    """A number for each row, from a tensor or the same for all; NaN outside [0, 1)."""
    if numbers is None:
        return tl.full(rows.shape, number, F)
    else:
        x = tl.load(numbers + rows * stride, mask=exists, other=0.0).to(F)
        return tl.where((x >= 0) & (x < 1), x, float("nan"))


@triton.jit
def is_class(y, n_classes):
    return (y >= 0) & (y < n_classes)


@triton.jit
def class_weights(weight, y, mask, F: tl.constexpr):
    """The weights of classes; NaN where the mask is false."""
    if weight is None:
        return tl.where(mask, tl.full(y.shape, 1.0, F), float("nan"))
    else:
        return tl.load(weight + y, mask=mask, other=float("nan")).to(F)


@triton.jit
def weights_of_columns(weight, columns, n_classes, F: tl.constexpr):
    """The weights of a block of classes, 0 past the end."""
    if weight is None:
        return tl.where(columns < n_classes, tl.full(columns.shape, 1.0, F), 0.0)
    else:
        return tl.load(weight + columns, mask=columns < n_classes, other=0.0).to(F)


@triton.jit
def weight_of_classes(target, weight, start, end, n_classes, ignore_index, BLOCK: tl.constexpr):
    """The sum of the weights of the rows from `start` to `end`, which are at most BLOCK."""
    rows = start + tl.arange(0, BLOCK).to(tl.int64)
    y = tl.load(target + rows, mask=rows < end, other=0).to(tl.int64)
    counted = (rows < end) & (y != ignore_index)
    if weight is None:
        return tl.sum(counted.to(tl.float64), 0)
    else:
        weights = class_weights(weight, y, counted & is_class(y, n_classes), tl.float64)
        return tl.sum(tl.where(counted, weights, 0.0), 0)


@triton.jit
def total_weight(
    target, weight, counts, divisor, n_rows, n_classes, n_counts, ignore_index, COUNT: tl.constexpr
):
    """The denominator of the mean."""
    if COUNT == "classes":
        return weight_of_classes(target, weight, 0, n_rows, n_classes, ignore_index, COUNTED)
    elif COUNT == "parts":
        part = tl.arange(0, PARTS)
        return tl.sum(tl.load(counts + part, mask=part < n_counts, other=0.0), 0)
    else:
        return divisor


@triton.jit
def gradient_scale(upstream, multiplier, total, F: tl.constexpr):
    """The factor of the gradient; the multiplier is a number on the device."""
    if multiplier is None:
        return tl.full([1], upstream / total, F)
    else:
        return tl.full([1], upstream * tl.load(multiplier).to(tl.float64) / total, F)


@triton.jit
def store_losses(out, losses, rows, exists, total, OUT: tl.constexpr):
    """Stores losses, their sum, or, from the only program, the reduced loss."""
    if OUT == "rows":
        tl.store(out + rows, losses, mask=exists)
    else:
        sum = tl.sum(tl.where(exists, losses, 0.0).to(tl.float64), 0)
        if OUT == "loss":
            sum = sum / total
        tl.store(out + tl.program_id(0), sum)
