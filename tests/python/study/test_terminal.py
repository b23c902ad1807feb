"""What is shown while a command works: a bar on a terminal, and a line per epoch."""

import re
from functools import partial
from io import StringIO

import pytest
from lr_relax.study.cli import execution
from lr_relax.study.config import RunConfig
from lr_relax.study.training import Epoch
from rich.console import Console

LINE = "epoch 1/2  loss 0.5000  accuracy 0.8750  validation accuracy 0.9000  ECE 0.0500  1.2 s"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("silent", [True, False])
def test_progress(is_terminal: bool, silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half an epoch, and an epoch."""
    file = StringIO()
    console = partial(Console, file=file, force_terminal=is_terminal, width=100, color_system=None)
    monkeypatch.setattr(execution, "Console", console)
    progress = execution.RunProgress(2, silent=silent)
    with progress.bar:
        progress.begin(RunConfig("simple_dense", "digits", "cross_entropy"))
        progress.batch(0.5)
        progress.bar.refresh()
        progress.epoch(Epoch(0, 0.5, 0.875, 0.1, 0.4, 0.9, 0.05, 1.25))
    text = file.getvalue()
    if silent:
        assert text == ""
    elif is_terminal:
        assert re.search("cross-entropy, seed 0 .* 25%", text)
        assert LINE in text
    else:
        assert text == LINE + "\n"
