"""How the metrics read what users pass: one-hot and binary targets, dimensions, types, rounded numbers."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lr_relax import metrics
from lr_relax.metrics import (
    ProbabilitiesWarning,
    TemperatureScaling,
    accuracy,
    brier_score,
    calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
    smooth_calibration_error,
)

Array = np.ndarray[Any, Any]
Metric = Callable[..., Any]

SCALARS: list[Metric] = [
    expected_calibration_error,
    partial(calibration_error, binning="quantile", norm="l2"),
    classwise_calibration_error,
    smooth_calibration_error,
    brier_score,
    negative_log_likelihood,
    accuracy,
    metrics.area_under_risk_coverage_curve,
    metrics.soft_calibration_error,
]
STREAMING: list[Metric] = [metrics.CalibrationError, metrics.BrierScore, metrics.NegativeLogLikelihood]
P = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
Y = np.array([0, 2])
VALUES: list[tuple[Metric, float]] = [  # of P and Y
    (expected_calibration_error, 0.45),
    (accuracy, 0.5),
    (brier_score, 0.52),
    (negative_log_likelihood, 0.857399214),
]


def sample(n: int = 60, n_classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(n_classes), n)
    return p, np.array([rng.choice(n_classes, p=q) for q in p])


# One-hot targets, and events.


@pytest.mark.parametrize(("metric", "value"), VALUES)
def test_one_hot_targets(metric: Metric, value: float) -> None:
    assert metric(P, Y) == pytest.approx(value)
    for dtype in (np.int64, np.uint8, np.bool_, np.float32):
        one_hot = np.eye(3, dtype=dtype)[Y]
        for target in (one_hot, torch.from_numpy(one_hot)):
            assert metric(P, target, task="multiclass") == metric(P, Y)
            for options in ({}, {"from_logits": True}):
                with pytest.raises(ValueError, match=r"task='multiclass'.*'binary'.*'multilabel'"):
                    metric(P, target, **options)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 9))
def test_random_one_hot_targets(seed: int, n_classes: int, n: int) -> None:
    p, y = sample(n, n_classes, seed)
    one_hot = np.eye(n_classes, dtype=np.int64)[y]
    for metric in SCALARS:
        assert metric(p, one_hot, task="multiclass") == metric(p, y)
        with pytest.raises(ValueError, match="task="):
            metric(p, one_hot)
    one_hot[0] = 0
    with pytest.raises(ValueError, match=r"one-hot.*row 0"):
        brier_score(p, one_hot, task="multiclass")


@pytest.mark.parametrize("cls", STREAMING)
def test_one_hot_targets_of_a_stream(cls: Metric) -> None:
    p, one_hot = torch.from_numpy(P), torch.eye(3, dtype=torch.int64)[torch.from_numpy(Y)]
    with pytest.raises(ValueError, match="task='multiclass'"):
        cls().update(p, one_hot)
    metric, plain = cls(task="multiclass"), cls()
    metric.update(p, one_hot)
    plain.update(p, torch.from_numpy(Y))
    assert metric.compute() == plain.compute()


def test_events() -> None:
    """Events of any shape are pooled; with several labels, calibration errors are their mean."""
    rng = np.random.default_rng(0)
    p = rng.random((50, 3))
    y = rng.random((50, 3)) < p**2
    w = rng.random((50, 3))
    for metric in (*SCALARS[:2], smooth_calibration_error, brier_score, negative_log_likelihood, accuracy):
        pooled = metric(p.ravel(), y.ravel(), sample_weight=w.ravel())
        assert metric(p, y, sample_weight=w, task="binary") == pooled
        if metric in SCALARS[:2]:
            each = [metric(p[:, k], y[:, k], sample_weight=w[:, k]) for k in range(3)]
            pooled = np.mean(each)
        assert metric(p, y, sample_weight=w, task="multilabel") == pytest.approx(pooled, rel=1e-14)
        assert metric(p.T, y.T, sample_weight=w.T, task="multilabel", dim=0) == pytest.approx(pooled)
    each = classwise_calibration_error(p, y, task="multilabel", average=None)
    assert each.tolist() == [expected_calibration_error(p[:, k], y[:, k]) for k in range(3)]
    stream = metrics.CalibrationError(task="multilabel", num_classes=3)
    for rows in (slice(20), slice(20, 50)):
        stream.update(torch.from_numpy(p[rows]), torch.from_numpy(y[rows]))
    assert stream.compute() == calibration_error(p, y, task="multilabel")
    of_rows = calibration_error(p, y, task="multilabel", sample_weight=np.tile(w[:, :1], 3))
    names: dict[str, Any] = {"target": np.where(y, "yes", "no"), "labels": ["no", "yes"]}
    for target in ({"target": y}, names):
        for weight in (w[:, 0], torch.from_numpy(w[:, 0])):
            assert calibration_error(p, task="multilabel", sample_weight=weight, **target) == of_rows


def test_events_of_unknown_labels() -> None:
    """A label whose rows are all ignored has no error."""
    p, y = np.full((4, 2), 0.25), np.array([[1, -1], [0, -1], [0, -1], [0, -1]])
    each = classwise_calibration_error(p, y, task="multilabel", average=None, ignore_index=-1)
    assert each[0] == 0
    assert np.isnan(each[1])
    assert classwise_calibration_error(p, y, task="multilabel", ignore_index=-1) == 0


@pytest.mark.parametrize("metric", SCALARS)
def test_one_column(metric: Metric) -> None:
    for y in (np.zeros(3, int), np.array([0, 1, 0])):
        with pytest.raises(ValueError, match=r"at least 2 classes.*\(N,\)"):
            metric(np.ones((3, 1)), y)
    with pytest.raises(ValueError, match=r"at least 2 classes.*\(N,\)"):
        TemperatureScaling().fit(np.ones((3, 1)), np.zeros(3, int))


@pytest.mark.parametrize(
    ("preds", "target", "options", "words"),
    [
        (np.full((4, 2), 0.5), np.zeros(4, int), {"task": "binary"}, r"`preds`.*\(4,\).*preds\[..., 1\]"),
        (np.full((4, 1), 0.5), np.zeros(4, int), {"task": "binary"}, r"preds\[..., 0\]"),
        (np.full(4, 0.5), np.zeros(4, int), {"task": "multilabel"}, r"\(N, K\)"),
        (np.full((4, 2, 2), 0.5), np.zeros((4, 2, 2), int), {"task": "multilabel"}, "`dim`"),
        (np.full((4, 2), 0.5), np.zeros((4, 2), int), {"task": "binary", "dim": 1}, "`dim`"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"task": "ranking"}, "`task`"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"dim": 2}, "`dim`"),
        (np.full((4, 2), 0.5), np.eye(2)[[0, 1, 1, 0]], {"task": "multiclass", "ignore_index": 0}, "one-hot"),
        (np.full((4, 2), 0.5), np.eye(2)[[0, 1, 1, 0]], {"task": "multiclass", "labels": [0, 1]}, "`labels`"),
        (np.full((4, 2), 0.5), np.full((4, 2), 0.5), {"task": "multiclass"}, "`target`"),
        (np.full(4, 0.5), np.zeros(4, int), {"normalize": True}, "`normalize`"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"normalize": True, "from_logits": True}, "`normalize`"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"labels": [1, 2, 3]}, "`labels`.*2 different"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"labels": [1, 2]}, "only `labels`.*row 0"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"labels": ["a", "b"]}, "only `labels`"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"labels": np.array([1, "b"], object)}, "of one type"),
        (np.full((4, 2), 0.5), np.zeros(4, int), {"labels": {"a", "b"}}, "`labels`.*2 different"),
    ],
)
def test_rejects_options(preds: Any, target: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        brier_score(preds, target, **options)


@pytest.mark.parametrize(
    "function",
    [
        metrics.area_under_risk_coverage_curve,
        metrics.risk_coverage_curve,
        metrics.calibration_test,
        metrics.bootstrap_ci,
        metrics.chance_level,
        partial(metrics.compare_calibration, P),
        metrics.calibration_report,
        TemperatureScaling().fit,
    ],
)
@pytest.mark.parametrize("option", ["sample_weight", "sample_weights"])
def test_rejects_weights(function: Metric, option: str) -> None:
    """Functions without weights must not leave them out silently."""
    with pytest.raises(TypeError, match=f"'{option}'"):
        function(P, Y, **{option: np.array([1.0, 2.0])})


# Dimensions.


@pytest.mark.parametrize("metric", SCALARS)
def test_dim(metric: Metric) -> None:
    p, y = sample(2 * 3 * 5)
    image, target = p.reshape(2, 3, 5, 4).transpose(0, 3, 1, 2), y.reshape(2, 3, 5)
    expected = pytest.approx(float(metric(p, y)), rel=1e-12)
    for dim in (1, -3):
        assert float(metric(image, target, dim=dim)) == expected
        assert float(metric(torch.from_numpy(image), torch.from_numpy(target), dim=dim)) == expected
    with pytest.raises(ValueError, match="dim=1"):
        metric(image, target)
    square, target = p[:16].reshape(4, 4, 4), y[:16].reshape(4, 4)
    with pytest.raises(ValueError, match=r"dim=1.*dim=-1"):
        metric(square, target)
    assert float(metric(square, target, dim=-1)) == pytest.approx(float(metric(p[:16], y[:16])), rel=1e-12)


# Types.


@pytest.mark.parametrize("metric", SCALARS)
def test_types(metric: Metric) -> None:
    pandas = pytest.importorskip("pandas")
    p, y = sample()
    value = metric(p, y)
    frame, series = pandas.DataFrame(p), pandas.Series(y)
    big, packed = p.astype(">f8"), np.zeros(60, [("tag", "u1"), ("p", "f8", 4)])
    packed["p"] = p
    for preds in (p.tolist(), frame, big, packed["p"]):
        assert metric(preds, y) == value
    for target in (
        y.tolist(),
        series,
        y.astype(">i2"),
        y.astype(float),
        y.astype("f2"),
        torch.from_numpy(y).half(),
    ):
        assert metric(p, target) == value
    for labels in (["cat", "dog", "ant", "bee"], [10, 5, 7, 8]):
        assert metric(p, np.array(labels)[y], labels=labels) == value
        names = np.array(labels, object)[y]
        assert metric(p, names.tolist(), labels=np.array(labels)) == value
    two, outcome = p[:, :2] / p[:, :2].sum(1, keepdims=True), y % 2 == 0
    assert metric(two, outcome) == metric(two, outcome.astype(int))


def test_labels_that_are_ignored() -> None:
    p, y = sample(20, 3)
    target = np.where(np.arange(20) < 5, 255, y + 1)
    for metric in SCALARS:
        got = metric(p, target, labels=[1, 2, 3], ignore_index=255)
        assert got == pytest.approx(metric(p[5:], y[5:]), rel=1e-14)


@pytest.mark.parametrize(
    ("labels", "target", "name"),
    [
        ([2**53, 2**53 + 1], np.array([2.0**53, 2.0**53]), "target"),
        ([2**24, 2**24 + 1], np.array([2**24 + 1, 2**24], np.float32), "target"),
        ([0, -(2**53)], -np.array([0, 2.0**53]), "target"),
        (np.array([2.0**53, 0]), np.array([2**53 + 1, 0]), "labels"),
    ],
)
def test_rounded_labels(labels: Any, target: Any, name: str) -> None:
    p = np.array([[0.6, 0.4], [0.7, 0.3]])
    for metric in SCALARS:
        with pytest.raises(ValueError, match=rf"`{name}`.* rounds integers"):
            metric(p, target, labels=labels)
    near = 2**53 - 1
    assert accuracy(p, np.array([near, 1.0]), labels=[near, 1]) == 0.5
    assert accuracy(p, np.array([2**60 + 1, 2**60]), labels=[2**60 + 1, 2**60]) == 0.5


def test_text_without_labels() -> None:
    with pytest.raises(TypeError, match="`labels`"):
        brier_score(P, ["a", "b"])


# Rounding.


def test_softmax_of_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(4096, 10, generator=generator)
    y = z.add(torch.randn(4096, 10, generator=generator)).argmax(1)
    p = z.bfloat16().softmax(1).float()
    assert ((p.sum(1) - 1).abs() > 1e-3).float().mean() > 0.2
    for metric in SCALARS:
        exact = float(metric(z.softmax(1), y))
        assert float(metric(p, y)) == pytest.approx(exact, abs=2e-3, rel=2e-2)


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.sampled_from([torch.float16, torch.bfloat16]))
def test_random_softmax_of_half_precision(seed: int, n_classes: int, dtype: torch.dtype) -> None:
    z = 4 * torch.randn(5, n_classes, generator=torch.Generator().manual_seed(seed))
    p = z.to(dtype).softmax(1).float()
    y = torch.arange(5) % n_classes
    sums = p.double().sum(1, keepdim=True)
    divided = torch.where((sums - 1).abs() > 1e-3, p / sums, p.double())
    for metric in (expected_calibration_error, brier_score, classwise_calibration_error):
        # Classwise, probabilities are in single precision.
        assert metric(p, y).item() == pytest.approx(metric(divided, y).item(), abs=1e-6)


def test_normalize() -> None:
    """Probabilities of a table, rounded to 2 decimals."""
    p, y = sample(200, 10)
    rounded = p.round(2)
    with pytest.raises(ValueError, match=r"the sum is [01]\.\d+; pass `normalize=True`"):
        brier_score(rounded, y)
    divided = rounded / rounded.sum(1, keepdims=True)
    for metric in SCALARS:
        assert metric(rounded, y, normalize=True) == pytest.approx(metric(divided, y), rel=1e-12)
    half = brier_score(torch.from_numpy(rounded).half(), torch.from_numpy(y), normalize=True)
    assert half.item() == pytest.approx(brier_score(divided, y), abs=2e-3)
    for as_type in (np.asarray, torch.from_numpy):
        with pytest.raises(ValueError, match="not negative"):  # and not their order reversed
            accuracy(as_type(np.log(p)), y, normalize=True)
        for counts in (np.full((200, 10), 3), np.full((200, 10), 3j)):
            with pytest.raises(TypeError, match="floating-point"):
                accuracy(as_type(counts), y, normalize=True)


@pytest.mark.parametrize("metric", SCALARS)
def test_slack(metric: Metric) -> None:
    y = np.array([0, 1])
    clipped = metric(np.array([[1.0, 0], [0, 1]]), y)
    for row in ([1.0000000000000002, -2.2e-16], [1 + 1e-7, -1e-7], [1, -1e-17]):
        assert metric(np.array([row, row[::-1]]), y) == pytest.approx(clipped, abs=1e-12)
    if metric is not classwise_calibration_error:
        assert metric(np.array([1.0000000000000002, -1e-17]), 1 - y) == metric(np.array([1.0, 0]), 1 - y)


# Probabilities that are said to be logits.


def test_probabilities_said_to_be_logits() -> None:
    p, y = sample(100)
    streams = [cls(from_logits=True).update for cls in STREAMING]
    for metric in (*(partial(metric, from_logits=True) for metric in SCALARS), *streams):
        with pytest.warns(ProbabilitiesWarning, match="from_logits=False") as caught:
            metric(p, y)
        assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(ProbabilitiesWarning):
        TemperatureScaling().fit(p, y)
    with pytest.warns(ProbabilitiesWarning):
        brier_score(p[:, 0], y == 0, from_logits=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logits in (np.log(p), 5 * p, np.vstack([p, 2 * p[:1]]), p[:1]):
            brier_score(logits, np.resize(y, len(logits)), from_logits=True)
        brier_score(np.full((100, 4), 6e4, np.float16), y, from_logits=True)  # the sums are infinite


@pytest.mark.parametrize("shape", [(64, 4), (8, 8, 4), (64,)], ids=str)
@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor])
def test_ignored_rows_said_to_be_logits(shape: tuple[int, ...], of: Callable[[Any], Any]) -> None:
    p, y = sample(64)
    p, y = (p[:, 0], y % 2) if len(shape) == 1 else (p, y)
    ignored = np.arange(64) % 2 == 0
    p[ignored], y[ignored] = np.nan, -100
    options = {"from_logits": True, "ignore_index": -100} | ({"dim": -1} if len(shape) > 2 else {})
    p, y = p.reshape(shape), y.reshape(shape if p.ndim == 1 else shape[:-1])
    with pytest.warns(ProbabilitiesWarning):
        brier_score(of(p), of(y), **options)
    p[(-1,) * y.ndim] = 2
    brier_score(of(p), of(y), **options)


def test_temperature_of_probabilities() -> None:
    p, y = sample(500)
    p = p**2 / (p**2).sum(1, keepdims=True)
    expected = TemperatureScaling().fit(np.log(p), y).temperature.item()
    assert expected == pytest.approx(2, rel=0.2)
    for method in ("nll", "grid"):
        of_logits = TemperatureScaling().fit(np.log(p), y, method=method).temperature
        of_probabilities = TemperatureScaling().fit(p, y, method=method, from_logits=False).temperature
        assert of_logits.item() == of_probabilities.item()
    tensors = torch.from_numpy(p), torch.from_numpy(y)
    assert TemperatureScaling().fit(*tensors, from_logits=False).temperature.item() == expected


def test_temperature_of_events() -> None:
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=2000)
    y = rng.random(2000) < 1 / (1 + np.exp(-z / 2))
    fitted = TemperatureScaling().fit(z, y).temperature.item()
    two = TemperatureScaling().fit(np.stack([np.zeros_like(z), z], -1), y.astype(int)).temperature.item()
    assert fitted == two == pytest.approx(2, rel=0.1)
    assert TemperatureScaling().fit(z.reshape(2, -1), y.reshape(2, -1), task="binary").temperature == fitted
    p = 1 / (1 + np.exp(-z))
    of_p = TemperatureScaling().fit(p, y, from_logits=False).temperature.item()
    assert of_p == pytest.approx(fitted, rel=1e-9)
    grid = [0.5, 1.0, 2.0, 4.0]
    best = TemperatureScaling().fit(z, y, method="grid", temperatures=grid).temperature.item()
    errors = [expected_calibration_error(z / t, y, from_logits=True, binning="paper") for t in grid]
    assert best == grid[int(np.argmin(errors))] == 2


def test_small_temperature_of_half_precision() -> None:
    """The logits divided by the temperature overflow in half precision."""
    logits = torch.tensor([[9.0, 1, 0], [0, 8, 1], [1, 0, 7]], dtype=torch.float16)
    with pytest.warns(RuntimeWarning, match="end of the range"):
        scaling = TemperatureScaling().fit(logits, torch.arange(3))
    for scaled in (
        scaling(logits),
        scaling.transform(logits),
        torch.from_numpy(scaling.transform(logits.numpy())),
    ):
        assert scaled.softmax(1).equal(torch.eye(3))


# More answers.


def test_edges() -> None:
    p, y = sample(500)
    edges = [0, 0.3, 0.5, 0.55, 1]
    for preds, target in ((p, y), (torch.from_numpy(p), torch.from_numpy(y))):
        curve = reliability_curve(preds, target, n_bins=edges)
        assert curve.edges.tolist() == edges
        assert curve.counts.tolist() == np.histogram(p.max(1), edges)[0].tolist()
        assert float(calibration_error(preds, target, n_bins=edges)) == curve.expected_calibration_error
    stream = metrics.CalibrationError(n_bins=edges)
    stream.update(torch.from_numpy(p), torch.from_numpy(y))
    assert stream.compute() == calibration_error(p, y, n_bins=edges)
    assert repr(stream) == "CalibrationError(n_bins=[0.0, 0.3, 0.5, 0.55, 1.0])"
    uniform = np.linspace(0, 1, 16)
    assert calibration_error(p, y, n_bins=uniform) == calibration_error(p, y)
    for wrong in ([0.1, 1], [0, 0.5], [0, 0.6, 0.5, 1], [0], [], [0, "a", 1], [[0, 1]]):
        with pytest.raises(ValueError, match="`n_bins`"):
            calibration_error(p, y, n_bins=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`binning`"):
        calibration_error(p, y, n_bins=edges, binning="quantile")


def test_error_of_each_class() -> None:
    p, y = sample(300, 3)
    each = classwise_calibration_error(p, y, average=None)
    assert each.tolist() == [expected_calibration_error(p[:, k], y == k) for k in range(3)]
    assert classwise_calibration_error(p, y) == pytest.approx(each.mean(), rel=1e-15)
    tensor = classwise_calibration_error(torch.from_numpy(p), torch.from_numpy(y), average=None)
    assert (tensor.dtype, tensor.tolist()) == (torch.float64, each.tolist())
    with pytest.raises(ValueError, match="`average`"):
        classwise_calibration_error(p, y, average="weighted")  # type: ignore[arg-type]


def test_curve_of_each_class() -> None:
    p, y = sample(300, 3)
    curves = reliability_curve(p, y, kind="classwise")
    for k, curve in enumerate(curves):
        of_class = reliability_curve(p[:, k], y == k)
        for name in ("edges", "counts", "confidence", "accuracy", "lower", "upper"):
            np.testing.assert_array_equal(getattr(curve, name), getattr(of_class, name))
    events = np.eye(3, dtype=int)[y]
    labels = reliability_curve(p, events, kind="classwise", task="multilabel")
    assert [curve.counts.tolist() for curve in labels] == [curve.counts.tolist() for curve in curves]
    assert reliability_curve(p, events, task="multilabel").counts.sum() == 900


def test_weights_of_a_curve() -> None:
    """Integer weights repeat rows, except for the intervals, which have Kish's effective sample size."""
    p, y = sample(200)
    w = np.random.default_rng(0).integers(0, 4, 200)
    curve, repeated = reliability_curve(p, y, sample_weight=w), reliability_curve(p.repeat(w, 0), y.repeat(w))
    np.testing.assert_array_equal(curve.counts, repeated.counts)
    np.testing.assert_allclose(curve.accuracy, repeated.accuracy, rtol=1e-14)
    np.testing.assert_allclose(curve.confidence, repeated.confidence, rtol=1e-14)
    assert curve.expected_calibration_error == pytest.approx(repeated.expected_calibration_error)
    same = reliability_curve(p, y, sample_weight=np.full(200, 3))
    np.testing.assert_allclose(same.lower, reliability_curve(p, y).lower, rtol=1e-12)
    assert smooth_calibration_error(p, y, sample_weight=w) == pytest.approx(
        smooth_calibration_error(p.repeat(w, 0), y.repeat(w)), rel=1e-9
    )


