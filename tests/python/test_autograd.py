"""Gradients through autograd, and transforms that trace the loss."""

import math
import warnings
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import CASES
from lr_relax import LabelRelaxationLoss, _native, label_relaxation_loss
from option_cases import option_cases
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

TARGET = torch.tensor([0, 3, 1, 2, -100, 4])


def logits(n_classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(6, n_classes, generator=generator, dtype=torch.float64)


@option_cases(alpha=[0.0, 0.3], from_logits=[True, False], n_classes=[5, 37])
def test_gradcheck(reduction: str, alpha: float, from_logits: bool, n_classes: int) -> None:
    rows = 6 if n_classes == 5 else 2
    z = logits(n_classes)[:rows]
    input = (z if from_logits else z.softmax(1)).requires_grad_()
    weight = torch.rand(n_classes, dtype=torch.float64) + 0.5

    def loss(x: Tensor) -> Tensor:
        return label_relaxation_loss(
            x, TARGET[:rows], alpha, reduction, weight=weight, from_logits=from_logits
        )

    assert gradcheck(loss, input)
    assert gradgradcheck(loss, input)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_upstream(name: str, dtype: torch.dtype) -> None:
    z = logits().t().contiguous().t().to(dtype).requires_grad_()  # classes with strides
    exact = z.detach().double().requires_grad_()
    for reduction in ("mean", "sum", "none"):
        loss, true_loss = (CASES[name](x, reduction=reduction) for x in (z, exact))
        upstream = torch.linspace(-2, 3, loss.numel(), dtype=loss.dtype).view(loss.shape)
        upstream = upstream.t().contiguous().t() if upstream.dim() > 1 else upstream
        kept, freed = (torch.autograd.grad(loss, z, upstream, retain_graph=keep)[0] for keep in (True, False))
        (true_grad,) = torch.autograd.grad(true_loss, exact, upstream.double())
        assert kept.equal(freed)
        tolerance = torch.finfo(dtype).eps * 4
        torch.testing.assert_close(kept.double(), true_grad, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize(
    ("grad", "upstream", "dim", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3), -1, "`upstream` to have shape"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), -1, "`upstream` to be of a floating-point"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64), -1, "of their type"),
        (torch.zeros(2, 3), 2.0, 2, "with the dimension `dim`"),
        (torch.zeros(2, 3).long(), 2.0, -1, "of a floating-point type"),
        (torch.zeros(2, 3), "2", -1, "`upstream` to be a tensor"),
        ("grad", 2.0, -1, "`grad` to be a tensor"),
    ],
)
def test_the_kernel_that_scales_checks_its_arguments(
    grad: Any, upstream: Any, dim: int, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        _native.scale(grad, upstream, dim, False)


def test_memory_that_repeats_is_not_scaled_in_place() -> None:
    row = torch.ones(1, 3)
    assert _native.scale(row.expand(4, 3), 2.0, -1, False).equal(torch.full((4, 3), 2.0))
    assert row.equal(torch.ones(1, 3))


def test_loss_scale_in_float16() -> None:
    """As a GradScaler uses it: the scale enters before the gradient is rounded."""
    z = torch.randn(4096, 20).half().requires_grad_()
    y = torch.randint(20, (4096,))
    (2.0**16 * label_relaxation_loss(z, y)).backward()
    exact = z.detach().double().requires_grad_()
    (2.0**16 * label_relaxation_loss(exact, y)).backward()
    assert z.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("retain_graph", [True, False])
def test_upstreams_by_vmap(retain_graph: bool) -> None:
    z = logits().requires_grad_()
    losses = label_relaxation_loss(z, TARGET, reduction="none")

    def product(upstream: Tensor) -> Tensor:
        return torch.autograd.grad(losses, z, upstream, retain_graph=retain_graph)[0]

    jacobian = torch.func.vmap(product)(torch.eye(6, dtype=torch.float64))
    (whole,) = torch.autograd.grad(label_relaxation_loss(z, TARGET, reduction="sum"), z)
    assert jacobian.sum(0).equal(whole)
    assert jacobian[0, 1:].eq(0).all()


def test_retained_graph() -> None:
    z = logits().requires_grad_()
    loss = label_relaxation_loss(z, TARGET)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    kept = first.clone()
    first.zero_()  # does not change the kept gradient
    (second,) = torch.autograd.grad(2 * loss, z, retain_graph=True)
    (third,) = torch.autograd.grad(loss, z)
    assert second.equal(2 * kept)
    assert third.equal(kept)


def test_gradients_accumulate() -> None:
    z = logits().requires_grad_()
    for _ in range(3):
        label_relaxation_loss(z, TARGET).backward()
    (once,) = torch.autograd.grad(label_relaxation_loss(z, TARGET), z)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, 3 * once)


