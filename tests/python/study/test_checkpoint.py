"""Checkpoints come back as they were; a damaged one is refused, and a write that fails leaves the former."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_are_at_most
from hypothesis import example, given
from hypothesis import strategies as st
from lr_relax.study import files
from lr_relax.study.files import RunError

STATE: dict[str, Any] = {
    "weights": {"0.weight": torch.linspace(-1, 1, 5000), "steps": torch.tensor(3)},
    "epochs": [{"epoch": 0, "loss": 0.1, "val_loss": None}],
    "nested": ("text", True, 1.5, float("inf")),
}


def assert_loads(path: Path, expected: dict[str, Any]) -> None:
    state = files.load_checkpoint(path)
    for name, tensor in expected["weights"].items():
        assert torch.equal(state["weights"].pop(name), tensor)
    assert state == expected | {"weights": {}}


def test_saves_and_loads_a_state(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    files.save_checkpoint(STATE, path)
    assert_loads(path, STATE)
    assert list(tmp_path.iterdir()) == [path]


def test_rejects_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "evil"),)

    path = tmp_path / "checkpoint.pt"
    torch.save({"network": Evil()}, path)
    with pytest.raises(RunError, match="is damaged"):
        files.load_checkpoint(path)
    assert not (tmp_path / "evil").exists()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact") / "checkpoint.pt"
    files.save_checkpoint(STATE, path)
    return path


def assert_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"\A{path} is damaged, delete it to start over\Z"):
        files.load_checkpoint(path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_rejects_a_truncated_file(share: float, intact: Path) -> None:
    content = intact.read_bytes()
    assert_refused(content[: int(share * len(content))], intact.with_name("short"))


@given(share=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@example(share=0.5, change=1)  # in a weight
def test_notices_a_changed_byte(share: float, change: int, intact: Path) -> None:
    """Or a run could go on with a weight that it never had; some bytes of the archive mean nothing."""
    content, path = bytearray(intact.read_bytes()), intact.with_name("changed")
    content[int(share * len(content))] ^= change
    path.write_bytes(content)
    try:
        assert_loads(path, STATE)
        assert share != 0.5
    except RunError:
        pass


@pytest.mark.parametrize("content", [b"", b"PK", b"text\n", b"\x80\x02.", b"PK\x05\x06" + bytes(18)])
def test_rejects_other_files(content: bytes, tmp_path: Path) -> None:
    assert_refused(content, tmp_path / "checkpoint.pt")


def test_full_disk_keeps_the_former_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    files.save_checkpoint(STATE, path)
    before = path.read_bytes()
    larger = {"weights": {"0": torch.zeros(100_000)}}
    with files_are_at_most(len(before)), pytest.raises(OSError, match="too large"):
        files.save_checkpoint(larger, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    files.save_checkpoint(larger, path)
    assert_loads(path, larger)
