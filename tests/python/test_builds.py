"""The two builds of the extension: one for every torch, and one that pyo3-tch binds to a single release.

`make test` runs all tests on the first, `make test-tch` on the second, with the first to compare with.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import lr_relax
import pytest
import torch
from lr_relax import _native, _torch_release
from lr_relax.functional import label_relaxation_loss
from lr_relax.metrics import reliability_curve

INSTALLED = torch.__version__.partition("+")[0]
BUILT_FOR = _torch_release._built_for(Path(_native.__file__))


def run(program: str, *, beside: Path | None = None, default_build: bool = False) -> str:
    """What a Python program prints, with this build of lr_relax, or with the default one."""
    path = Path(lr_relax.__file__).parents[1] if beside is None else beside
    environment = {**os.environ, "PYTHONPATH": "" if default_build else str(path)}
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    return process.stdout + process.stderr


def test_another_torch_is_refused_before_the_extension_is_loaded_unless_it_serves_every_torch() -> None:
    printed = run(
        "import sys, torch\n"
        "torch.__version__ = '2.99.1+cu999'\n"
        "try:\n"
        "    import lr_relax\n"
        "except ImportError as error:\n"
        "    assert 'lr_relax._native' not in sys.modules\n"
        "    print(error)\n"
    )
    if BUILT_FOR is None:
        assert printed == ""
    else:
        assert f"for torch {INSTALLED}, but torch 2.99.1 is installed" in printed
        assert f"pip install torch=={INSTALLED}" in printed
        assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("release", ["2.12.1", "2.14.0", INSTALLED])
def test_an_extension_tells_its_release(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = tmp_path / "_native.abi3.so"
    extension.write_bytes(b"\x7fELF\0lr_relax is built for torch " + release.encode() + b"\0\0")
    monkeypatch.setattr(_torch_release, "_extension", lambda: extension)
    if release == INSTALLED:
        _torch_release.check()
    else:
        with pytest.raises(ImportError, match=f"torch {release}, but torch {INSTALLED} is installed"):
            _torch_release.check()


def test_a_checkout_that_is_not_built_says_so(tmp_path: Path) -> None:
    package = tmp_path / "lr_relax"
    package.mkdir()
    for file in Path(lr_relax.__file__).parent.glob("*.py"):
        (package / file.name).write_text(file.read_text())
    assert "ImportError: lr_relax has no extension module: pip install lr-relax" in run(
        "import lr_relax", beside=tmp_path
    )


def digest() -> str:
    """Of losses, gradients and bins over shapes, types and arguments."""
    bits = hashlib.sha256()
    generator = torch.Generator().manual_seed(0)
    for shape in [(64, 10), (33, 129), (512, 1000), (3, 7, 20)]:
        y = torch.randint(shape[-1], shape[:-1], generator=generator)
        weight = torch.rand(shape[-1], generator=generator)
        z = 5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for reduction in ("mean", "sum", "none"):
                for options in ({}, {"alpha": 0.4, "weight": weight}, {"from_logits": False}):
                    x = z.softmax(-1) if "from_logits" in options else z
                    x = x.to(dtype, copy=True).requires_grad_()
                    loss = label_relaxation_loss(x, y, reduction=reduction, **options)
                    (3 * loss.sum()).backward()
                    assert x.grad is not None
                    for tensor in (loss.detach(), x.grad):
                        bits.update(tensor.double().numpy().tobytes())  # without rounding
        curve = reliability_curve(z, y, from_logits=True)
        bits.update(curve.counts.tobytes() + curve.confidence.tobytes() + curve.accuracy.tobytes())
    return bits.hexdigest()


@pytest.mark.skipif(BUILT_FOR is None, reason="compares the build with pyo3-tch to the default one")
def test_both_builds_give_the_same_bits() -> None:
    folder = str(Path(__file__).parent)
    printed = run(
        f"import sys; sys.path.append({folder!r})\n"
        "import test_builds\n"
        "print(test_builds.BUILT_FOR, test_builds.digest())",
        default_build=True,
    )
    assert printed == f"None {digest()}\n"
