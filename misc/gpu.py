"""Tests and measures the kernels on a GPU, in at most eight minutes; writes a record.

    python misc/gpu.py [--wheel FILE] [--only tests|bench] [--record FILE] [--seconds N]

Needs this checkout, torch and Triton, no network and no other package. Without --wheel, lr_relax must be
installed or on PYTHONPATH. The comparisons with the kernels of the CPU run in parallel, because most of their
time is compilation. `TRITON_INTERPRET=1 python misc/gpu.py --dry` runs all of it on tiny tensors of the CPU.

Bandwidths are those of the logits, read once and written once, beside `torch.clone`. Times are medians of
rounds in which all contenders run in a random order; a ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START = time.monotonic()
Call = Callable[[], object]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a wheel of lr-relax, used without being installed")
    parser.add_argument("--only", choices=("tests", "bench"))
    parser.add_argument("--record", type=Path)
    parser.add_argument("--seconds", type=float, default=450.0, help="what does not fit is left out")
    parser.add_argument("--dry", action="store_true", help="tiny tensors of the CPU, for the interpreter")
    return parser.parse_args()


def left(options: argparse.Namespace) -> float:
    return float(options.seconds - (time.monotonic() - START))


# Tests.


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Every loss against the kernels of the CPU, see tests/python/triton_cases.py."""
    parts = 40 if options.dry else 1
    workers = 1 if options.dry else min(os.cpu_count() or 1, 12)
    device = "cpu" if options.dry else "cuda"
    script = str(ROOT / "tests" / "python" / "triton_cases.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, device, str(i), str(parts * workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        for i in range(workers)
    ]
    n_cases, errors = 0, []
    for process in running:
        try:
            out, _ = process.communicate(timeout=max(left(options) - 60, 30))
        except subprocess.TimeoutExpired:
            process.kill()
            errors.append("a part of the comparisons took too long")
            continue
        if process.returncode == 0:
            n_cases += int(out.split()[-4])
        else:
            errors += out.strip().splitlines()[-12:]
    return {"cases": n_cases, "errors": errors}


def check_determinism(device: str) -> None:
    """The same bits from run to run, also of the mean over many programs."""
    import torch
    from lr_relax._options import Options
    from lr_relax._triton import launch

    z = torch.randn(3000, 70, device=device)
    y = torch.randint(70, (3000,), device=device)
    options = Options("label_relaxation", 0.1, "mean", -1, -100, None)
    first = launch.loss(z, y, options, 1.0)
    for _ in range(3):
        again = launch.loss(z, y, options, 1.0)
        assert first[1] is not None
        assert again[1] is not None
        assert first[0].equal(again[0])
        assert first[1].equal(again[1])


