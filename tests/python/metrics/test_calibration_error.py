"""Calibration errors over bins: all options against a definition in NumPy, and properties."""

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lr_relax.metrics import (
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from scipy.stats import binomtest

Array = np.ndarray[Any, Any]
Options = dict[str, Any]

BINNINGS = ("uniform", "quantile", "paper")
NORMS: list[Options] = [{"norm": "l1"}, {"norm": "l2"}, {"norm": "max"}, {"norm": "l2", "debias": True}]
TOP_LABEL: list[Options] = [
    {"binning": binning, **norm} for binning, norm in itertools.product(BINNINGS, NORMS)
]
OPTIONS: list[Options] = [
    {"kind": kind, **options} for kind, options in itertools.product(("top_label", "classwise"), TOP_LABEL)
]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def words(value: Any) -> str:
    return " ".join("debias" if v is True else str(v) for v in value.values())


# The definition.


def uniform_edges(n: int, dtype: torch.dtype = torch.float64) -> Array:
    """k/n in the type of the predictions; half types are rounded from float32."""
    edges = torch.arange(n + 1, dtype=torch.float64) / n
    return edges.to(torch.promote_types(dtype, torch.float32)).to(dtype).double().numpy()


def bins_of(c: Array, w: Array, n: int, binning: str, dtype: torch.dtype) -> Array:
    if binning == "uniform":
        return np.clip(np.searchsorted(uniform_edges(n, dtype), c, side="right") - 1, 0, n - 1)
    if binning == "paper":
        return np.array([min(int(x // (1 / n)), n - 1) for x in c.tolist()])
    # A bin ends after the least confidence up to which at least k/n of the mass lies, in exact fractions.
    values, which = np.unique(c, return_inverse=True)
    mass = [Fraction(0)] * len(values)
    for i, weight in zip(which.tolist(), w.tolist(), strict=True):
        mass[i] += Fraction(weight)
    reached = list(itertools.accumulate(mass))
    cuts = [
        next(v for v, m in zip(values, reached, strict=True) if m * n >= k * reached[-1]) for k in range(1, n)
    ]
    return np.searchsorted(np.array(cuts), c, side="left")


def error_of(c: Array, correct: Array, w: Array, bins: Array, norm: str, debias: bool) -> float:
    total, parts = math.fsum(w), []
    for b in np.unique(bins):
        inside = bins == b
        mass, n = math.fsum(w[inside]), int(inside.sum())
        if mass == 0:
            continue
        accuracy, confidence = math.fsum((w * correct)[inside]) / mass, math.fsum((w * c)[inside]) / mass
        gap = abs(accuracy - confidence)
        if norm == "max":
            parts.append(gap)
        elif norm == "l1":
            parts.append(mass / total * gap)
        elif not debias:
            parts.append(mass / total * gap**2)
        elif n > 1:
            parts.append(mass / total * (gap**2 - accuracy * (1 - accuracy) / (n - 1)))
    if norm == "max":
        return max(parts)
    return math.fsum(parts) if norm == "l1" else max(math.fsum(parts), 0.0) ** 0.5


def definition(
    p: Array,
    y: Array,
    n_bins: int = 15,
    norm: str = "l1",
    binning: str = "uniform",
    kind: str = "top_label",
    debias: bool = False,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> float:
    is_binary = p.shape == y.shape
    w = np.ones(y.shape) if sample_weight is None else sample_weight
    counts = np.ones(y.shape, bool) if ignore_index is None else y != ignore_index
    p, y, w = p[counts], y[counts], w[counts]
    if is_binary:
        groups = [(p, y == 1)]
    elif kind == "top_label":
        groups = [(p.max(1), p.argmax(1) == y)]
    else:
        groups = [(p[:, k], y == k) for k in range(p.shape[1])]
    errors = [
        error_of(c, correct, w, bins_of(c, w, n_bins, binning, dtype), norm, debias) for c, correct in groups
    ]
    return math.fsum(errors) / len(errors)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def predictions(*shape: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Probabilities, targets of which half are the most probable classes, and weights."""
    rng = np.random.default_rng(seed)
    p = softmax(2 * rng.normal(size=shape))
    y = np.where(rng.random(shape[:-1]) < 0.5, p.argmax(-1), rng.integers(shape[-1], size=shape[:-1]))
    return p, y, rng.gamma(1, size=shape[:-1])


def inputs(p: Array, y: Array, dtype: torch.dtype) -> Iterator[tuple[Any, Any]]:
    """The same numbers as a tensor and, where NumPy has the type, as an array."""
    tensor = torch.from_numpy(p).to(dtype)
    yield tensor, torch.from_numpy(y)
    if dtype != torch.bfloat16:
        yield tensor.numpy(), y


# All options.


SHAPES = (((300, 3), 15), ((4, 25, 20), 10), ((2, 3, 5, 2), 1), ((40, 17), 40))


@pytest.mark.parametrize("k", range(len(OPTIONS)), ids=lambda k: words(OPTIONS[k]))
def test_options(k: int) -> None:
    """Each option with each type, and over the options each type with each shape."""
    options = OPTIONS[k]
    for i, dtype in enumerate(DTYPES):
        shape, n_bins = SHAPES[(i + k) % len(SHAPES)]
        p, y, w = predictions(*shape)
        for preds, target in inputs(p, y, dtype):
            exact = np.asarray(preds.double() if isinstance(preds, torch.Tensor) else preds.astype(float))
            for weight in (None, w):
                if weight is not None and options.get("debias"):
                    continue
                expected = definition(exact, y, n_bins, **options, sample_weight=weight, dtype=dtype)
                if isinstance(preds, torch.Tensor) and weight is not None:
                    weight = torch.from_numpy(weight)
                got = calibration_error(preds, target, n_bins=n_bins, **options, sample_weight=weight)
                assert float(got) == pytest.approx(expected, abs=2e-15 if options["norm"] == "l1" else 1e-13)
                if isinstance(preds, torch.Tensor):
                    assert (got.dtype, got.shape) == (torch.float64, ())
                else:
                    assert type(got) is np.float64


@pytest.mark.parametrize("options", TOP_LABEL, ids=words)
def test_binary_events(options: Options) -> None:
    """The probability of class 1 is binned, also below 1/2, in any number of dimensions."""
    for dtype, shape in zip(DTYPES, ((400,), (20, 20), (2, 5, 9), (1,)), strict=True):
        rng = np.random.default_rng(0)
        p = torch.from_numpy(rng.random(shape)).to(dtype)
        y = torch.from_numpy((rng.random(shape) < p.double().numpy() ** 2).astype(np.int64))
        expected = definition(p.double().numpy(), y.numpy(), **options, dtype=dtype)
        for target in (y, y.to(torch.uint8), y.bool()):
            got = calibration_error(p, target, task="binary", **options)
            assert got.item() == pytest.approx(expected, abs=1e-13)
        if dtype != torch.bfloat16:
            assert calibration_error(p.numpy(), y.bool().numpy(), task="binary", **options) == got


@pytest.mark.parametrize("options", OPTIONS, ids=words)
def test_logits(options: Options) -> None:
    """Logits give the same as their softmax or sigmoid, rounded to the type of the logits."""
    z = 3 * np.random.default_rng(1).normal(size=(300, 4))
    y = predictions(300, 4)[1]
    for dtype, budget in ((torch.float64, 1e-13), (torch.float32, 4e-7)):
        logits = torch.from_numpy(z).to(dtype)
        exact = logits.double().numpy()
        got = calibration_error(logits, torch.from_numpy(y), from_logits=True, **options)
        assert got.item() == pytest.approx(definition(softmax(exact), y, **options, dtype=dtype), abs=budget)
        if options["kind"] == "top_label":
            event = calibration_error(logits[:, 0], torch.from_numpy(y == 1), from_logits=True, **options)
            p = 1 / (1 + np.exp(-exact[:, 0]))
            expected = definition(p, (y == 1).astype(int), **options, dtype=dtype)
            assert event.item() == pytest.approx(expected, abs=budget)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_confidences_on_edges(dtype: torch.dtype) -> None:
    """Confidences on and next to edges, also with more bins than the type has values."""
    for n_bins in (7, 10, 49, 1000):
        c = torch.from_numpy(uniform_edges(n_bins)).to(dtype)
        c = torch.cat([c, torch.nextafter(c, torch.ones_like(c)), torch.nextafter(c, torch.zeros_like(c))])
        y = torch.arange(len(c)) % 2
        which = bins_of(c.double().numpy(), np.ones(len(c)), n_bins, "uniform", dtype)
        curve = reliability_curve(c, y, n_bins=n_bins)
        assert curve.counts.tolist() == np.bincount(which, minlength=n_bins).tolist()
        assert curve.edges.tolist() == uniform_edges(n_bins, dtype).tolist()
        paper = bins_of(c.double().numpy(), np.ones(len(c)), n_bins, "paper", dtype)
        curve = reliability_curve(c, y, n_bins=n_bins, binning="paper")
        assert curve.counts.tolist() == np.bincount(paper, minlength=n_bins).tolist()


def test_strides() -> None:
    p, y, w = (torch.from_numpy(x) for x in predictions(6, 10, 20))
    wide = torch.zeros(6, 10, 40, dtype=p.dtype)
    wide[..., ::2] = p
    layouts = [
        p.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        p.transpose(0, 1).contiguous().transpose(0, 1),
        wide[..., ::2],
    ]
    y_apart, w_apart = torch.stack([y, 0 * y], -1)[..., 0], w.t().contiguous().t()
    for options in OPTIONS:
        weight = None if options.get("debias") else w
        expected = calibration_error(p, y, sample_weight=weight, **options)
        weight = None if options.get("debias") else w_apart
        for layout in layouts:
            assert not layout.is_contiguous()
            assert calibration_error(layout, y_apart, sample_weight=weight, **options).equal(expected)
        turned = calibration_error(
            p.numpy()[::-1, :, ::-1],
            19 - y.numpy()[::-1],
            sample_weight=None if weight is None else w.numpy()[::-1],
            **options,
        )
        assert turned == expected.item()
    one = torch.tensor([0.75, 0.25])
    many = calibration_error(
        one.expand(100, 2), torch.tensor(0).expand(100), sample_weight=torch.tensor(2.0).expand(100)
    )
    assert many.item() == 0.25


def test_types_of_targets_and_weights() -> None:
    p, y, w = predictions(50, 3)
    expected = calibration_error(p, y)
    for dtype in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        assert calibration_error(p, y.astype(dtype)) == expected
    assert calibration_error(p, torch.from_numpy(y)) == expected  # a tensor beside an array
    assert calibration_error(p, y, n_bins=np.int16(15)) == expected
    rounded = np.ceil(w * 8) / 8
    expected = calibration_error(p, y, sample_weight=rounded)
    for dtype in ("f2", "f4", "f8"):
        assert calibration_error(p, y, sample_weight=rounded.astype(dtype)) == expected
    assert calibration_error(p, y, sample_weight=torch.from_numpy(rounded).bfloat16()) == expected
    in_graph = torch.from_numpy(rounded).requires_grad_()
    assert (
        calibration_error(torch.from_numpy(p).requires_grad_(), y, sample_weight=in_graph).item() == expected
    )
    whole = np.ceil(w).astype(np.int32)
    assert calibration_error(p, y, sample_weight=whole) == calibration_error(p, y, sample_weight=whole * 1.0)
    some = w > 1
    assert calibration_error(p, y, sample_weight=some) == calibration_error(p[some], y[some])


def test_aliases() -> None:
    p, y, w = predictions(200, 4)
    common: Options = {"n_bins": 7, "sample_weight": w, "ignore_index": 2}
    for binning in BINNINGS:
        options = {"binning": binning, **common}
        assert expected_calibration_error(p, y, **options) == calibration_error(p, y, **options)
        assert maximum_calibration_error(p, y, **options) == calibration_error(p, y, norm="max", **options)
        for norm in ("l1", "l2", "max"):
            assert classwise_calibration_error(p, y, norm=norm, **options) == calibration_error(
                p, y, norm=norm, kind="classwise", **options
            )
    for kind, norm in itertools.product(("top_label", "classwise"), ("l1", "l2", "max")):
        assert adaptive_calibration_error(p, y, norm=norm, kind=kind, **common) == calibration_error(
            p, y, norm=norm, kind=kind, binning="quantile", **common
        )
    z = np.log(p)
    for alias, options in (
        (expected_calibration_error, {}),
        (maximum_calibration_error, {"norm": "max"}),
        (adaptive_calibration_error, {"binning": "quantile"}),
        (classwise_calibration_error, {"kind": "classwise"}),
    ):
        assert alias(p, y) == calibration_error(p, y, **options)
        assert alias(z, y, from_logits=True) == calibration_error(z, y, from_logits=True, **options)


# Properties.

TIES = [0.0, 0.1, 0.25, 0.5, 2 / 3, 0.75, 0.9, 1.0]
events = st.lists(
    st.tuples(st.floats(0, 1) | st.sampled_from(TIES), st.integers(0, 2), st.integers(0, 4)),
    min_size=1,
    max_size=40,
)
n_bins = st.integers(1, 30)


def arrays(rows: list[tuple[float, int, int]]) -> tuple[Array, Array, Array]:
    """Rows of three classes, for which products of float32 probabilities and weights are exact."""
    c, y, w = (np.array(column) for column in zip(*rows, strict=True))
    p = np.stack([c, 0.75 * (1 - c), 0.25 * (1 - c)], 1).astype(np.float32).astype(np.float64)
    return p, y, w


@given(events, n_bins, st.sampled_from(OPTIONS), st.randoms(use_true_random=False))
@example([(1.0, 0, 1), (1.0, 1, 1), (0.5, 0, 0)], 2, OPTIONS[3], Random(0))
@example([(1.0, 1, 1)], 1, OPTIONS[0], Random(0))
@example([(0.5, 0, 1), (1.0, 0, 1), (1.0, 1, 2)], 2, OPTIONS[4], Random(0))
def test_definition(rows: list[tuple[float, int, int]], n: int, options: Options, random: Random) -> None:
    """The definition, in any order of the rows."""
    p, y, w = arrays(rows)
    order = np.array(random.sample(range(len(y)), len(y)))
    got = calibration_error(p, y, n_bins=n, **options)
    assert 0 <= got <= 1
    assert calibration_error(p[order], y[order], n_bins=n, **options) == got
    # The square root amplifies rounding near 0.
    budget = 2e-8 if options["norm"] == "l2" else 1e-14
    assert got == pytest.approx(definition(p, y, n, **options), abs=budget)
    assert got**2 == pytest.approx(definition(p, y, n, **options) ** 2, abs=1e-14)
    if w.any() and not options.get("debias"):
        w = w / 7
        weighted = calibration_error(p, y, n_bins=n, sample_weight=w, **options)
        assert 0 <= weighted <= 1
        assert calibration_error(p[order], y[order], n_bins=n, sample_weight=w[order], **options) == weighted
        assert weighted == pytest.approx(definition(p, y, n, sample_weight=w, **options), abs=budget)
    if options["kind"] == "top_label":
        event = calibration_error(p[:, 0], y % 2, n_bins=n, **options)
        assert 0 <= event <= 1
        assert event**2 == pytest.approx(definition(p[:, 0], y % 2, n, **options) ** 2, abs=1e-14)


@given(events, n_bins, st.sampled_from(BINNINGS))
def test_counts_and_edges(rows: list[tuple[float, int, int]], n: int, binning: str) -> None:
    p, y, _ = arrays(rows)
    for preds, target, c in ((p, y, p.max(1)), (p[:, 0], y % 2, p[:, 0])):
        curve = reliability_curve(preds, target, n_bins=n, binning=binning)
        assert curve.counts.shape == (n,)
        assert curve.counts.sum() == len(y)
        which = bins_of(c, np.ones(len(c)), n, binning, torch.float64)
        sizes = np.bincount(which, minlength=n)
        assert curve.counts.tolist() == sizes.tolist()
        # The edges of "paper" are rounded. With confidences of 1, several quantile edges may be 1.
        if binning == "uniform" or (binning == "quantile" and c.max() < 1):
            by_edge = np.searchsorted(curve.edges[1:-1], c, side="right")
            assert curve.counts.tolist() == np.bincount(by_edge, minlength=n).tolist()


@given(events, n_bins, st.sampled_from([o for o in OPTIONS if not o.get("debias")]))
def test_integer_weights_repeat_rows(rows: list[tuple[float, int, int]], n: int, options: Options) -> None:
    p, y, w = arrays(rows)
    if w.any():
        weighted = calibration_error(p, y, n_bins=n, sample_weight=w, **options)
        repeated = calibration_error(p.repeat(w, 0), y.repeat(w), n_bins=n, **options)
        assert weighted == repeated
        # The unit of the weights does not matter.
        for unit in (2.0**-40, 2.0**20):
            assert calibration_error(p, y, n_bins=n, sample_weight=w * unit, **options) == weighted
    ones = np.ones(len(y))
    assert calibration_error(p, y, n_bins=n, sample_weight=ones, **options) == calibration_error(
        p, y, n_bins=n, **options
    )


def test_quantile_edges_are_midpoints() -> None:
    curve = reliability_curve(
        np.array([0.2, 0.4, 0.8, 0.9]), np.array([0, 1, 1, 1]), n_bins=2, binning="quantile"
    )
    assert curve.edges == pytest.approx(np.array([0, 0.6, 1]), abs=1e-15)
    tied = reliability_curve(
        np.array([0.2, 0.5, 0.5, 0.5, 0.9]), np.array([0, 1, 1, 0, 1]), n_bins=5, binning="quantile"
    )
    assert tied.edges == pytest.approx(np.array([0, 0.35, 0.7, 0.7, 0.7, 1]), abs=1e-15)
    assert tied.counts.tolist() == [1, 3, 0, 0, 1]


@given(events, n_bins, st.sampled_from(OPTIONS), st.sampled_from([-100, -1, 3, 255, 2**62]))
def test_ignored_rows(
    rows: list[tuple[float, int, int]], n: int, options: Options, ignore_index: int
) -> None:
    p, y, w = arrays(rows)
    invalid = np.array([[np.nan, 0, 1], [2, 2, 2], [-np.inf, np.inf, 0]])
    after = np.arange(len(y)) // 2
    p_more = np.insert(p, np.repeat(after, 3), np.tile(invalid, (len(y), 1)), 0)
    y_more = np.insert(y, np.repeat(after, 3), ignore_index)
    assert len(y_more) == 4 * len(y)
    got = calibration_error(p_more, y_more, n_bins=n, ignore_index=ignore_index, **options)
    assert got == calibration_error(p, y, n_bins=n, **options)
    if w.any() and not options.get("debias"):
        w_more = np.insert(w, np.repeat(after, 3), 3)
        assert calibration_error(
            p_more, y_more, n_bins=n, sample_weight=w_more, ignore_index=ignore_index, **options
        ) == calibration_error(p, y, n_bins=n, sample_weight=w, **options)
    # Ignoring a class keeps the number of classes.
    if (y != 1).any():
        of_others = calibration_error(p[y != 1], y[y != 1], n_bins=n, **options)
        assert calibration_error(p, y, n_bins=n, ignore_index=1, **options) == of_others


@pytest.mark.parametrize("options", TOP_LABEL, ids=words)
def test_classwise(options: Options) -> None:
    p, y, w = predictions(200, 5)
    y[y == 1] = 0  # no target is class 1 or the last one
    y[y == 4] = 3
    weights = [None] if options.get("debias") else [None, w]
    for weight in weights:
        of_classes = [
            calibration_error(p[:, k].copy(), (y == k).astype(int), sample_weight=weight, **options)
            for k in range(5)
        ]
        got = calibration_error(p, y, kind="classwise", sample_weight=weight, **options)
        assert got == pytest.approx(np.mean(of_classes), abs=2e-16)
        if not options.get("debias"):
            assert of_classes[1] > 0.01  # included
    certain = np.array([[1.0, 0, 0, 0]] * 10)
    assert calibration_error(certain, np.zeros(10, int), kind="classwise", **options) == 0
    if not options.get("debias"):
        assert calibration_error(certain, np.ones(10, int), kind="classwise", **options) == 0.5


def test_debiasing() -> None:
    """The bias is the variance of the accuracy, p (1 - p) / 30 with 30 rows in each of 10 bins."""
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(400):
        p = rng.uniform(size=300)
        y = (rng.uniform(size=300) < p).astype(int)
        squares.append([calibration_error(p, y, n_bins=10, norm="l2", debias=d) ** 2 for d in (False, True)])
    plain, debiased = np.mean(squares, 0)
    assert plain == pytest.approx(1 / 6 / 30, rel=0.1)  # the mean of p (1 - p) is 1/6
    assert debiased < plain / 2.5  # clipped at 0, so that its mean is not 0


# The curve.


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_wilson_intervals(level: float) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 300):
        for right in sorted({0, 1, n // 3, n - 1, n}):
            c = rng.uniform(0.35, 0.65, n)
            curve = reliability_curve(c, (np.arange(n) < right).astype(int), n_bins=3, confidence_level=level)
            assert curve.confidence_level == level
            assert curve.counts.tolist() == [0, n, 0]
            expected = binomtest(right, n).proportion_ci(level, method="wilson")
            assert curve.lower[1] == pytest.approx(expected.low, abs=1e-14)
            assert curve.upper[1] == pytest.approx(expected.high, abs=1e-14)
            assert 0 <= curve.lower[1] <= curve.accuracy[1] <= curve.upper[1] <= 1
            assert curve.accuracy[1] == right / n
            assert curve.confidence[1] == pytest.approx(math.fsum(c) / n, abs=1e-15)
            assert curve.gap[1] == curve.confidence[1] - curve.accuracy[1]


@pytest.mark.parametrize("binning", BINNINGS)
def test_reliability_curve(binning: str) -> None:
    p, y, _ = predictions(500, 3)
    y[:50] = -1
    curve = reliability_curve(p, y, n_bins=12, binning=binning, ignore_index=-1)
    c, correct = p[50:].max(1), p[50:].argmax(1) == y[50:]
    which = bins_of(c, np.ones(450), 12, binning, torch.float64)
    for b in range(12):
        inside = which == b
        assert curve.counts[b] == inside.sum()
        if not inside.any():
            for of_bin in (curve.confidence, curve.accuracy, curve.gap, curve.lower, curve.upper):
                assert math.isnan(of_bin[b])
            continue
        assert curve.confidence[b] == pytest.approx(math.fsum(c[inside]) / inside.sum(), abs=1e-15)
        assert curve.accuracy[b] == correct[inside].sum() / inside.sum()
        assert curve.gap[b] == curve.confidence[b] - curve.accuracy[b]
        assert curve.lower[b] < curve.upper[b]
    assert curve.confidence_level == 0.95
    assert curve.expected_calibration_error == calibration_error(
        p, y, n_bins=12, binning=binning, ignore_index=-1
    )
    assert curve.edges.shape == (13,)
    assert (curve.edges[0], curve.edges[-1]) == (0, 1)
    if binning == "uniform":
        assert curve.edges.tolist() == uniform_edges(12).tolist()
    logits = reliability_curve(torch.from_numpy(np.log(p)), y, from_logits=True, n_bins=12, ignore_index=-1)
    assert logits.counts.sum() == 450


# Threads.


def test_threads() -> None:
    p, y, w = (torch.from_numpy(x) for x in predictions(30_000, 10))
    z = p.log().float()
    invalid = p.clone()
    invalid[[29_000, 14_000, 25_000], 3] = math.nan
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            one = [calibration_error(p, y, **options).item() for options in OPTIONS]
            one += [
                calibration_error(z, y, from_logits=True, sample_weight=w, **options).item()
                for options in OPTIONS
                if not options.get("debias")
            ]
            one.append(reliability_curve(z, y, from_logits=True).confidence.tobytes())
            results.append(one)
            with pytest.raises(ValueError, match="row 14000 "):
                calibration_error(invalid, y)
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


# Invalid arguments and special values.

P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]])
Y = np.array([0, 1, 1, 0])
NAN, INF = math.nan, math.inf

L2 = {"norm": "l2"}
INVALID = [
    *(({"n_bins": n}, ValueError, "`n_bins`") for n in (0, -1, 2.0, "15", None, True, NAN, 2**20 + 1, 2**70)),
    *(({"binning": b}, ValueError, "`binning`.*'quantile' or 'paper'") for b in ("mass", None, 1)),
    *(({"norm": n}, ValueError, "`norm`.*'l1', 'l2' or 'max'") for n in ("L1", None, 1, ["l1"])),
    *(({"kind": k}, ValueError, "`kind`.*'top_label' or 'classwise'") for k in ("class", None, 2)),
    *(({"debias": True, "norm": n}, ValueError, "`norm`.*'l2'.*debias") for n in ("l1", "max")),
    ({"debias": True, "sample_weight": np.ones(4)} | L2, ValueError, "`sample_weight`.*`debias`"),
    ({"debias": 1} | L2, TypeError, "`debias`"),
]


@pytest.mark.parametrize(("options", "error", "what"), INVALID)
def test_rejects_options(options: Options, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        calibration_error(P, Y, **options)


def test_rejects_classwise_and_sparse() -> None:
    with pytest.raises(ValueError, match="`kind`"):
        calibration_error(P[:, 0], Y, kind="classwise")
    with pytest.raises(ValueError, match="`n_bins`"):
        calibration_error(np.full((2, 300), 1 / 300), Y[:2], kind="classwise", n_bins=2**20)
    with pytest.raises(TypeError, match="`preds`"):
        calibration_error(torch.from_numpy(P).to_sparse(), Y)


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, NAN, INF, 1 - 1e-17, "0.95", None, True])
def test_rejects_confidence_levels(level: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="`confidence_level`"):
        reliability_curve(P, Y, confidence_level=level)


def test_confidence_level_near_one() -> None:
    """(1 + level) / 2 rounds to 1, whose quantile is infinite."""
    curve = reliability_curve(P[:, 0], Y, n_bins=1, confidence_level=math.nextafter(1, 0))
    assert 0 < curve.lower[0] < 0.03
    assert 0.97 < curve.upper[0] < 1


def test_negative_zeros() -> None:
    p, y = np.array([[1.0, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]]), np.array([0, 1, 2])
    negative = np.where(p == 0, -0.0, p)
    for options in OPTIONS:
        assert calibration_error(negative, y, **options) == calibration_error(p, y, **options)
        if options["kind"] == "top_label":
            event = calibration_error(p[:, 2], y // 2, **options)
            assert calibration_error(negative[:, 2], y // 2, **options) == event


def test_sums_above_one() -> None:
    """A row may sum to slightly more than 1; the confidence is clipped to 1."""
    for options, (dtype, above) in itertools.product(
        OPTIONS, ((torch.float64, 1.0004), (torch.bfloat16, 1.0078125))
    ):
        p = torch.tensor([[above, 0.0], [0.0, above]], dtype=dtype)
        for y, value in ((torch.tensor([0, 1]), 0), (torch.tensor([1, 0]), 1)):
            got = calibration_error(p, y, **options).item()
            assert got == calibration_error(p.clamp(max=1), y, **options).item()
            assert options.get("debias") or got == value
