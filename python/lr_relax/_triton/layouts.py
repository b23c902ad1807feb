"""Where the rows of tensors lie: (N, C) with at most two strides for the rows and one for the classes."""

from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Row i begins at ``(i // inner) * outer_stride + (i % inner) * inner_stride``."""

    n_rows: int
    n_classes: int
    inner: int
    """The number of rows in an inner dimension; 1 if there is no other."""
    is_flat: bool
    """Whether all rows are at equal distances."""
    strides: tuple[tuple[int, int, int], ...]
    """For each tensor: the outer and the inner stride of the rows, and the stride of the classes."""


def rows_of(tensors: list[Tensor], dim: int) -> Layout | None:
    """The common layout of tensors of one shape; None if it has no such form.

    That is if the rows need more than two strides, or two and are more than 32 bits can count.
    """
    shape = tensors[0].shape
    dim %= len(shape)
    strides = [tensor.stride() for tensor in tensors]
    merged: list[tuple[int, list[int]]] = []  # sizes of the dimensions of the rows, and their strides
    for i, size in enumerate(shape):
        if i == dim or size == 1:
            continue
        own = [stride[i] for stride in strides]
        if merged and all(a == b * size for a, b in zip(merged[-1][1], own, strict=True)):
            merged[-1] = (merged[-1][0] * size, own)
        else:
            merged.append((size, own))
    if len(merged) > 2:
        return None
    n_rows = 1
    for size, _ in merged:
        n_rows *= size
    none = [0] * len(tensors)
    inner, inner_strides = merged[-1] if merged else (1, none)
    outer_strides = merged[0][1] if len(merged) == 2 else none
    classes = [stride[dim] for stride in strides]
    each = tuple(zip(outer_strides, inner_strides, classes, strict=True))
    is_flat = len(merged) < 2
    if not is_flat and n_rows >= 2**31:
        return None
    return Layout(n_rows, shape[dim], 1 if is_flat else inner, is_flat, each)
