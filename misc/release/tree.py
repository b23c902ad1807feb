"""Copies the tracked files into a folder to build a release from, and adds what only a release knows.

    python misc/release/tree.py FOLDER [--repository OWNER/lr-relax] [--tag v0.1.0]
    python misc/release/tree.py --notes --tag v0.1.0

The address of the repository is written down nowhere: it comes from the caller, and goes into the metadata
and the README's links, since package indexes show the README on pages of their own. `Cargo.toml` owns the
version and the changelog the date; the tag must agree with both. `--notes` prints the changes of the release.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def version() -> str:
    (found,) = re.findall(r'^version = "(.+)"$', read(ROOT / "Cargo.toml"), re.MULTILINE)
    return str(found)


def newest_changes() -> tuple[str, str]:
    """Heading and text of the changelog's newest section."""
    heading, _, text = re.split(r"^## ", read(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)[1].partition("\n")
    return heading, text.strip()


def check(tag: str | None) -> None:
    """Version and date are the same everywhere; without a tag, the newest changes may be unreleased."""
    citation = read(ROOT / "CITATION.cff")
    if f"\nversion: {version()}\n" not in citation:
        raise SystemExit(f"Expected `version: {version()}` in CITATION.cff, as in Cargo.toml")
    if tag is None:
        return
    if tag != f"v{version()}":
        raise SystemExit(f"Expected the tag v{version()}, the version of Cargo.toml, but got {tag}")
    heading, _ = newest_changes()
    dated = re.fullmatch(rf"{re.escape(version())} - (\d{{4}}-\d\d-\d\d)", heading)
    if not dated:
        raise SystemExit(
            f"Expected `## {version()} - YYYY-MM-DD` first in CHANGELOG.md, but got `## {heading}`"
        )
    if f"\ndate-released: {dated[1]}\n" not in citation:
        raise SystemExit(f"Expected `date-released: {dated[1]}` in CITATION.cff, as in CHANGELOG.md")
    if "not on PyPI yet" in read(ROOT / "README.md"):
        raise SystemExit("README.md says that lr-relax is not on PyPI yet, which the release changes")


def with_absolute_links(markdown: str, repository: str, ref: str) -> str:
    relative = r"\((?!https?://|#)"
    markdown = re.sub(
        rf"(!\[[^]]*\]){relative}", rf"\1(https://raw.githubusercontent.com/{repository}/{ref}/", markdown
    )
    return re.sub(rf"(\]){relative}", rf"\1(https://github.com/{repository}/blob/{ref}/", markdown)


def insert(file: Path, text: str, before: str) -> None:
    head, found, tail = read(file).partition(before)
    assert found, f"{file.name} has no {before}"
    write(file, f"{head}{text}{found}{tail}")


def prepare(folder: Path, repository: str, tag: str | None) -> None:
    check(tag)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SystemExit(f"Expected a repository as OWNER/lr-relax, but got {repository}")
    ref, url = tag or f"v{version()}", f"https://github.com/{repository}"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    made = folder / ".release-tree"  # only what this function has made may be deleted
    if folder.exists() and not made.is_file():
        raise SystemExit(f"Expected {folder} not to exist, or to be a tree of an earlier call")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made.touch()
    for name in tracked.decode().split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)  # a link becomes a file: those of the study's JSON files
    readme = folder / "README.md"
    write(readme, with_absolute_links(read(readme), repository, ref))
    urls = {
        "Repository": url,
        "Documentation": f"{url}/tree/{ref}/docs",
        "Changelog": f"{url}/blob/{ref}/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    table = "".join(f'{label} = "{address}"\n' for label, address in urls.items())
    insert(folder / "pyproject.toml", f"[project.urls]\n{table}\n", before="[project.optional-dependencies]")
    insert(folder / "Cargo.toml", f'repository = "{url}"\n', before="readme =")


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--repository", default="OWNER/lr-relax")
    parser.add_argument("--tag")
    parser.add_argument("--notes", action="store_true")
    arguments = parser.parse_args()
    if arguments.notes and arguments.tag:
        check(arguments.tag)
        print(newest_changes()[1])
    elif arguments.folder and not arguments.notes:
        prepare(arguments.folder, arguments.repository, arguments.tag)
    else:
        parser.error("expected a folder, or --notes with --tag")


if __name__ == "__main__":
    main()
