"""Compares the Triton kernels, interpreted without a GPU, with the Rust kernels in float64.

    TRITON_INTERPRET=1 python tests/python/triton_cases.py
    python tests/python/triton_cases.py cuda 0 1  # on a GPU: part 0 of 1

Prints the number of cases, or the first errors.
"""

import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lr_relax import _native
from lr_relax._options import Options
from lr_relax._triton import launch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Of the loss and of the gradient, relative to the largest of a row; half types also round the gradient.
TOLERANCE = {torch.float64: (1e-13, 1e-13)}
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
# Rows and classes, and whether the blocks are made so small that a row takes several.
SIZES = ((9, 3), (5, 10), (17, 16), (3, 150), (2, 150, True))


class Case(NamedTuple):
    name: str
    input: Tensor
    target: Tensor
    options: Options
    small_blocks: bool = False


def targets(kind: str, n_rows: int, n_classes: int) -> dict[str, Any]:
    if kind == "set":
        target = torch.rand(n_rows, n_classes) < 0.4
        target[0], target[1] = True, torch.arange(n_classes) == 1
        target[2:, 0] = True
        return {"target": target}
    if kind == "distribution":
        target = torch.rand(n_rows, n_classes, dtype=torch.float64) ** 4
        target[:, ::3] = 0
        target /= target.sum(1, keepdim=True)
        target[0] = torch.arange(n_classes) == 1
        return {"target": target}
    target = torch.randint(n_classes, (n_rows,))
    target[-1] = -100
    if kind == "mixture":
        lam = torch.rand(n_rows, dtype=torch.float64)
        lam[0] = 1.0
        return {"target": target, "target_b": target.flip(0), "lam": lam}
    return {"target": target}


LOSSES = [
    ("label_relaxation", 0.1, "class"),
    ("label_relaxation", 0.4, "set"),
    ("label_relaxation", 0.1, "distribution"),
    ("label_relaxation", 0.2, "mixture"),
    ("label_relaxation", 0.0, "class"),
    ("label_relaxation", 0.0, "distribution"),
    ("cross_entropy", 0.0, "class"),
    ("cross_entropy", 0.2, "class"),
    ("cross_entropy", 0.2, "distribution"),
    ("focal", 2.0, "class"),
    ("focal", 0.0, "class"),
    ("focal", 1.5, "distribution"),
    ("dual_focal", 2.0, "class"),
    ("dual_focal", 0.0, "class"),
    ("confidence_penalty", 0.3, "class"),
    ("confidence_penalty", 0.3, "distribution"),
]


def plain() -> Iterator[Case]:
    """All losses, types and sizes; reductions and weights take turns."""
    turns = itertools.cycle(itertools.product(("mean", "none", "sum"), (False, True)))
    for (loss, parameter, kind), dtype, (n_rows, n_classes, *small) in itertools.product(
        LOSSES, DTYPES, SIZES
    ):
        reduction, is_weighted = next(turns)
        if n_rows * n_classes % 2 == 0 and dtype == torch.float16:
            reduction, is_weighted = next(turns)
        weight = torch.rand(n_classes) + 0.5 if is_weighted else None
        z = (3 * torch.randn(n_rows, n_classes, dtype=torch.float64)).to(dtype)
        made = targets(kind, n_rows, n_classes)
        target = made.pop("target")
        options = Options(loss, parameter, reduction, -1, -100, weight, **made)
        name = f"{loss}({parameter}) of {kind}, {dtype}, {(n_rows, n_classes)}, {reduction}, {is_weighted=}"
        yield Case(name, z, target, options, bool(small))


