"""Settings of all tests."""

import os

from hypothesis import settings

# No deadline: speed is shown by the benchmark, and the machine may be busy. CI sees the same examples always.
settings.register_profile("lr-relax", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lr-relax")
