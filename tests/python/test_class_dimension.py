"""The dimension of the classes where `dim` is not given: the last one, unless it may be dimension 1."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lr_relax import CrossEntropyLoss, FocalLoss, LabelRelaxationLoss, RobustDataAmbiguationLoss, functional
from lr_relax.ambiguation import ambiguous_target
from torch import Tensor


def mixup(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    return functional.mixup_label_relaxation_loss(z, y, y, 0.5, **options)


def data_ambiguation(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    return RobustDataAmbiguationLoss(**options)(z, y)


FUNCTIONS: list[Callable[..., Tensor]] = [
    functional.label_relaxation_loss,
    functional.cross_entropy_loss,
    functional.focal_loss,
    functional.dual_focal_loss,
    functional.confidence_penalty_loss,
    functional.credal_projection,
    functional.in_credal_set,
    ambiguous_target,
    mixup,
    data_ambiguation,
]
EACH = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


@EACH
@pytest.mark.parametrize("shape", [(8, 10, 10), (2, 6, 6, 6)], ids=str)
def test_two_readings_are_refused(function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    z, y = torch.randn(shape), torch.randint(6, shape[1:])[0].expand(shape[:-1])
    with pytest.raises(ValueError, match=r"`dim` to be given.*dim=1 .*`nn.CrossEntropyLoss`.*dim=-1"):
        function(z, y)
    with pytest.raises(ValueError, match="`dim` to be given"):
        torch.func.vmap(function)(z[None], y[None])
    for dim in (1, -1):
        assert not function(z, y, dim=dim).isnan().any()


@EACH
def test_dimension_1_is_named(function: Callable[..., Tensor]) -> None:
    z, y = torch.randn(2, 5, 4, 3), torch.randint(3, (2, 4, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 5, 4\).*got \(2, 4, 3\).*pass dim=1\."):
        function(z, y)
    assert not function(z, y, dim=1).isnan().any()


@EACH
@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 4), (4, 5, 3), (5, 5, 3)], ids=str)
def test_the_last_dimension_is_the_default(function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    z, y = torch.randn(shape), torch.randint(3, shape[:-1])
    assert function(z, y).equal(function(z, y, dim=-1))


def test_dimension_1_as_in_torch() -> None:
    z, y = torch.randn(2, 6, 6, dtype=torch.float64), torch.randint(6, (2, 6))
    torch.testing.assert_close(CrossEntropyLoss(dim=1)(z, y), F.cross_entropy(z, y))


@pytest.mark.parametrize(
    "target", [torch.ones(2, 4, 4) > 0, torch.full((2, 4, 4), 0.25)], ids=["set", "float"]
)
def test_targets_of_the_shape_of_the_input_warn(target: Tensor) -> None:
    z = torch.randn(2, 4, 4)
    of_distributions = [functional.cross_entropy_loss, functional.focal_loss, FocalLoss()]
    of_both = [functional.label_relaxation_loss, functional.credal_projection, LabelRelaxationLoss()]
    for loss in [*of_both, *(of_distributions if target.is_floating_point() else [])]:
        with pytest.warns(UserWarning, match=r"last dimension\. Pass dim=1 .* dim=-1") as caught:
            loss(z, target)
        assert [warning.filename for warning in caught] == [__file__]
        loss(z[0], target[0])
    for module in (LabelRelaxationLoss(dim=1), LabelRelaxationLoss(dim=-1)):
        module(z, target)


def test_tracing_with_dynamic_shapes() -> None:
    module = LabelRelaxationLoss()
    z, y = torch.randn(3, 4, 6), torch.randint(6, (3, 4))
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for cut in (1, 2):
        torch.testing.assert_close(
            compiled(z[cut:, cut:], y[cut:, cut:]), module(z[cut:, cut:], y[cut:, cut:])
        )
    rows = {0: torch.export.Dim("N"), 1: torch.export.Dim("M")}
    exported = torch.export.export(module, (z, y), dynamic_shapes=(rows, rows)).module()
    torch.testing.assert_close(exported(z[1:, 1:], y[1:, 1:]), module(z[1:, 1:], y[1:, 1:]))
