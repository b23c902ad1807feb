"""Compiled and exported graphs, which call the kernels as operators of PyTorch."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_cases import CASES, C, N
from lr_relax import LabelRelaxationLoss, _dispatch, _operators, _triton, functional
from lr_relax._options import Options
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(_dispatch, "FEW", 0)  # even the small tensors of these tests take the operators


EACH_LOSS = pytest.mark.parametrize("name", CASES)


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype).requires_grad_()


def loss_and_gradient(compute: Callable[[Tensor], Tensor], z: Tensor, scale: float = 1.0) -> Any:
    loss = compute(z)
    return loss.detach(), torch.autograd.grad(loss, z, torch.full_like(loss, scale))[0]


@EACH_LOSS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compiled_losses_have_the_bits_of_the_kernel(name: str, reduction: str) -> None:
    for dtype in (torch.float32, torch.float16):
        z = logits(dtype)

        def compute(z: Tensor) -> Tensor:
            return CASES[name](z, reduction=reduction)

        compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
        for scale in (1.0, 3.0):
            for got, expected in zip(
                loss_and_gradient(compiled, z, scale), loss_and_gradient(compute, z, scale), strict=True
            ):
                assert got.equal(expected)
        assert compiled(z.detach()).equal(compute(z.detach()))


@EACH_LOSS
def test_the_graph_holds_the_operator_alone(name: str) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    torch.compile(CASES[name], fullgraph=True, backend=backend)(logits())
    assert torch.ops.lr_relax.loss in [getattr(op, "overloadpacket", op) for op in graphs[0]]


def test_few_logits_are_compiled_with_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    z, names = logits(), ("class", "weight", "cross_entropy", "focal", "dual_focal", "penalty")
    compiled = torch.compile(lambda z: torch.stack([CASES[name](z) for name in names]), fullgraph=True)
    expected = torch.stack([CASES[name](z) for name in names])
    torch.testing.assert_close(compiled(z), expected)
    for got, true in zip(compiled(z), expected, strict=True):
        (grad,) = torch.autograd.grad(got, z, retain_graph=True)
        torch.testing.assert_close(grad, torch.autograd.grad(true, z, retain_graph=True)[0])
    target = torch.tensor([0, 77, 1, 1, 1, 1])
    with pytest.raises(RuntimeError, match="index out of bounds"):
        torch.compile(functional.label_relaxation_loss, fullgraph=True)(z, target)


@pytest.mark.parametrize("dynamic", [True, False])
def test_which_graphs_hold_the_operator(monkeypatch: pytest.MonkeyPatch, dynamic: bool) -> None:
    monkeypatch.undo()
    for shape, is_called in (((6, 5), dynamic), ((8, 5000), True)):
        z, y = torch.randn(shape, requires_grad=True), torch.zeros(shape[0], dtype=torch.int64)
        targets = []

        def backend(graph: torch.fx.GraphModule, _: Any, into: list[Any] = targets) -> Any:
            into += [node.target for node in graph.graph.nodes]
            return graph

        torch.compiler.reset()
        torch.compile(functional.label_relaxation_loss, backend=backend, dynamic=dynamic)(z, y)
        assert (torch.ops.lr_relax.loss in targets) == is_called


@pytest.mark.skipif(not _triton.IS_AVAILABLE, reason="needs Triton, which comes with torch on Linux")
def test_graphs_of_cuda_tensors_hold_the_operator() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph

    with FakeTensorMode():
        z, y = torch.empty(N, C, device="cuda", requires_grad=True), torch.empty(N, device="cuda").long()
        for loss in (functional.label_relaxation_loss, functional.focal_loss):
            value = torch.compile(loss, fullgraph=True, backend=backend)(z, y)
            assert value.device.type == "cuda"
            assert value.requires_grad
            assert "torch.ops.lr_relax.loss" in graphs[-1]


def test_inductor_and_dynamic_shapes() -> None:
    module = LabelRelaxationLoss(0.2)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for n, c in ((6, 5), (33, 7), (300, 40)):
        z, y = torch.randn(n, c, requires_grad=True), torch.randint(c, (n,))
        for got, expected in zip(
            loss_and_gradient(lambda z, y=y: compiled(z, y), z),
            loss_and_gradient(lambda z, y=y: module(z, y), z),
            strict=True,
        ):
            assert got.equal(expected)


def test_a_retained_graph_keeps_its_gradient() -> None:
    z = logits()
    loss = torch.compile(CASES["class"], fullgraph=True, backend="aot_eager")(z)
    (expected,) = torch.autograd.grad(CASES["class"](z), z)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    first.zero_()
    assert torch.autograd.grad(2 * loss, z)[0].equal(2 * expected)


def test_equal_losses_in_a_graph_have_gradients_of_their_own() -> None:
    """A compiler computes the loss once, but each gradient is scaled by another upstream."""

    def compute(z: Tensor) -> Tensor:
        return 2 * CASES["class"](z) + 3 * CASES["class"](z)

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradient(compiled, logits()), loss_and_gradient(compute, logits()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_rows_in_half_precision(dtype: torch.dtype) -> None:
    z, upstream = logits(dtype), torch.linspace(0.1, 1, N)
    loss = torch.compile(lambda z: CASES["focal"](2 * z, reduction="none"), fullgraph=True)(z)
    (first,) = torch.autograd.grad(loss, z, upstream, retain_graph=True)
    (expected,) = torch.autograd.grad(CASES["focal"](2 * z, reduction="none"), z, upstream)
    torch.testing.assert_close(first, expected)


def test_hooks_may_replace_what_is_saved() -> None:
    z, pool, used = logits(), torch.zeros(1000), [0]

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        start, used[0] = used[0], used[0] + tensor.numel()
        return pool[start : used[0]].view(tensor.shape).copy_(tensor)

    compiled = torch.compile(CASES["class"], fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(CASES["class"](z), z)
    for replace in (torch.clone, pack):
        with torch.autograd.graph.saved_tensors_hooks(replace, lambda tensor: tensor):
            loss = compiled(z)
        assert torch.autograd.grad(loss, z)[0].equal(expected)


def test_second_derivatives_without_a_compiled_backward() -> None:
    z = logits()

    def penalty(compute: Callable[[Tensor], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(compute(z), z, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), z)[0]

    compiled = torch.compile(CASES["class"], fullgraph=True, backend="eager")
    torch.testing.assert_close(penalty(compiled), penalty(CASES["class"]))


def test_layouts() -> None:
    """Strides of the input, and classes in dimension 1."""
    z = torch.randn(4, 3, C, generator=torch.Generator().manual_seed(0)).transpose(1, 2).requires_grad_()
    y = torch.randint(C, (4, 3))

    def compute(z: Tensor) -> Tensor:
        return functional.focal_loss(z, y, dim=1, reduction="none")

    compiled = torch.compile(compute, fullgraph=True)
    for got, expected in zip(loss_and_gradient(compiled, z), loss_and_gradient(compute, z), strict=True):
        assert got.equal(expected)


def test_wrong_targets_raise_when_the_graph_runs() -> None:
    compiled = torch.compile(functional.label_relaxation_loss, fullgraph=True, backend="aot_eager")
    z = logits()
    compiled(z, torch.zeros(N, dtype=torch.int64))
    with pytest.raises(IndexError, match=r"classes in \[0, 5\), but got 7"):
        compiled(z, torch.full((N,), 7))


def test_transforms_are_compiled_with_the_formulas() -> None:
    def compute(z: Tensor) -> Tensor:
        return torch.func.grad(CASES["class"])(z)

    z = logits().detach()
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), compute(z))


def test_the_package_may_be_imported_again() -> None:
    importlib.reload(_operators)
    compiled = torch.compile(CASES["class"], fullgraph=True, backend="aot_eager")
    assert compiled(logits()).equal(CASES["class"](logits()))


def test_exported_programs_call_the_operator() -> None:
    z, y = logits().detach(), torch.zeros(N, dtype=torch.int64)
    module = LabelRelaxationLoss()
    program = torch.export.export(module, (z, y))
    assert "lr_relax.loss" in str(program.graph)
    assert program.module()(z, y).equal(module(z, y))


@EACH_LOSS
def test_operators_pass_the_checks_of_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(input: Tensor, target: Tensor, options: Options) -> Tensor:
        calls.append((input.detach().requires_grad_(), target, *_operators.to_arguments(options)))
        return input

    monkeypatch.setattr(functional._dispatch, "loss", record)
    CASES[name](logits())
    opcheck(torch.ops.lr_relax.loss.default, (*calls[0], True))
    input, *others = calls[0]
    loss, kept = torch.ops.lr_relax.loss(input.detach(), *others, True)
    opcheck(torch.ops.lr_relax.gradient.default, (kept, torch.ones_like(loss), input.detach(), *others))
