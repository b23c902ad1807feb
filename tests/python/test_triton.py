"""The Triton kernels without a GPU: interpreted and compared, compiled ahead of time and looked at."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lr_relax import _triton
from lr_relax._options import Options

ROOT = Path(__file__).parents[2]
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which comes with torch on Linux"
)


def output_of(*command: str, **environment: str) -> str:
    """Of a process of its own: Triton reads the environment when it is imported."""
    run = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    return run.stdout


@NEEDS_TRITON
def test_interpreted_kernels_agree_with_those_of_the_cpu() -> None:
    out = output_of(str(ROOT / "tests" / "python" / "triton_cases.py"), TRITON_INTERPRET="1")
    assert int(out.split()[0]) > 300, out


@NEEDS_TRITON
def test_losses_of_tensors_on_a_gpu_call_the_kernels() -> None:
    out = output_of(str(ROOT / "tests" / "python" / "triton_device.py"), TRITON_INTERPRET="1")
    assert int(out.split()[0]) == 90, out


@NEEDS_TRITON
def test_compiled_kernels_spill_no_registers_and_read_scores_once(tmp_path: Path) -> None:
    script = str(ROOT / "misc" / "benchmarks" / "triton_variants.py")
    out = output_of(script, "--quick", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert "0 with problems" in out
    assert all(f"target={name} " in out for name in ("sm_80", "sm_90", "sm_100", "gfx942"))


@NEEDS_TRITON
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_a_gpu(tmp_path: Path) -> None:
    record = str(tmp_path / "record.json")
    output_of(str(ROOT / "misc" / "gpu.py"), "--only", "tests", "--record", record, TRITON_INTERPRET="0")


def test_importing_the_package_does_not_import_triton() -> None:
    program = "import sys, lr_relax, lr_relax._triton; print('lr_relax._triton.launch' in sys.modules)"
    assert output_of("-c", program) == "False\n"


def test_supports_tensors_of_cuda_only() -> None:
    options = Options("label_relaxation", 0.1, "mean", -1, -100, None)
    assert not _triton.supports(torch.zeros(2, 3), options)