def check_no_synchronization(device: str) -> None:
    import torch
    from lr_relax._options import Options
    from lr_relax._triton import launch

    z, y = torch.randn(700, 50, device=device), torch.randint(50, (700,), device=device)
    t, mask = z.softmax(1), z > 0
    weight, alpha = torch.rand(50, device=device), torch.rand(700, device=device) * 0.5
    options = Options("label_relaxation", alpha, "mean", -1, -100, weight)

    def run() -> None:
        for target in (y, t, mask):
            launch.loss(z, target, options, 1.0)
        launch.loss(z, y, options._replace(target_b=y.flip(0), lam=alpha), 1.0)

    run()  # compiles, and loads what it has compiled
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def check_graph_capture(device: str) -> None:
    """A captured call computes with new values of its input."""
    import torch
    from lr_relax._options import Options
    from lr_relax._triton import launch

    if device != "cuda":
        return
    z, y = torch.randn(600, 500, device=device), torch.randint(500, (600,), device=device)
    options = Options("label_relaxation", 0.1, "mean", -1, -100, None)
    launch.loss(z, y, options, 1.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, grad = launch.loss(z, y, options, 1.0)
    z.copy_(torch.randn_like(z))
    graph.replay()
    expected = launch.loss(z, y, options, 1.0)
    assert value.equal(expected[0])
    assert grad is not None
    assert expected[1] is not None
    assert grad.equal(expected[1])


def check_large_offsets(device: str) -> None:
    """More than 2^31 scores: the last rows are those of a small tensor."""
    import torch
    from lr_relax._options import Options
    from lr_relax._triton import launch

    if device != "cuda" or torch.cuda.mem_get_info()[0] < 24 * 2**30:
        return
    n_rows, n_classes = 2**31 // 50_000 + 100, 50_000
    z = torch.zeros(n_rows, n_classes, dtype=torch.float16, device=device)
    z[-3:] = torch.randn(3, n_classes, device=device)
    y = torch.randint(n_classes, (n_rows,), device=device)
    options = Options("label_relaxation", 0.1, "none", -1, -100, None)
    value, grad = launch.loss(z, y, options, 1.0)
    expected = launch.loss(z[-3:].clone(), y[-3:].clone(), options, 1.0)
    assert grad is not None
    assert expected[1] is not None
    assert value[-3:].equal(expected[0])
    assert grad[-3:].equal(expected[1])


def check_public_functions(device: str) -> None:
    """The public losses and their gradients are those of the CPU, whatever path they take."""
    import torch
    from lr_relax import functional

    z, y = torch.randn(40, 30, dtype=torch.float64), torch.randint(30, (40,))
    losses: dict[str, Callable[..., Any]] = {
        "label_relaxation": lambda z, y: functional.label_relaxation_loss(z, y),
        "sets": lambda z, y: functional.label_relaxation_loss(z, torch.nn.functional.one_hot(y, 30).bool()),
        "mixup": lambda z, y: functional.mixup_label_relaxation_loss(z, y, y.flip(0), 0.3),
        "cross_entropy": lambda z, y: functional.cross_entropy_loss(z, y, 0.1),
        "focal": lambda z, y: functional.focal_loss(z, y),
        "penalty": lambda z, y: functional.confidence_penalty_loss(z, y),
    }
    for name, loss in losses.items():
        found = []
        for place in ("cpu", device):
            leaf = z.to(place).requires_grad_()
            value = loss(leaf, y.to(place))
            (2 * value).backward()
            assert leaf.grad is not None
            found.append((value.detach().cpu(), leaf.grad.cpu()))
        torch.testing.assert_close(
            found[0], found[1], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_linear_layers(device: str) -> None:
    """The losses of a linear layer and its gradients are those of the CPU; half of the rows are inside."""
    import lr_relax
    import torch

    w, y = torch.randn(50, 8, dtype=torch.float64), torch.randint(50, (64,))
    x = torch.randn(64, 8, dtype=torch.float64)
    x[::2], y[::7] = 3 * w[y][::2], -100
    for name in ("label_relaxation", "cross_entropy", "focal", "confidence_penalty"):
        loss, found = getattr(lr_relax, f"linear_{name}_loss"), []
        for place in ("cpu", device):
            leaves = [t.to(place).requires_grad_() for t in (x, w)]
            value = loss(*leaves, y.to(place), chunk_size=10)
            found.append([t.cpu() for t in (value.detach(), *torch.autograd.grad(2 * value, leaves))])
        torch.testing.assert_close(
            found[0], found[1], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


CHECKS = [
    check_determinism,
    check_no_synchronization,
    check_graph_capture,
    check_large_offsets,
    check_public_functions,
    check_linear_layers,
]


def test(options: argparse.Namespace) -> dict[str, Any]:
    device = "cpu" if options.dry else "cuda"
    found = compare(options)
    print(f"comparisons: {found['cases']} cases, {len(found['errors'])} lines of errors", flush=True)
    for error in found["errors"]:
        print("   ", error[:400], flush=True)
    found["checks"] = {}
    for check in CHECKS:
        try:
            check(device)
            result = "passed"
        except Exception:
            result = traceback.format_exc(limit=3)
        print(f"{check.__name__}: {result}", flush=True)
        found["checks"][check.__name__] = result
    return found


# Measurements.


def seconds_of(call: Call, loops: int, device: str) -> float:
    """Per call, of calls in a row: of the GPU, or of the CPU where it takes longer to launch them."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(loops):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / loops


def measure(
    calls: dict[str, Call], device: str, seconds: float
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The seconds of each call, round by round, and the errors of those that fail, as for memory."""
    loops, errors = {}, {}
    for name, call in calls.items():
        try:
            for _ in range(3):  # compiles, and warms up
                call()
            loops[name] = max(1, math.ceil(0.02 / max(seconds_of(call, 2, device), 1e-6)))
        except Exception:
            errors[name] = traceback.format_exc(limit=2)
    samples: dict[str, list[float]] = {name: [] for name in loops}
    order, shuffle = list(loops), random.Random(0).shuffle
    deadline = time.monotonic() + seconds
    while len(samples[order[0]]) < 3 or time.monotonic() < deadline:
        shuffle(order)
        for name in order:
            samples[name].append(seconds_of(calls[name], loops[name], device))
    return samples, errors


def peak_memory(call: Call) -> int:
    """The bytes that a call needs at its peak, beside those that were there before."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def losses_row(shape: tuple[int, int], dtype_name: str, device: str) -> dict[str, Any]:
    """The calls of one shape: the kernel, the public function, torch, Liger if it is there."""
    import torch
    import torch.nn.functional as F
    from lr_relax import label_relaxation_loss
    from lr_relax._options import Options
    from lr_relax._triton import launch

    z = torch.randn(shape, device=device, dtype=getattr(torch, dtype_name))
    y = torch.randint(shape[1], shape[:1], device=device)
    leaf = z.clone().requires_grad_()
    scratch = z.clone()
    options = Options("label_relaxation", 0.1, "mean", -1, -100, None)

    def backward(loss: Callable[..., Any], **given: Any) -> Call:
        def call() -> None:
            leaf.grad = None
            loss(leaf, y, **given).backward()

        return call

    calls: dict[str, Call] = {
        "clone": z.clone,
        "kernel": lambda: launch.loss(z, y, options, 1.0),
        "forward": lambda: launch.loss(z, y, options, None),
        "public": backward(label_relaxation_loss),
        "F.cross_entropy": backward(F.cross_entropy),
    }
    if dtype_name != "float16":
        calls["kernel in place"] = lambda: launch.loss(scratch, y, options._replace(inplace=True), 1.0)
    try:
        liger = importlib.import_module("liger_kernel.ops.cross_entropy").LigerCrossEntropyFunction

        def of_liger() -> None:
            other = z.clone().requires_grad_()
            liger.apply(other, y, None)[0].backward()

        calls["Liger, and a clone"] = of_liger
    except ImportError:
        pass
    return {"calls": calls, "bytes": z.numel() * z.element_size()}


def other_losses_row(shape: tuple[int, int], dtype_name: str, device: str) -> dict[str, Any]:
    """The kernels of the other losses and targets, beside a clone of the logits."""
    import torch
    from lr_relax._options import Options
    from lr_relax._triton import launch

    z = torch.randn(shape, device=device, dtype=getattr(torch, dtype_name))
    y = torch.randint(shape[1], shape[:1], device=device)
    mask = torch.rand(shape, device=device) < 0.1
    t = torch.randn_like(z).mul_(3).softmax(1)
    relaxation = Options("label_relaxation", 0.1, "mean", -1, -100, None)
    mixed = relaxation._replace(target_b=y.flip(0), lam=0.3)
    cases = {
        "set": (mask, relaxation),
        "mixture": (y, mixed),
        "distribution": (t, relaxation),
        "label smoothing": (y, relaxation._replace(loss="cross_entropy")),
        "focal": (y, relaxation._replace(loss="focal", parameter=2.0)),
        "confidence penalty": (y, relaxation._replace(loss="confidence_penalty")),
        "cross-entropy of distributions": (t, relaxation._replace(loss="cross_entropy", parameter=0.0)),
    }
    calls: dict[str, Call] = {"clone": z.clone}
    for name, (target, options) in cases.items():
        calls[name] = lambda target=target, options=options: launch.loss(z, target, options, 1.0)  # type: ignore[misc]
    return {"calls": calls, "bytes": z.numel() * z.element_size()}


def metrics_row(shape: tuple[int, int], dtype_name: str, device: str) -> dict[str, Any]:
    import torch
    from lr_relax.metrics import expected_calibration_error

    z = torch.randn(shape, device=device, dtype=getattr(torch, dtype_name))
    y = torch.randint(shape[1], shape[:1], device=device)
    calls: dict[str, Call] = {
        "ECE of logits": lambda: expected_calibration_error(z, y, from_logits=True),
        "torch.softmax": lambda: torch.softmax(z, 1),
    }
    return {"calls": calls, "bytes": z.numel() * z.element_size()}


def linear_row(shape: tuple[int, int], dtype_name: str, device: str) -> dict[str, Any]:
    """A linear layer of 2,048 inputs with its loss, in chunks and with all logits."""
    import torch
    import torch.nn.functional as F
    from lr_relax import label_relaxation_loss, linear_cross_entropy_loss, linear_label_relaxation_loss

    (n_rows, n_classes), dtype = shape, getattr(torch, dtype_name)
    width = 2048 if device == "cuda" else 8
    w = (torch.randn(n_classes, width, device=device) / width**0.5).to(dtype).requires_grad_()
    y = torch.randint(n_classes, (n_rows,), device=device)
    x = torch.randn(n_rows, width, device=device, dtype=dtype)
    inside = x.clone()
    inside[::2] = 30 * w.detach()[y][::2]

    def backward(loss: Callable[..., Any], x: Any) -> Call:
        leaf = x.requires_grad_()

        def call() -> None:
            leaf.grad = w.grad = None
            loss(leaf, w, y).backward()

        return call

    calls: dict[str, Call] = {
        "LR in chunks": backward(linear_label_relaxation_loss, x),
        "cross-entropy in chunks": backward(linear_cross_entropy_loss, x),
        "LR in chunks, half inside": backward(linear_label_relaxation_loss, inside),
        "F.linear + our LR": backward(lambda x, w, y: label_relaxation_loss(F.linear(x, w), y), x),
        "F.linear + F.cross_entropy": backward(lambda x, w, y: F.cross_entropy(F.linear(x, w), y), x),
    }
    return {"calls": calls, "bytes": n_rows * n_classes * x.element_size()}


Make = Callable[[tuple[int, int], str, str], dict[str, Any]]
MANY_CLASSES = {
    ("kernel", "clone"): 1 / 0.85,
    ("kernel in place", "clone"): 1 / 0.85,
    ("public", "F.cross_entropy"): 0.35,
}
# What is measured, the shape, the type, and the targets: a ratio of times and its bound.
ROWS: list[tuple[Make, tuple[int, int], str, dict[tuple[str, str], float]]] = [
    (losses_row, (8192, 131_072), "bfloat16", MANY_CLASSES),
    (losses_row, (4096, 32_000), "bfloat16", MANY_CLASSES),
    (losses_row, (4096, 32_000), "float32", MANY_CLASSES),
    (losses_row, (64, 10), "float32", {("public", "F.cross_entropy"): 1.3}),
    (losses_row, (256, 1000), "float32", {("public", "F.cross_entropy"): 1.3}),
    (losses_row, (1_000_000, 10), "float32", {("kernel", "clone"): 1 / 0.85}),
    (losses_row, (65_536, 1000), "bfloat16", {("kernel", "clone"): 1 / 0.85}),
    (metrics_row, (1_000_000, 10), "float32", {("ECE of logits", "torch.softmax"): 1.5}),
    (metrics_row, (100_000, 1000), "float32", {("ECE of logits", "torch.softmax"): 1.5}),
    (linear_row, (8192, 131_072), "bfloat16", {("LR in chunks", "F.linear + our LR"): 1.05}),
    (other_losses_row, (4096, 32_000), "bfloat16", {}),
    (other_losses_row, (65_536, 1000), "bfloat16", {}),
    (other_losses_row, (4096, 131_072), "bfloat16", {}),
]


def measured(
    make: Make, shape: tuple[int, int], dtype_name: str, targets: dict[tuple[str, str], float], device: str
) -> dict[str, Any]:
    made = make(shape, dtype_name, device)
    calls, size = made["calls"], made["bytes"]
    samples, errors = measure(calls, device, 0.0 if device == "cpu" else 1.5)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    result: dict[str, Any] = {
        "milliseconds": {name: float(f"{1e3 * median:.4g}") for name, median in medians.items()},
        "gigabytes_per_second": {name: round(2 * size / median / 1e9, 1) for name, median in medians.items()},
        "targets": [],
    }
    if errors:
        result["errors"] = errors
    for (name, base), bound in targets.items():
        if name in errors or base in errors:
            continue
        ratio = statistics.median(a / b for a, b in zip(samples[name], samples[base], strict=True))
        result["targets"].append(
            {
                "ratio": f"{name} / {base}",
                "is": round(ratio, 3),
                "at_most": round(bound, 3),
                "met": ratio <= bound,
            }
        )
    if device == "cuda":
        result["extra_memory"] = {
            name: round(peak_memory(call) / size, 3) for name, call in calls.items() if name not in errors
        }
    return result


def bench(options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    device, results = "cpu" if options.dry else "cuda", []
    for make, shape, dtype_name, targets in ROWS:
        row: dict[str, Any] = {"work": make.__name__, "shape": shape, "dtype": dtype_name}
        if left(options) < 25:
            row["left_out"] = "no time left"
        else:
            small = (min(shape[0], 4), min(shape[1], 40)) if options.dry else shape
            try:
                row |= measured(make, small, dtype_name, targets, device)
            except Exception:  # one row that fails, as for memory, does not end the others
                row["error"] = traceback.format_exc(limit=3)
            if device == "cuda":
                torch.cuda.empty_cache()
        results.append(row)
        print(json.dumps(row), flush=True)
    return results


def machine(options: argparse.Namespace) -> dict[str, Any]:
    import lr_relax
    import torch
    import triton

    about: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "lr_relax": lr_relax.__version__,
    }
    if not options.dry:
        properties = torch.cuda.get_device_properties(0)
        about["gpu"] = properties.name
        about["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    about["commit"] = git.stdout.strip() or "unknown"
    return about


def main() -> None:
    options = arguments()
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="triton-"))
    if options.wheel is not None:
        folder = tempfile.mkdtemp(prefix="lr-relax-")
        zipfile.ZipFile(options.wheel).extractall(folder)
        sys.path.insert(0, folder)
    import torch

    if not options.dry and not torch.cuda.is_available():
        sys.exit("There is no GPU that torch can use; --dry needs none.")
    now = datetime.now(timezone.utc)
    record: dict[str, Any] = {"date": now.isoformat(timespec="seconds"), "machine": machine(options)}
    print(record["machine"], flush=True)
    path = options.record or ROOT / "misc" / "benchmarks" / "records" / f"gpu-{now:%Y-%m-%d-%H%M}.json"
    failed = False
    # The record is written after each part, so that one that is cut off leaves what came before.
    if options.only != "bench":
        record["tests"] = test(options)
        failed = bool(record["tests"]["errors"]) or set(record["tests"]["checks"].values()) != {"passed"}
        path.write_text(json.dumps(record, indent=1) + "\n")
    if options.only != "tests":
        record["rows"] = bench(options)
        failed |= any("error" in row or "errors" in row for row in record["rows"])
        path.write_text(json.dumps(record, indent=1) + "\n")
    record["seconds"] = round(time.monotonic() - START)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path} after {record['seconds']} seconds")
    sys.exit(failed)


if __name__ == "__main__":
    main()
