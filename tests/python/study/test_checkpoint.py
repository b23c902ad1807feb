"""Checkpoints come back as they were; a damaged one is refused, and a write that fails leaves the former."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_are_at_most
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.study import checkpoint
from lr_relax.study.checkpoint import CheckpointError
from lr_relax.study.optimiser import KerasSGD

CPU = torch.device("cpu")
STATE: dict[str, Any] = {
    "weights": {"0.weight": torch.linspace(-1, 1, 5000), "steps": torch.tensor(3)},
    "epochs": [{"epoch": 0, "loss": 0.1, "val_loss": None}],
    "nested": ("text", True, 1.5, float("inf")),
}


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(STATE, path)
    state = checkpoint.load(path, CPU)
    for name, tensor in STATE["weights"].items():
        assert torch.equal(state["weights"].pop(name), tensor)
    assert state == STATE | {"weights": {}}
    assert list(tmp_path.iterdir()) == [path]


def test_an_optimisers_state_is_read_without_running_code(tmp_path: Path) -> None:
    weight = torch.ones(3, requires_grad=True)
    optimiser = KerasSGD([weight], 0.1)
    weight.grad = torch.ones(3)
    optimiser.step()
    checkpoint.save(optimiser.state_dict(), tmp_path / "checkpoint.pt")
    KerasSGD([weight], 1.0).load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt", CPU))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "evil"),)

    path = tmp_path / "checkpoint.pt"
    torch.save({"network": Evil()}, path)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        checkpoint.load(path, CPU)
    assert not (tmp_path / "evil").exists()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact") / "checkpoint.pt"
    checkpoint.save(STATE, path)
    return path


def assert_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path} is damaged or no checkpoint") as raised:
        checkpoint.load(path, CPU)
    assert "\n" not in str(raised.value)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_ends_too_early_is_refused(share: float, intact: Path) -> None:
    content = intact.read_bytes()
    assert_refused(content[: int(share * len(content))], intact.with_name("short"))


def test_a_changed_byte_of_a_tensor_is_noticed(intact: Path) -> None:
    """Or a run could go on with a weight that it never had."""
    content = bytearray(intact.read_bytes())
    where = content.index(np.linspace(-1, 1, 5000, dtype=np.float32)[:4].tobytes()) + 2000
    content[where] ^= 1
    assert_refused(bytes(content), intact.with_name("changed"))


@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte_gives_the_same_or_is_refused(where: float, value: int, intact: Path) -> None:
    """On times in the archive nothing depends."""
    content = bytearray(intact.read_bytes())
    with zipfile.ZipFile(intact) as archive:
        records = archive.start_dir  # the length of all but the directory at the end
    content[int(where * records)] ^= value
    path = intact.with_name("any")
    path.write_bytes(content)
    try:
        state = checkpoint.load(path, CPU)
    except CheckpointError:
        return
    assert torch.equal(state["weights"]["0.weight"], STATE["weights"]["0.weight"])
    assert state["epochs"] == STATE["epochs"]


@pytest.mark.parametrize("content", [b"", b"PK", b"text\n", b"\x80\x02.", b"PK\x05\x06" + bytes(18)])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    assert_refused(content, tmp_path / "checkpoint.pt")


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "checkpoint.pt", CPU)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "checkpoint.pt", CPU)
    with pytest.raises(IsADirectoryError):
        checkpoint.load(tmp_path, CPU)
    with pytest.raises(FileNotFoundError):
        checkpoint.save(STATE, tmp_path / "no" / "folder")


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(STATE, path)
    before = path.read_bytes()
    larger = {"weights": torch.zeros(100_000)}
    with files_are_at_most(len(before)), pytest.raises(OSError, match="too large"):
        checkpoint.save(larger, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.save(larger, path)
    assert checkpoint.load(path, CPU)["weights"].shape == (100_000,)
