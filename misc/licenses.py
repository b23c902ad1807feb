"""Writes LICENSE-THIRD-PARTY: the licenses of the crates in the default build of the extension.

Run it after `Cargo.lock` has changed; `--check` writes nothing and fails if the file is outdated.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "LICENSE-THIRD-PARTY"
HEAD = """\
The extension module of lr-relax contains these crates, in part, and Rust's standard library, which is used
under the Apache License 2.0 (see LICENSE). Crates with a choice of licenses are used under the one below.
"""
COMMAND = ["cargo", "metadata", "--format-version", "1", "--locked", "--features", "python"]


def crates() -> list[dict[str, Any]]:
    """The crates that are linked, not those that only run during the build."""
    run = subprocess.run(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    metadata = json.loads(run.stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

    def linked(id: str) -> Iterator[str]:
        for dependency in nodes[id]["deps"]:
            other = dependency["pkg"]
            kinds = [kind["kind"] for kind in dependency["dep_kinds"]]
            is_macro = any("proc-macro" in target["kind"] for target in packages[other]["targets"])
            if None in kinds and not is_macro and other not in seen:
                seen.add(other)
                yield other
                yield from linked(other)

    seen: set[str] = set()
    found = [packages[id] for id in linked(metadata["resolve"]["root"])]
    return sorted(found, key=lambda crate: str(crate["name"]))


def license_of(crate: dict[str, Any]) -> str:
    folder = Path(crate["manifest_path"]).parent
    texts = {path.name.lower(): path for path in folder.iterdir()}
    path = texts.get("license-mit") or texts["license"]
    return path.read_text(encoding="utf-8").strip()


def text() -> str:
    users: dict[str, list[str]] = {}
    for crate in crates():
        users.setdefault(license_of(crate), []).append(f"{crate['name']} {crate['version']}")
    parts = [f"{', '.join(names)}\n\n{license}" for license, names in users.items()]
    return f"\n{'-' * 80}\n\n".join([HEAD, *(f"{part}\n" for part in parts)])


if __name__ == "__main__":
    if "--check" not in sys.argv:
        FILE.write_text(text(), encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != text():
        sys.exit(f"{FILE.name} is not that of Cargo.lock: python misc/licenses.py")
