"""Devices without double precision, as Apple's GPUs are: the meta device takes their place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import functional
from lr_relax.metrics import BrierScore, TemperatureScaling
from lr_relax.metrics._checks import on_device
from torch import Tensor


class NoDoubles(torch.overrides.TorchFunctionMode):
    """Raises where float64 reaches the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta and result.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return result


@pytest.fixture(autouse=True)
def no_doubles() -> Any:
    with NoDoubles():
        yield


Z = torch.zeros(8, 5, device="meta", requires_grad=True)
Y = torch.zeros(8, dtype=torch.int64, device="meta")
T = torch.zeros(8, 5, device="meta")
LOSSES: list[Callable[[], Tensor]] = [
    lambda: functional.label_relaxation_loss(Z, Y),
    lambda: functional.label_relaxation_loss(Z, T),
    lambda: functional.label_relaxation_loss(Z, T.bool()),
    lambda: functional.mixup_label_relaxation_loss(Z, Y, Y, 0.3),
    lambda: functional.binary_label_relaxation_loss(Z[:, 0], Y),
    lambda: functional.cross_entropy_loss(Z, Y, 0.1),
    lambda: functional.cross_entropy_loss(Z, T),
    lambda: functional.focal_loss(Z, Y),
    lambda: functional.dual_focal_loss(Z, Y),
    lambda: functional.confidence_penalty_loss(Z, Y),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: Callable[[], Tensor]) -> None:
    value = loss()
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, Z)[0].shape == Z.shape


def test_credal_sets() -> None:
    assert functional.credal_projection(Z, Y).dtype == torch.float32
    assert functional.in_credal_set(Z, T).dtype == torch.bool


def test_metrics() -> None:
    for value in (0.25, np.array([0.25, 0.5])):
        assert on_device(value, torch.device("meta")).dtype == torch.float32
    assert on_device(0.25, torch.device("cpu")).dtype == torch.float64
    assert TemperatureScaling(2.0).to("meta").temperature.dtype == torch.float32
    stream = BrierScore()
    stream.update(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]), torch.tensor([0, 2]))
    assert stream.to("meta").sums.dtype == torch.int64
