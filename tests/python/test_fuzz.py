"""A short run of the fuzzer, whose tensors border on memory that must not be touched; what it must notice."""

import ctypes
import importlib
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lr_relax
import pytest
import torch

FUZZ = Path(__file__).parents[2] / "misc" / "fuzz"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the fuzzer's program defines."""
    monkeypatch.syspath_prepend(str(FUZZ))
    return runpy.run_path(str(FUZZ / "__main__.py"))


@pytest.mark.skipif(os.name == "nt", reason="the fuzzer needs POSIX")
def test_finds_nothing() -> None:
    command = [sys.executable, str(FUZZ), "--seed=1", "--inputs=300", "--seconds=250"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 inputs" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize(("place", "index"), [("last", 3), ("first", -1)])
def test_reading_outside_of_a_tensor_ends_the_process(place: str, index: int, names: dict[str, Any]) -> None:
    x = importlib.import_module("memory").placed("input", torch.ones(3), "contiguous", place, 0)
    for at in (0, index):
        if not (child := os.fork()):
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os._exit(int(ctypes.c_float.from_address(x.data_ptr() + 4 * at).value))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (1 if at == 0 else -signal.SIGSEGV)


def test_a_wrong_result_is_found_and_made_simple(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = lr_relax.focal_loss
    monkeypatch.setattr(lr_relax, "focal_loss", lambda *a, **k: right(*a, **k) * 1.001)
    area, case = names["parsed"]("losses(loss='focal', dtype='float64', rows=(2, 3), upstream=3.0, seed=5)")
    simple = names["line"](area, names["shrunk"](names["AREAS"][area], case))
    assert simple == "losses(loss='focal', seed=5)"


@pytest.mark.parametrize(
    "text",
    [
        "losses(1)",
        "losses(seed=1, seed=2)",
        "losses(seed=-1)",
        "losses(seed=None)",
        "losses(inplace=1)",
        "losses(loss={[]: 1})",
        "losses(color='red')",
        "losses",
        "(" * 90_000,
    ],
)
def test_what_is_no_case_is_refused(names: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="not a c"):
        names["parsed"](text)
