"""What is shown while a command works: a bar on a terminal, a line per epoch elsewhere."""

import re
from functools import partial
from io import StringIO

import pytest
import torch
from lr_relax.study.cli import execution
from lr_relax.study.config import RunConfig
from lr_relax.study.training import Batch, Epoch
from rich.console import Console

EPOCH = Epoch(0, 0.5, 0.875, 0.1, 0.4, 0.9, 0.05, 1.25)


def shown(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, silent: bool = False) -> str:
    """The output of half an epoch, an epoch, and a text with what could be markup."""
    file = StringIO()
    console = partial(Console, file=file, force_terminal=is_terminal, width=100, color_system=None)
    monkeypatch.setattr(execution, "Console", console)
    progress = execution.RunProgress(2, silent=silent)
    with progress.bar:
        progress.begin(RunConfig("simple_dense", "digits", "cross_entropy"))
        progress.batch(Batch(0, 5, 10, torch.tensor([160.0, 240.0]), 320))
        progress.bar.refresh()
        progress.epoch(EPOCH)
        progress.bar.refresh()
    execution.console(stderr=True, quiet=silent).print("[a]" + 120 * "x")
    return file.getvalue()


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, is_terminal=True)
    assert "cross-entropy, seed 0" in text
    assert "loss 0.5000  accuracy 0.7500" in text
    assert re.search(r"1/2 .*(\d:\d\d:\d\d|-:--:--)", text)
    assert "epoch 1/2" not in text


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=False).splitlines() == [
        "epoch 1/2  loss 0.5000  accuracy 0.8750  validation accuracy 0.9000  ECE 0.0500  1.2 s",
        "[a]" + 120 * "x",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_silence(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=is_terminal, silent=True) == ""
