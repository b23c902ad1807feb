"""The smooth and the soft-binned calibration error: their definitions and properties."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import relplot
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from lr_relax.metrics import smooth as module
from lr_relax.metrics.smooth import smooth_calibration_error
from lr_relax.metrics.soft import soft_calibration_error
from scipy.optimize import brentq

Array = np.ndarray[Any, Any]


def smooth(c: Any, correct: Any, bandwidth: float | None = None) -> tuple[float, float]:
    """The error and the bandwidth for the probabilities c of binary events."""
    error, width = smooth_calibration_error(
        np.array(c, np.float64), np.array(correct, np.int64), bandwidth=bandwidth, return_bandwidth=True
    )
    assert isinstance(error, np.float64)
    assert type(width) is float
    return float(error), width


X, W = np.polynomial.legendre.leggauss(10)


def quadrature(c: Any, correct: Any, bandwidth: float) -> float:
    """The definition: reflected Gaussians at each confidence, integrated piecewise between zeros."""
    c, correct = np.asarray(c, float), np.asarray(correct, float)
    reach = math.ceil(5 * bandwidth)  # omitted images are ten bandwidths away
    periods = 2 * np.arange(-reach, reach + 1)[:, None]
    images = np.concatenate([periods + c, periods - c])

    def r(t: Array) -> Array:
        density = np.exp(-(((t[:, None, None] - images) / bandwidth) ** 2) / 2).sum(1)
        total: Array = density @ (correct - c) / (len(c) * bandwidth * math.sqrt(2 * math.pi))
        return total

    t = np.linspace(0, 1, math.ceil(max(50, 16 / bandwidth)) + 1)
    at = r(t)
    # Around a single point, the sum is rounded in another way; so a sign that is rounding noise may differ.
    signs = [np.sign(r(t[i : i + 1])[0]) for i in range(len(t))]
    zeros = [
        brentq(lambda x: r(np.array([x]))[0], t[i], t[i + 1], xtol=1e-15)
        for i in np.flatnonzero(at[1:] * at[:-1] < 0)
        if signs[i] * signs[i + 1] < 0
    ]
    t = np.sort(np.concatenate([t, zeros]))
    half = np.diff(t) / 2
    nodes = t[:-1, None] + half[:, None] * (1 + X)
    return math.fsum(abs(half * (r(nodes.ravel()).reshape(nodes.shape) @ W)))


def mean_residual(c: Any, correct: Any) -> float:
    return float(np.abs(np.asarray(correct, float) - np.asarray(c)).mean())


PAIRS = st.lists(
    st.tuples(st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60)
@given(PAIRS, st.floats(-2.6, 1).map(lambda x: 10**x))
@example([(1.0, True), (1.0, False), (0.0, True), (0.0, False)], 0.01)
@example([(0.3, True)], 3.0)
@example([(0.5, False), (0.5 + 1e-4, True)], 0.005)
def test_definition(pairs: list[tuple[float, bool]], bandwidth: float) -> None:
    c, correct = zip(*pairs, strict=True)
    got, width = smooth(c, correct, bandwidth)
    assert width == bandwidth
    assert got == pytest.approx(
        quadrature(c, correct, bandwidth), abs=1e-10 * mean_residual(c, correct) + 1e-15
    )


@pytest.mark.parametrize("bandwidth", [0.25, 0.02, 2.0**-9, 0.0015])
def test_definition_of_many_rows(bandwidth: float) -> None:
    rs = np.random.RandomState(0)
    c = rs.beta(2, 1, 40)
    correct = rs.rand(40) < c
    assert smooth(c, correct, bandwidth)[0] == pytest.approx(quadrature(c, correct, bandwidth), rel=2e-10)


def test_two_rows() -> None:
    """A correct prediction at 1/2 - d and a wrong one at 1/2 + d, also with tiny bandwidths."""
    with mpmath.workdps(30):
        for d, bandwidth in (
            (0.01, 0.02),
            (0.01, 0.05),
            (2.0**-17, 2e-6),
            (2.0**-30, 3e-9),
            (2.0**-40, 2e-12),
        ):
            distance = mpmath.mpf(0.5 + d) - mpmath.mpf(0.5 - d)
            exact = mpmath.mpf(0.5 + d) * mpmath.erf(distance / 2 / bandwidth / mpmath.sqrt(2))
            assert smooth([0.5 - d, 0.5 + d], [1, 0], bandwidth)[0] == pytest.approx(float(exact), rel=1e-10)


@settings(max_examples=30)
@given(st.floats(-11, -1).map(lambda x: 10**x))
def test_fixed_point_of_two_rows(d: float) -> None:
    low, high = 0.5 - d, 0.5 + d
    got, width = smooth([low, high], [1, 0])
    with mpmath.workdps(30):
        half, share = (mpmath.mpf(high) - low) / 2, (1 - mpmath.mpf(low) + high) / 2
        assume(width < 0.05)  # the closed form neglects the ends of [0, 1]
        exact = mpmath.findroot(lambda s: share * mpmath.erf(half / s / mpmath.sqrt(2)) - s, width)
    assert got == pytest.approx(float(exact), abs=1e-10 * mean_residual([low, high], [1, 0]))
    assert width == pytest.approx(got, rel=1e-12)


@settings(max_examples=40)
@given(PAIRS)
@example([(1.0, True)] * 9)
@example([(0.0, False), (1.0, True)])
@example([(0.0, True), (1.0, False)])
@example([(0.9, True)] * 9 + [(0.9, False)])
@example([(1 - 1e-9, True)] * 9 + [(1e-9, False)] * 9)
@example([(1 - 1e-7, True)] * 20 + [(1 - 2e-7, False)])
@example([(0.5, True), (0.5, False), (0.25, False)])
@example([(1e-300, False), (1 - 2**-53, True)])
def test_properties(pairs: list[tuple[float, bool]]) -> None:
    c, correct = map(np.array, zip(*pairs, strict=True))
    error, width = smooth(c, correct)
    gaps = {x: (correct[c == x] - x).sum() / len(c) for x in c}
    unsmoothed = float(sum(map(abs, gaps.values())))
    assert 0 <= error <= 1
    assert (
        abs(float((correct - c).mean())) - 1e-12
        <= error
        <= unsmoothed + 1e-12 * mean_residual(c, correct) + 1e-15
    )
    # The fixed point; a wider kernel gives a smaller error.
    assert width == pytest.approx(error, rel=1e-9, abs=1e-15)
    if error > 1e-12:
        slack = 2e-10 * mean_residual(c, correct)
        assert smooth(c, correct, width)[0] == pytest.approx(error, abs=slack)
        assert smooth(c, correct, 2 * width)[0] <= error + slack
        assert smooth(c, correct, width / 2)[0] >= error - slack
    # Invariances: the order of the rows, copies of them, and swapped classes.
    order = np.random.RandomState(len(pairs)).permutation(len(c))
    assert smooth(c[order], correct[order]) == (error, width)
    assert smooth(c.repeat(3), correct.repeat(3))[0] == pytest.approx(error, rel=1e-9, abs=1e-14)
    assert smooth(1 - c, ~correct)[0] == pytest.approx(error, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(
    ("c", "correct"),
    [
        ([1.0] * 5, [1] * 5),
        ([0.0], [0]),
        ([0.0, 1.0, 1.0], [0, 1, 1]),
        ([0.1] * 10, [1] + [0] * 9),
        ([0.3] * 10 + [0.7] * 10, [1] * 3 + [0] * 7 + [1] * 7 + [0] * 3),
        ([0.5, 0.25, 0.5, 0.25, 0.25, 0.25], [1, 1, 0, 0, 0, 0]),
    ],
)
def test_calibrated_is_zero(c: list[float], correct: list[int]) -> None:
    assert smooth(c, correct) == (0.0, 0.0)


def test_all_correct_or_all_wrong() -> None:
    """The error is the mean distance of the confidences from 1, at any bandwidth."""
    for gap in (0.7, 1e-3, 1e-9, 2.0**-53):
        c = 1 - gap * np.linspace(0.25, 1, 30)
        assert smooth(c, np.ones(30))[0] == pytest.approx((1 - c).mean(), rel=1e-14)
        assert smooth(c, np.ones(30), gap / 100)[0] == pytest.approx((1 - c).mean(), rel=1e-14)
        assert smooth(1 - c, np.zeros(30))[0] == pytest.approx((1 - c).mean(), rel=1e-14)
    assert smooth(c * 0 + 0.75, np.ones(30))[0] - smooth(c * 0 + 0.875, np.ones(30))[0] == 0.125


def test_reflection_at_the_ends() -> None:
    """At 0 and 1, half of the kernel is reflected; relplot drops that half."""
    c, correct = np.repeat([0.5, 1.0], 100), np.tile([0, 1], 100)
    assert smooth(c, correct)[0] == pytest.approx(0.25, rel=1e-12)
    assert smooth(1 - c, correct)[0] == pytest.approx(0.25, rel=1e-12)
    assert relplot.smECE(c, correct.astype(float)) == pytest.approx(0.25 * 2 / 3, abs=2e-3)


@pytest.mark.parametrize("n", [100, 3000])
@pytest.mark.parametrize("power", [1.0, 1.5, 0.5])
def test_matches_relplot(n: int, power: float) -> None:
    rs = np.random.RandomState(n)
    c = 0.2 + 0.6 * rs.beta(2, 1, n)
    y = (rs.rand(n) < c**power).astype(float)
    for bandwidth in (0.1, 0.05, 0.02):
        error = relplot.smECE_sigma(c, y, bandwidth)
        assert smooth(c, y, bandwidth)[0] == pytest.approx(error, rel=1e-3)
    _, width = relplot.smECE(c, y, return_width=True)  # ten bisections
    assert smooth(c, y)[1] == pytest.approx(width, abs=2**-10)


def test_consistency() -> None:
    """The error decreases with the cube root of the rows, or converges to the bias of the model."""
    rs = np.random.RandomState(0)
    errors = []
    for n in (1000, 27_000, 729_000):
        c = rs.rand(n)
        errors.append(smooth(c, rs.rand(n) < c)[0])
        assert smooth(c, rs.rand(n) < c / 2)[0] == pytest.approx(0.25, abs=2 / math.sqrt(n))
    assert errors[0] < 0.06
    assert 2 < errors[0] / errors[1] < 4.5
    assert 2 < errors[1] / errors[2] < 4.5


def test_gaps_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened gaps, dropped clusters and several transforms do not change the error."""
    rs = np.random.RandomState(1)
    clusters = [rs.rand(50), 1 - 1e-4 * rs.rand(50), 1e-5 * rs.rand(50), rs.rand(9).repeat(3)]
    c = np.concatenate(clusters)
    correct = rs.rand(len(c)) < c
    # The sign of the residuals changes near an end.
    ends = [
        (x, h, smooth(x, h, 0.1)[0])
        for x, h in (([0.05] * 20 + [0.2], [0] * 20 + [1]), ([0.95] * 20 + [0.8], [1] * 20 + [0]))
    ]
    errors = {
        bandwidth: smooth(c, correct, bandwidth)[0] for bandwidth in (0.3, 0.02, 2e-3, 1.9e-3, 1e-4, 1e-6)
    }
    monkeypatch.setattr(module, "_CHUNK", 7)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_WIDE", math.inf)  # always shortens gaps
        for x, h, error in ends:
            assert smooth(x, h, 0.1)[0] == pytest.approx(error, rel=1e-9)
        for bandwidth, error in errors.items():
            assert smooth(c, correct, bandwidth)[0] == pytest.approx(error, rel=1e-9)
    monkeypatch.setattr(module, "_MAX_NODES", 2**13)
    for bandwidth in (1.9e-3, 1e-4, 1e-6):
        assert smooth(c, correct, bandwidth)[0] == pytest.approx(errors[bandwidth], rel=1e-9)


