"""Proper scores and accuracy against torch and exact arithmetic, and the decomposition of the Brier score."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from lr_relax.metrics import accuracy, brier_decomposition, brier_score, negative_log_likelihood

Array = np.ndarray[Any, Any]
Score = Callable[..., Any]
SCORES = [brier_score, negative_log_likelihood, accuracy]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def predictions(*shape: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Logits, targets of which half are the most probable classes, and weights."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=shape)
    y = np.where(rng.random(shape[:-1]) < 0.5, z.argmax(-1), rng.integers(shape[-1], size=shape[:-1]))
    return z, y, rng.gamma(1, size=shape[:-1])


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# The definitions, in exact fractions where possible.


def mean(values: Any, w: Any) -> float:
    w = [Fraction(x) for x in w]
    return float(sum(Fraction(v) * x for v, x in zip(values, w, strict=True)) / sum(w))


def definition(score: Score, p: Array, y: Array, w: Array | None = None) -> float:
    """The mean score in fractions; only the logarithms are rounded."""
    weights = np.ones(y.size) if w is None else w.reshape(-1)
    if p.shape == y.shape:
        p, y = p.reshape(-1).tolist(), y.reshape(-1).tolist()
        if score is brier_score:
            values = [(Fraction(x) - k) ** 2 for x, k in zip(p, y, strict=True)]
        elif score is accuracy:
            values = [int((x > 0.5) == k) for x, k in zip(p, y, strict=True)]
        else:
            values = [-(math.log(x) if k else math.log1p(-x)) for x, k in zip(p, y, strict=True)]
    else:
        p, y = p.reshape(-1, p.shape[-1]), y.reshape(-1).tolist()
        if score is brier_score:
            values = [
                sum((Fraction(x) - (j == k)) ** 2 for j, x in enumerate(row))
                for row, k in zip(p.tolist(), y, strict=True)
            ]
        elif score is accuracy:
            values = [int(row.argmax() == k) for row, k in zip(p, y, strict=True)]
        else:
            values = [-math.log(row[k]) for row, k in zip(p, y, strict=True)]
    return mean(values, weights.tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_definition(score: Score, dtype: torch.dtype) -> None:
    for shape in ((60, 3), (4, 5, 20), (1, 2), (30, 100)):
        z, y, w = predictions(*shape)
        p = torch.from_numpy(softmax(z)).to(dtype)
        if score is negative_log_likelihood:
            p = p.clamp(min=1e-5)
        target, weight = torch.from_numpy(y), torch.from_numpy(w)
        exact = p.double().numpy()
        got = score(p, target)
        assert (got.dtype, got.shape) == (torch.float64, ())
        assert got.item() == pytest.approx(definition(score, exact, y), rel=2e-15)
        weighted = score(p, target, sample_weight=weight)
        assert weighted.item() == pytest.approx(definition(score, exact, y, w), rel=2e-15)
        if dtype != torch.bfloat16:
            of_arrays = score(p.numpy(), y)
            assert type(of_arrays) is np.float64
            assert of_arrays == got.item()
            assert score(p.numpy()[::-1], y[::-1]) == got.item()
        layout = p.movedim(-1, 0).contiguous().movedim(0, -1)
        assert score(layout, target, sample_weight=weight).equal(weighted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_binary_events(score: Score, dtype: torch.dtype) -> None:
    for shape in ((200,), (10, 20), ()):
        rng = np.random.default_rng(3)
        p = torch.from_numpy(np.asarray(rng.uniform(0.01, 0.98, shape))).to(dtype)
        y = np.asarray(rng.integers(2, size=shape))
        w = np.asarray(rng.gamma(1, size=shape))
        exact = p.double().numpy()
        for target in (torch.from_numpy(y), torch.from_numpy(y).bool(), np.asarray(y == 1)):
            got = score(p, target, task="binary")
            assert got.item() == pytest.approx(definition(score, exact, y), rel=2e-15)
        got = score(p, torch.from_numpy(y), sample_weight=torch.from_numpy(w), task="binary")
        assert got.item() == pytest.approx(definition(score, exact, y, w), rel=2e-15)


def test_logits_match_torch() -> None:
    z, y, _ = predictions(400, 9)
    for dtype, budget in ((torch.float64, 1e-14), (torch.float32, 1e-7), (torch.bfloat16, 1e-7)):
        logits, target = torch.from_numpy(z).to(dtype), torch.from_numpy(y)
        p, one_hot = logits.double().softmax(1), F.one_hot(target, 9).double()
        expected = F.cross_entropy(logits.double(), target).item()
        got = negative_log_likelihood(logits, target, from_logits=True)
        assert got.item() == pytest.approx(expected, rel=budget)
        expected = (p - one_hot).square().sum(1).mean().item()
        assert brier_score(logits, target, from_logits=True).item() == pytest.approx(expected, rel=budget)
        expected = (logits.argmax(1) == target).double().mean().item()
        assert accuracy(logits, target, from_logits=True).item() == expected
        event = target == 1
        expected = F.binary_cross_entropy_with_logits(logits[:, 1].double(), event.double()).item()
        got = negative_log_likelihood(logits[:, 1], event, from_logits=True)
        assert got.item() == pytest.approx(expected, rel=budget)
        expected = (logits[:, 1].double().sigmoid() - event.double()).square().mean().item()
        got = brier_score(logits[:, 1], event, from_logits=True)
        assert got.item() == pytest.approx(expected, rel=budget)
        expected = ((logits[:, 1] > 0) == event).double().mean().item()
        assert accuracy(logits[:, 1], event, from_logits=True).item() == expected


# Predictions near 0 and 1.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_losses(dtype: Any) -> None:
    """Where 1 - p would round to 0."""
    one, two = np.array([0]), np.array([1])
    for z in (1.0, 17.0, 36.0, 37.0, 40.0):
        with mpmath.workdps(60):
            sure, unsure = (float(mpmath.log1p(mpmath.exp(x))) for x in (-z, z))
            three = float(mpmath.log1p(2 * mpmath.exp(-z)))
        for logits in (np.array([[z, 0]], dtype), np.array([[z + 5, 5]], dtype)):
            got = negative_log_likelihood(logits, one, from_logits=True)
            assert got == pytest.approx(sure, rel=1e-15 if dtype == np.float64 else 2e-7)
            got = negative_log_likelihood(logits, two, from_logits=True)
            assert got == pytest.approx(unsure, rel=1e-15)
        got = negative_log_likelihood(np.array([[z, 0, 0]], dtype), one, from_logits=True)
        assert got == pytest.approx(three, rel=1e-15 if dtype == np.float64 else 2e-7)
        event = np.array([z], dtype)
        for x, y in ((event, two), (-event, one)):
            assert negative_log_likelihood(x, y, from_logits=True) == pytest.approx(sure, rel=2e-15)
            assert negative_log_likelihood(-x, y, from_logits=True) == pytest.approx(unsure, rel=1e-15)
    mixed = np.array([[40.0, 0], [0, 0]], dtype)
    weights = np.array([1.0, 0.0])
    got = negative_log_likelihood(mixed, np.array([0, 0]), from_logits=True, sample_weight=weights)
    assert got == pytest.approx(
        float(mpmath.log1p(mpmath.exp(-40))), rel=1e-15 if dtype == np.float64 else 2e-7
    )


def test_smallest_losses() -> None:
    """Exact sums keep digits down to 2^-128."""
    for z in (60.0, 80.0):
        got = negative_log_likelihood(np.array([[z, 0.0]]), np.array([0]), from_logits=True)
        assert got == pytest.approx(math.exp(-z), rel=1e-15, abs=2.0**-128)
        assert got > 0


def test_small_probabilities() -> None:
    """-ln(1 - p) without rounding 1 - p."""
    for p in (1e-17, 1e-9, 0.1):
        got = negative_log_likelihood(np.array([p]), np.array([0]))
        assert got == pytest.approx(-math.log1p(-p), rel=1e-15)
    assert brier_score(np.array([1e-9]), np.array([0])) == pytest.approx(1e-18, rel=1e-15)
    got = brier_score(np.array([[20.0, 0]]), np.array([0]), from_logits=True)
    with mpmath.workdps(60):
        assert got == pytest.approx(float(2 / (1 + mpmath.exp(20)) ** 2), rel=1e-6)  # p is rounded to 2^-53


IMPOSSIBLE = [
    ([[1.0, 0.0], [0.5, 0.5]], [1, 0], False),
    ([[0.0, -math.inf], [0.0, 0.0]], [1, 0], True),
    ([1.0, 0.5], [0, 1], False),
    ([0.0, 0.5], [1, 1], False),
    ([-math.inf, 0.0], [1, 0], True),
    ([math.inf, 0.0], [0, 0], True),
]


@pytest.mark.parametrize(("preds", "target", "from_logits"), IMPOSSIBLE)
def test_infinite_losses(preds: Any, target: Any, from_logits: bool) -> None:
    preds, target = np.array(preds), np.array(target)
    options = {"from_logits": from_logits}
    assert negative_log_likelihood(preds, target, **options) == math.inf
    assert negative_log_likelihood(torch.from_numpy(preds), target, **options).item() == math.inf
    # The loss is not clipped, but the row may have weight 0.
    other = pytest.approx(math.log(2), rel=1e-15)
    weights = np.array([0.0, 1.0])
    assert negative_log_likelihood(preds, target, sample_weight=weights, **options) == other
    assert negative_log_likelihood(preds, target, sample_weight=weights + 1e-9, **options) == math.inf
    if target[0] != target[1]:
        assert negative_log_likelihood(preds, target, ignore_index=int(target[0]), **options) == other
    # The Brier score is at its maximum.
    first = brier_score(preds[:1], target[:1], **options)
    assert first == (1.0 if preds.ndim == 1 else 2.0)


def test_certain_and_correct() -> None:
    for preds, target in ((np.array([[0.0, 1.0, -0.0]]), np.array([1])), (np.array([1.0]), np.array([1]))):
        for score in (brier_score, negative_log_likelihood):
            got = score(preds, target)
            assert got == 0
            assert not np.signbit(got)
        assert accuracy(preds, target) == 1


# Accuracy.


def test_ties_predict_the_first_class() -> None:
    for n_classes in (3, 40):
        p = np.full((n_classes, n_classes), 1 / n_classes)
        assert accuracy(p, np.arange(n_classes)) == 1 / n_classes
        assert accuracy(p, np.zeros(n_classes, int)) == 1
        z = np.zeros((n_classes, n_classes))
        z[:, -2:] = 1.0
        assert accuracy(z, np.full(n_classes, n_classes - 2), from_logits=True) == 1
        assert accuracy(z, np.full(n_classes, n_classes - 1), from_logits=True) == 0


def test_binary_threshold() -> None:
    p = np.array([0.0, 0.5, math.nextafter(0.5, 1), 1.0])
    assert accuracy(p, np.array([0, 0, 1, 1])) == 1
    assert accuracy(p, np.array([1, 1, 0, 0])) == 0
    assert accuracy(np.array([-1.0, 0.0, 1.0]), np.array([0, 0, 1]), from_logits=True) == 1
    assert accuracy(p, np.array([0, 7, 1, 0]), ignore_index=7) == 2 / 3


# Properties.

rows = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2), st.floats(0, 4)), min_size=1, max_size=40
)


def arrays(rows: list[tuple[float, float, int, float]]) -> tuple[Array, Array, Array]:
    a, b, y, w = (np.array(column) for column in zip(*rows, strict=True))
    return np.stack([a, (1 - a) * b, (1 - a) * (1 - b)], 1), y, w


@given(rows, st.integers(0, 2**32 - 1))
def test_row_order_and_integer_weights(rows: Any, seed: int) -> None:
    p, y, _ = arrays(rows)
    rng = np.random.default_rng(seed)
    w, order = rng.integers(0, 4, len(y)), rng.permutation(len(y))
    for score in SCORES:
        for preds, target in ((p, y), (p[:, 0], y % 2)):
            unweighted = score(preds, target)
            assert score(preds[order], target[order]) == unweighted
            assert score(preds, target, sample_weight=np.ones(len(y))) == unweighted
            if w.any():
                weighted = score(preds, target, sample_weight=w)
                assert score(preds[order], target[order], sample_weight=w[order]) == weighted
                repeated = score(preds.repeat(w, 0), target.repeat(w))
                assert weighted == pytest.approx(repeated, rel=1e-15)


@given(rows, st.sampled_from([-100, 3, 255]))
def test_ignored_rows(rows: Any, ignore_index: int) -> None:
    p, y, w = arrays(rows)
    assume(w.sum() > 1e-9)
    p_more = np.insert(p, np.repeat(len(y) // 2, 2), [[np.nan, 0, 1], [3, 3, 3]], 0)
    y_more, w_more = (np.insert(x, np.repeat(len(y) // 2, 2), v) for x, v in ((y, ignore_index), (w, 2)))
    for score in SCORES:
        assert score(p_more, y_more, ignore_index=ignore_index) == score(p, y)
        got = score(p_more, y_more, ignore_index=ignore_index, sample_weight=w_more)
        assert got == score(p, y, sample_weight=w)
        if (y != 1).any():
            assert score(p, y, ignore_index=1) == score(p[y != 1], y[y != 1])


def test_sums_are_exact() -> None:
    """A loss of about 1e9 and a million of about 1e-18, which a sum in doubles would lose."""
    z = np.zeros((1_000_001, 2))
    z[:, 0] = 41.0
    z[0] = [-1e9, 0]
    got = negative_log_likelihood(z, np.zeros(len(z), int), from_logits=True)
    with mpmath.workdps(60):
        exact = (10**9 + 10**6 * mpmath.log1p(mpmath.exp(-41))) / 1_000_001
        assert got == float(exact)


def test_threads() -> None:
    z, y, w = (torch.from_numpy(x) for x in predictions(20_000, 10))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            of_scores = [score(z, y, from_logits=True, sample_weight=w).item() for score in SCORES]
            results.append((of_scores, brier_decomposition(z, y, from_logits=True, sample_weight=w)))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


# Murphy's decomposition.


def terms(p: Array, y: Array, w: Array, bins: Array) -> tuple[float, float, float]:
    """Reliability, resolution and uncertainty of an event, in fractions."""
    c, correct, w = ([Fraction(x) for x in column] for column in (p.tolist(), y.tolist(), w.tolist()))
    total = sum(w)
    base = sum(x * k for x, k in zip(w, correct, strict=True)) / total
    reliability = resolution = Fraction(0)
    for b in np.unique(bins):
        inside = np.flatnonzero(bins == b)
        mass = sum(w[i] for i in inside)
        if mass:
            confidence, observed = (sum(w[i] * x[i] for i in inside) / mass for x in (c, correct))
            reliability += mass / total * (confidence - observed) ** 2
            resolution += mass / total * (observed - base) ** 2
    return float(reliability), float(resolution), float(base * (1 - base))


def uniform_bins(c: Array, n: int) -> Array:
    return np.clip(np.searchsorted(np.arange(n + 1) / n, c, side="right") - 1, 0, n - 1)


@pytest.mark.parametrize("weighted", [False, True])
def test_decomposition(weighted: bool) -> None:
    z, y, w = predictions(150, 4)
    y[y == 2] = 3  # a class without targets
    p = softmax(z)
    w = w if weighted else np.ones(150)
    got = brier_decomposition(p, y, n_bins=7, sample_weight=w if weighted else None)
    of_classes = [terms(p[:, k], y == k, w, uniform_bins(p[:, k], 7)) for k in range(4)]
    expected = [math.fsum(part) for part in zip(*of_classes, strict=True)]
    assert got.brier_score == brier_score(p, y, sample_weight=w)
    assert [got.reliability, got.resolution, got.uncertainty] == pytest.approx(expected, abs=1e-15)
    assert 1e-4 < abs(got.within_bins) < 0.1
    event = brier_decomposition(p[:, 0].copy(), (y == 0).astype(int), n_bins=7, sample_weight=w)
    assert [event.reliability, event.resolution, event.uncertainty] == pytest.approx(of_classes[0], abs=1e-15)
    assert event.brier_score == brier_score(p[:, 0], (y == 0).astype(int), sample_weight=w)


@given(rows, st.integers(1, 20), st.sampled_from(["uniform", "quantile", "paper"]))
def test_decomposition_sums_up(rows: Any, n_bins: int, binning: str) -> None:
    p, y, w = arrays(rows)
    weights = [None, w] if w.sum() > 1e-9 else [None]
    for weight in weights:
        for preds, target in ((p, y), (p[:, 0], y % 2)):
            d = brier_decomposition(preds, target, n_bins=n_bins, binning=binning, sample_weight=weight)
            parts = d.reliability - d.resolution + d.uncertainty + d.within_bins
            assert parts == pytest.approx(d.brier_score, abs=1e-12)
            assert min(d.reliability, d.resolution, d.uncertainty) >= 0
            assert d.resolution <= d.uncertainty + 1e-15
            assert d.brier_score == brier_score(preds, target, sample_weight=weight)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(1, 4)), min_size=1, max_size=60))
def test_decomposition_of_equal_forecasts(rows: Any) -> None:
    k, y, w = (np.array(column) for column in zip(*rows, strict=True))
    c = (k + 0.5) / 10
    for weight in (None, w):
        event = brier_decomposition(c, y, n_bins=10, sample_weight=weight)
        assert abs(event.within_bins) < 1e-15
        classes = brier_decomposition(np.stack([1 - c, c], 1), y, n_bins=10, sample_weight=weight)
        assert abs(classes.within_bins) < 2e-15
        assert classes.brier_score == pytest.approx(2 * event.brier_score, rel=1e-14)
        assert classes.resolution == pytest.approx(2 * event.resolution, abs=1e-15)
        assert classes.uncertainty == pytest.approx(2 * event.uncertainty, abs=1e-15)


def test_decomposition_of_known_forecasts() -> None:
    y = np.repeat([0, 1], [30, 70])
    base = brier_decomposition(np.full(100, 0.7), y)  # the base rate: calibrated, without resolution
    assert [base.reliability, base.resolution] == pytest.approx([0, 0], abs=1e-15)
    assert base.uncertainty == pytest.approx(0.21, abs=1e-15)
    assert base.brier_score == pytest.approx(0.21, abs=1e-15)
    oracle = brier_decomposition(y.astype(float), y)
    assert (oracle.brier_score, oracle.reliability) == (0, 0)
    assert oracle.resolution == pytest.approx(oracle.uncertainty, abs=1e-15)
    wrong = brier_decomposition(1.0 - y, y)
    assert (wrong.brier_score, wrong.reliability) == (1, 1)
    logits = np.log(np.array([[0.3, 0.7]] * 100))
    of_logits = brier_decomposition(logits, np.where(y == 0, 0, 1), from_logits=True, ignore_index=-1)
    assert of_logits.uncertainty == pytest.approx(0.42, abs=1e-15)
    ignored = brier_decomposition(np.full(101, 0.7), np.append(y, 9), ignore_index=9)
    assert ignored == base


# Invalid options.

P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
Y = np.array([0, 1, 1])


@pytest.mark.parametrize("options", [{"n_bins": 0}, {"n_bins": True}, {"n_bins": 1.5}, {"binning": "mass"}])
def test_rejects_bins(options: Any) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        brier_decomposition(P, Y, **options)
