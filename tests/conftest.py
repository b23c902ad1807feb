"""Settings and fixtures of all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# No deadline: speed is shown by the benchmark, and the machine may be busy. CI sees the same examples always.
settings.register_profile("lr-relax", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lr-relax")

# Workers of pytest-xdist and their subprocesses share the cores. Tests of threads set their own number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Results that do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