def test_top_k() -> None:
    p, y = sample(300, 6)
    w = np.random.default_rng(0).random(300)
    p[:50, 0] = p[:50, 1]  # ties
    p /= p.sum(1, keepdims=True)
    rank = np.argsort(np.argsort(-p, 1, kind="stable"), 1)[np.arange(300), y]
    for k in range(1, 7):
        assert accuracy(p, y, top_k=k) == (rank < k).mean()
        assert accuracy(p, y, top_k=k, sample_weight=w) == pytest.approx(np.average(rank < k, weights=w))
        target = np.where(np.arange(300) < 9, -1, y)
        assert (
            accuracy(torch.from_numpy(p), torch.from_numpy(target), top_k=k, ignore_index=-1)
            == (rank[9:] < k).mean()
        )
    for k in (0, 7, 1.0):
        with pytest.raises(ValueError, match="`top_k`"):
            accuracy(p, y, top_k=k)  # type: ignore[arg-type]


# torch.compile.


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    p, y = (torch.from_numpy(array) for array in sample(20))
    stream = metrics.CalibrationError()

    def step(preds: torch.Tensor) -> list[Any]:
        preds = preds * 1
        stream.update(preds, y)
        return [metric(preds, y) for metric in SCALARS]

    torch._dynamo.reset()
    expected = [metric(p, y) for metric in SCALARS]
    for got, value in zip(torch.compile(step, backend=backend)(p), expected, strict=True):
        assert got.item() == pytest.approx(value.item(), rel=1e-12)
    assert stream.compute() == expected_calibration_error(p, y)
