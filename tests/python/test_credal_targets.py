"""Label relaxation of sets and distributions: a solver, the propositions of the paper, the formulas."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import (
    LabelRelaxationLoss,
    _dispatch,
    credal_projection,
    in_credal_set,
    label_relaxation_loss,
)
from option_cases import option_cases
from scipy.optimize import minimize
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck


def value_and_grad(z: Tensor, target: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = z.detach().clone().requires_grad_()
    loss = label_relaxation_loss(leaf, target, *args, **options)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def by_formulas(z: Tensor, target: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "runs_natively", lambda input: False)
        return value_and_grad(z, target, *args, **options)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PATHS = pytest.mark.parametrize("compute", [value_and_grad, by_formulas], ids=["kernel", "formulas"])


def problem(seed: int) -> tuple[Tensor, Tensor, float]:
    """Logits, a distribution and an alpha; with ties, with classes that have no probability in either."""
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 51))
    z = rng.choice([1.0, 4.0]) * rng.standard_normal(n_classes)
    t = rng.dirichlet(np.full(n_classes, rng.choice([0.1, 1.0, 5.0])))
    kind = seed % 5
    if kind == 1:  # ties
        z, t = np.round(z), np.round(4 * rng.random(n_classes)) + 1
    elif kind == 2:  # zeros in t
        t[rng.random(n_classes) < 0.6] = 0
        t[0] += 0.1
    elif kind == 3:  # zeros in p
        z[1:][rng.random(n_classes - 1) < 0.4] = -math.inf
        t = np.where(np.isfinite(z), t + 1e-3, 0)
    elif kind == 4:  # votes of annotators
        t = np.bincount(rng.integers(0, n_classes, 7), minlength=n_classes).astype(float)
    alpha = float(rng.choice([0.0, 0.05, 0.1, 0.3, 0.7]))
    return torch.tensor(z), torch.tensor(t / t.sum()), alpha


def solve(p: np.ndarray, bound: np.ndarray, alpha: float) -> tuple[float, np.ndarray]:
    """The least divergence from p of a distribution that is at least `bound`, and where it is."""
    some = p > 0

    def divergence(q: np.ndarray) -> tuple[float, np.ndarray]:
        ratio = np.log(np.maximum(q, 1e-300) / p[some])
        return float(np.sum(q * ratio)), ratio + 1

    solution = minimize(
        divergence,
        bound[some] + alpha * p[some],
        jac=True,
        method="SLSQP",
        bounds=[(x, 1) for x in bound[some]],
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-15, "maxiter": 2000},
    )
    projection = np.zeros_like(p)
    projection[some] = solution.x
    return solution.fun, projection


@pytest.mark.parametrize("kind", range(5), ids=["dense", "ties", "zeros in t", "zeros in p", "votes"])
def test_projection_against_a_convex_solver(kind: int) -> None:
    for seed in range(kind, 60, 5):
        z, t, alpha = problem(seed)
        p, bound = z.softmax(0), (1 - alpha) * t
        value, projection = solve(p.numpy(), bound.numpy(), alpha)
        for compute in (value_and_grad, by_formulas):
            loss, grad = compute(z[None], t[None], alpha, "none")
            assert loss.item() == pytest.approx(value, abs=1e-8), seed
            # The value is flat around its minimum: an error of 1e-10 in it moves the place by its root.
            torch.testing.assert_close(p - grad[0], torch.tensor(projection), rtol=0, atol=2e-5)
            for probabilities in (p, 3 * p):
                loss, _ = compute(probabilities[None], t[None], alpha, "none", from_logits=False)
                assert loss.item() == pytest.approx(value, abs=1e-8), seed

        # Karush-Kuhn-Tucker: q is a distribution, and at its bound or the same multiple of p.
        q = p - value_and_grad(z[None], t[None], alpha)[1]
        assert q.sum().item() == pytest.approx(1, abs=1e-14), seed
        assert (q >= bound - 1e-15).all(), seed
        free = q > bound + 1e-12
        if free.any():
            c = (q / p)[free]
            torch.testing.assert_close(c, c[:1].expand_as(c), rtol=1e-10, atol=0)
            assert (bound >= c[0] * p - 1e-12)[None][~free].all(), seed


@PATHS
def test_exactly_zero_inside_the_set(compute: Any) -> None:
    z = torch.randn(50, 8, dtype=torch.float64)
    loss, grad = compute(z, z.softmax(1), 0.1, "none")
    assert loss.eq(0).all()
    assert grad.eq(0).all()
    sets = z > z.median(1, keepdim=True).values
    loss, grad = compute(20 * z, sets, 0.1, "none")
    inside = (20 * z).softmax(1).where(sets, 0.0).sum(1) >= 0.9
    assert inside.any()
    assert loss[inside].eq(0).all()
    assert grad[inside].eq(0).all()
    assert compute(z, torch.ones(50, 8, dtype=torch.bool))[0] == 0  # anything may be right


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n_classes", [2, 10, 32, 33, 300])
@pytest.mark.parametrize("from_logits", [True, False])
def test_one_class_per_row_equals_class_targets(
    dtype: torch.dtype, n_classes: int, from_logits: bool
) -> None:
    z = 2 * torch.randn(40, n_classes)
    z = (z if from_logits else z.softmax(1)).to(dtype)
    y = torch.randint(n_classes, (40,))
    weight = torch.rand(n_classes)
    mixed = F.one_hot(y, n_classes).to(torch.float32)
    mixed[::3] = 1 / n_classes  # beside rows that are none
    for reduction in ("none", "mean"):
        options = {"reduction": reduction, "weight": weight, "from_logits": from_logits}
        loss, grad = value_and_grad(z, y, 0.1, **options)
        for target in (F.one_hot(y, n_classes).to(dtype), F.one_hot(y, n_classes).bool()):
            same_loss, same_grad = value_and_grad(z, target, 0.1, **options)
            assert same_loss.equal(loss)
            assert same_grad.equal(grad)
    loss, grad = value_and_grad(z, y, 0.1, "none", from_logits=from_logits)
    some_loss, some_grad = value_and_grad(z, mixed, 0.1, "none", from_logits=from_logits)
    one = mixed.max(1).values == 1
    assert some_loss[one].equal(loss[one])
    assert some_grad[one].equal(grad[one])


def targets(kind: str, n_classes: int, generator: torch.Generator) -> Any:
    """The arguments after the logits, for rows of shape (4, 6), classes last."""
    y = torch.randint(n_classes, (2, 4, 6), generator=generator)
    if kind == "sets":
        return (torch.rand(4, 6, n_classes, generator=generator) < 0.4) | F.one_hot(y[0], n_classes).bool()
    if kind == "votes":
        return F.one_hot(torch.randint(n_classes, (4, 6, 3), generator=generator), n_classes).float().mean(-2)
    return torch.randn(4, 6, n_classes, generator=generator).softmax(-1)


@pytest.mark.parametrize("kind", ["sets", "votes", "dense"])
@option_cases(dim=[-1, 1, 0], weighted=[False, True], from_logits=[True, False], n_classes=[5, 40])
def test_options_against_the_formulas(
    kind: str, reduction: str, dim: int, weighted: bool, from_logits: bool, n_classes: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(4, 6, n_classes, generator=generator)
    target = targets(kind, n_classes, generator).movedim(-1, dim)
    weight = (torch.rand(n_classes, generator=generator) + 0.5) if weighted else None
    alphas: list[Any] = [0.0, 0.2, 0.5 * torch.rand(4, 6, generator=generator)]
    for dtype, alpha in product(DTYPES, alphas):
        input = (z if from_logits else z.softmax(-1)).to(dtype).movedim(-1, dim).contiguous()
        options: Any = {"dim": dim, "weight": weight, "from_logits": from_logits}
        loss, grad = value_and_grad(input, target, alpha, reduction, **options)
        true_loss, true_grad = by_formulas(input.double(), target, alpha, reduction, **options)
        assert loss.dtype == (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)
        assert (loss.shape, grad.dtype) == (true_loss.shape, dtype)
        double = dtype == torch.float64
        close = {"rtol": 1e-10, "atol": 1e-12} if double else {"rtol": 1e-5, "atol": 2e-6}

        def explain(message: str, case: str = f"{dtype}, alpha={alpha}") -> str:
            return f"{case}: {message}"

        torch.testing.assert_close(loss.double(), true_loss, msg=explain, **close)
        # p - q, by probabilities over p, is a difference: rounding is relative to its terms.
        terms = 1.0 if from_logits else 1 / input.double()
        budget = 3 * torch.finfo(dtype).eps * true_grad.abs() + (1e-13 if double else 5e-7) * terms
        budget = budget + 1e-7 * (dtype == torch.float16)
        same = grad == true_grad.to(dtype)  # 1 / p may be infinite in float16
        assert (same | ((grad.double() - true_grad).abs() <= budget)).all(), (dtype, alpha)


@PATHS
def test_alpha_per_row(compute: Any) -> None:
    z, y = torch.randn(5, 7, dtype=torch.float64), torch.randint(7, (5,))
    alpha = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9])
    loss, grad = compute(z, y, alpha, "none")
    for i in range(5):
        one_loss, one_grad = compute(z[i : i + 1], y[i : i + 1], alpha[i].item(), "none")
        torch.testing.assert_close(loss[i], one_loss[0], rtol=1e-14, atol=0)
        torch.testing.assert_close(grad[i], one_grad[0], rtol=1e-13, atol=1e-16)
    assert compute(z, y, torch.tensor(0.25))[0] == compute(z, y, 0.25)[0]  # a scalar


def test_alpha_of_a_module() -> None:
    module = LabelRelaxationLoss(torch.full((5,), 0.1))
    assert module.double().alpha.dtype == torch.float64  # type: ignore[union-attr]
    assert set(module.state_dict()) == {"alpha", "weight"} - ({"weight"} if module.weight is None else set())
    learnt = LabelRelaxationLoss(torch.nn.Parameter(torch.full((), 0.1)))
    learnt(torch.randn(5, 3), torch.arange(5) % 3).backward()
    (alpha,) = learnt.parameters()
    assert alpha.grad is not None
    assert alpha.grad < 0
    assert repr(module) == "LabelRelaxationLoss(alpha=tensor of shape (5,), reduction='mean')"
    for wrong, error in ((torch.tensor([0.1, 1.0]), ValueError), (torch.tensor([0]), TypeError)):
        with pytest.raises(error, match="`alpha`"):
            LabelRelaxationLoss(wrong)


@pytest.mark.parametrize("kind", ["classes", "sets", "dense"])
def test_gradient_of_alpha(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    target = targets(kind, 5, generator)
    target = target.argmax(-1) if kind == "classes" else target
    alpha = (0.1 + 0.2 * torch.rand(4, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda x, a: label_relaxation_loss(x, target, a, dim=-1), (z.requires_grad_(), alpha))
    loss = label_relaxation_loss(z, target, alpha, "sum", dim=-1)
    (slope,) = torch.autograd.grad(loss, alpha)
    assert (slope <= 1e-12).all()  # a larger set is not farther
    if kind == "classes":  # the envelope theorem: only what the set itself changes counts
        p = z.softmax(-1).gather(-1, target[..., None])[..., 0]
        expected = (alpha / (1 - p)).log() - ((1 - alpha) / p).log()
        torch.testing.assert_close(slope, expected.where(p < 1 - alpha, 0.0))


@pytest.mark.parametrize("kind", ["sets", "votes", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_gradients_of_gradients(kind: str, reduction: str, from_logits: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    z = (z if from_logits else z.softmax(-1)).requires_grad_()
    target = targets(kind, 3, generator).double() if kind != "sets" else targets(kind, 3, generator)

    def compute(x: Tensor) -> Tensor:
        return label_relaxation_loss(x, target, 0.2, reduction, dim=-1, from_logits=from_logits)

    assert gradcheck(compute, z)
    assert gradgradcheck(compute, z)


def test_tracing() -> None:
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    for kind in ("sets", "dense"):
        target = targets(kind, 5, generator)

        def compute(x: Tensor) -> Tensor:
            return label_relaxation_loss(x, target, 0.2, dim=-1)

        _, grad = value_and_grad(z, target, 0.2, dim=-1)
        compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(z), compute(z))
        torch.testing.assert_close(torch.func.grad(compute)(z), grad)
        tangent = torch.randn_like(z)
        torch.testing.assert_close(torch.func.jvp(compute, (z,), (tangent,))[1], (grad * tangent).sum())
        torch.testing.assert_close(
            torch.func.vmap(compute)(torch.stack([z, 2 * z])), torch.stack([compute(z), compute(2 * z)])
        )
        exported = torch.export.export(LabelRelaxationLoss(0.2, dim=-1), (z, target)).module()
        torch.testing.assert_close(exported(z, target), compute(z))


BAD_ROWS = {
    "sums to 2": [0.0, 1.0, 1.0],
    "negative": [1.2, -0.2, 0.0],
    "nan": [math.nan, 0.5, 0.5],
    "infinite": [math.inf, 0.0, 0.0],
    "all zero": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rejects_invalid_distributions(row: list[float], reduction: str) -> None:
    target = torch.full((2000, 3), 1 / 3)
    target[1234] = torch.tensor(row)
    target[1900] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"`target` to hold distributions.* row 1234 (sums to|holds) "):
        label_relaxation_loss(torch.randn(2000, 3), target, 0.1, reduction)


@pytest.mark.parametrize(
    ("row", "got"),
    [
        ([0.5, 0.5, 0.0051], "sums to 1.0051"),
        ([0.494, 0.5, 0.0], "sums to 0.994"),
        ([-2e-6, 0.5, 0.5], "holds -0.000002"),
    ],
    ids=str,
)
def test_the_message_says_what_a_row_is(row: list[float], got: str) -> None:
    with pytest.raises(ValueError, match=rf"row 1 {got}\.$"):
        label_relaxation_loss(torch.zeros(2, 3), torch.tensor([[0.5, 0.5, 0.0], row]))
    target = torch.tensor(row).expand(1, 4, 3)
    with pytest.raises(ValueError, match=rf"row 0 {got} in dimension 2; pass `dim` if"):
        label_relaxation_loss(torch.zeros(1, 4, 3), target, dim=-1)


@PATHS
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_soft_targets_of_a_teacher_in_half_precision(compute: Any, alpha: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    z, teacher = 3 * torch.randn(2, 500, 30, generator=generator, dtype=torch.float64)
    target = teacher.to(dtype).softmax(1).double()
    error = (target.sum(1) - 1).abs().max()
    assert 1e-4 < error < 5e-3
    true = compute(z, target / target.sum(1, keepdim=True), alpha, "none")
    torch.testing.assert_close(compute(z, target, alpha, "none"), true, rtol=1e-12, atol=1e-14)


@PATHS
def test_errors_of_rounding_are_clipped(compute: Any) -> None:
    z = torch.randn(3, 40, dtype=torch.float64)
    exact = torch.zeros(3, 40, dtype=torch.float64)
    exact[0, 1], exact[1, 2], exact[2, 20:30] = 1.0, 1.0, 0.1
    target = exact.clone()
    target[0, 1], target[1, 39], target[2, 0] = 1.0000000000000002, -1e-17, -9e-7
    true = compute(z, exact, 0.1, "none")
    torch.testing.assert_close(compute(z, target, 0.1, "none"), true, rtol=1e-13, atol=1e-15)


def test_rejects_empty_sets() -> None:
    target = torch.ones(6, 3, dtype=torch.bool)
    target[4] = False
    with pytest.raises(ValueError, match=r"`target` to hold sets of at least one class, but row 4 does not"):
        label_relaxation_loss(torch.randn(6, 3), target)


@pytest.mark.parametrize("n_classes", [4, 50])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@PATHS
def test_bad_logits_affect_one_row(compute: Any, n_classes: int, bad: float) -> None:
    z = torch.randn(5, n_classes)
    z[1, 0], z[3, n_classes - 1] = bad, bad
    uniform = torch.full((5, n_classes), 1 / n_classes)
    halves = torch.arange(n_classes).expand(5, -1) % 2 == 0
    for target in (uniform, halves):
        loss, grad = compute(z, target, 0.01, "none")
        assert loss.isnan().tolist() == [False, True, False, True, False]
        assert grad.isnan().any(1).tolist() == [False, True, False, True, False]


@PATHS
def test_nearly_impossible_sets(compute: Any) -> None:
    z = torch.zeros(1, 20)
    z[0, :3] = -500.0  # far below what an exponential in single precision can hold
    sets = torch.arange(20)[None] < 3
    loss, grad = compute(z, sets)
    expected = 0.9 * (math.log(0.9) + 500 + math.log(17 / 3)) + 0.1 * math.log(0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(grad[0, :3], torch.full((3,), -0.3))


# What holds for all inputs.

rows = st.integers(2, 30).flatmap(
    lambda c: st.tuples(
        st.lists(st.floats(-20, 20), min_size=c, max_size=c),
        st.lists(st.integers(0, 9), min_size=c, max_size=c),
    )
)
alphas = st.floats(0, 0.9)


@given(rows, alphas)
def test_gradient_sum_and_permutations(row: tuple[list[float], list[int]], alpha: float) -> None:
    z, votes = torch.tensor([row[0]], dtype=torch.float64), torch.tensor([row[1]], dtype=torch.float64)
    votes[0, 0] += 1
    for target in (votes / votes.sum(), votes > 4, votes > 0):
        if target.dtype == torch.bool and not target.any():
            continue
        loss, grad = value_and_grad(z, target, alpha)
        assert grad.sum().abs() <= 1e-13
        assert loss >= 0
        assert (loss == 0) == grad.eq(0).all() or loss < 1e-14
        flipped_loss, flipped_grad = value_and_grad(z.flip(1), target.flip(1), alpha)
        torch.testing.assert_close(flipped_loss, loss, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(flipped_grad.flip(1), grad, rtol=1e-9, atol=1e-13)
        formulas = by_formulas(z, target, alpha)
        torch.testing.assert_close((loss, grad), formulas, rtol=1e-9, atol=1e-12)


@given(rows, alphas, st.integers(0, 2**32 - 1))
def test_no_member_is_closer(row: tuple[list[float], list[int]], alpha: float, seed: int) -> None:
    """The paper's Proposition 1."""
    z, votes = torch.tensor([row[0]], dtype=torch.float64), torch.tensor([row[1]], dtype=torch.float64)
    votes[0, 0] += 1
    t = votes / votes.sum()
    loss, _ = value_and_grad(z, t, alpha)
    generator = torch.Generator().manual_seed(seed)
    members = torch.randn(20, z.shape[1], generator=generator, dtype=torch.float64).softmax(1)
    members = (1 - alpha) * t + alpha * members
    divergence = (torch.special.xlogy(members, members) - members * z.log_softmax(1)).sum(1)
    assert (divergence >= loss - 1e-12 * (1 + loss)).all()


