"""Launches the kernels for the arguments of a loss."""

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from lr_relax._options import Options
from lr_relax._triton.classes import class_kernel
from lr_relax._triton.distributions import distribution_kernel
from lr_relax._triton.dual_focal import dual_focal_kernel
from lr_relax._triton.few_classes import few_classes_kernel
from lr_relax._triton.gradients import scale_kernel
from lr_relax._triton.layouts import Layout, rows_of
from lr_relax._triton.mixtures import mixture_kernel
from lr_relax._triton.reductions import (
    count_classes_kernel,
    count_dense_kernel,
    count_mixtures_kernel,
    sum_kernel,
)
from lr_relax._triton.rows import COUNTED, PARTS
from lr_relax._triton.sets import set_kernel
from lr_relax._triton.soft_targets import soft_target_kernel


class Tile(NamedTuple):
    """What one program computes at a time."""

    rows: int
    block: int
    """The number of classes."""
    single: bool
    """Whether a row fits the block."""
    warps: int


# Triton's own functions for these take ten microseconds, because they also work inside of kernels.
def _cdiv(n: int, size: int) -> int:
    return (n + size - 1) // size


def _power_of_2(n: int) -> int:
    """The smallest, from 2 on, that is at least `n`."""
    return max(1 << (n - 1).bit_length(), 2)


def _fewer(rows: int, n_rows: int) -> int:
    """The given power of 2, or a smaller one that is not twice as large as `n_rows`."""
    while rows > 1 and rows // 2 >= n_rows:
        rows //= 2
    return rows


MOST_WARPS = 32
"""Of 32 threads: no program can have more."""
PER_THREAD = {
    "classes": 32,
    "sums": 16,
    "dual_focal": 8,
    "sets": 16,
    "mixtures": 16,
    "distributions": 8,
    "soft_targets": 8,
}
"""The number of float32 scores that a thread can hold, by the kind of the kernel, without spilling registers.
Of float64, a quarter, and half the warps."""


