"""A release is built from a tree in which version, date and links agree."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("release_tree", ROOT / "misc" / "release" / "tree.py")
tree = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tree)

FILES = {
    "Cargo.toml": '[package]\nname = "x"\nversion = "1.2.0"\n',
    "CITATION.cff": "title: x\nversion: 1.2.0\ndate-released: 2027-01-31\n",
    "CHANGELOG.md": "# Changes\n\n## 1.2.0 - 2027-01-31\n\n### Added\n\n- Wheels.\n\n## 1.1.0 - 2026-01-01\n",
    "README.md": "# x\n",
}


@pytest.mark.parametrize(
    ("tag", "file", "content", "message"),
    [
        ("v1.2.0", "README.md", "# x\n", None),
        (None, "CHANGELOG.md", "# Changelog\n\n## Unreleased\n", None),
        ("v1.3.0", "README.md", "# x\n", "tag v1.2.0"),
        (None, "CITATION.cff", "title: x\nversion: 1.1.0\n", "version: 1.2.0"),
        ("v1.2.0", "CHANGELOG.md", "# Changelog\n\n## Unreleased\n", "1.2.0 - YYYY-MM-DD"),
        ("v1.2.0", "CITATION.cff", "title: x\nversion: 1.2.0\ndate-released: 2027-01-30\n", "2027-01-31"),
        ("v1.2.0", "README.md", "x is not on PyPI yet.\n", "not on PyPI yet"),
    ],
)
def test_version_and_date_agree(
    tag: str | None,
    file: str,
    content: str,
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    for name, text in {**FILES, file: content}.items():
        (tmp_path / name).write_text(text)
    if message is None:
        tree.check(tag)
    else:
        with pytest.raises(SystemExit, match=message):
            tree.check(tag)


def test_the_notes_are_the_newest_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CHANGELOG.md").write_text(FILES["CHANGELOG.md"])
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    assert tree.newest_changes() == ("1.2.0 - 2027-01-31", "### Added\n\n- Wheels.")


def test_the_tree_has_the_address_of_the_repository(tmp_path: Path) -> None:
    tree.prepare(tmp_path / "tree", "SOMEONE/lr-relax", None)
    address = "https://github.com/SOMEONE/lr-relax"
    readme = (tmp_path / "tree" / "README.md").read_text()
    assert re.findall(r"\]\((?!https://|#)", (ROOT / "README.md").read_text())
    assert not re.findall(r"\]\((?!https://|#)", readme)
    assert f"]({address}/blob/v{tree.version()}/CONTRIBUTING.md)" in readme
    assert "](https://raw.githubusercontent.com/SOMEONE/lr-relax/v" in readme
    assert f'Repository = "{address}"' in (tmp_path / "tree" / "pyproject.toml").read_text()
    assert f'repository = "{address}"' in (tmp_path / "tree" / "Cargo.toml").read_text()
    assert not any(path.is_symlink() for path in (tmp_path / "tree").rglob("*"))


def test_a_folder_of_somebody_else_is_not_deleted(tmp_path: Path) -> None:
    (kept := tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit, match="not to exist"):
        tree.prepare(tmp_path, "SOMEONE/lr-relax", None)
    assert kept.exists()
    for _ in range(2):  # its own tree is made again
        tree.prepare(tmp_path / "tree", "SOMEONE/lr-relax", None)
