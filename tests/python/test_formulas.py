"""The losses as torch operators: how many they take, how much memory, and how exact they are."""

import itertools
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_relax import _dispatch, credal_projection, label_relaxation_loss, mixup_label_relaxation_loss

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "misc" / "benchmarks" / "formulas.py"))
losses, trace = BENCHMARK["losses"], BENCHMARK["trace"]

# The operators of loss and gradient, and their memory in multiples of the logits': in float32, in bfloat16
# (with losses in float32). `F.cross_entropy` has 8, 3 and 6.
LIMITS = {
    "label relaxation: classes": (31, 3.1, 6.1),
    "label relaxation: sets": (39, 4.1, 8.1),
    "label relaxation: two classes": (59, 3.1, 6.1),
    "label relaxation: distributions": (45, 7.3, 16.6),
    "cross-entropy": (18, 3.1, 6.1),
    "cross-entropy: label smoothing": (30, 4.1, 8.1),
    "cross-entropy: distributions": (25, 4.1, 10.1),
    "focal": (30, 3.1, 6.1),
    "focal: distributions": (31, 8.1, 18.1),
    "dual focal": (59, 4.1, 8.1),
    "confidence penalty": (31, 4.1, 8.1),
    "confidence penalty: distributions": (37, 4.3, 10.6),
}
EACH = pytest.mark.parametrize("name", LIMITS)


def test_every_loss_has_limits() -> None:
    assert LIMITS.keys() == losses(2, 3).keys()


@EACH
def test_operators(name: str) -> None:
    operators, _ = trace(losses(64, 10)[name], 64, 10, torch.float32)
    assert len(operators) <= LIMITS[name][0], operators


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(name: str, dtype: torch.dtype) -> None:
    _, memory = trace(losses(64, 1000)[name], 64, 1000, dtype)
    assert memory <= LIMITS[name][2 if dtype == torch.bfloat16 else 1]


def test_trace() -> None:
    """Of 2 z, which is kept, 3 z, which is not, and the gradient, two are in memory at once."""

    def loss(z: torch.Tensor) -> torch.Tensor:
        kept = 2 * z
        return (3 * z).sum().detach() + kept.sum()

    operators, memory = trace(loss, 64, 1000, torch.float32)
    assert operators[:3] == ["aten.mul.Tensor", "aten.mul.Tensor", "aten.sum.default"]
    assert 2 <= memory < 2.1


