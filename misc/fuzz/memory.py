"""Tensors in guarded memory: a page that must not be touched follows, or precedes, what they may read.

What reads or writes beyond a tensor ends the process, in builds without a sanitizer, too.
"""

import ctypes
import mmap
import os
from functools import cache

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
SIZE = 512 * PAGE
LAYOUTS = ("contiguous", "transposed", "gaps", "same rows", "same classes")
PLACES = ("last", "first", "malloc")
POISON = {torch.bool: True, torch.uint8: 251}


@cache
def _arena(name: str) -> mmap.mmap:
    """Memory for one tensor at a time, between two pages that cannot be touched."""
    arena = mmap.mmap(-1, SIZE + 2 * PAGE)
    if os.name == "posix":
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer(arena))
        for page in (start, start + PAGE + SIZE):
            if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
    return arena


def _memory(name: str, place: str, n: int, dtype: torch.dtype) -> Tensor:
    n_bytes = n * dtype.itemsize
    if place == "malloc" or not 0 < n_bytes <= SIZE:
        return torch.empty(n, dtype=dtype)
    offset = PAGE if place == "first" else PAGE + SIZE - n_bytes
    return torch.frombuffer(_arena(name), dtype=dtype, count=n, offset=offset)


def placed(name: str, values: Tensor, layout: str, place: str, dim: int) -> Tensor:
    """The values with other strides; for the last two layouts, those of the first row or class for all."""
    shape = values.shape
    if values.numel() == 0:
        return values
    if layout == "same rows" and shape:
        values = values[tuple(slice(None) if i == dim % len(shape) else slice(1) for i in range(len(shape)))]
    elif layout == "same classes" and shape:
        values = values.narrow(dim, 0, 1)
    order = range(values.dim()) if layout != "transposed" else range(values.dim())[::-1]
    strides, n = [0] * values.dim(), 2 if layout == "gaps" else 1
    for i in reversed(order):
        strides[i], n = n, n * values.shape[i]
    last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    offset = 3 if layout == "gaps" else 0
    memory = _memory(name, place, offset + last + 1, values.dtype)
    memory.fill_(POISON.get(values.dtype, float("nan") if values.is_floating_point() else 101))
    result = memory.as_strided(values.shape, strides, offset)
    result.copy_(values)
    return result.expand(shape)