@given(rows, st.floats(0.01, 0.9), st.floats(0, 1))
def test_convexity(row: tuple[list[float], list[int]], alpha: float, between: float) -> None:
    """The paper's Proposition 3."""
    a = torch.tensor([row[0]], dtype=torch.float64).clamp(-9, 9).softmax(1)
    b = a.flip(1)
    votes = torch.tensor([row[1]], dtype=torch.float64)
    votes[0, 0] += 1
    for target in (votes / votes.sum(), votes > 0, torch.tensor([0])):
        loss = [
            label_relaxation_loss(p, target, alpha, from_logits=False).item()
            for p in (a, b, between * a + (1 - between) * b)
        ]
        assert loss[2] <= between * loss[0] + (1 - between) * loss[1] + 1e-11


@given(rows)
def test_alpha_zero_is_kl_divergence(
    row: tuple[list[float], list[int]],
) -> None:
    z, votes = torch.tensor([row[0]], dtype=torch.float64), torch.tensor([row[1]], dtype=torch.float64)
    votes[0, 0] += 1
    t = votes / votes.sum()
    expected = F.cross_entropy(z, t) + torch.special.xlogy(t, t).sum()
    for alpha, tolerance in ((0.0, 1e-11), (1e-12, 1e-9)):
        torch.testing.assert_close(label_relaxation_loss(z, t, alpha), expected, rtol=tolerance, atol=1e-10)