def test_row_order() -> None:
    rs = np.random.RandomState(2)
    c = rs.rand(20_000)
    for bias, bandwidth in ((0.9, None), (1.0, 0.01), (1.0, 1e-3)):
        correct = rs.rand(20_000) < bias * c
        order = rs.permutation(20_000)
        assert smooth(c, correct, bandwidth) == smooth(c[order], correct[order], bandwidth)


@pytest.mark.parametrize("power", [0.1, 1, 2, 4])
@pytest.mark.parametrize("bend", [-1, 1])
@pytest.mark.parametrize("at", [1.0, 1.01, 4.0, 7.9, 8.0])
def test_fixed_point_converges_fast(power: float, bend: int, at: float) -> None:
    """For convex and concave functions, where the plain secant method is slow."""
    calls = []

    def error(x: float) -> float:
        calls.append(x)
        return at * (at / x) ** power if bend > 0 else at * (2 - (x / at) ** power)

    value, width = module._fixed_point(error, 1.0, 8.0)
    assert width == pytest.approx(at, rel=1e-12)
    assert value == pytest.approx(at, rel=1e-11)
    assert len(calls) < 25


def test_extreme_bandwidths() -> None:
    rs = np.random.RandomState(1)
    c = rs.rand(10_000)
    correct = rs.rand(10_000) < 0.5
    assert smooth(c, correct, 1e-13)[0] == pytest.approx(mean_residual(c, correct), rel=1e-6)
    assert smooth(c, correct, 5e-324)[0] == pytest.approx(mean_residual(c, correct), rel=1e-12)
    assert smooth(c, correct, 1e300)[0] == pytest.approx(abs((correct - c).mean()), rel=1e-12)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    p: Array = e / e.sum(1, keepdims=True)
    return p


