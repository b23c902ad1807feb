"""What TensorBoard shows of runs that end, are killed and resumed, and cannot be written to."""

import sys
from pathlib import Path

import pytest
from lr_relax.study.tracking import TensorBoard, TrackingError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked_runs import CURVES, epoch


def test_tensorboard_shows_each_epoch_once_also_of_a_resumed_run(tmp_path: Path) -> None:
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


def test_tensorboard_leaves_out_what_is_not_known_and_writes_nothing_without_epochs(tmp_path: Path) -> None:
    TensorBoard(tmp_path / "none").close()
    assert not (tmp_path / "none").exists()
    board = TensorBoard(tmp_path / "board")
    board.epoch(epoch(0, test_run=True))
    board.close()
    assert sorted(EventAccumulator(str(tmp_path / "board")).Reload().Tags()["scalars"]) == [
        "accuracy",
        "loss",
        "lr",
    ]


def test_tensorboard_that_cannot_write_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "board").touch()
    board = TensorBoard(tmp_path / "board")
    for step in range(3):
        board.epoch(epoch(step))
    board.close()
    [warning] = caplog.messages
    assert f"{tmp_path / 'board'} has no logs for TensorBoard from here on: " in warning


def test_tensorboard_names_the_extra_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(TrackingError, match=r'need tensorboard: pip install "lr-relax\[tensorboard\]"$'):
        TensorBoard(tmp_path)