@EACH
@pytest.mark.parametrize("n_classes", [10, 1000])
@pytest.mark.parametrize(("scale", "distance"), [(1.0, 0.0), (4.0, 0.0), (1.0, 60000.0)])
def test_precision(
    name: str, n_classes: int, scale: float, distance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = losses(64, n_classes)[name]
    z = scale * torch.randn(64, n_classes, generator=torch.Generator().manual_seed(1))
    z[:, -1] += distance
    exact = z.double().requires_grad_()
    true_loss = loss(exact)
    (true_grad,) = torch.autograd.grad(true_loss, exact)
    monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    for dtype in (torch.float64, torch.float32):
        eps, leaf = torch.finfo(dtype).eps, z.to(dtype).requires_grad_()
        value = loss(leaf)
        (grad,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(value.double(), true_loss, rtol=16 * eps, atol=4 * eps)
        # Of the mean: 1 is the largest gradient of a row.
        torch.testing.assert_close(64 * grad.double(), 64 * true_grad, rtol=64 * eps, atol=16 * eps)


@pytest.mark.parametrize("per_row", [False, True])
def test_precision_near_the_set(per_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one class is below its bound by a part of 1e-7 to 1."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2000, 10, generator=generator)
    part = 10 ** (-7 * torch.rand(2000, 1, generator=generator, dtype=torch.float64))
    target = z.double().softmax(1)
    own = (target[:, :1] * (1 + part) / 0.9).clamp_max(1.0)
    target = torch.cat([own, (1 - own) * target[:, 1:] / target[:, 1:].sum(1, keepdim=True)], 1).float()
    sets = (torch.arange(10) < 1).expand(2000, 10)
    a = torch.zeros(2000, dtype=torch.int64)
    at_class = z.clone()
    at_class[:, 0] = z[:, 1:].logsumexp(1) + (0.9 - 0.09 * part[:, 0]).logit()
    for losses in (
        lambda alpha: (lambda x: label_relaxation_loss(x, target, alpha, "sum"), z),
        lambda alpha: (lambda x: mixup_label_relaxation_loss(x, a, a + 1, own[:, 0], alpha, "sum"), z),
        lambda alpha: (lambda x: label_relaxation_loss(x, a, alpha, "sum"), at_class),
        lambda alpha: (lambda x: label_relaxation_loss(x, sets, alpha, "sum"), at_class),
    ):
        loss, scores = losses(torch.full((2000,), 0.1) if per_row else 0.1)
        exact, leaf = scores.double().requires_grad_(), scores.clone().requires_grad_()
        (true_grad,) = torch.autograd.grad(losses(0.1)[0](exact), exact)
        with monkeypatch.context() as patch:
            patch.setattr(_dispatch, "runs_natively", lambda input: False)
            (grad,) = torch.autograd.grad(loss(leaf), leaf)
        torch.testing.assert_close(grad.double(), true_grad, rtol=0, atol=5e-7)


def test_logits_may_change_before_backward() -> None:
    """Formulas save results of their own, as the kernels and `F.cross_entropy` do."""
    alpha = torch.full((64,), 0.1, requires_grad=True)  # for which there is no kernel
    sets = torch.arange(10).expand(64, 10) < 3
    z = torch.randn(64, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = torch.autograd.grad(label_relaxation_loss(z * 1, sets, alpha), (z, alpha))
    logits = z * 1
    loss = label_relaxation_loss(logits, sets, alpha)
    logits.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, (z, alpha)), expected, rtol=0, atol=0)


@EACH
def test_transforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = losses(6, 5)[name]
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    value = loss(z)
    expected = value.detach(), torch.autograd.grad(value, z)[0]
    value = torch.func.vmap(loss)(z[None])[0]
    torch.testing.assert_close((value.detach(), torch.autograd.grad(value, z)[0]), expected)
    hessian = torch.autograd.functional.hessian(loss, z.detach())
    for outer, inner in itertools.product((torch.func.jacfwd, torch.func.jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(loss))(z.detach()), hessian)


@pytest.mark.parametrize(
    "name", [name for name in LIMITS if "relaxation" in name or name in ("focal", "confidence penalty")]
)
def test_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As graphs of other devices are, where no kernel is called."""
    torch.compiler.reset()
    monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    monkeypatch.setattr(_dispatch, "is_compiled", lambda input: False)
    loss = losses(6, 5)[name]
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    value, expected = torch.compile(loss, fullgraph=True, backend="aot_eager")(z), loss(z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(expected, z))


@EACH
def test_autocast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = losses(64, 10)[name]
    z = torch.randn(64, 10, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    true_loss = loss(z.detach().double())
    monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), true_loss, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(value, z)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("raised", [2, 4, 12])
def test_targets_that_are_hard_to_project_on(raised: int, dtype: torch.dtype) -> None:
    """Where Newton's method for the factor c of the other classes raises one class at a step.

    The probability of the classes that are not raised falls by the same ratio r each time. A class whose
    bound is c p at one step is raised by the next, and 1 - r of the excess is left: no target leaves more.
    """
    alpha, last = 0.1, 0.15
    free = last ** (torch.arange(raised + 1, dtype=torch.float64) / raised)
    p = torch.cat([free[:-1] - free[1:], free[-1:]])
    excess = 0.02 * (1 - free[1]) ** torch.arange(raised)
    c = 1 - torch.cat([torch.zeros(1, dtype=torch.float64), (excess / free[1:]).cumsum(0)])
    bound = torch.cat([p[:1] + 0.02, c[: raised - 1] * p[1:raised]])
    bound = torch.cat([bound, 1 - alpha - bound.sum(0, keepdim=True)])
    assert (bound > 0).all()
    projected = torch.cat([bound[:-1], c[-1:] * p[-1:]])
    assert projected.sum().item() == pytest.approx(1, abs=1e-15)
    target = (bound / (1 - alpha)).to(dtype)
    q = credal_projection(p.to(dtype)[None], target[None], alpha, from_logits=False)[0]
    torch.testing.assert_close(q.double(), projected, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_derivatives_by_alpha_in_forward_mode() -> None:
    z = torch.randn(6, 5, dtype=torch.float64)
    for target in (torch.arange(6) % 5, z.flip(1) > 0.5, z.flip(0).softmax(1)):
        if target.dtype == torch.bool:
            target[:, 0] = True

        def loss(alpha: torch.Tensor, target: Any = target) -> torch.Tensor:
            return label_relaxation_loss(z, target, alpha, "sum")

        alpha = torch.tensor(0.2, dtype=torch.float64)
        slope = torch.func.grad(loss)(alpha)
        assert slope < 0
        torch.testing.assert_close(torch.func.jvp(loss, (alpha,), (torch.ones_like(alpha),))[1], slope)
