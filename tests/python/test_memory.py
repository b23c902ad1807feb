"""Too little memory for what a call needs: an error, never the end of the process."""

import subprocess
import sys

import pytest

# One row of many classes, or many rows, of one element in memory.
LIMITED = """
import resource, torch
import lr_relax
from lr_relax import _native
from lr_relax.metrics import brier_score, calibration_error

def one(value, *shape, dtype=torch.float32):
    return torch.full((1,), value, dtype=dtype).expand(shape)

C = 2**32 - 3
y = torch.zeros(1, dtype=torch.long)
z = one(0.0, 1, C)
loss = lr_relax.label_relaxation_loss
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for call in (
    lambda: loss(one(0.0, 1, 2**45), one(True, 1, 2**45, dtype=torch.bool)),
    lambda: loss(one(0.0, 2**50, 2), one(True, 2**50, 2, dtype=torch.bool)),
    lambda: loss(one(0.0, 1, 2**45), one(0.0, 1, 2**45)),
    lambda: loss(z, y),
    lambda: loss(z, y, from_logits=False),
    lambda: loss(z, y, weight=one(1.0, C)),
    lambda: lr_relax.cross_entropy_loss(z, y, label_smoothing=0.1),
    lambda: lr_relax.dual_focal_loss(z, y),
    lambda: lr_relax.focal_loss(z, z),
    lambda: lr_relax.mixup_label_relaxation_loss(z, y, y + 1, 0.5),
    lambda: _native.calibration_bins(z, y, None, True, 15, "uniform", "top_label", None),
    lambda: _native.calibration_bins(z, y, None, False, 15, "uniform", "top_label", None),
    lambda: _native.calibration_bins(one(0.5, 2**26, 2), one(0, 2**26, dtype=torch.uint8), None, False, 15,
                                     "quantile", "classwise", None),
    lambda: _native.row_scores(z, y, True, None, "brier"),
    lambda: _native.row_scores(z, y, True, None, "log_likelihood"),
    lambda: _native.fit_temperature(z, y, None),
    lambda: _native.calibration_errors_of_temperatures(z, y, [1.0], 15, None),
    lambda: _native.top_labels(one(0.5, 2**27, 2), one(0, 2**27, dtype=torch.uint8), False, None),
):
    try:
        print(call())
    except MemoryError as error:
        print("MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_too_little_memory_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MemoryError"] * 18, done.stdout