def edges() -> Iterator[Case]:
    """Rows with infinities, NaN, large offsets, certain and impossible classes."""
    inf, nan = math.inf, math.nan
    rows = {
        "zeros": [0.0] * 6,
        "offset": [1e4, 1e4 + 2, 1e4 - 1, 1e4, 1e4, 1e4 + 1],
        "own": [0.0, 80.0, 0.0, 1.0, 2.0, 0.0],
        "far": [90.0, -90.0, 0.0, 1.0, 2.0, 0.0],
        "certain": [-inf, 0.0, -inf, -inf, -inf, -inf],
        "impossible": [0.0, -inf, 1.0, 0.0, 2.0, 0.0],
        "others impossible": [-inf, 1.0, -inf, 2.0, -inf, 0.0],
        "nothing": [-inf] * 6,
        "infinite": [0.0, inf, 0.0, 1.0, 2.0, 0.0],
        "another infinite": [inf, 1.0, 0.0, 1.0, 2.0, 0.0],
        "nan": [0.0, 1.0, nan, 1.0, 2.0, 0.0],
        "own nan": [0.0, nan, 0.0, 1.0, 2.0, 0.0],
    }
    z = torch.tensor([*rows.values()], dtype=torch.float64)
    n = len(z)
    for (loss, parameter, kind), repeats in itertools.product(LOSSES, (1, 25)):
        made: dict[str, Any] = {}
        scores = z if repeats == 1 else torch.cat([z, torch.full((n, 6 * repeats - 6), -60.0)], 1)
        scores = scores.float()
        c = scores.shape[1]
        target = torch.ones(n, dtype=torch.int64)
        if kind == "mixture":
            made = {"target_b": torch.full((n,), 3), "lam": 0.25}
        elif kind == "set":
            target = (torch.arange(c) % 3 == 1).expand(n, c).clone()
        elif kind == "distribution":
            target = torch.zeros(n, c)
            target[:, 1], target[:, 2], target[:, 3] = 0.5, 0.25, 0.25
        options = Options(loss, parameter, "none", -1, -100, None, **made)
        yield Case(
            f"edge rows {[*rows]}, {loss}({parameter}) of {kind}, {c} classes",
            scores,
            target,
            options,
            repeats > 1,
        )


def layouts() -> Iterator[Case]:
    """Other strides, integer types, numbers per row, several dimensions, and classes in another dimension."""
    z = 3 * torch.randn(3, 7, 4, 10)
    for kind, (dim, view) in itertools.product(
        ("class", "set", "distribution", "mixture"),
        (
            (1, z[:, :, 0, :]),
            (-1, z[:, :-1, 1:3]),  # three strides of rows
            (0, z[0, :, :, 0]),
            (-1, z[0].transpose(0, 1)),
            (1, z[..., ::2].flatten(2)),
            (-1, z[:, :, :, 3:5].expand(3, 7, 4, 2)),
            (1, torch.randn(2, 150, 20)),  # many classes that are not neighbors
            (-1, z[0, 0, 0]),  # one row
        ),
    ):
        rows = view.movedim(dim, -1).shape[:-1]
        n_classes = view.shape[dim]
        made = targets(kind, max(rows.numel(), 3), n_classes)
        target = made.pop("target")[-rows.numel() :]
        if kind in ("set", "distribution"):
            target = target.reshape(*rows, n_classes).movedim(-1, dim)
        else:
            target = target.reshape(rows).to(torch.int32)
        if kind == "mixture":
            made["target_b"] = made["target_b"][-rows.numel() :].reshape(rows)
            made["lam"] = made["lam"][-rows.numel() :].reshape(rows).float()
        alpha = torch.rand(rows) * 0.9
        options = Options("label_relaxation", alpha, "mean", dim, -100, torch.rand(n_classes) + 0.1, **made)
        yield Case(
            f"{kind}, shape {tuple(view.shape)}, strides {view.stride()}, {dim=}", view, target, options
        )


def many_rows() -> Iterator[Case]:
    """More rows than one program counts, and several parts."""
    for kind in ("class", "mixture"):
        for n_rows in (600, 3000):
            made = targets(kind, n_rows, 3)
            target = made.pop("target")
            target[::7] = -100
            options = Options("label_relaxation", 0.1, "mean", -1, -100, torch.rand(3), **made)
            yield Case(f"{kind}, {n_rows} rows", torch.randn(n_rows, 3), target, options)