def classes(n: int = 300, k: int = 5) -> tuple[Array, Array]:
    rs = np.random.RandomState(n)
    return softmax(2 * rs.randn(n, k)), rs.randint(0, k, n)


@pytest.mark.parametrize("error", [smooth_calibration_error, soft_calibration_error])
def test_kinds_of_input(error: Any) -> None:
    p, y = classes()
    top, correct = p.max(1), (p.argmax(1) == y).astype(int)
    value = error(p, y)
    assert isinstance(value, np.float64)
    same = [
        error(top, correct),
        error(np.log(p) + 3, y, from_logits=True),
        error(np.log(top / (1 - top)), correct, from_logits=True),
        error(p.reshape(20, 15, 5), y.reshape(20, 15).astype(np.int8)),
        error(p[::-1], y[::-1]),
        error(np.concatenate([p, p]), np.concatenate([y, y * 0 - 1]), ignore_index=-1),
        error(np.concatenate([top, top]), np.concatenate([correct, correct * 0 + 9]), ignore_index=9),
    ]
    assert same == pytest.approx([value] * len(same), rel=1e-12)
    tensor = error(torch.from_numpy(p), torch.from_numpy(y))
    assert (tensor.dtype, tensor.shape) == (torch.float64, ())
    assert tensor.item() == pytest.approx(value, rel=1e-14)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q = torch.from_numpy(p).to(dtype)
        rounded = error(q.double() / q.double().sum(1, keepdim=True), torch.from_numpy(y))
        assert error(q, torch.from_numpy(y).int()).item() == pytest.approx(rounded.item(), rel=2e-2)
    coarse = np.array([[0.5, 0.5], [0.25, 0.742]], np.float16)  # sums to 1 within the tolerance of float16
    assert isinstance(error(coarse, np.array([0, 1])), np.float64)
    with pytest.raises(ValueError, match="row 1"):
        error(coarse.astype(np.float32), np.array([0, 1]))
    assert error(np.array([[1.0005, 0.0]]), np.array([0])) == 0  # a confidence is at most 1


