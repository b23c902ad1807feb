"""Mixtures of two classes: against the package label-relaxation, dense targets, and the formulas."""

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lr_relax import (
    MixupLabelRelaxationLoss,
    _dispatch,
    label_relaxation_loss,
    mixup_label_relaxation_loss,
)
from option_cases import option_cases
from torch import Tensor
from torch.autograd import gradgradcheck

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def dense(a: Tensor, b: Tensor, lam: Any, n_classes: int) -> Tensor:
    first, second = (F.one_hot(y, n_classes).double() for y in (a, b))
    lam = lam[:, None].double() if isinstance(lam, Tensor) else lam
    return lam * first + (1 - lam) * second


@pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_package_and_dense_target(n_classes: int, alpha: float, reduction: str) -> None:
    import label_relaxation

    generator = torch.Generator().manual_seed(n_classes)
    z = 2 * torch.randn(30, n_classes, generator=generator, dtype=torch.float64)
    a, b = torch.randint(n_classes, (2, 30), generator=generator)
    lams: list[Any] = [0.0, 0.3, 0.5, 1.0, torch.rand(30, generator=generator, dtype=torch.float64)]
    for lam in lams:
        leaves = [z.clone().requires_grad_() for _ in range(3)]
        losses = [
            mixup_label_relaxation_loss(leaves[0], a, b, lam, alpha, reduction),
            label_relaxation_loss(leaves[1], dense(a, b, lam, n_classes), alpha, reduction),
            label_relaxation.mixup_label_relaxation_loss(leaves[2], a, b, lam, alpha, reduction),
        ]
        grads = [torch.autograd.grad(loss.sum(), leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
        for loss, grad in zip(losses[1:], grads[1:], strict=True):
            torch.testing.assert_close(losses[0], loss, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(grads[0], grad, rtol=1e-8, atol=1e-11)


def test_limits_equal_class_targets() -> None:
    z, a, b = torch.randn(20, 12), torch.randint(12, (20,)), torch.randint(12, (20,))
    assert mixup_label_relaxation_loss(z, a, b, 1.0).equal(label_relaxation_loss(z, a))
    assert mixup_label_relaxation_loss(z, a, b, 0.0).equal(label_relaxation_loss(z, b))
    assert mixup_label_relaxation_loss(z, a, a, 0.3).equal(label_relaxation_loss(z, a))
    near = mixup_label_relaxation_loss(z.double(), a, b, 1 - 1e-9)
    torch.testing.assert_close(near, label_relaxation_loss(z.double(), a), rtol=1e-6, atol=1e-7)


@option_cases(n_classes=[3, 40, 131], dim=[-1, 1, 0], ignore_index=[-100, 2], weighted=[False, True])
def test_options_against_the_formulas(
    reduction: str, dim: int, ignore_index: int, weighted: bool, n_classes: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(4, 6, n_classes, generator=generator)
    a, b = torch.randint(n_classes, (2, 4, 6), generator=generator)
    options: Any = {
        "reduction": reduction,
        "dim": dim,
        "ignore_index": ignore_index,
        "weight": (torch.rand(n_classes, generator=generator) + 0.5) if weighted else None,
    }
    lams: list[Any] = [0.0, 0.4, torch.rand(4, 6, generator=generator).to(torch.float64)]
    alphas: list[Any] = [0.0, 0.2, 0.5 * torch.rand(4, 6, generator=generator)]
    for dtype, lam, alpha in product(DTYPES, lams, alphas):
        input = z.to(dtype).movedim(-1, dim).contiguous()
        results = []
        for native in (True, False):
            leaf = (input if native else input.double()).clone().requires_grad_()
            with pytest.MonkeyPatch.context() as patch:
                if not native:
                    patch.setattr(_dispatch, "runs_natively", lambda input: False)
                loss = mixup_label_relaxation_loss(leaf, a, b, lam, alpha, **options)
                (grad,) = torch.autograd.grad(loss.sum(), leaf)
            results.append((loss.detach(), grad))
        (loss, grad), (true_loss, true_grad) = results
        assert loss.dtype == (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)
        assert (loss.shape, grad.dtype) == (true_loss.shape, dtype)
        double = dtype == torch.float64
        close = {"rtol": 1e-10, "atol": 1e-12} if double else {"rtol": 1e-5, "atol": 2e-6}
        case = f"{dtype}, lam={lam}, alpha={alpha}"
        torch.testing.assert_close(loss.double(), true_loss, msg=lambda m, case=case: f"{case}: {m}", **close)
        budget = 3 * torch.finfo(dtype).eps * true_grad.abs() + (1e-13 if double else 5e-7)
        assert ((grad.double() - true_grad).abs() <= budget).all(), case


def test_broadcasting() -> None:
    z, (a, b) = torch.randn(4, 6, 5), torch.randint(5, (2, 4, 6))
    lam, alpha = torch.rand(6), 0.5 * torch.rand(4, 1)
    for compute in (mixup_label_relaxation_loss, torch.compile(mixup_label_relaxation_loss, backend="eager")):
        loss = compute(z, a, b, lam, alpha, "none")
        full = mixup_label_relaxation_loss(
            z, a, b, lam.expand(4, 6).clone(), alpha.expand(4, 6).clone(), "none"
        )
        torch.testing.assert_close(loss, full)
    leaf = alpha.clone().requires_grad_()
    (slope,) = torch.autograd.grad(label_relaxation_loss(z, a, leaf, "sum"), leaf)
    assert slope.shape == (4, 1)


def test_options_together() -> None:
    z = torch.randn(2, 5, 8, dtype=torch.float64).requires_grad_()
    a, b = torch.randint(5, (2, 2, 8))
    a[0, 0] = b[1, 3] = -1
    lam, alpha, weight = torch.rand(2, 8), 0.5 * torch.rand(2, 8), torch.rand(5)

    def compute(x: Tensor) -> Tensor:
        return mixup_label_relaxation_loss(x, a, b, lam, alpha, dim=1, ignore_index=-1, weight=weight)

    loss = compute(z)
    (grad,) = torch.autograd.grad(loss, z)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "runs_natively", lambda input: False)
        torch.testing.assert_close(loss, compute(z), rtol=1e-6, atol=1e-9)
        (true_grad,) = torch.autograd.grad(compute(z), z)
    torch.testing.assert_close(grad, true_grad, rtol=1e-6, atol=1e-9)  # lam is known in single precision
    assert grad[0, :, 0].eq(0).all()
    assert grad[1, :, 3].eq(0).all()
    assert gradgradcheck(compute, z)


@pytest.mark.parametrize(
    "row",
    [
        [3.0, 0.0],
        [3.0, 0.0, -math.inf],
        [3.0, 0.0, -1e30],
        [0.0, -2.0, -700.0],
        [3.0, 0.0, *[-math.inf] * 40],
    ],
    ids=["two classes", "nothing else possible", "far", "near", "many"],
)
def test_two_possible_classes(row: list[float]) -> None:
    for lam in (0.3, 0.7):
        results = []
        for target in ("mixed", "dense"):
            z = torch.tensor([row], dtype=torch.float64).requires_grad_()
            a, b = torch.tensor([0]), torch.tensor([1])
            if target == "mixed":
                loss = mixup_label_relaxation_loss(z, a, b, lam)
            else:
                loss = label_relaxation_loss(z, dense(a, b, lam, len(row)))
            results.append((loss.detach(), torch.autograd.grad(loss, z)[0]))
        assert results[1][0] > 0
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)


def test_tracing() -> None:
    z, (a, b) = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (2, 6))
    lam = torch.rand(6, dtype=torch.float64)
    module = MixupLabelRelaxationLoss(0.2)

    def compute(x: Tensor) -> Tensor:
        return module(x, a, b, lam)

    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(compute(leaf), leaf)
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), compute(z))
    torch.testing.assert_close(torch.func.grad(compute)(z), grad)
    tangent = torch.randn_like(z)
    torch.testing.assert_close(torch.func.jvp(compute, (z,), (tangent,))[1], (grad * tangent).sum())
    stacked = torch.func.vmap(compute)(torch.stack([z, 2 * z]))
    torch.testing.assert_close(stacked, torch.stack([compute(z), compute(2 * z)]))
    exported = torch.export.export(module, (z, a, b, lam)).module()
    torch.testing.assert_close(exported(z, a, b, lam), compute(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.nn.Linear(5, 5)(z.float()), a, b, 0.3).dtype == torch.float32


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lam too large": ({"lam": 1.5}, ValueError, "`lam`.*1.5"),
    "lam a word": ({"lam": "a"}, TypeError, "`lam`"),
    "lam a bool": ({"lam": True}, TypeError, "`lam`.*True"),
    "lam missing": ({"lam": None}, TypeError, "`lam`.*None"),
    "target_b missing": ({"target_b": None}, TypeError, "`target_b`.*NoneType"),
    "lam too long": ({"lam": torch.rand(3)}, ValueError, r"`lam`.*\(4,\).*\(3,\)"),
    "lam an integer tensor": ({"lam": torch.ones(4).long()}, TypeError, "`lam`.*torch.int64"),
    "target_b out of range": ({"target_b": torch.tensor([0, 1, 3, 0])}, IndexError, "`target_b`.*3 at row 2"),
    "target_a a float": ({"target_a": torch.rand(4, 3)}, TypeError, "`target_a`"),
    "target_b too short": ({"target_b": torch.tensor([0])}, ValueError, "`target_b`"),
    "alpha too large": ({"alpha": torch.tensor([0.1, 1.0, 0.1, 0.1])}, ValueError, "`alpha`.*row 1"),
    "alpha of integers": ({"alpha": torch.zeros(4).int()}, TypeError, "`alpha`.*torch.int32"),
}


@pytest.mark.parametrize(("arguments", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    y = torch.tensor([0, 1, 2, 0])
    call: dict[str, Any] = {"logits": torch.randn(4, 3), "target_a": y, "target_b": y.flip(0), "lam": 0.3}
    with pytest.raises(error, match=match) as native:
        mixup_label_relaxation_loss(**{**call, **arguments})
    if error is not IndexError and "row" not in match:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_dispatch, "runs_natively", lambda input: False)
            with pytest.raises(error) as traced:
                mixup_label_relaxation_loss(**{**call, **arguments})
        assert str(native.value) == str(traced.value)