def on_device(x: Any, device: str) -> Any:
    """A copy with the same strides, also if they have gaps or repeat elements."""
    if not isinstance(x, Tensor) or device == "cpu":
        return x
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return storage.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def compute(
    input: Tensor, target: Tensor, options: Options, upstream: float | None, device: str
) -> tuple[Tensor, Tensor | None]:
    """The loss and its gradient, on the CPU; in place, the gradient is what the input became."""
    moved = on_device(input, device)
    options = Options(*(on_device(x, device) for x in options))
    value, grad = launch.loss(moved, on_device(target, device), options, upstream)
    if options.inplace:
        assert grad is None
        grad = moved
    return value.cpu(), None if grad is None else grad.cpu()


def widened(options: Options) -> Options:
    parameter = options.parameter
    return options._replace(
        parameter=parameter.double() if isinstance(parameter, Tensor) else parameter,
        weight=None if options.weight is None else options.weight.double(),
    )


def close(got: Tensor, expected: Tensor, tolerance: float, rounding: float, scale: Tensor) -> bool:
    got = got.double()
    same = (got == expected) | (got.isnan() & expected.isnan())
    return bool((same | ((got - expected).abs() <= tolerance * scale + rounding * expected.abs())).all())


def errors_of(case: Case, is_complete: bool, device: str) -> Iterator[str]:
    """Completely: also without a gradient, and in place."""
    input, options = case.input, case.options
    expected, slope = _native.loss(input.double(), case.target, widened(options), 3.0)
    assert slope is not None
    value, grad = compute(input, case.target, options, 3.0, device)
    assert grad is not None
    if value.dtype != (torch.float64 if input.dtype == torch.float64 else torch.float32):
        yield f"loss of type {value.dtype}"
    if grad.dtype != input.dtype or grad.shape != input.shape:
        yield f"gradient of type {grad.dtype} and shape {grad.shape}"
    of_loss, of_grad = TOLERANCE.get(input.dtype, (1e-6, 3e-6))
    if not close(value, expected, of_loss, 0.0, 1 + expected.abs()):
        yield f"loss {value.tolist()}, expected {expected.tolist()}"
    sizes = slope.abs().nan_to_num(0.0)
    largest = sizes.amax(options.dim, keepdim=True).clamp_min(0.1 * sizes.max())
    smallest = 2.0**-24 if input.dtype == torch.float16 else 1e-37
    if not close(grad, slope, of_grad, ROUNDING.get(input.dtype, 0.0), largest + smallest / of_grad):
        yield f"gradient {grad.tolist()}, expected {slope.tolist()}"
    if not is_complete:
        return
    if not compute(input, case.target, options, None, device)[0].equal(value) and not value.isnan().any():
        yield "the loss without a gradient is another one"
    if input.dtype != torch.float16 and 0 not in input.stride():
        copy = torch.empty_strided(input.shape, input.stride(), dtype=input.dtype).copy_(input)
        again = compute(copy, case.target, options._replace(inplace=True), 3.0, device)[1]
        if again is None or not close(again, grad.double(), 0.0, 0.0, grad.double()):
            yield "the gradient in place is another one"


def invalid_targets() -> Iterator[tuple[str, Tensor, Options, Tensor, Options]]:
    """A valid target, and one whose first row is not."""
    n_classes = 5
    for value in (n_classes, -1, 2**40, -(2**40)):
        target = torch.randint(n_classes, (6,))
        wrong = target.clone()
        wrong[0] = value
        for loss in ("label_relaxation", "cross_entropy", "focal", "dual_focal", "confidence_penalty"):
            options = Options(loss, 0.1, "none", -1, -100, torch.rand(n_classes))
            yield f"class {value} with {loss}", target, options, wrong, options
        options = Options("label_relaxation", 0.1, "none", -1, -100, None, target_b=target, lam=0.5)
        yield f"mixture of class {value}", target, options, target, options._replace(target_b=wrong)
    options = Options("label_relaxation", torch.full((6,), 0.1), "none", -1, -100, None)
    wrong_alpha = torch.tensor([1.0] + 5 * [0.1])
    for kind in ("class", "set", "distribution"):
        target = targets(kind, 6, n_classes)["target"].roll(2, 0)
        yield f"alpha 1 of {kind}", target, options, target, options._replace(parameter=wrong_alpha)
        for value in {"set": (0,), "distribution": (math.nan, -0.1, 0.9)}.get(kind, ()):
            wrong = target.clone()
            wrong[0] = 0
            wrong[0, 0], wrong[0, 1] = value, 1 - value if value < 0.5 else value
            wrong[0] *= kind != "set"
            for loss in ("label_relaxation", "cross_entropy", "focal")[: 1 if kind == "set" else 3]:
                given = options._replace(loss=loss, parameter=0.1)
                yield f"{kind} with {value}, {loss}", target, given, wrong, given


