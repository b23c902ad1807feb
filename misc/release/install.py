"""Installs what was built into a clean environment of each Python, one after the other, and tries it there.

The wheel is installed with no compiler on PATH: under the oldest Python with the oldest torch, under the
newest with the extra `study`. The newest also gets the source distribution, with the compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OLDEST_TORCH = "torch==2.10.*"
SMOKE = Path(__file__).with_name("smoke.py")
BIN = "Scripts" if sys.platform == "win32" else "bin"
UV = shutil.which("uv") or "uv"


def pythons(given: list[str]) -> dict[tuple[int, ...], str]:
    """The executable of each release from 3.10 on: of those given, or of those on PATH and in pyenv."""
    on_path = [shutil.which(f"python3.{minor}") for minor in range(10, 20)]
    of_pyenv = sorted(map(str, Path.home().glob(".pyenv/versions/3.*/bin/python")))
    releases: dict[tuple[int, ...], str] = {}
    for path in given or filter(None, [*on_path, *of_pyenv, sys.executable]):
        command = [path, "-c", "import sys; print(*sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True, check=bool(given))
        release = tuple(map(int, found.stdout.split()))  # empty for the shim of a Python that is not active
        if release >= (3, 10):
            releases.setdefault(release, path)
    return dict(sorted(releases.items()))


def install(environment: Path, requirements: list[str], path: str) -> None:
    command = [UV, "--quiet", "pip", "install", "--python", str(environment), *requirements]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


def smoke(environment: Path) -> str:
    command = [str(environment / BIN / "python"), str(SMOKE)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = str(environment / BIN)
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=environment, env=variables
    ).stdout.strip()


def attempt_all(dist: Path, given: list[str]) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    found = pythons(given)
    table = [f"{'Python':8}{'from':8}{'seconds':>9}  installed"]

    def attempt(what: str, requirements: list[str], path: str) -> None:
        start = time.monotonic()
        install(environment, requirements, path)
        installed = smoke(environment)
        table.append(f"{name:8}{what:8}{time.monotonic() - start:9.0f}  {installed}")
        print(table[-1], flush=True)

    if not found:
        raise SystemExit(f"Expected a Python of 3.10 or later to install into, but found only {given}")
    for release, python in found.items():
        name = ".".join(map(str, release))
        with tempfile.TemporaryDirectory() as folder:
            environment = Path(folder) / "environment"
            subprocess.run([UV, "--quiet", "venv", "--python", python, str(environment)], check=True)
            extra = "[study]" if release == max(found) else ""
            torch = [OLDEST_TORCH] if release == min(found) else []
            attempt("wheel", [f"{wheel}{extra}", *torch], str(environment / BIN))
            if release == max(found):
                again = ["--reinstall-package", "lr-relax", "--no-deps", str(sdist)]
                attempt("sdist", again, os.environ["PATH"])
    print("\n".join(["", *table]))
