"""Files of the study that were edited, replaced by what has no end, or left by a process that was killed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lr_relax.study import files, folder, run
from lr_relax.study.config import ConfigError, RunConfig, hyperparameters
from lr_relax.study.files import RunError

CONFIG = RunConfig("simple_dense", "digits", epochs=1, n_bins=2)
EPOCH = {"epoch": 0, "loss": 0.5, "accuracy": 0.75, "lr": 1e-3, "seconds": 1.0}
EPOCH |= dict.fromkeys(("val_loss", "val_accuracy", "val_ece"))
RESULT: dict[str, Any] = {
    **{"accuracy": 0.75, "ece": 0.1, "nll": 0.5, "brier": 0.4, "temperature": None, "unscaled": None},
    **{"bin_counts": [0, 4], "bin_confidence": [None, 0.85], "bin_accuracy": [None, 0.75]},
    **{"config": CONFIG.to_dict(), "n_train": 8, "n_eval": 4, "history": [EPOCH], "seconds": 1.0},
    **{"environment": {}, "command": ""},
}


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": "0.75"},
        {"ece": None},
        {"seconds": [1.0]},
        {"temperature": "1"},
        {"bin_counts": [1, 2, 3]},
        {"bin_confidence": [0.5]},
        {"bin_accuracy": [None, "x"]},
        {"bin_counts": 3},
        {"history": [EPOCH | {"loss": "low"}]},
        {"unscaled": {"accuracy": 0.5, "ece": 0.1, "nll": {}, "brier": 0.4}},
        {"config": CONFIG.to_dict() | {"n_bins": 3}},
    ],
    ids=str,
)
def test_an_edited_result(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert folder.load_result(tmp_path) is not None
    path.write_text(json.dumps(RESULT | change))
    with pytest.raises(RunError, match="is not the result of a run"):
        folder.load_result(tmp_path)


def test_a_record_of_runs(tmp_path: Path) -> None:
    record = tmp_path / "runs.jsonl"
    record.write_text(f"{json.dumps(RESULT)}\n" * 2 + "\n")
    assert folder.load_results(record) == [folder.Result.from_dict(RESULT)] * 2
    record.write_text(f"{json.dumps(RESULT)}\n{{")
    with pytest.raises(RunError, match=r"runs\.jsonl is not a record of runs$"):
        folder.load_results(record)


def test_deeply_nested_json(tmp_path: Path) -> None:
    (path := tmp_path / "result.json").write_text("[" * 1_000_000)
    with pytest.raises(RunError, match="is not the result of a run"):
        folder.load_result(tmp_path)
    with pytest.raises(ConfigError, match="recursion"):
        hyperparameters("focal", "vgg", "cifar10", path)


@pytest.mark.skipif(os.name == "nt", reason="has neither")
def test_files_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"):
        hyperparameters("focal", "vgg", "cifar10", Path("/dev/zero"))
    os.mkfifo(tmp_path / "checkpoint.pt")
    run.run(CONFIG, folder=tmp_path)  # does not wait for a writer
    assert not (tmp_path / "checkpoint.pt").exists()
    (tmp_path / "result.json").unlink()
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(RunError, match="is not the result of a run"):
        folder.load_result(tmp_path)


def test_files_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.12345").write_bytes(b"half")
    (kept := tmp_path / ".notes.txt").touch()
    with files.locked(tmp_path):
        assert {*tmp_path.iterdir()} == {kept, tmp_path / ".lock"}


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RunError, match="cannot be locked"), files.locked(tmp_path):
        pass
