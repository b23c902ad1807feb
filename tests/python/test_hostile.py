"""Objects that only claim to be tensors, and arguments that run code: errors that leave the process alive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lr_relax import _native, _torch_release, focal_loss, label_relaxation_loss, mixup_label_relaxation_loss
from lr_relax.metrics import expected_calibration_error

N = 20_000  # more than a memory page, so that the memory of a tensor that is resized is gone
Y = torch.arange(N) % 10
MOCK: Any = Mock(spec=torch.Tensor)  # isinstance(MOCK, torch.Tensor)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("target", lambda x: label_relaxation_loss(x, MOCK)),
        ("weight", lambda x: label_relaxation_loss(x, Y, weight=MOCK)),
        ("weight", lambda x: focal_loss(x, Y, weight=MOCK)),
        ("target_b", lambda x: mixup_label_relaxation_loss(x, Y, MOCK, 0.5)),
        ("target", lambda x: expected_calibration_error(x, MOCK, from_logits=True)),
        ("target", lambda x: _native.fit_temperature(x, MOCK, None)),  # type: ignore[arg-type]
    ],
)
def test_a_mock_is_no_tensor(name: str, call: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(TypeError, match=f"`{name}`"):
        call(torch.zeros(N, 10))


def test_a_mock_is_no_scalar() -> None:
    assert _native.scalar(MOCK) is None


class Number:
    """A number that resizes a tensor when it is read."""

    def __init__(self, value: float, tensor: torch.Tensor) -> None:
        self.value, self.tensor = value, tensor

    def __float__(self) -> float:
        self.tensor.untyped_storage().resize_(0)
        return self.value


CALLS_PYTHON = pytest.mark.skipif(
    _torch_release._built_for(Path(_native.__file__)) is not None,
    reason="the build with pyo3-tch makes its outputs without calling Python",
)


class Resizing(torch.Tensor):
    """A tensor that resizes another one whenever torch is asked about it."""

    other: torch.Tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.other.untyped_storage().resize_(0)
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class Mode(torch.overrides.TorchFunctionMode):
    """Resizes a tensor whenever torch is called."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.empty_like:  # which makes the outputs, after all has been checked
            self.tensor.untyped_storage().resize_(0)
        return function(*args, **(kwargs or {}))


def in_mode(x: torch.Tensor, call: Callable[[], Any]) -> Any:
    with Mode(x):
        return call()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: mixup_label_relaxation_loss(x, Y, Y, Number(0.5, x)),  # type: ignore[arg-type]
        lambda x: label_relaxation_loss(x, Y, Number(0.1, x)),  # type: ignore[arg-type]
        lambda x: label_relaxation_loss(x, torch.full_like(x, 0.1).as_subclass(Resizing)),
        lambda x: label_relaxation_loss(x, torch.ones_like(x).bool().as_subclass(Resizing)),
        lambda x: _native.row_scores(x, Y.as_subclass(Resizing), True, None, "brier"),  # type: ignore[arg-type]
        pytest.param(lambda x: in_mode(x, lambda: label_relaxation_loss(x, Y)), marks=CALLS_PYTHON),
        pytest.param(
            lambda x: in_mode(x, lambda: label_relaxation_loss(torch.zeros(N, 10), x)), marks=CALLS_PYTHON
        ),
    ],
)
def test_arguments_that_resize_the_input(call: Callable[[torch.Tensor], Any]) -> None:
    x = Resizing.other = torch.full((N, 10), 0.1)
    with pytest.raises((TypeError, ValueError), match=r"in memory|resized"):
        call(x)
