"""The contract of the extension; `python -m mypy.stubtest lr_relax._native` checks it."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lr_relax._options import Options

__all__ = [
    "binned_top_labels",
    "bootstrap_sums",
    "calibration_bins",
    "calibration_errors_of_temperatures",
    "check_loss",
    "connect",
    "empty_cache",
    "exact_distance",
    "exact_sum",
    "exact_to_float",
    "fit_temperature",
    "hyperparameters",
    "loss",
    "row_scores",
    "scalar",
    "scale",
    "top_labels",
    "uses_torch_threads",
]

_Array: TypeAlias = Tensor | npt.NDArray[Any]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]

def connect(torch: ModuleType) -> None: ...
def empty_cache() -> None: ...
def uses_torch_threads() -> bool: ...
def scalar(tensor: Tensor) -> float | None: ...
def loss(
    input: Tensor, target: Tensor, options: Options, upstream: float | Tensor | None
) -> tuple[Tensor, Tensor | None]: ...
def scale(grad: Tensor, upstream: float | Tensor, dim: int, keeps: bool) -> Tensor: ...
def check_loss(input: Tensor, target: Tensor, options: Options) -> None: ...
def hyperparameters() -> list[tuple[str, tuple[str, str, float, bool]]]: ...
def calibration_bins(
    preds: _Array,
    target: _Array,
    sample_weight: _Array | None,
    from_logits: bool,
    n_bins: int,
    binning: str | list[float],
    kind: str,
    ignore_index: int | None,
) -> tuple[_Floats, _Integers, _Integers]: ...
def top_labels(
    preds: _Array, target: _Array, from_logits: bool, ignore_index: int | None
) -> tuple[_Floats, npt.NDArray[np.int8]]: ...
def binned_top_labels(
    preds: _Array,
    target: _Array,
    from_logits: bool,
    n_bins: int,
    binning: str | list[float],
    ignore_index: int | None,
) -> tuple[_Floats, npt.NDArray[np.int8], npt.NDArray[np.uint32]]: ...
def row_scores(
    preds: _Array, target: _Array, from_logits: bool, ignore_index: int | None, name: str
) -> _Floats: ...
def exact_sum(numbers: _Floats) -> _Integers: ...
def exact_to_float(digits: _Integers) -> _Floats: ...
def exact_distance(digits: _Integers, others: _Integers) -> _Floats: ...
def fit_temperature(logits: _Array, target: _Array, ignore_index: int | None) -> tuple[float, bool, int]: ...
def calibration_errors_of_temperatures(
    logits: _Array, target: _Array, temperatures: Sequence[float], n_bins: int, ignore_index: int | None
) -> _Floats: ...
def bootstrap_sums(
    values: _Floats, groups: npt.NDArray[np.uint32], n_groups: int, n_resamples: int, seed: int
) -> tuple[_Floats, _Floats]: ...
