"""Builds the source distribution, the wheel of this platform and the crate, checks them, and installs them.

    python misc/release/build.py [--repository OWNER/lr-relax] [--tag v0.1.0] [--pythons PYTHON ...]

The workflow of a release runs this for each platform, and `make release-check` for that of this machine. The
wheel and the source distribution are then in dist/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import contents
import install
import tree

DIST = tree.ROOT / "dist"
TREE = tree.ROOT / "target" / "release-tree"
# zig links against the C library of RHEL 8. Without it, the wheel needs that of the machine that builds it.
PORTABLE = ["--zig", "--compatibility", "manylinux_2_28"] if sys.platform == "linux" else []


def run(*command: str, folder: Path = tree.ROOT) -> None:
    print("+", *command, flush=True)
    target = {"CARGO_TARGET_DIR": str(tree.ROOT / "target")}
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **target})


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--repository", default="OWNER/lr-relax")
    parser.add_argument("--tag")
    parser.add_argument("--pythons", nargs="*", default=[])
    arguments = parser.parse_args()
    tree.prepare(TREE, arguments.repository, arguments.tag)
    shutil.rmtree(DIST, ignore_errors=True)
    manifest = ["--manifest-path", str(TREE / "Cargo.toml")]
    run("maturin", "sdist", *manifest, "--out", str(DIST))
    run("maturin", "build", "--quiet", "--release", "--locked", *PORTABLE, *manifest, "--out", str(DIST))
    run("cargo", "publish", "--quiet", "--dry-run", "--allow-dirty", "--no-default-features", folder=TREE)
    contents.check(sorted(DIST.glob("*")))
    install.attempt_all(DIST, arguments.pythons)


if __name__ == "__main__":
    main()