def errors_of_invalid_targets(columns: int, device: str) -> Iterator[str]:
    """Only the row with the invalid target is NaN. Columns between the rows choose another kernel."""
    for name, target, options, wrong, wrong_options in invalid_targets():
        z = torch.randn(6, 5 + columns)[:, :5]
        expected = compute(z, target, options, 1.0, device)
        for got, right in zip(compute(z, wrong, wrong_options, 1.0, device), expected, strict=True):
            assert got is not None
            assert right is not None
            if not got[0].isnan().all() or not got[1:].equal(right[1:]) or right.isnan().any():
                yield f"{name}: {got.tolist()}, expected {right.tolist()} but for the first row"


def errors_of_scales(device: str) -> Iterator[str]:
    """A number on the device in place of one of the host, and gradients that are multiplied afterward."""
    z, options = torch.randn(6, 200), Options("label_relaxation", 0.1, "mean", -1, -100, None)
    for kind in ("class", "set", "distribution"):
        target = targets(kind, 6, 200)["target"]
        expected = compute(z, target, options, 3.0, device)[1]
        value = on_device(torch.tensor(3.0), device)
        got = launch.loss(on_device(z, device), on_device(target, device), options, value)[1]
        if got is None or expected is None or not got.cpu().equal(expected):
            yield f"multiplier on the device, {kind}"
    for grad in (torch.randn(3, 5000), torch.randn(40, 30).half().t(), torch.randn(4, 6)[:, :3], z.double()):
        for number in (1.0, 0.5, 3.0):
            upstream = torch.tensor(
                number, dtype=torch.float64 if grad.dtype == torch.float64 else torch.float32
            )
            moved = on_device(grad.clone(), device)
            got = launch.scale(moved, on_device(upstream, device))
            if got is not moved or not moved.cpu().equal(grad * upstream.to(grad.dtype)):
                yield f"{grad.shape} times {number}"


def errors_of_refusals() -> Iterator[str]:
    """What cannot be overwritten is refused with the message of the kernel for the CPU."""
    y, one = torch.zeros(4, dtype=torch.int64), torch.eye(4)
    options = Options("label_relaxation", 0.1, "mean", -1, -100, None, inplace=True)
    for z, target in ((one.half(), y), (torch.zeros(1, 4).expand(4, 4), y), (one, one)):
        messages = []
        for compute in (_native.loss, launch.loss):
            try:
                messages.append(str(compute(z, target, options, 1.0)))
            except (TypeError, ValueError) as error:
                messages.append(repr(error))
        if messages[0] != messages[1] or "inplace" not in messages[1]:
            yield f"in place: {messages}"


def main() -> None:
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    part, parts = map(int, sys.argv[2:4]) if sys.argv[2:] else (0, 1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # of NumPy: infinities
    most_warps, per_thread = launch.MOST_WARPS, dict(launch.PER_THREAD)
    n_cases, failed = 0, []
    cases = enumerate(itertools.chain(plain(), edges(), layouts(), many_rows()))
    for i, case in itertools.islice(cases, part, None, parts):
        launch.MOST_WARPS = 1 if case.small_blocks else most_warps
        launch.PER_THREAD.update(dict.fromkeys(per_thread, 2) if case.small_blocks else per_thread)
        failed += [f"{case.name}: {error[:600]}" for error in errors_of(case, i % 3 == 0, device)]
        n_cases += 1
    launch.PER_THREAD.update(per_thread)
    launch.MOST_WARPS = most_warps
    for columns in (0, 1) if part == 0 else ():
        failed += errors_of_invalid_targets(columns, device)
    if part == 0:
        failed += errors_of_scales(device)
        failed += errors_of_refusals()
    for error in failed[:10]:
        print(error)
    print(f"{n_cases} cases, {len(failed)} errors")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
