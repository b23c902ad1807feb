"""Imports point one way, in Python and in Rust, and no two files import each other."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lr_relax
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "lr_relax"
CRATE = ROOT / "src"

# Each layer may import the layers behind it only.
PYTHON = {
    "study": ["losses", "functional", "metrics", "plots", "study", "_root"],
    "plots": ["functional", "metrics", "plots", "_arguments"],
    "ambiguation": ["losses", "functional", "_dispatch", "_arguments", "_options"],
    "linear": ["linear", "losses", "topk", "_chunked", "_arguments", "_options"],
    "losses": ["functional", "topk", "_arguments", "_options"],
    "functional": ["topk", "_chunked", "_dispatch", "_arguments", "_options"],
    "_chunked": [
        "_chunked",
        "topk",
        "_dispatch",
        "_operators",
        "_fused",
        "_native",
        "_formulas",
        "_arguments",
        "_options",
    ],
    "topk": ["_options"],
    "_dispatch": ["_operators", "_fused", "_native", "_triton", "_formulas", "_arguments", "_options"],
    "_operators": ["_fused", "_formulas", "_options"],
    "_fused": ["_native", "_triton", "_formulas", "_options"],
    "metrics": ["_native", "metrics", "plots", "_arguments", "_dispatch", "_warnings"],
    "_arguments": ["_native", "_options", "_warnings"],
    "_formulas": ["_slopes", "_options"],
    "_slopes": [],
    "_triton": ["_triton", "_options"],
    "_options": [],
    "_warnings": [],
    "_torch_release": ["_native"],
}
RUST = {
    "python": ["python", "tch", "untyped", "memory", "kernels", "threads", "rows", "simd"],
    "tch": ["tch", "untyped", "memory", "kernels", "threads", "rows"],
    "untyped": ["untyped", "kernels", "threads", "rows", "simd"],
    "memory": ["rows"],
    "kernels": ["kernels", "threads", "rows", "simd"],
    "threads": ["rows", "simd"],
    "rows": ["rows", "simd"],
    "simd": ["simd"],
}


def layer_of(file: Path, root: Path) -> str:
    return file.relative_to(root).parts[0].split(".")[0]


def python_imports(file: Path) -> set[Path]:
    """The files of the package that a file imports: at its top, inside functions, or for types."""
    package = file.relative_to(ROOT / "python").parent.parts
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = node.module.split(".") if node.module else []
            names += [[*base, *module, alias.name] for alias in node.names]
    found = set()
    for name in names:
        path = (ROOT / "python").joinpath(*name)
        candidates = [
            candidate
            for place in (path, path.parent)
            for candidate in (place.with_suffix(".py"), place / "__init__.py", place.with_suffix(".pyi"))
        ]
        if name[0] == "lr_relax":
            found.add(next(candidate for candidate in candidates if candidate.is_file()))
    return found - {file}


def use_paths(tree: str) -> Iterator[list[str]]:
    """The paths of a `use` tree, such as `a::{b, c::d}`."""
    head, brace, rest = tree.partition("{")
    if not brace:
        yield [part.strip() for part in re.sub(r"\bas \w+", "", head).split("::") if part.strip()]
        return
    depth, start = 0, 0
    inner = rest[: rest.rindex("}")]
    for i, character in enumerate([*inner, ","]):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            for path in use_paths(inner[start:i]):
                yield [part.strip() for part in head.split("::") if part.strip()] + path
            start = i + 1


def rust_imports(file: Path) -> set[Path]:
    """The files of the crate that a file names, outside its unit tests and `mod` declarations."""
    source = file.read_text().partition("#[cfg(test)]\nmod tests")[0]
    source = re.sub(r"//.*", "", source)
    # Inside a module that the file itself holds, `super` is the file.
    inline = re.compile(r"\bmod \w+ \{.*?^\}", re.DOTALL | re.MULTILINE)
    source = inline.sub(lambda found: found[0].replace("super::", "self::"), source)
    uses = re.findall(r"\buse\s+([^;]+);", source)
    paths = [path for tree in uses for path in use_paths(" ".join(tree.split()))]
    paths += [path.split("::") for path in re.findall(r"\b(?:crate|super)(?:::\w+)+", source)]
    module = file.parent if file.name in ("mod.rs", "lib.rs") else file.with_suffix("")
    found = set()
    for path in paths:
        place, rest = module, list(path)
        while rest and rest[0] in ("crate", "super", "self"):
            first = rest.pop(0)
            place = {"crate": CRATE, "super": place.parent, "self": place}[first]
        if place == CRATE and rest[:1] in (["losses"], ["metrics"]):
            place = CRATE / "kernels"  # the names that lib.rs gives them
        if path[0] not in ("crate", "super", "self") and not is_module(place / path[0]):
            continue  # of another crate
        while rest and is_module(place / rest[0]):
            place = place / rest.pop(0)
        found.add(file_of(place))
    return found - {file}


def is_module(path: Path) -> bool:
    return path.with_suffix(".rs").is_file() or (path / "mod.rs").is_file()


def file_of(module: Path) -> Path:
    if module == CRATE:
        return CRATE / "lib.rs"
    return module.with_suffix(".rs") if module.with_suffix(".rs").is_file() else module / "mod.rs"


IMPORTS = {
    "python": {file: python_imports(file) for file in sorted(PACKAGE.rglob("*.py"))},
    "rust": {file: rust_imports(file) for file in sorted(CRATE.rglob("*.rs"))},
}


@pytest.mark.parametrize("language", IMPORTS)
def test_no_files_import_each_other(language: str) -> None:
    try:
        graphlib.TopologicalSorter(IMPORTS[language]).prepare()
    except graphlib.CycleError as error:
        circle = " <- ".join(str(file.relative_to(ROOT)) for file in error.args[1])
        pytest.fail(f"imports in a circle: {circle}")


def test_imports_are_read_from_the_source() -> None:
    # Samples of every form that an import has, so that the tests above cannot pass by finding nothing.
    def names(language: str, root: Path, file: str) -> set[str]:
        return {str(path.relative_to(root)) for path in IMPORTS[language][root / file]}

    assert {"_native.pyi", "_formulas.py", "_arguments.py"} <= names("python", PACKAGE, "_dispatch.py")
    losses = names("rust", CRATE, "kernels/losses/label_relaxation/mod.rs")
    assert {"kernels/losses/batch.rs", "kernels/losses/label_relaxation/class.rs", "simd/mod.rs"} <= losses
    assert "kernels/losses/mod.rs" in names("rust", CRATE, "untyped/losses.rs")
    assert "memory.rs" in names("rust", CRATE, "python/mod.rs")  # named in an expression


@pytest.mark.parametrize("layer", PYTHON)
def test_python_imports_point_down(layer: str) -> None:
    files = [file for file in IMPORTS["python"] if layer_of(file, PACKAGE) == layer]
    assert files
    for file in files:
        imported = {layer_of(path, PACKAGE) for path in IMPORTS["python"][file]}
        imported = {"_root" if name == "__init__" else name for name in imported}
        assert imported <= {*PYTHON[layer]}, (file, imported)


@pytest.mark.parametrize("layer", RUST)
def test_rust_imports_point_down(layer: str) -> None:
    files = [file for file in IMPORTS["rust"] if layer_of(file, CRATE) == layer]
    assert files
    for file in files:
        imported = {layer_of(path, CRATE) for path in IMPORTS["rust"][file]}
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
    named = label_relaxation.label_relaxation_loss(logits=logits, target=target, alpha=0.2, reduction="none")
    assert named.equal(losses)
    assert criterion(logits=logits, target=target).equal(losses)
    with pytest.raises(TypeError, match="multiple values"):
        criterion(logits, target, logits=logits)
    for wrong in ({"alpha": 1.0}, {"reduction": "max"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            label_relaxation.LabelRelaxationLoss(**wrong)