# Kernel and formulas agree on impossible classes and invalid rows.


def of_both(z: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    kernel = value_and_grad(z, target, 0.1, "none", **options)
    torch.testing.assert_close(by_formulas(z, target, 0.1, "none", **options), kernel, equal_nan=True)
    return kernel


@pytest.mark.parametrize("n_classes", [4, 40])
def test_impossible_target_classes(n_classes: int) -> None:
    z = torch.randn(1, n_classes, dtype=torch.float64)
    z[0, :2] = -math.inf
    both = torch.arange(n_classes)[None] < 2
    p = z.softmax(1)
    for target, share in ((both, 0.45), (both / 2.0, 0.45), (torch.tensor([1]), 0.9)):
        loss, grad = of_both(z, target)
        assert loss == math.inf
        q = credal_projection(z, target)
        torch.testing.assert_close(grad, p - q)
        assert q[0, 1].item() == pytest.approx(share)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("target", [[1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0]])
def test_probabilities_of_zero(target: list[float], zero: float) -> None:
    p = torch.tensor([[0.2, 0.5, zero, 0.3]], dtype=torch.float64)
    t = torch.tensor([target], dtype=torch.float64)
    _, grad = of_both(p, t, from_logits=False)
    if target[2]:
        assert grad[0, 2] == -math.inf
    if 1.0 in target:
        torch.testing.assert_close(grad, of_both(p, t.argmax(1), from_logits=False)[1])


@pytest.mark.parametrize("alpha", [0.1, 0.0, 1e-300, 5e-324])
@pytest.mark.parametrize(
    ("dtype", "exponents", "rtol"),
    [(torch.float64, [-1074, -1030, -80, 1000], 1e-13), (torch.float32, [-149, -80, 80, 114], 1e-5)],
    ids=str,
)
@pytest.mark.parametrize("n_classes", [3, 1000])
def test_probabilities_of_any_scale(
    n_classes: int, dtype: torch.dtype, exponents: list[int], rtol: float, alpha: float
) -> None:
    """Numbers that need not sum to 1 are divided by their sum, however far it is from 1."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randint(1, 9, (1, n_classes), generator=generator).double()
    t = torch.rand(1, n_classes, generator=generator, dtype=torch.float64) ** 4
    t[0, 0] = 0.0
    t /= t.sum()
    expected, slope = value_and_grad(p / p.sum(), t, alpha, "none", from_logits=False)
    for exponent in exponents:
        scaled = (p * 2.0**exponent).to(dtype)  # exactly, even where that is subnormal
        loss, grad = value_and_grad(scaled, t.to(dtype), alpha, "none", from_logits=False)
        torch.testing.assert_close(loss, expected.to(dtype), rtol=rtol, atol=0.0)
        if abs(exponent) == 80:  # elsewhere the slope may not be finite
            grad = grad.double() * 2.0**exponent * p.sum()
            torch.testing.assert_close(grad, slope, rtol=10 * rtol, atol=10 * rtol)


INVALID = {
    "nan": [math.nan, 0.0, 0.0, 1.0],
    "infinite": [math.inf, 0.0, 0.0, 1.0],
    "nothing possible": [-math.inf] * 4,
    "negative": [-0.5, 0.5, 0.5, 0.5],
    "all zero": [0.0] * 4,
}


@pytest.mark.parametrize("row", INVALID.values(), ids=INVALID)
def test_invalid_rows(row: list[float]) -> None:
    z = torch.tensor([row, [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    from_logits = row[0] not in (-0.5, 0.0)
    for target in (
        torch.tensor([0, 0]),
        torch.tensor([[True, True, False, False]] * 2),
        torch.tensor([[0.6, 0.2, 0.2, 0.0]] * 2),
    ):
        loss, grad = of_both(z, target, from_logits=from_logits)
        assert loss.isnan().tolist() == [True, False]
        assert grad.isnan().all(1).tolist() == [True, False]
        assert in_credal_set(z, target, 0.9, from_logits=from_logits).tolist()[0] is False
    loss, grad = of_both(z, torch.ones(2, 4, dtype=torch.bool), from_logits=from_logits)
    assert loss.eq(0).all()  # a set of all classes asks for nothing
    assert grad.eq(0).all()


def test_common_offset() -> None:
    z, sets = torch.tensor([[0.0, 1.0, 0.0, 2.0]]), torch.tensor([[True, False, False, False]])
    for compute in (value_and_grad, by_formulas):
        assert compute(z + 65536.0, sets)[0].equal(compute(z, sets)[0])


@pytest.mark.parametrize(
    ("target", "alpha", "error", "match"),
    [
        (torch.tensor([0, 7, 0]), 0.1, IndexError, r"`target`.*got 7 at row 1"),
        (torch.ones(3, 5), 0.1, ValueError, r"distributions.* row 0"),
        (torch.zeros(3, 5, dtype=torch.bool), 0.1, ValueError, r"at least one class.* row 0"),
        (torch.tensor([0, 1, 0]), 1.5, ValueError, r"`alpha`.*1\.5 at row 0"),
        (torch.tensor([0, 1, 0]), math.nan, ValueError, r"`alpha`"),
    ],
)
def test_rejects_values_when_alpha_requires_grad(
    target: Tensor, alpha: float, error: type[Exception], match: str
) -> None:
    alphas = torch.full((3,), alpha).requires_grad_()
    with pytest.raises(error, match=match):
        label_relaxation_loss(torch.randn(3, 5), target, alphas)
