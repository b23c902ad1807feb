"""What TensorBoard shows of runs that end, are killed and resumed, and cannot be written to."""

import sys
from pathlib import Path

import pytest
from lr_relax.study.tracking import CURVES, TensorBoard, TrackingError
from made_results import epoch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_each_epoch_appears_once_after_resuming(tmp_path: Path) -> None:
    for n_epochs in (3, 5):
        board = TensorBoard(tmp_path / "board")
        for step in range(n_epochs):
            board.epoch(epoch(step))
        if n_epochs == 5:  # the first is killed
            board.close()
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(CURVES)
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(step, 0.5 + step) for step in range(5)]


def test_omits_unknown_metrics(tmp_path: Path) -> None:
    TensorBoard(tmp_path / "none").close()
    assert not (tmp_path / "none").exists()
    board = TensorBoard(tmp_path / "board")
    board.epoch(epoch(0, test_run=True))
    board.close()
    shown = EventAccumulator(str(tmp_path / "board")).Reload().Tags()["scalars"]
    assert sorted(shown) == ["accuracy", "loss", "lr"]


def test_failed_write_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "board").touch()
    board = TensorBoard(tmp_path / "board")
    for step in range(3):
        board.epoch(epoch(step))
    board.close()
    [warning] = caplog.messages
    assert f"{tmp_path / 'board'} has no logs for TensorBoard from here on: " in warning


def test_names_the_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(TrackingError, match=r'not installed: pip install "lr-relax\[tensorboard\]"$'):
        TensorBoard(tmp_path)