def tile_of(layout: Layout, kind: str, is_double: bool) -> Tile:
    """The tile for the scores in a layout."""
    _, inner_stride, class_stride = layout.strides[0]
    most_warps = max(MOST_WARPS // 2, 1) if is_double else MOST_WARPS
    per_warp = 32 * max(PER_THREAD[kind] // (4 if is_double else 1), 1)
    block = _power_of_2(layout.n_classes)
    if block > 128 and class_stride != 1 and inner_stride == 1:  # neighbors are in other rows
        return Tile(32, 32, False, 8)
    if block > most_warps * per_warp:
        return Tile(1, max(most_warps * per_warp // 2, 64), False, most_warps)
    if block <= 128:  # what is computed once per row takes most registers: few rows
        scores = 256 if kind == "mixtures" else 1024
        rows = _fewer(max((scores // 2 if is_double else scores) // block, 1), layout.n_rows)
        return Tile(rows, block, True, 4 if rows * block >= 128 else 1)
    rows = _fewer(max(per_warp // block, 1), layout.n_rows)
    return Tile(rows, block, True, max(block // per_warp, 1))


def few_classes_tile(layout: Layout, is_double: bool) -> Tile | None:
    """The tile for few classes whose rows have no gaps between them; else None."""
    block = _power_of_2(layout.n_classes)
    if block > 128 or not layout.is_flat or any(s[1:] != (layout.n_classes, 1) for s in layout.strides):
        return None
    rows = _fewer((2048 if is_double else 4096) // block, layout.n_rows)
    return Tile(rows, block, True, max(min(rows * block // 256, 4), 1))


def loss(
    input: Tensor, target: Tensor, options: Options, upstream: float | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """See `lr_relax._triton.loss`."""
    inplace = options.inplace and upstream is not None
    is_dense = options.target_b is None and (target.dtype == torch.bool or target.is_floating_point())
    if inplace:
        _check_in_place(input, target if is_dense else None)
    input, target = input.detach(), target.detach()
    grad = None if upstream is None else input if inplace else torch.empty_like(input)
    dense = [target] if is_dense else []
    layout = rows_of([input, input if grad is None else grad, *dense], options.dim)
    if layout is not None:
        with _on(input.device):
            value = _launch(input, grad, target, options, upstream, layout)
        return value, None if inplace else grad
    # The rows need more than two strides: copies have one.
    copy = input.movedim(options.dim, -1).contiguous()
    if is_dense:
        target = target.movedim(options.dim, -1).contiguous()
    value, new = loss(copy, target, options._replace(dim=-1, inplace=False), upstream)
    new = None if new is None else new.movedim(-1, options.dim)
    if inplace:
        assert new is not None
        input.copy_(new)
        new = None
    return value, new


def scale(grad: Tensor, upstream: Tensor) -> Tensor:
    """See `lr_relax._triton.scale`."""
    is_dense = torch._debug_has_internal_overlap(grad) == 0  # 1 if it repeats elements, 2 with gaps
    if upstream.dim() > 0 or not is_dense or grad.numel() == 0:
        return grad.mul_(upstream)
    n, block = grad.numel(), 4096
    n_programs = min(_cdiv(n, block), 2048)
    arguments = {"grad": grad, "upstream": upstream, "n": n, "step": n_programs * block, "BLOCK": block}
    with _on(grad.device):
        run(scale_kernel, n_programs, 4, arguments)
    return grad


def _check_in_place(input: Tensor, dense: Tensor | None) -> None:
    """Raise what the kernel for the CPU raises, also for parts of one storage that do not overlap."""
    if input.dtype == torch.float16:
        raise TypeError(
            "Expected argument `inplace` to be False for torch.float16, "
            "whose gradient is computed again where a loss is scaled."
        )
    shared = torch._debug_has_internal_overlap(input) == 1
    if dense is not None:
        shared |= input.untyped_storage().data_ptr() == dense.untyped_storage().data_ptr()
    if shared:
        raise ValueError(
            "Expected argument `inplace` to be False for an `input` that shares memory, "
            "with `target` or with itself (as expanded tensors do)."
        )


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes the device the current one, which Triton launches on."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


@functools.cache
def _warp_size(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).warp_size) if device.type == "cuda" else 32


def _numbers(numbers: Any, rows: Tensor) -> tuple[Tensor | None, float, int]:
    """A tensor with its stride, or a number."""
    if not isinstance(numbers, Tensor):
        return None, float(numbers), 0
    return numbers.detach().reshape(-1), 0.0, int(numbers.dim() > 0)


def run(kernel: Any, n_programs: int, warps: int, arguments: dict[str, Any]) -> None:
    """Launches a kernel with those of the arguments that it takes."""
    kernel[(n_programs,)](**{name: arguments[name] for name in kernel.arg_names}, num_warps=warps)


def _launch(
    input: Tensor,
    grad: Tensor | None,
    target: Tensor,
    options: Options,
    upstream: float | Tensor | None,
    layout: Layout,
) -> Tensor:
    n_rows, n_classes = layout.n_rows, layout.n_classes
    is_double = input.dtype == torch.float64
    dtype = torch.float64 if is_double else torch.float32
    mean = options.reduction == "mean"
    new = functools.partial(torch.empty, device=input.device)
    if options.reduction == "none":
        out = new(input.select(options.dim, 0).shape, dtype=dtype)
    else:
        out = new((), dtype=dtype)
    if n_rows == 0:
        return out.fill_(float("nan") if mean else 0.0)

    is_dense = options.target_b is None and (target.dtype == torch.bool or target.is_floating_point())
    weight = None if options.weight is None else options.weight.detach().contiguous()
    second = None if options.target_b is None else options.target_b.detach().reshape(-1)
    if not is_dense:
        target = target.reshape(-1)
    numbers, number, number_stride = _numbers(options.parameter, target)
    share_numbers, share, share_stride = _numbers(0.0 if options.lam is None else options.lam, target)
    sizes = {"n_rows": n_rows, "n_classes": n_classes, "ignore_index": options.ignore_index}

    # The denominator of the mean: a number, or counted on the device.
    counts, n_counts, how, divisor = None, 1, "no", 1.0
    is_weighted = weight is not None and (options.loss == "label_relaxation" or not is_dense)
    if mean and is_dense and not is_weighted:
        divisor = float(n_rows)
    elif mean and not is_dense and second is None and n_rows <= COUNTED.value:
        how = "classes"
    elif mean:
        how, n_counts = "parts", min(PARTS.value, _cdiv(n_rows, 1024))
        counts, part = new(n_counts, dtype=torch.float64), _cdiv(n_rows, n_counts)
        common: dict[str, Any] = {"target": target, "weight": weight, "counts": counts, "part": part, **sizes}
        if is_dense:
            outer, inner, each = layout.strides[2]
            common |= {"inner": layout.inner, "FLAT": layout.is_flat, "ROWS": 8, "BLOCK": 256}
            common |= {"target_outer": outer, "target_inner": inner, "target_class": each}
            run(count_dense_kernel, n_counts, 8, common)
        elif second is not None:
            common |= {"second": second, "shares": share_numbers, "share": share, "BLOCK": 2048}
            run(count_mixtures_kernel, n_counts, 8, common | {"share_stride": share_stride})
        else:
            run(count_classes_kernel, n_counts, 8, common | {"BLOCK": 4096})
    count = {"weight": weight, "counts": counts, "n_counts": n_counts, "divisor": divisor, "COUNT": how}

    if is_dense and options.loss != "label_relaxation":
        kernel, kind = soft_target_kernel, "soft_targets"
    elif is_dense and target.dtype == torch.bool:
        kernel, kind = set_kernel, "sets"
    elif is_dense:
        kernel, kind = distribution_kernel, "distributions"
    elif options.loss == "dual_focal":
        kernel, kind = dual_focal_kernel, "dual_focal"
    else:
        kernel, kind = (class_kernel, "classes") if second is None else (mixture_kernel, "mixtures")
    name = options.loss
    if kernel is class_kernel and name == "cross_entropy" and number > 0:
        name = "label_smoothing"
    if kernel is class_kernel and name in ("label_smoothing", "confidence_penalty"):
        kind = "sums"
    tile = tile_of(layout, kind, is_double)
    few = few_classes_tile(layout, is_double) if kernel is class_kernel else None
    if few is not None:
        kernel, tile = few_classes_kernel, few
    n_programs = _cdiv(n_rows, tile.rows)
    partials, to = out, "rows" if options.reduction == "none" else "loss"
    if to == "loss" and n_programs > 1:
        to, partials = "partials", new(n_programs, dtype=torch.float64)
    strides = {
        f"{tensor}_{which}": stride
        for tensor, each in zip(("input", "grad", "target"), layout.strides, strict=False)
        for which, stride in zip(("outer", "inner", "class"), each, strict=True)
    }
    arguments = {
        "input": input,
        "grad": grad,
        "target": target,
        "second": second,
        "numbers": numbers,
        "shares": share_numbers,
        "out": partials,
        "parameter": number,
        "share": share,
        "upstream": upstream if isinstance(upstream, float) else 1.0,
        "multiplier": upstream if isinstance(upstream, Tensor) else None,
        "tolerance": 1e-2 if target.dtype in (torch.float16, torch.bfloat16) else 5e-3,
        "inner": layout.inner,
        "number_stride": number_stride,
        "share_stride": share_stride,
        "LOSS": name,
        "OUT": to,
        "FLAT": layout.is_flat,
        "F": tl.float64 if is_double else tl.float32,
        "ROWS": tile.rows,
        "BLOCK": tile.block,
        "LANE": 16 // input.element_size(),
        "SINGLE": tile.single,
    }
    warps = max(tile.warps * 32 // _warp_size(input.device), 1)
    run(kernel, n_programs, warps, arguments | strides | sizes | count)
    if to == "partials":
        last = {"partials": partials, "out": out, "n_partials": n_programs, "BLOCK": 1024}
        last["target"] = target if how == "classes" else None
        run(sum_kernel, 1, 4, last | sizes | count)
    return out