def test_double_backward_through_a_network() -> None:
    layer = torch.nn.Linear(4, 5, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def penalty(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(label_relaxation_loss(layer(x), TARGET), x, create_graph=True)
        return grad.pow(2).sum()

    assert gradcheck(penalty, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_input_may_change_before_backward(dtype: torch.dtype) -> None:
    leaf = logits().to(dtype).requires_grad_()
    for compute in (lambda z: F.cross_entropy(z, TARGET), lambda z: label_relaxation_loss(z, TARGET)):
        expected = torch.autograd.grad(compute(2 * leaf), leaf)[0]
        z = 2 * leaf
        loss = compute(z)
        z.add_(1)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert grad.equal(expected)


@pytest.mark.parametrize("case", ["create_graph", "float16"])
def test_input_that_is_needed_again_must_not_change(case: str) -> None:
    leaf = logits().to(torch.float16 if case == "float16" else torch.float64).requires_grad_()
    z = 2 * leaf
    loss = label_relaxation_loss(z, TARGET)
    z.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(3 * loss, leaf, create_graph=case == "create_graph")


def test_a_checkpoint_keeps_no_logits() -> None:
    layer, x, kept = torch.nn.Linear(4, 5), torch.randn(6, 4), []

    def compute(x: Tensor) -> Tensor:
        z = layer(x)
        kept.append(weakref.ref(z))
        return label_relaxation_loss(z, TARGET)

    loss = checkpoint(compute, x, use_reentrant=False)
    assert kept[0]() is None
    loss.backward()


def test_a_checkpoint_of_an_alpha_with_gradient() -> None:
    z, alpha = logits().requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def compute(z: Tensor) -> Tensor:
        return label_relaxation_loss(z, TARGET, alpha)

    expected = torch.autograd.grad(compute(z), (z, alpha))
    got = torch.autograd.grad(checkpoint(compute, z, use_reentrant=False), (z, alpha))
    torch.testing.assert_close(got, expected)


def test_a_retained_graph_in_float16_enters_the_scale_before_rounding() -> None:
    z, y = torch.full((20_000, 2), -14.0).half(), torch.zeros(20_000, dtype=torch.int64)
    z[:, 0] = 0.0
    loss = label_relaxation_loss(z.requires_grad_(), y, 0.0)
    (kept,) = torch.autograd.grad(65536 * loss, z, retain_graph=True)
    (freed,) = torch.autograd.grad(65536 * loss, z)
    assert kept.equal(freed)
    assert kept.count_nonzero() == 40_000


@pytest.mark.parametrize("batched", [False, True])
def test_an_upstream_for_each_row_in_float16_enters_before_rounding(batched: bool) -> None:
    z, y = torch.full((2, 20_001), -14.0, dtype=torch.float64), torch.tensor([20_000, 20_000])
    z[:, -1] = 6.0
    half, upstream = z.half().requires_grad_(), torch.tensor([65536.0, 1.0])
    (expected,) = torch.autograd.grad(
        label_relaxation_loss(z.requires_grad_(), y, 0.0, "none"), z, upstream.double()
    )
    loss = label_relaxation_loss(half, y, 0.0, "none")
    (got,) = torch.autograd.grad(
        loss, half, upstream.repeat(1 + batched, 1)[() if batched else 0], is_grads_batched=batched
    )
    assert expected[0, 0] > 1e-4
    torch.testing.assert_close(got[0] if batched else got, expected.half(), rtol=1e-3, atol=1e-7)


def test_backward_frees_the_input() -> None:
    leaf = logits().requires_grad_()
    z = 2 * leaf
    loss, alive = label_relaxation_loss(z, TARGET), weakref.ref(z)
    del z
    loss.backward(retain_graph=True)
    assert alive() is not None
    loss.backward()
    assert alive() is None


@pytest.mark.parametrize("name", ["target", "weight"])
def test_other_tensors_may_change_before_backward(name: str) -> None:
    z, y, weight = logits().requires_grad_(), TARGET.clone(), torch.ones(5, dtype=torch.float64)
    expected = torch.autograd.grad(label_relaxation_loss(z, y, weight=weight), z)[0]
    loss = label_relaxation_loss(z, y, weight=weight)
    {"target": y, "weight": weight}[name].mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, z, create_graph=True)
    assert torch.autograd.grad(loss, z)[0].equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_lazily_negated_upstream(dtype: torch.dtype) -> None:
    z = logits().to(dtype).requires_grad_()
    loss = label_relaxation_loss(z, TARGET)
    minus_one = torch.tensor(1j).conj().imag
    assert minus_one.is_neg()
    (grad,) = torch.autograd.grad(loss, z, minus_one, retain_graph=True)
    (plus,) = torch.autograd.grad(loss, z)
    assert grad.equal(-plus)
    (again,) = torch.autograd.grad(label_relaxation_loss(z, TARGET), z, minus_one)
    assert again.equal(-plus)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_unusual_upstreams(dtype: torch.dtype) -> None:
    z = logits().to(dtype).requires_grad_()
    for reduction, each in (("mean", torch.tensor(2.0)), ("none", torch.linspace(-1, 2, 6))):
        loss = label_relaxation_loss(z, TARGET, reduction=reduction)
        (expected,) = torch.autograd.grad(loss, z, each, retain_graph=True)
        memory = bytearray(4 * each.numel() + 1)
        misaligned = torch.frombuffer(memory, dtype=torch.float32, offset=1).view(each.shape).copy_(each)
        for upstream in (misaligned, each.as_subclass(torch.nn.Buffer), each.to_sparse()):
            (grad,) = torch.autograd.grad(loss, z, upstream, retain_graph=True)
            assert grad.equal(expected)


def test_a_scaled_gradient_in_place_of_the_logits_is_noticed() -> None:
    factor = torch.ones(6, 5, dtype=torch.float64, requires_grad=True)
    z = logits().requires_grad_() * 1
    loss = label_relaxation_loss(z, TARGET, inplace=True)
    product = (factor * z.detach()).sum()
    (2 * loss).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_an_upstream_that_is_a_view_of_the_logits() -> None:
    leaf = logits().requires_grad_()
    z = leaf * 1
    loss = label_relaxation_loss(z, TARGET, reduction="none", inplace=True)
    upstream = z.detach()[:, 0]  # of the gradient by now, which is overwritten again
    values = upstream.clone()
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    plain = label_relaxation_loss(leaf, TARGET, reduction="none")
    assert grad.equal(torch.autograd.grad(plain, leaf, values)[0])


@pytest.mark.parametrize("rows", [100, 3000])
@pytest.mark.parametrize("retain_graph", [True, False])
def test_backward_under_a_mode_writes_no_memory_that_is_not_there(rows: int, retain_graph: bool) -> None:
    x = torch.randn(rows, 100).requires_grad_()
    loss = label_relaxation_loss(x, torch.zeros(rows, dtype=torch.int64), reduction="none")
    upstream = torch.full((rows,), 2.0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        (grad,) = torch.autograd.grad(loss, x, upstream, retain_graph=retain_graph)
    assert grad.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batched_gradients(dtype: torch.dtype) -> None:
    z = logits().to(dtype).requires_grad_()
    loss = label_relaxation_loss(z, TARGET)
    scales = torch.tensor([1.0, 2.0, -3.0])
    (batch,) = torch.autograd.grad(loss, z, scales, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(batch, torch.stack([one, 2 * one, -3 * one]))
    rows = label_relaxation_loss(z, TARGET, reduction="none")
    (batch,) = torch.autograd.grad(rows, z, torch.eye(6), is_grads_batched=True)
    assert batch.shape == (6, 6, 5)
    torch.testing.assert_close(batch.sum(0), (5 * one.double()).to(dtype), atol=1e-3, rtol=2e-3)


def test_tiny_gradients() -> None:
    """Below what a single scaling by the exponentials' bias could hold."""
    for d in (60.0, 75.0, 80.0, 85.0):
        z = torch.zeros(4096, 2)
        z[:, 0] = d
        z.requires_grad_()
        label_relaxation_loss(z, torch.zeros(4096, dtype=torch.int64), 0.0).backward()
        assert z.grad is not None
        exact = math.exp(-d) / 4096
        assert z.grad[0, 1].item() == pytest.approx(exact, rel=1e-6, abs=2e-45)
        assert z.grad[0].sum() == 0


def test_no_grad() -> None:
    z = logits()
    assert not label_relaxation_loss(z, TARGET).requires_grad
    with torch.no_grad():
        assert not label_relaxation_loss(z.requires_grad_(), TARGET).requires_grad
    with torch.inference_mode():
        assert label_relaxation_loss(logits(), TARGET).isfinite()


def test_parameters() -> None:
    z = torch.nn.Parameter(logits())
    LabelRelaxationLoss()(z, TARGET).backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


# Tracing takes the formulas. The tests of all losses cover export, jvp and vmap over inputs.


def loss_of(x: Tensor) -> Tensor:
    return label_relaxation_loss(x, TARGET, 0.2)


def test_torch_jit_trace() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        traced = torch.jit.trace(loss_of, (logits(),))
    torch.testing.assert_close(traced(2 * logits()), loss_of(2 * logits()))


def test_inductor_with_dynamic_shapes() -> None:
    compiled = torch.compile(LabelRelaxationLoss(0.2), fullgraph=True, dynamic=True)
    for rows in (6, 5, 3):
        z, w = logits()[:rows].requires_grad_(), logits()[:rows].requires_grad_()
        compiled(z, TARGET[:rows]).backward()
        loss_of_rows = label_relaxation_loss(w, TARGET[:rows], 0.2)
        loss_of_rows.backward()
        assert z.grad is not None
        assert w.grad is not None
        torch.testing.assert_close(z.grad, w.grad)


def test_vmap_over_targets() -> None:
    per_row = torch.func.vmap(lambda z, y: label_relaxation_loss(z, y, 0.2, "sum"))(logits(), TARGET.clamp(0))
    torch.testing.assert_close(per_row, label_relaxation_loss(logits(), TARGET.clamp(0), 0.2, "none"))


def test_forward_mode() -> None:
    z, tangent = logits(), torch.randn(6, 5, dtype=torch.float64)
    _, slope = torch.func.jvp(loss_of, (z,), (tangent,))
    torch.testing.assert_close(slope, (torch.func.grad(loss_of)(z) * tangent).sum())
    with forward_ad.dual_level():
        dual = loss_of(forward_ad.make_dual(z, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)


def test_hessian() -> None:
    z = logits()
    hessian = torch.func.hessian(loss_of)(z)
    assert hessian.shape == (6, 5, 6, 5)
    assert hessian.isfinite().all()


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.randn(6, 5))
        target = mode.from_tensor(torch.zeros(6, dtype=torch.int64))
        assert label_relaxation_loss(fake, target, reduction="none").shape == (6,)


def test_meta_tensors() -> None:
    z, y = torch.randn(6, 5, device="meta"), torch.zeros(6, dtype=torch.int64, device="meta")
    assert label_relaxation_loss(z, y).device.type == "meta"


def test_autocast() -> None:
    layer, x = torch.nn.Linear(5, 5), torch.randn(6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = label_relaxation_loss(layer(x), TARGET)
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
