"""Compile the Triton kernels ahead of time, without a GPU, and print their registers, spills and loads.

    python misc/benchmarks/triton_variants.py [--quick] [--record FILE]

The launches are those that the package makes for tensors of each loss, type and number of classes. Exits
with 1 if a kernel spills registers or reads a score more often than it must. A complete run takes about ten
minutes of one core and writes a record into records/; --quick compiles one variant of every kernel, in less
than a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="triton-"))

import torch
import triton
from lr_relax._options import Options
from lr_relax._triton import launch
from lr_relax._triton.rows import PARTS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

RECORDS = Path(__file__).parent / "records"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.bool: "i1",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
LOSSES = [
    ("label_relaxation", "class"),
    ("cross_entropy", "class"),
    ("label_smoothing", "class"),
    ("focal", "class"),
    ("dual_focal", "class"),
    ("confidence_penalty", "class"),
    ("label_relaxation", "set"),
    ("label_relaxation", "mixture"),
    ("label_relaxation", "distribution"),
    ("cross_entropy", "distribution"),
    ("focal", "distribution"),
    ("confidence_penalty", "distribution"),
]
# How often a kernel reads a score of a row that is longer than a block.
READS = {"class_kernel": 2, "set_kernel": 2, "mixture_kernel": 2, "dual_focal_kernel": 2}  # else 3


class Variant(NamedTuple):
    loss: str
    kind: str
    dtype: torch.dtype
    n_rows: int
    n_classes: int
    reduction: str = "mean"
    options: str = ""
    """Some of "weight", "alpha", "inner" (classes in dimension 1 of three), "forward"."""


def complete() -> Iterator[tuple[str, Variant]]:
    types = (torch.bfloat16, torch.float32, torch.float64)
    for target in TARGETS:
        is_main = target == "sm_90"
        for loss, kind in LOSSES:
            for dtype in types if is_main else types[:2]:
                for n_classes in (10, 1000, 32_000, 131_072) if is_main else (10, 32_000, 131_072):
                    yield target, Variant(loss, kind, dtype, 4096, n_classes)
    for loss, kind in LOSSES:
        yield "sm_90", Variant(loss, kind, torch.float16, 4096, 32_000)
        yield "sm_90", Variant(loss, kind, torch.float32, 64, 10)
        yield "sm_90", Variant(loss, kind, torch.float32, 4096, 32_000, "mean", "weight alpha")
        yield "sm_90", Variant(loss, kind, torch.bfloat16, 4096, 131_072, "none", "forward")
        for n_classes in (20, 1000):
            yield "sm_90", Variant(loss, kind, torch.float32, 4096, n_classes, "mean", "inner")


def quick() -> Iterator[tuple[str, Variant]]:
    """Every kernel, every type and every target, but not every combination."""
    relaxation, half, single, double = "label_relaxation", torch.bfloat16, torch.float32, torch.float64
    yield "sm_90", Variant(relaxation, "class", half, 4096, 32_000)
    yield "sm_80", Variant(relaxation, "class", single, 4096, 32_000)
    yield "sm_90", Variant(relaxation, "class", half, 4096, 131_072, "none")
    yield "sm_90", Variant(relaxation, "class", single, 4096, 10)
    yield "gfx942", Variant(relaxation, "class", half, 4096, 32_000, "none")
    yield "sm_100", Variant("confidence_penalty", "class", torch.float16, 4096, 1000, "sum")
    yield "sm_90", Variant("label_smoothing", "class", double, 4096, 16_000, "sum")
    yield "sm_100", Variant(relaxation, "set", single, 4096, 32_000, "sum")
    yield "gfx942", Variant(relaxation, "mixture", half, 4096, 1000, "sum")
    yield "sm_90", Variant(relaxation, "distribution", single, 4096, 1000, "sum")
    yield "sm_90", Variant("focal", "distribution", half, 4096, 1000, "sum")


def launches(variant: Variant) -> list[tuple[Any, int, dict[str, Any]]]:
    """The kernels that the package would launch: each with its number of warps and its arguments."""
    n_rows, n_classes, given = variant.n_rows, variant.n_classes, variant.options.split()
    made: list[tuple[Any, int, dict[str, Any]]] = []

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    shape, rows, dim = (n_rows, n_classes), (n_rows,), -1
    if "inner" in given:
        shape, rows, dim = (n_rows // 64, n_classes, 64), (n_rows // 64, 64), 1  # type: ignore[assignment]
    target = empty(*rows, dtype=torch.int64)
    if variant.kind == "set":
        target = empty(*shape, dtype=torch.bool)
    elif variant.kind == "distribution":
        target = empty(*shape, dtype=variant.dtype)
    is_smoothed = variant.loss == "label_smoothing"
    options = Options(
        "cross_entropy" if is_smoothed else variant.loss,
        empty(*rows)
        if "alpha" in given and variant.loss == "label_relaxation"
        else 0.1
        if is_smoothed
        else 0.0,
        variant.reduction,  # type: ignore[arg-type]
        dim,
        -100,
        empty(n_classes) if "weight" in given else None,
        target_b=target if variant.kind == "mixture" else None,
        lam=0.5 if variant.kind == "mixture" else None,
    )

    def keep(kernel: Any, n_programs: int, warps: int, arguments: dict[str, Any]) -> None:
        made.append((kernel, warps, arguments))

    before, launch.run = launch.run, keep
    try:
        launch.loss(empty(*shape, dtype=variant.dtype), target, options, None if "forward" in given else 1.0)
    finally:
        launch.run = before
    return made


def source(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """What Triton compiles at a launch with these arguments."""
    signature, constants, attributes = {}, {}, {}
    for parameter in kernel.params:
        value, place = arguments[parameter.name], (parameter.num,)
        is_divisible = not parameter.do_not_specialize and isinstance(value, int) and value % 16 == 0
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[place] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], is_divisible = "*" + TYPES[value.dtype], True
        elif parameter.annotation_type:
            signature[parameter.name] = parameter.annotation_type
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[place] = "constexpr", 1
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
        if is_divisible and signature[parameter.name] not in ("constexpr", "fp64"):
            attributes[place] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile(target: str, kernel: Any, warps: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Registers and spills of a kernel, and how often it reads a score."""
    gpu, start = TARGETS[target], time.perf_counter()
    warps = max(warps * 32 // gpu.warp_size, 1)
    compiled = triton.compile(source(kernel, arguments), target=gpu, options={"num_warps": warps})
    found: dict[str, Any] = {"target": target, "kernel": kernel.__name__, "warps": warps}
    if gpu.backend == "hip":
        text = compiled.asm["amdgcn"]
        numbers = {
            key: int(value) for key, value in re.findall(r"\.((?:vgpr|sgpr)(?:_spill)?_count):\s+(\d+)", text)
        }
        found |= {"registers": numbers["vgpr_count"], "spills": numbers["vgpr_spill_count"]}
    else:
        found |= registers_of(compiled.asm["cubin"])
        if "BLOCK" in arguments and "input" in arguments:
            found |= {
                "loaded": loaded_bytes(compiled.asm["ptx"]),
                "of_block": block_bytes(32 * warps, arguments),
            }
    return found | {"seconds": round(time.perf_counter() - start, 2)}


def registers_of(cubin: bytes) -> dict[str, int]:
    """The registers, and the instructions that spill them."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = re.search(r"REG:(\d+)", text)
    assert registers is not None, text
    return {"registers": int(registers[1]), "spills": len(re.findall(r"\b(?:STL|LDL)\b", text))}


def loaded_bytes(ptx: str) -> int:
    """The bytes that a thread loads if every load is executed once."""
    loads = re.findall(r"\bld\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\s", ptx)
    return sum(int(vector or 1) * int(bits) // 8 for vector, bits in loads)


def block_bytes(threads: int, arguments: dict[str, Any]) -> int:
    """The bytes of scores and of dense targets that a thread has of a block."""
    size: int = arguments["input"].element_size()
    if arguments["target"].dim() > 1:
        size += arguments["target"].element_size()
    return int(arguments["ROWS"] * arguments["BLOCK"] * size // threads)


def problems(found: dict[str, Any], arguments: dict[str, Any]) -> Iterator[str]:
    if found["spills"]:
        yield f"spills registers: {found['spills']}"
    if "loaded" not in found:
        return
    reads = 1 if arguments["SINGLE"] else READS.get(found["kernel"], 3)
    if arguments["grad"] is None and found["kernel"] != "distribution_kernel":
        reads = max(reads - 1, 1)
    least = reads * found["of_block"]
    most = least + 64 + PARTS.value * 8 // (32 * found["warps"])  # numbers of the row, and counts
    if arguments["weight"] is not None:
        most += (reads + 1) * arguments["BLOCK"] * 4
    if not least <= found["loaded"] <= most and arguments["BLOCK"] >= 1024:
        yield f"a thread loads {found['loaded']} bytes, expected {least} to {most}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--only", default="", metavar="TARGET")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    failed, seen = 0, set()
    for target, variant in quick() if options.quick else complete():
        if options.only not in target:
            continue
        for kernel, warps, arguments in launches(variant):
            name = f"{variant.loss} of {variant.kind}, {variant.dtype}, {variant.n_classes} classes"
            name = " ".join([f"{name}, {variant.reduction}", variant.options]).strip()
            if "input" not in arguments:  # the same kernel for all losses
                name = f"{variant.reduction} {variant.options}".strip()
                key = (target, kernel.__name__, name, str(variant.kind))
                if (options.quick and len(results) > 8) or key in seen:
                    continue
                seen.add(key)
            found = compile(target, kernel, warps, arguments)
            wrong = list(problems(found, arguments))
            failed += bool(wrong)
            results.append({"variant": name, **found, "problems": wrong})
            print(*[f"{key}={value}" for key, value in results[-1].items() if value != []], flush=True)
    print(f"{len(results)} variants, {failed} with problems")
    record = options.record
    if not options.quick and record is None:
        record = RECORDS / f"triton-variants-{datetime.now(timezone.utc):%Y-%m-%d-%H%M}.json"
    if record is not None:
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        lines = ",\n".join(map(json.dumps, results))
        record.write_text(f'{json.dumps(versions)[:-1]}, "variants": [\n{lines}\n]}}\n')
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
