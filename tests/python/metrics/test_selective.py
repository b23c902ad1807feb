"""Risk and coverage: the definition over all orders of ties, and invariances."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.metrics.selective import area_under_risk_coverage_curve, risk_coverage_curve

Array = np.ndarray[Any, Any]


def rows(c: Any) -> Array:
    """Predictions of class 0 with the confidence c, at least 1/2."""
    return np.stack([np.asarray(c, float), 1 - np.asarray(c, float)], 1)


def over_all_orders(c: list[float], wrong: list[int]) -> tuple[list[Fraction], Fraction]:
    """The risks and their mean, averaged over all orders of decreasing confidence."""
    n = len(c)
    orders = [
        o for o in itertools.permutations(range(n)) if all(c[a] >= c[b] for a, b in itertools.pairwise(o))
    ]
    risks = [
        sum(Fraction(sum(wrong[i] for i in o[:k]), k) for o in orders) / len(orders) for k in range(1, n + 1)
    ]
    return risks, sum(risks, Fraction()) / n


few = st.lists(st.tuples(st.sampled_from([0.5, 0.625, 0.75, 1.0]), st.integers(0, 1)), min_size=1, max_size=6)


@given(few)
def test_definition_with_ties(pairs: list[tuple[float, int]]) -> None:
    c, wrong = map(list, zip(*pairs, strict=True))
    risks, area = over_all_orders(c, wrong)
    curve = risk_coverage_curve(rows(c), np.array(wrong))
    assert curve.risk == pytest.approx(np.array([float(r) for r in risks]), rel=1e-15)
    assert curve.area == pytest.approx(float(area), rel=1e-15)
    assert curve.coverage == pytest.approx(np.arange(1, len(c) + 1) / len(c), rel=1e-15)
    assert curve.threshold.tolist() == sorted(c, reverse=True)


@given(st.lists(st.tuples(st.floats(0.5, 1), st.integers(0, 1)), min_size=1, max_size=50), st.randoms())
def test_row_order(pairs: list[tuple[float, int]], random: Any) -> None:
    c, wrong = map(np.array, zip(*pairs, strict=True))
    got = area_under_risk_coverage_curve(rows(c), wrong)
    shuffled = np.array(random.sample(range(len(c)), len(c)))
    assert area_under_risk_coverage_curve(rows(c)[shuffled], wrong[shuffled]) == got
    assert 0 <= got <= 1
    assert (got == 0) == (not wrong.any())


def test_definition_without_ties() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 400)
    y = rng.integers(0, 5, 400)
    wrong = (p.argmax(1) != y)[np.argsort(-p.max(1))]
    expected = np.mean([wrong[:i].mean() for i in range(1, 401)])
    assert area_under_risk_coverage_curve(p, y) == pytest.approx(expected, rel=1e-13)


def test_all_tied() -> None:
    y = np.repeat([0, 1], [70, 30])
    curve = risk_coverage_curve(rows(np.full(100, 0.8)), y)
    assert curve.risk == pytest.approx(np.full(100, 0.3), rel=1e-15)
    assert curve.area == pytest.approx(0.3, rel=1e-15)


def test_ranking() -> None:
    c, wrong = np.linspace(0.99, 0.51, 100), np.repeat([0, 1], [80, 20])  # errors last: optimal
    best = area_under_risk_coverage_curve(rows(c), wrong)
    worst = area_under_risk_coverage_curve(rows(c), wrong[::-1])
    any_order = area_under_risk_coverage_curve(rows(np.full(100, 0.8)), wrong)
    assert best == pytest.approx(sum(i / (80 + i) for i in range(1, 21)) / 100, rel=1e-13)
    assert best < any_order < worst
    assert area_under_risk_coverage_curve(rows(0.5 + (c - 0.5) ** 2), wrong) == best, "only ranks count"


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), st.integers(0, 1)),
        min_size=1,
    )
)
def test_binary_events(pairs: list[tuple[float, int]]) -> None:
    p, y = map(np.array, zip(*pairs, strict=True))
    two = np.stack([1 - p, p], 1)  # at 0.5, argmax takes class 0
    got, expected = risk_coverage_curve(p, y), risk_coverage_curve(two, y)
    assert got.area == expected.area
    assert got.risk.tolist() == expected.risk.tolist()
    assert got.threshold.tolist() == expected.threshold.tolist()


def test_binary_tie() -> None:
    assert area_under_risk_coverage_curve(np.array([0.5]), np.array([0])) == 0
    assert area_under_risk_coverage_curve(np.array([0.5]), np.array([1])) == 1


def test_kinds_of_input() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 50, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (4, 50), generator=generator)
    p = z.softmax(-1)
    got = area_under_risk_coverage_curve(p, y)
    assert (got.dtype, got.shape) == (torch.float64, ())
    array = area_under_risk_coverage_curve(p.numpy(), y.numpy())
    assert isinstance(array, np.float64)
    assert array == got.item()
    assert area_under_risk_coverage_curve(p.reshape(200, 3), y.reshape(200)) == got
    assert area_under_risk_coverage_curve(z, y, from_logits=True).item() == pytest.approx(array, rel=1e-12)
    assert area_under_risk_coverage_curve(p.clone().requires_grad_(), y) == got


def test_binary_logits() -> None:
    z, y = torch.tensor([-3.0, 2.0, 0.5, -0.1], dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    got = area_under_risk_coverage_curve(z, y, from_logits=True)
    assert got.item() == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4, rel=1e-15)


def test_ignored_rows() -> None:
    p, y = rows([0.9, 0.8, 0.7, 0.6]), np.array([0, 255, 1, 0])
    counts = y != 255
    assert area_under_risk_coverage_curve(p, y, ignore_index=255) == area_under_risk_coverage_curve(
        p[counts], y[counts]
    )
