"""The documentation: its Python examples run, its links exist, its tables are those of the records."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from string import Template

import lr_relax
import pytest
from lr_relax.study.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "misc/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
RUST = ROOT / "docs" / "reference" / "rust.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def words(output: str) -> list[str]:
    """What is printed, without the digits of its numbers, which depend on versions and machines."""
    return re.sub(r"\d+", "0", output).split()


WITH_EXAMPLES = [
    pytest.param(
        page,
        id=name_of(page),
        marks=pytest.mark.filterwarnings("ignore") if page.stem == "lightning" else (),  # Lightning's own
    )
    for page in PAGES
    if "```python" in page.read_text()
]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for the files that examples write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            capsys.readouterr()
            exec(compile(block, page, "exec"), namespace)
        else:  # the output of the block before
            assert words(capsys.readouterr().out) == words(block)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("script", sorted(ROOT.glob("docs/examples/*.py")), ids=name_of)
def test_examples_of_the_gallery_draw(script: Path) -> None:
    assert "figure" in runpy.run_path(str(script))


def test_rust_examples_are_the_doc_tests_of_the_crate() -> None:
    tested = {line[4:] for path in ROOT.glob("src/**/*.rs") for line in path.read_text().splitlines()}
    blocks = re.findall(r"^```rust\n(.*?)^```$", RUST.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    assert not {line for block in blocks for line in block.splitlines()} - tested


@pytest.mark.parametrize("page", [page for page in PAGES if "```sh" in page.read_text()], ids=name_of)
def test_commands_exist(page: Path) -> None:
    """Those of make, the scripts, and the options of lr-relax."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        variables = dict(re.findall(r"^(\w+)=(\S+)$", block, re.MULTILINE))
        for line in Template(block.replace("\\\n", " ")).safe_substitute(variables).splitlines():
            program, *arguments = shlex.split(line, comments=True) or [""]
            if program == "make":
                assert {word for word in arguments if "=" not in word} <= set(targets), line
            elif program == "python" and arguments[0].endswith(".py"):
                assert (ROOT / arguments[0]).is_file(), line
            elif program == "lr-relax":
                group = main.make_context("lr-relax", arguments)
                name, command, rest = main.resolve_command(group, [*group._protected_args, *group.args])
                assert command is not None
                command.make_context(name, rest, parent=group)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("script", ["benchmarks/tables.py", "replication.py", "experiments/pages.py"])
def test_tables_are_rendered_from_the_records(script: str) -> None:
    command = [sys.executable, str(ROOT / "misc" / script), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {lr_relax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
