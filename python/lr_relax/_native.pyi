"""The contract of the extension; `python -m mypy.stubtest lr_relax._native` checks it."""

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["calibration_bins", "connect", "empty_cache", "loss", "scalar", "uses_torch_threads"]

def connect(torch: ModuleType) -> None: ...
def empty_cache() -> None: ...
def uses_torch_threads() -> bool: ...
def scalar(tensor: Tensor) -> float | None: ...
def loss(
    input: Tensor,
    target: Tensor,
    upstream: float | None,
    weight: Tensor | None,
    inplace: bool,
    name: str,
    parameter: float | Tensor,
    reduction: str,
    dim: int,
    ignore_index: int,
    from_logits: bool,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]: ...
def calibration_bins(
    preds: Tensor | npt.NDArray[Any],
    target: Tensor | npt.NDArray[Any],
    from_logits: bool,
    n_bins: int,
    binning: str,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], float]: ...
