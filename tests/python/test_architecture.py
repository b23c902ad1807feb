"""Imports point one way, in Python and in Rust; the package is what the README says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import lr_relax
import pytest

ROOT = Path(__file__).parents[2]

# Each layer may import the layers behind it only.
PYTHON = {
    "study": ["losses", "functional", "metrics", "plots", "study", "_root"],
    "plots": ["functional", "metrics", "plots", "_arguments"],
    "ambiguation": ["losses", "functional", "_autograd", "_arguments"],
    "losses": ["functional", "_arguments"],
    "functional": ["_autograd", "_arguments"],
    "_autograd": ["_native", "_reference", "_arguments"],
    "metrics": ["_native", "metrics", "plots", "_arguments", "_autograd"],
    "_arguments": [],
    "_reference": [],
    "_torch_release": ["_native"],
}
RUST = {
    "python": ["tch", "untyped", "memory", "kernels", "threads", "rows", "simd"],
    "tch": ["tch", "untyped", "memory", "kernels", "threads", "rows"],
    "untyped": ["kernels", "threads", "rows", "simd"],
    "memory": ["rows"],
    "kernels": ["kernels", "threads", "rows", "simd"],
    "threads": ["simd"],
    "rows": ["simd"],
    "simd": ["simd"],
}


# Of the study each module may import those before it only.
STUDY = [
    *("atomic", "resources", "data", "splits", "augmentation", "network", "models", "config"),
    *("optimiser", "objective", "processes", "training", "checkpoint", "results", "run"),
    *("search", "mlflow_store", "tracked", "tracking", "summary", "tables", "figures", "compare"),
    *("engines", "grid", "cli", "lr_study", "lr_study_ho"),
]


def imports(file: Path) -> list[list[str]]:
    """What a file imports of the package: the parts of each dotted name, without the package's own."""
    package = file.relative_to(ROOT / "python").parent.parts
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = node.module.split(".") if node.module else []
            names += [[*base, *module, alias.name] for alias in node.names]
    return [name[1:] or [""] for name in names if name[0] == "lr_relax"]


@pytest.mark.parametrize("layer", PYTHON)
def test_python_imports_point_down(layer: str) -> None:
    package = ROOT / "python" / "lr_relax"
    folder = package / layer
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [package / f"{layer}.py"]
    assert files
    for file in files:
        imported = {name[0] if name[0] in {*PYTHON, "_native"} else "_root" for name in imports(file)}
        assert imported <= {*PYTHON[layer]}, (file, imported)


def test_imports_within_the_study_point_down() -> None:
    folder = ROOT / "python" / "lr_relax" / "study"
    modules = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in modules} - {"__init__"} == {*STUDY}
    for path in modules:
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            imported = {name[1] for name in imports(file) if name[0] == "study"} - {path.stem}
            known = STUDY[: STUDY.index(path.stem)] if path.stem in STUDY else []
            assert imported <= {*known}, (file, imported)


@pytest.mark.parametrize("layer", RUST)
def test_rust_imports_point_down(layer: str) -> None:
    source = ROOT / "src"
    files = sorted((source / layer).rglob("*.rs")) if (source / layer).is_dir() else [source / f"{layer}.rs"]
    assert files
    for file in files:
        imported = {
            "kernels" if name in ("losses", "metrics") else name
            for name in re.findall(r"\bcrate::(\w+)", file.read_text())
        }
        assert imported <= {*RUST[layer]}, (file, imported)


def test_importing_the_package_imports_no_extras() -> None:
    program = "import sys, lr_relax; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    extras = ["matplotlib", "sklearn", "click", "rich", "torchvision"]
    extras += ["mlflow", "ray", "submitit", "tensorboard"]
    run = subprocess.run(
        [sys.executable, "-c", program, *extras], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("how", ["torch.device('meta')", "FakeTensorMode()"])
def test_importing_the_package_under_a_mode_spoils_nothing(how: str) -> None:
    program = (
        "import torch\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        f"with {how}:\n"
        "    import lr_relax\n"
        "z = torch.zeros(2, 3, requires_grad=True)\n"
        "lr_relax.label_relaxation_loss(z, torch.tensor([0, 1])).backward()\n"
        "print(z.grad.abs().sum() > 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "tensor(True)\n"), run.stderr


def test_public_names() -> None:
    assert set(lr_relax.__all__) <= set(dir(lr_relax))
    assert re.fullmatch(r"\d+\.\d+\.\d+", lr_relax.__version__)
    assert f'version = "{lr_relax.__version__}"' in (ROOT / "Cargo.toml").read_text()


def test_code_for_the_package_of_the_author_runs_with_ours() -> None:
    import lr_relax as label_relaxation
    import torch

    criterion = label_relaxation.LabelRelaxationLoss(0.2, "none")
    logits, target = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    losses = criterion(logits, target)
    assert losses.shape == (2, 3)
    assert label_relaxation.label_relaxation_loss(logits, target, 0.2, "none").equal(losses)
    for wrong in ({"alpha": 1.0}, {"reduction": "max"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            label_relaxation.LabelRelaxationLoss(**wrong)
