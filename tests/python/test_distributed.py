"""Losses of tensors that are distributed over processes, and of networks that are sharded by FSDP."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lr_relax import LabelRelaxationLoss, functional
from torch import Tensor, distributed, multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")

LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [
    functional.label_relaxation_loss,
    lambda z, y: functional.cross_entropy_loss(z, y, 0.1),
    functional.focal_loss,
    functional.confidence_penalty_loss,
]


def check_dtensors(mesh: DeviceMesh) -> None:
    z, y = torch.randn(8, 6, requires_grad=True), torch.randint(6, (8,))
    placements: list[tuple[Placement, Placement]] = [
        (Shard(0), Shard(0)),
        (Replicate(), Replicate()),
        (Shard(1), Replicate()),
    ]
    for loss in LOSSES:
        expected = loss(z, y)
        (gradient,) = torch.autograd.grad(expected, z)
        for of_scores, of_classes in placements:
            scores = distribute_tensor(z.detach(), mesh, [of_scores]).requires_grad_()
            value = loss(scores, distribute_tensor(y, mesh, [of_classes]))
            value.backward()
            assert isinstance(value, DTensor)
            assert isinstance(scores.grad, DTensor)
            torch.testing.assert_close(value.full_tensor(), expected)
            torch.testing.assert_close(scores.grad.full_tensor(), gradient)
        with pytest.raises(TypeError, match="`target` to be a DTensor, as `input` is"):
            loss(scores, y)


def check_fsdp(mesh: DeviceMesh) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    x, y = torch.randn(6, 4), torch.randint(5, (6,))
    fully_shard(network, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    logits = network(x)
    loss = LabelRelaxationLoss(0.0)(logits, y)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), y))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def work(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same tensors in both processes
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    check_dtensors(mesh)
    check_fsdp(mesh)
    distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path,), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """Losses of logits in half precision are in single precision, as `F.cross_entropy`."""
    network, x, y = torch.nn.Linear(4, 5), torch.randn(6, 4), torch.randint(5, (6,))
    for loss in (*LOSSES, F.cross_entropy):
        with torch.autocast("cpu", dtype):
            logits = network(x)
            value = loss(logits, y)
        assert (logits.dtype, value.dtype) == (dtype, torch.float32)
        value.backward()
