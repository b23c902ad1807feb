"""Losses of a linear layer in compiled and exported graphs, as one operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from head_cases import CASES, C, Case, D, N, Y, layer
from lr_relax import LinearLabelRelaxationLoss, linear_label_relaxation_loss
from lr_relax._chunked import autograd
from lr_relax._operators import to_arguments
from lr_relax._options import Options
from torch import Tensor
from torch.library import opcheck

EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def loss_of(case: Case, **options: Any) -> Callable[..., Tensor]:
    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return case.of_layer(x, w, *case.targets, linear_bias=b, **case.options, **options)

    return loss


def loss_and_gradients(loss: Callable[..., Tensor], head: tuple[Tensor, ...], scale: float = 1.0) -> Any:
    value = loss(*head)
    return value.detach(), *torch.autograd.grad(value, head, torch.full_like(value, scale))


@EACH_CASE
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_losses_have_the_bits_of_eager_ones(case: Case, reduction: str) -> None:
    loss = loss_of(case, reduction=reduction, chunk_size=5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.float16):
        head = layer(dtype)
        for scale in (1.0, 3.0):
            for got, expected in zip(
                loss_and_gradients(compiled, head, scale), loss_and_gradients(loss, head, scale), strict=True
            ):
                torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(got.dtype).eps, atol=1e-7)


def test_the_graph_holds_one_operator() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    torch.compile(loss_of(CASES["class"]), fullgraph=True, backend=backend)(*layer(torch.float32))
    operators = [getattr(target, "overloadpacket", target) for target in graphs[0]]
    assert operators.count(torch.ops.lr_relax.linear_loss) == 1
    assert torch.nn.functional.linear not in operators


def test_inductor_and_dynamic_shapes() -> None:
    criterion = LinearLabelRelaxationLoss(D, C, 0.2)
    compiled = torch.compile(criterion, fullgraph=True, dynamic=True)
    for n in (3, 40, 300):
        x, y = torch.randn(n, D, requires_grad=True), torch.randint(C, (n,))
        tensors = x, criterion.linear.weight
        for got, expected in zip(
            torch.autograd.grad(compiled(x, y), tensors),
            torch.autograd.grad(criterion(x, y), tensors),
            strict=True,
        ):
            torch.testing.assert_close(got, expected)


def test_exported_programs_hold_the_operator() -> None:
    criterion = LinearLabelRelaxationLoss(D, C, 0.2)
    x, y = torch.randn(N, D), Y
    program = torch.export.export(criterion, (x, y))
    assert "lr_relax.linear_loss" in str(program.graph)
    torch.testing.assert_close(program.module()(x, y), criterion(x, y))


@EACH_CASE
def test_operators_pass_the_checks_of_pytorch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def record(head: Any, target: Tensor, options: Options, chunk_size: int | None) -> Tensor:
        leaves = [x.detach().requires_grad_() for x in head]
        calls.append((*leaves, target, *to_arguments(options), chunk_size, [True, True, True]))
        return head.input.sum(1) if options.reduction == "none" else head.input.sum()

    monkeypatch.setattr(autograd, "loss", record)
    loss_of(case)(*layer(torch.float32))
    loss_of(case, reduction="none")(*layer(torch.float32))
    for arguments in calls:
        opcheck(torch.ops.lr_relax.linear_loss.default, arguments)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in calls[1]]
    opcheck(torch.ops.lr_relax.linear_gradients.default, (torch.rand(N), *detached))


def test_second_derivatives_of_the_operator() -> None:
    x, w, _ = layer()
    compiled = torch.compile(linear_label_relaxation_loss, fullgraph=True, backend="eager")
    found = []
    for loss in (compiled, linear_label_relaxation_loss):
        (first,) = torch.autograd.grad(loss(x, w, Y), w, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)