P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
Y = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("error", "options", "kind", "words"),
    [
        (smooth_calibration_error, {"bandwidth": 0}, ValueError, "`bandwidth`.*above 0.*0"),
        (smooth_calibration_error, {"bandwidth": -0.1}, ValueError, "`bandwidth`.*-0.1"),
        (smooth_calibration_error, {"bandwidth": math.inf}, ValueError, "`bandwidth`.*inf"),
        (smooth_calibration_error, {"bandwidth": math.nan}, ValueError, "`bandwidth`.*nan"),
        (smooth_calibration_error, {"bandwidth": "0.1"}, TypeError, "`bandwidth`.*'0.1'"),
        (smooth_calibration_error, {"return_bandwidth": 1}, TypeError, "`return_bandwidth`.*1"),
        (soft_calibration_error, {"temperature": 0.0}, ValueError, "`temperature`.*0.0"),
        (soft_calibration_error, {"temperature": math.inf}, ValueError, "`temperature`.*inf"),
        (soft_calibration_error, {"temperature": math.nan}, ValueError, "`temperature`.*nan"),
        (soft_calibration_error, {"temperature": None}, TypeError, "`temperature`.*None"),
        (soft_calibration_error, {"norm": "max"}, ValueError, "`norm`.*'l1' or 'l2'.*'max'"),
        (soft_calibration_error, {"norm": 2}, ValueError, "`norm`.*2"),
        (soft_calibration_error, {"n_bins": 0}, ValueError, "`n_bins`.*0"),
        (soft_calibration_error, {"n_bins": 2.0}, ValueError, "`n_bins`.*2.0"),
        (soft_calibration_error, {"n_bins": True}, ValueError, "`n_bins`.*True"),
    ],
)
def test_rejects_options(error: Any, options: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        error(P, Y, **options)


def test_rejects_other_devices() -> None:
    with pytest.raises(TypeError, match=r"`target`.*cpu.*meta"):
        soft_calibration_error(torch.from_numpy(P), torch.from_numpy(Y).to("meta"))


def test_targets_that_need_their_values_are_for_the_cpu() -> None:
    p, y = torch.from_numpy(P), torch.from_numpy(Y)
    meta = p.to("meta"), y.to("meta")
    with pytest.raises(ValueError, match=r"`labels`.*None.*other devices"):
        soft_calibration_error(*meta, labels=[0, 1])
    with pytest.raises(ValueError, match=r"`target`.*class indices.*other devices"):
        soft_calibration_error(meta[0], meta[0].long(), task="multiclass")
    with pytest.raises(ValueError, match=r"`normalize`.*logits"):
        soft_calibration_error(p, y, from_logits=True, normalize=True)


def test_gradient_of_normalized_rows() -> None:
    p, y = torch.from_numpy(P), torch.from_numpy(Y)
    q = (3 * p).requires_grad_()
    got, expected = (
        torch.autograd.grad(soft_calibration_error(rows, y, normalize=normalize), q)[0]
        for rows, normalize in ((q, True), (q / q.sum(-1, keepdim=True), False))
    )
    torch.testing.assert_close(got, expected)


# The soft error.


def definition(p: Array, y: Array, n_bins: int, temperature: float, power: int) -> float:
    """The definition, row by row and bin by bin."""
    size, n_correct, confidence = (np.zeros(n_bins) for _ in range(3))
    for row, label in zip(p, y, strict=True):
        c = row.max()
        weights = [math.exp(-((c - (j + 0.5) / n_bins) ** 2) / temperature) for j in range(n_bins)]
        for j in range(n_bins):
            share = weights[j] / math.fsum(weights)
            size[j] += share
            n_correct[j] += share * (row.argmax() == label)
            confidence[j] += share * c
    gaps = [
        s / len(y) * abs(h / s - c / s) ** power for s, h, c in zip(size, n_correct, confidence, strict=True)
    ]
    return math.fsum(gaps) ** (1 / power)


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("n_bins", [1, 4, 15])
@pytest.mark.parametrize("temperature", [1.0, 0.01, 0.003])
def test_soft_definition(norm: str, power: int, n_bins: int, temperature: float) -> None:
    p, y = classes(40)
    got = soft_calibration_error(p, y, n_bins=n_bins, temperature=temperature, norm=norm)
    assert got == pytest.approx(definition(p, y, n_bins, temperature, power), rel=1e-12)
    p32 = torch.from_numpy(p).float()
    single = soft_calibration_error(
        p32, torch.from_numpy(y), n_bins=n_bins, temperature=temperature, norm=norm
    )
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(got, rel=1e-4)


def test_soft_defaults() -> None:
    p, y = classes(40)
    assert soft_calibration_error(p, y) == pytest.approx(definition(p, y, 15, 0.01, 2), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_limit_is_hard_bins(dtype: torch.dtype) -> None:
    p, y = classes(500)
    which = np.floor(p.max(1) * 10).astype(int)
    gaps = np.array([((p.argmax(1) == y) - p.max(1))[which == j].sum() for j in range(10)])
    counts = np.bincount(which, minlength=10)
    for temperature in (1e-7, 1e-30, 1e-310):
        options = {"n_bins": 10, "temperature": temperature}
        preds, target = torch.from_numpy(p).to(dtype), torch.from_numpy(y)
        got = soft_calibration_error(preds, target, norm="l1", **options)
        assert got.item() == pytest.approx(abs(gaps).sum() / 500, rel=1e-5)
        got = soft_calibration_error(preds, target, **options)
        expected = math.sqrt(sum(g * g / n for g, n in zip(gaps, counts, strict=True) if n) / 500)
        assert got.item() == pytest.approx(expected, rel=1e-5)


@given(PAIRS, st.sampled_from(["l1", "l2"]), st.integers(1, 30), st.floats(-4, 2).map(lambda x: 10**x))
def test_soft_properties(pairs: list[tuple[float, bool]], norm: str, n_bins: int, temperature: float) -> None:
    c, correct = map(np.array, zip(*pairs, strict=True))
    y = correct.astype(int)
    options: Any = {"n_bins": n_bins, "temperature": temperature}
    got = soft_calibration_error(c, y, norm=norm, **options)
    # Bounds: averaging in bins can only cancel, and the quadratic mean is at least the mean.
    assert abs((y - c).mean()) - 1e-12 <= got
    assert got <= 1 + 1e-12
    assert soft_calibration_error(c, y, norm="l1", **options) <= mean_residual(c, correct) + 1e-12
    assert soft_calibration_error(c, y, **options) >= (
        soft_calibration_error(c, y, norm="l1", **options) - 1e-12
    )
    assert soft_calibration_error(c.repeat(2), y.repeat(2), norm=norm, **options) == pytest.approx(
        got, rel=1e-9, abs=1e-15
    )
    assert soft_calibration_error(1 - c, 1 - y, norm=norm, **options) == pytest.approx(got, abs=1e-9)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_gradients(norm: str, from_logits: bool, binary: bool) -> None:
    p, y = classes(24, 4)
    target = torch.from_numpy((p.argmax(1) == y).astype(int) if binary else y)
    preds = torch.from_numpy(p.max(1) if binary else p)
    preds = preds.log() if from_logits else preds
    preds.requires_grad_()

    def error(z: torch.Tensor) -> torch.Tensor:
        return soft_calibration_error(z, target, from_logits=from_logits, norm=norm, n_bins=5)

    if from_logits or binary:  # not for probabilities, which must sum to 1
        assert torch.autograd.gradcheck(error, preds, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(error, preds)
    (grad,) = torch.autograd.grad(error(preds), preds)
    assert grad.abs().max() > 1e-3
    torch.testing.assert_close(torch.func.grad(error)(preds.detach()), grad, rtol=1e-12, atol=1e-15)
    if not binary and not from_logits:  # the gradient flows through the confidences only
        assert torch.equal(grad != 0, torch.from_numpy(p == p.max(1, keepdims=True)))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_finite(norm: str, dtype: torch.dtype) -> None:
    for rows, y, error in (
        ([[0.5, 0.5]] * 4, [0, 0, 1, 1], 0.0),
        ([[1.0, 0.0]], [0], 0.0),
        ([[1.0, 0.0]], [1], 1.0),
    ):
        p = torch.tensor(rows, dtype=dtype, requires_grad=True)
        got = soft_calibration_error(p, torch.tensor(y), norm=norm, temperature=1e-4)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.item() == pytest.approx(error, abs=1e-6)
        got.backward()
        assert p.grad is not None
        assert p.grad.dtype == dtype
        assert p.grad.isfinite().all()
        assert (p.grad == 0).all() == (error == 0)
    z = torch.tensor([[300.0, -300.0], [-math.inf, 2.0]], dtype=dtype, requires_grad=True)
    got = soft_calibration_error(z, torch.tensor([0, 0]), from_logits=True, norm=norm, temperature=1e-8)
    got.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_gradients_of_ignored_rows() -> None:
    p, y = classes(30)
    z = torch.from_numpy(np.log(p))
    expected = z.clone().requires_grad_()
    soft_calibration_error(expected, torch.from_numpy(y), from_logits=True).backward()
    invalid = torch.tensor([[math.nan] * 5, [math.inf] * 5], dtype=torch.float64)
    padded = torch.cat([z, invalid]).requires_grad_()
    target = torch.cat([torch.from_numpy(y), torch.tensor([-100, -100])])
    soft_calibration_error(padded, target, from_logits=True, ignore_index=-100).backward()
    assert expected.grad is not None
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad[:30], expected.grad, rtol=1e-12, atol=1e-15)
    assert (padded.grad[30:] == 0).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_training_penalty(norm: str) -> None:
    """Training corrects the scale of logits that are three times too large."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(2000, 4, generator=generator)
    y = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    scale = torch.tensor(3.0, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=1.0)
    errors = []
    for _ in range(100):
        optimizer.zero_grad()
        error = soft_calibration_error(scale * z, y, from_logits=True, norm=norm)
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[0] > 0.15
    assert errors[5] < errors[0]
    assert min(errors) < 0.04
    assert scale.item() == pytest.approx(1, abs=0.25)
    both = torch.nn.functional.cross_entropy(scale * z, y) + soft_calibration_error(
        scale * z, y, from_logits=True, norm=norm
    )
    assert both.dtype == torch.float32


def test_invalid_values_in_transforms_are_nan() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def error(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return soft_calibration_error(z, y, from_logits=True, ignore_index=-1)

    mapped = torch.func.vmap(error)(
        torch.stack([z, z, z.where(z != z[2, 2], math.nan), z]),
        torch.stack([y, y.where(y != 2, 3), y, y * 0 - 1]),
    )
    assert mapped[0].item() == pytest.approx(error(z, y).item(), rel=1e-6)
    assert mapped[1:].isnan().all()
    compiled = torch.compile(error, fullgraph=True, backend="eager")
    assert compiled(z, y).item() == pytest.approx(error(z, y).item(), rel=1e-6)
    assert compiled(z, y.where(y != 2, 3)).isnan()
