"""Checks what was built: the platform of the wheel, the metadata, and that nothing is missing or stray.

python misc/release/contents.py [DIST]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import tree

GLIBC = 28  # of manylinux_2_28, that is, of RHEL 8
FIELDS = {"Author": 1, "License-Expression": 1, "Requires-Python": 1, "License-File": 2, "Project-URL": 4}
INFO = ["METADATA", "WHEEL", "RECORD", "entry_points.txt"]
INFO += ["licenses/LICENSE", "licenses/LICENSE-THIRD-PARTY"]

# What building needs, and no tests of the package, records or pictures.
SDIST_LIMIT = 1_000_000  # bytes
SDIST = {"PKG-INFO", "pyproject.toml", "Cargo.toml", "Cargo.lock", "build.rs", ".cargo/config.toml"}
SDIST |= {"README.md", "CHANGELOG.md", "LICENSE", "LICENSE-THIRD-PARTY", "misc/examples/train_digits.rs"}


def tracked(*folders: str) -> set[str]:
    command = ["git", "ls-files", "-z", *folders]
    listed = subprocess.run(command, cwd=tree.ROOT, stdout=subprocess.PIPE, check=True).stdout
    return set(listed.decode().split("\0")[:-1])


def check_files(file: Path, got: set[str], want: set[str]) -> None:
    if got != want:
        raise SystemExit(f"{file.name}: stray {sorted(got - want)}, missing {sorted(want - got)}")
    print(f"{file.name}: has the {len(got)} files that it should")


def check_metadata(file: Path, text: bytes) -> None:
    metadata = message_from_string(text.decode())
    for name, count in FIELDS.items():
        values = metadata.get_all(name, [])
        if len(values) != count:
            raise SystemExit(f"{file.name}: expected {count} times {name}, but got {values}")
    if metadata["Version"] != tree.version():
        raise SystemExit(f"{file.name}: expected version {tree.version()}, but got {metadata['Version']}")
    relative = re.findall(r"\]\((?!https://)[^)]*\)", str(metadata.get_payload()))
    if relative:
        raise SystemExit(f"{file.name}: expected absolute links in the README, but got {relative}")
    print(f"{file.name}: has the metadata, and a README with absolute links")


def check_wheel(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        check_metadata(file, archive.read(f"{info}/METADATA"))
        for name in names:
            if name.endswith(".json"):
                json.loads(archive.read(name))  # not the text of a symbolic link, as git may write on Windows
    package = {name.removeprefix("python/") for name in tracked("python")}
    native = "lr_relax/_native.pyd" if "-win" in file.name else "lr_relax/_native.abi3.so"
    names -= {f"{info}/sboms/lr-relax.cyclonedx.json"}  # maturin writes it since 1.10
    check_files(file, names, {*package, native, *(f"{info}/{name}" for name in INFO)})


def check_platform(file: Path) -> None:
    command = ["auditwheel", "show", str(file)]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    tag = re.search(r'"manylinux_2_(\d+)_\w+"', shown)
    if not tag or int(tag[1]) > GLIBC:
        raise SystemExit(f"{file.name}: expected manylinux_2_{GLIBC} or older, but auditwheel shows\n{shown}")
    print(f"{file.name}: is {tag[0]} for auditwheel")


def check_sdist(file: Path) -> None:
    with tarfile.open(file) as archive:
        contents = {member.name.split("/", 1)[1]: member for member in archive if member.isfile()}
        text = archive.extractfile(contents["PKG-INFO"])
        assert text is not None
        check_metadata(file, text.read())
    check_files(file, set(contents), SDIST | tracked("python", "src", "tests/kernels", "tests/tch"))
    if file.stat().st_size > SDIST_LIMIT:
        raise SystemExit(f"{file.name}: expected {SDIST_LIMIT} bytes or fewer, but got {file.stat().st_size}")


def check(built: list[Path]) -> None:
    for file in built:
        if file.suffix == ".whl":
            check_wheel(file)
            if sys.platform == "linux":
                check_platform(file)
        else:
            check_sdist(file)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, built)], check=True)
