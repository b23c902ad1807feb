"""Streaming metrics: any split into batches, states or processes gives the bits of a single call."""

import contextlib
import copy
import io
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.metrics import (
    BrierScore,
    CalibrationError,
    NegativeLogLikelihood,
    brier_score,
    calibration_error,
    negative_log_likelihood,
)

Array = np.ndarray[Any, Any]
Tensor = torch.Tensor
Options = dict[str, Any]

NORMS: list[Options] = [{"norm": "l1"}, {"norm": "l2"}, {"norm": "max"}, {"norm": "l2", "debias": True}]
ERRORS: list[Options] = [
    {"binning": binning, "kind": kind, **norm}
    for binning in ("uniform", "paper")
    for kind in ("top_label", "classwise")
    for norm in NORMS
]


class Case:
    """A streaming metric, and the function of all rows."""

    def __init__(self, cls: Any, function: Callable[..., Any], options: Options | None = None) -> None:
        self.cls, self.function, self.options = cls, function, options or {}

    def metric(self, n_classes: int = 3, **more: Any) -> Any:
        is_classwise = self.options.get("kind") == "classwise"
        return self.cls(**self.options, **({"num_classes": n_classes} if is_classwise else {}), **more)

    def value(self, *arguments: Any, **more: Any) -> float:
        return float(self.function(*arguments, **self.options, **more))

    @property
    def takes_weights(self) -> bool:
        return not self.options.get("debias")

    def __repr__(self) -> str:
        return " ".join([self.cls.__name__, *(k if v is True else str(v) for k, v in self.options.items())])


CASES = [
    *(Case(CalibrationError, calibration_error, options) for options in ERRORS),
    Case(BrierScore, brier_score),
    Case(NegativeLogLikelihood, negative_log_likelihood),
]
FEW = [CASES[0], Case(CalibrationError, calibration_error, {"kind": "classwise", "n_bins": 7}), *CASES[-2:]]
every_case = pytest.mark.parametrize("case", CASES, ids=repr)
few_cases = pytest.mark.parametrize("case", FEW, ids=repr)


def predictions(rows: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, classes and weights."""
    generator = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).softmax(1)
    y = torch.randint(classes, (rows,), generator=generator)
    return p, y, torch.rand(rows, generator=generator, dtype=torch.float64)


# Batches.


@given(st.sampled_from(CASES), st.lists(st.integers(0, 20), max_size=8), st.integers(0, 2**31), st.booleans())
def test_splits(case: Case, sizes: list[int], seed: int, weighted: bool) -> None:
    p, y, w = predictions(sum(sizes) + 1, seed=seed)
    weighted &= case.takes_weights
    metric, start = case.metric(), 0
    for size in [*sizes, 1]:
        part = slice(start, start + size)
        metric.update(p[part], y[part], *([w[part]] if weighted else []))
        start += size
    expected = case.value(p, y, sample_weight=w) if weighted else case.value(p, y)
    got = metric.compute()
    assert (got.dtype, got.shape) == (torch.float64, ())
    assert got.item() == expected


@every_case
def test_kinds_of_input(case: Case) -> None:
    p, y, w = predictions(120)
    target = torch.where(torch.arange(120) % 5 == 0, -1, y)
    metric = case.metric(ignore_index=-1)
    p_invalid = torch.where((target == -1)[:, None], math.nan, p)
    metric.update(p_invalid[:70].reshape(7, 10, 3), target[:70].reshape(7, 10))
    metric.update(p_invalid[70:].numpy(), target[70:].numpy().astype(np.int16))
    assert metric.compute().item() == case.value(p_invalid, target, ignore_index=-1)
    metric = case.metric(from_logits=True)
    z = p.log()
    metric.update(z[:50], y[:50])
    metric.update(z[50:].t().contiguous().t(), y[50:])
    assert metric.compute().item() == case.value(z, y, from_logits=True)
    if case.options.get("kind") != "classwise":
        metric = case.metric()
        metric.update(p[:50, 0], y[:50] == 0)
        metric.update(p[50:, 0], y[50:] == 0)
        assert metric.compute().item() == case.value(p[:, 0], y == 0)
    if case.takes_weights:
        metric = case.metric()
        metric.update(p[:60], y[:60], sample_weight=w[:60].numpy())
        metric.update(p[60:], y[60:])  # of weight 1
        w[60:] = 1
        assert metric.compute().item() == case.value(p, y, sample_weight=w)


@given(st.sampled_from(CASES), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_merged_states(case: Case, first: int, second: int, seed: int) -> None:
    p, y, _ = predictions(first + second, seed=seed)
    one, two = case.metric(), case.metric()
    one.update(p[:first], y[:first])
    two.update(p[first:], y[first:])
    alone = two.compute().item()
    one.merge_state(two)
    assert one.compute().item() == case.value(p, y)
    assert two.compute().item() == alone == case.value(p[first:], y[first:])


@few_cases
def test_different_metrics_do_not_merge(case: Case) -> None:
    p, y, _ = predictions(20)
    metric, other = case.metric(), CalibrationError(n_bins=31)
    metric.update(p, y)
    other.update(p, y)
    before = metric.compute().item()
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        metric.merge_state(other)
    assert metric.compute().item() == before


@every_case
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_reset(case: Case) -> None:
    p, y, _ = predictions(40)
    metric = case.metric()
    with pytest.raises(ValueError, match="at least one row"):
        metric.compute()
    metric.update(p[:30], y[:30])
    metric.reset()
    with pytest.raises(ValueError, match="at least one row"):
        metric.compute()
    metric.update(p[30:], y[30:])
    assert metric.compute().item() == case.value(p[30:], y[30:])


@every_case
def test_forward(case: Case) -> None:
    p, y, w = predictions(60)
    metric = case.metric()
    for start in (0, 25, 40):
        part = slice(start, start + 20)
        assert metric(p[part], y[part]).item() == case.value(p[part], y[part])
    rows = torch.cat([torch.arange(start, start + 20) for start in (0, 25, 40)])
    assert metric.compute().item() == case.value(p[rows], y[rows])
    if case.takes_weights:
        assert metric(p, y, w).item() == case.value(p, y, sample_weight=w)


# Empty and invalid batches.


@few_cases
def test_empty_batches(case: Case) -> None:
    p, y, w = predictions(20)
    metric = case.metric(ignore_index=-1)
    metric.update(p, y)
    before = metric.compute().item()
    state = {name: value.clone() for name, value in metric.metric_state.items()}
    metric.update(p[:0], y[:0])
    metric.update(p[:0], y[:0], w[:0])
    metric.update(p[:0].reshape(0, 4, 3), y[:0].reshape(0, 4))
    metric.update(p, torch.full_like(y, -1))
    metric.update(p * math.nan, torch.full_like(y, -1))
    assert all(value.equal(state[name]) for name, value in metric.metric_state.items())
    metric.update(p[:7], y[:7], torch.zeros(7))
    assert metric.compute().item() == before


@few_cases
def test_forward_of_an_empty_batch(case: Case) -> None:
    p, y, _ = predictions(20)
    metric = case.metric()
    metric.update(p, y)
    with contextlib.suppress(ValueError):  # an empty batch may have no value
        metric(p[:0], y[:0])
    assert metric.compute().item() == case.value(p, y)
    metric.update(p[:7], y[:7])
    assert metric.compute().item() == case.value(torch.cat([p, p[:7]]), torch.cat([y, y[:7]]))


INVALID_BATCHES = [
    (lambda p, y: (p * 2, y), ValueError, "row 0"),
    (lambda p, y: (torch.where(torch.arange(20)[:, None] == 7, math.nan, p), y), ValueError, "row 7"),
    (lambda p, y: (p, torch.where(torch.arange(20) == 7, 3, y)), IndexError, "3 at row 7"),
    (lambda p, y: (p, y[:19]), ValueError, "`target`"),
    (lambda p, y: (p, y + 0.5), TypeError, "`target`"),
    (lambda p, y: (p.long(), y), TypeError, "`preds`"),
    (lambda p, y: (p, y, torch.full((20,), -1.0)), ValueError, "`sample_weight`"),
    (lambda p, y: (p, y, torch.ones(19)), ValueError, "`sample_weight`"),
]


@pytest.mark.parametrize(("batch", "error", "what"), INVALID_BATCHES)
@few_cases
def test_invalid_batches(case: Case, batch: Callable[..., Any], error: type[Exception], what: str) -> None:
    p, y, _ = predictions(20)
    for how in ("update", "forward"):
        metric = case.metric()
        metric.update(p, y)
        with pytest.raises(error, match=what):
            getattr(metric, how)(*batch(p, y))
        assert metric.compute().item() == case.value(p, y)
        metric.update(p[:3], y[:3])
        assert metric(p[3:8], y[3:8]).item() == case.value(p[3:8], y[3:8])
        assert metric.compute().item() == case.value(torch.cat([p, p[:8]]), torch.cat([y, y[:8]]))


def test_rejects_batches() -> None:
    p, y, w = predictions(20, 4)
    top = CalibrationError(num_classes=3)
    top.update(*predictions(20, 3)[:2])
    with pytest.raises(ValueError, match=r"3 classes.*`num_classes`.*got 2"):
        top.update(p[:, 0], y % 2)
    CalibrationError(num_classes=2).update(p[:, 0], y % 2)
    for metric in (top, CalibrationError(kind="classwise", num_classes=3)):
        for preds in (p, p[:0], p[:, :2] / p[:, :2].sum(1, keepdim=True)):
            with pytest.raises(ValueError, match=r"3 classes.*`num_classes`.*got [24]"):
                metric.update(preds, y[: len(preds)] % 2)
    with pytest.raises(ValueError, match="`kind`"):
        metric.update(p[:, 0], y % 2)
    metric = CalibrationError(norm="l2", debias=True)
    with pytest.raises(ValueError, match=r"`sample_weight`.*`debias`"):
        metric.update(p, y, w)


INVALID_OPTIONS = [
    ({"n_bins": 0}, ValueError, "`n_bins`"),
    ({"n_bins": True}, ValueError, "`n_bins`"),
    ({"n_bins": 2**21}, ValueError, "`n_bins`"),
    ({"norm": "L1"}, ValueError, "`norm`"),
    ({"binning": "mass"}, ValueError, "`binning`"),
    ({"binning": "quantile"}, ValueError, "`binning`.*'uniform' or 'paper'.*all rows"),
    ({"kind": "class"}, ValueError, "`kind`"),
    ({"kind": "classwise"}, ValueError, "`num_classes`"),
    ({"kind": "classwise", "num_classes": 0}, ValueError, "`num_classes`"),
    ({"kind": "classwise", "num_classes": 2.0}, ValueError, "`num_classes`"),
    ({"kind": "classwise", "num_classes": 2**20, "n_bins": 2**20}, ValueError, "`n_bins"),
    ({"debias": True}, ValueError, "`norm`.*debias"),
    ({"debias": 1, "norm": "l2"}, TypeError, "`debias`"),
    ({"from_logits": 1}, TypeError, "`from_logits`"),
    ({"ignore_index": 0.5}, ValueError, "`ignore_index`"),
    ({"no_such_option": 1}, ValueError, "no_such_option"),
]


@pytest.mark.parametrize(("options", "error", "what"), INVALID_OPTIONS)
def test_rejects_options(options: Options, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        CalibrationError(**options)
    if set(options) <= {"from_logits", "ignore_index", "no_such_option"}:
        for cls in (BrierScore, NegativeLogLikelihood):
            with pytest.raises(error, match=what):
                cls(**options)


# The state.


@few_cases
def test_state_size(case: Case) -> None:
    metric = case.metric(n_classes=10)

    def size() -> list[tuple[str, torch.Size, torch.dtype]]:
        return [(name, value.shape, value.dtype) for name, value in metric.metric_state.items()]

    before = size()
    for rows in (1, 1000, 20_000):
        metric.update(*predictions(rows, 10)[:2])
        assert size() == before
    assert all(dtype == torch.int64 for _, _, dtype in before)
    n_bins = metric.n_bins * (10 if metric.kind == "classwise" else 1) if hasattr(metric, "n_bins") else 1
    assert sum(shape.numel() for _, shape, _ in before) <= 32 * n_bins
    assert len(pickle.dumps(metric)) < 32 * 8 * 2 * n_bins + 20_000


def test_twenty_million_rows_are_exact() -> None:
    """Sums in float32 stop growing at 16 million."""
    p = torch.tensor([[0.97, 0.03]])
    c = float(p[0, 0])
    correct, wrong = torch.tensor([0], dtype=torch.int8), torch.tensor([1], dtype=torch.int8)
    rows = 1_000_000
    error, brier = CalibrationError(), BrierScore()
    for batch in range(20):
        target = (correct if batch % 2 else wrong).expand(rows)
        error.update(p.expand(rows, 2), target)
        if batch < 4:
            brier.update(p.expand(rows, 2), target)
    assert error.compute().item() == c - 0.5
    q = float(p[0, 1])
    assert brier.compute().item() == pytest.approx((c**2 + (1 - c) ** 2 + q**2 + (1 - q) ** 2) / 2, rel=1e-15)


@few_cases
def test_copies(case: Case) -> None:
    p, y, _ = predictions(60)
    metric = case.metric()
    metric.update(p[:30], y[:30])
    for copied in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        assert copied.compute().item() == metric.compute().item()
        copied.update(p[30:], y[30:])
        assert copied.compute().item() == case.value(p, y)
    assert metric.compute().item() == case.value(p[:30], y[:30])


def convert(name: str) -> Callable[[Any], Any]:
    return lambda module: getattr(module, name)()


CONVERSIONS = {
    **{name: convert(name) for name in ("half", "bfloat16", "float", "double", "cpu")},
    "type": lambda module: module.type(torch.float16),
    "to cpu": lambda module: module.to("cpu"),
    "to float16": lambda module: module.to(torch.float16),
    "to a device and float32": lambda module: module.to("cpu", torch.float32),
    "to a tensor's": lambda module: module.to(torch.zeros(1, dtype=torch.bfloat16)),
    "share_memory": convert("share_memory"),
}
DTYPES = {
    str(dtype): (lambda dtype: lambda metric: metric.set_dtype(dtype))(dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32)
}


@pytest.mark.parametrize("conversion", [*CONVERSIONS, *DTYPES])
@few_cases
def test_conversions_keep_the_state(case: Case, conversion: str) -> None:
    for inside, computed in ((False, False), (False, True), (True, False), (True, True)):
        if inside and conversion in DTYPES:
            continue
        check_conversion(case, conversion, inside, computed)


def check_conversion(case: Case, conversion: str, inside: bool, computed: bool) -> None:
    """Neither the digits nor a cached result are rounded."""
    p, y, _ = predictions(400)
    metric = case.metric()
    metric.update(p[:300], y[:300])
    if computed:
        metric.compute()
    state = {name: value.clone() for name, value in metric.metric_state.items()}
    module = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    if conversion in DTYPES:
        DTYPES[conversion](metric)
    else:
        CONVERSIONS[conversion](module if inside else metric)
    for name, value in metric.metric_state.items():
        assert value.dtype == torch.int64
        assert value.equal(state[name])
    got = metric.compute()
    assert (got.dtype, got.item()) == (torch.float64, case.value(p[:300], y[:300]))
    metric.update(p[300:], y[300:])
    assert metric.compute().item() == case.value(p, y)
    metric.reset()
    assert all(value.dtype == torch.int64 for value in metric.metric_state.values())
    metric.update(p, y)
    assert metric.compute().item() == case.value(p, y)


@few_cases
def test_conversion_of_a_model(case: Case) -> None:
    module = torch.nn.ModuleDict({"metric": case.metric(), "layer": torch.nn.Linear(2, 2)})
    assert module.half()["layer"].weight.dtype == torch.float16
    metric = module.to("meta")["metric"]
    assert {value.device.type for value in [*metric.metric_state.values(), metric]} == {"meta"}


@few_cases
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_save_and_load(case: Case) -> None:
    p, y, _ = predictions(60)
    metric = case.metric()
    assert metric.state_dict() == {}  # as for every torchmetrics.Metric
    metric.persistent(True)
    metric.update(p[:30], y[:30])
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    loaded = case.metric()
    loaded.persistent(True)
    loaded.load_state_dict(torch.load(file))
    assert loaded.compute().item() == case.value(p[:30], y[:30])
    loaded.update(p[30:], y[30:])
    assert loaded.compute().item() == case.value(p, y)
    model = torch.nn.ModuleDict({"metric": loaded})
    other = torch.nn.ModuleDict({"metric": case.metric()})
    other["metric"].persistent(True)
    other.load_state_dict(model.state_dict())
    assert other["metric"].compute().item() == case.value(p, y)


# Collections and loops.


def collection(**options: Any) -> tuple[Any, dict[str, tuple[Callable[..., Any], Options]]]:
    """Metrics that differ in one option each; some could share a state."""
    error = calibration_error
    entries: dict[str, tuple[Any, Callable[..., Any], Options]] = {
        "l1": (CalibrationError, error, {}),
        "l2": (CalibrationError, error, {"norm": "l2"}),
        "max": (CalibrationError, error, {"norm": "max"}),
        "debiased": (CalibrationError, error, {"norm": "l2", "debias": True}),
        "paper": (CalibrationError, error, {"binning": "paper"}),
        "more": (CalibrationError, error, {"n_bins": 30}),
        "classes": (CalibrationError, error, {"n_bins": 5, "kind": "classwise"}),
        "without 0": (CalibrationError, error, {"ignore_index": 0}),
        "logits": (CalibrationError, error, {"from_logits": True}),
        "brier": (BrierScore, brier_score, {}),
        "brier of logits": (BrierScore, brier_score, {"from_logits": True}),
        "brier without 0": (BrierScore, brier_score, {"ignore_index": 0}),
        "nll": (NegativeLogLikelihood, negative_log_likelihood, {}),
        "nll without 0": (NegativeLogLikelihood, negative_log_likelihood, {"ignore_index": 0}),
    }
    metrics = {
        name: cls(**(o | {"num_classes": 3} if o.get("kind") == "classwise" else o))
        for name, (cls, _, o) in entries.items()
    }
    return torchmetrics.MetricCollection(metrics, **options), {n: (f, o) for n, (_, f, o) in entries.items()}


FIRST_BATCHES = {
    "any": predictions(30)[:2],
    # Several metrics have the same sums of these batches.
    "certain": (torch.eye(3, dtype=torch.float64)[[1, 2, 1]], torch.tensor([1, 2, 1])),
    "sure": (torch.tensor([[0.1, 0.9, 0.0]], dtype=torch.float64), torch.tensor([1])),
    "alike": (torch.full((9, 3), 1 / 3, dtype=torch.float64), torch.tensor([1, 2, 1] * 3)),
    "empty": (torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)),
}


@pytest.mark.filterwarnings("ignore:Every row of")  # some metrics take the probabilities for logits
@pytest.mark.parametrize("how", ["update", "forward"])
@pytest.mark.parametrize("grouped", [True, False], ids=["groups", "no groups"])
@pytest.mark.parametrize("first", FIRST_BATCHES)
def test_collections(first: str, grouped: bool, how: str) -> None:
    """Equal sums of the first batch must not group metrics whose sums may differ later."""
    p, y, _ = predictions(90, seed=1)
    metrics, expected = collection(compute_groups=grouped)
    metrics.update(*FIRST_BATCHES[first])
    for start in (0, 30, 60):
        of_batch = getattr(metrics, how)(p[start : start + 30], y[start : start + 30])
        if how == "forward":
            for name, (function, options) in expected.items():
                value = function(p[start : start + 30], y[start : start + 30], **options)
                assert of_batch[name].item() == value.item(), name
    everything = [torch.cat(pair) for pair in zip(FIRST_BATCHES[first], (p, y), strict=True)]
    got = metrics.compute()
    for name, (function, options) in expected.items():
        assert got[name].item() == function(*everything, **options).item(), name
    metrics.reset()
    metrics.update(p, y)
    got = metrics.compute()
    for name, (function, options) in expected.items():
        assert got[name].item() == function(p, y, **options).item(), name


def test_collections_of_many_labels() -> None:
    """Metrics of different labels have different sums, even if the text of their labels is the same."""
    labels = np.arange(1500)
    swapped = labels.copy()
    swapped[[700, 800]] = 800, 700
    p = np.full((4, 1500), 0.5 / 1499)
    p[:, 700] = 0.5
    pair = {"one": CalibrationError(labels=labels), "other": CalibrationError(labels=swapped)}
    both = torchmetrics.MetricCollection(pair)
    y = np.repeat([[3], [700]], 4, axis=1)
    for batch in y:
        both.update(p, batch)
    expected = [calibration_error(np.tile(p, (2, 1)), y.ravel(), labels=each) for each in (labels, swapped)]
    assert list(both.compute().values()) == expected
    assert expected == pytest.approx([0, 0.5])


def test_given_groups() -> None:
    p, y, _ = predictions(40)
    metrics = torchmetrics.MetricCollection(
        {"l1": CalibrationError(), "max": CalibrationError(norm="max"), "brier": BrierScore()},
        compute_groups=[["l1", "max"], ["brier"]],
    )
    for start in (0, 20):
        metrics.update(p[start : start + 20], y[start : start + 20])
    got = metrics.compute()
    assert got["l1"].item() == calibration_error(p, y).item()
    assert got["max"].item() == calibration_error(p, y, norm="max").item()
    assert got["brier"].item() == brier_score(p, y).item()


def test_training_loop() -> None:
    """As in Lightning: forward in every step, compute and reset after each epoch."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)
            self.metrics = torchmetrics.MetricCollection(
                [CalibrationError(from_logits=True), NegativeLogLikelihood(from_logits=True)], prefix="val/"
            )

    torch.manual_seed(0)
    model = Model().float()
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    for _ in range(2):
        logits = []
        for start in range(0, 64, 16):
            logits.append(model.layer(x[start : start + 16]))  # in the graph
            of_step = model.metrics(logits[-1], y[start : start + 16])
            assert not of_step["val/CalibrationError"].requires_grad
        all_logits = torch.cat(logits)
        got = model.metrics.compute()
        expected = calibration_error(all_logits, y, from_logits=True)
        assert got["val/CalibrationError"].item() == expected.item()
        expected = negative_log_likelihood(all_logits, y, from_logits=True)
        assert got["val/NegativeLogLikelihood"].item() == expected.item()
        model.metrics.reset()
    assert list(model.state_dict()) == ["layer.weight", "layer.bias"]


def test_attributes() -> None:
    for cls, upper in ((CalibrationError, 1), (BrierScore, 2), (NegativeLogLikelihood, None)):
        metric = cls()
        assert (metric.higher_is_better, metric.is_differentiable) == (False, False)
        assert (metric.plot_lower_bound, metric.plot_upper_bound) == (0, upper)
    both = CalibrationError() + BrierScore()
    p, y, _ = predictions(20)
    both.update(p, y)
    assert both.compute().item() == calibration_error(p, y).item() + brier_score(p, y).item()


# Processes.

WORKER = """
import datetime, sys
import torch, torch.distributed as dist
from lr_relax.metrics import BrierScore, CalibrationError, NegativeLogLikelihood
from torchmetrics import MetricCollection

rank, path, data = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{path}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
p, y = torch.load(data)
metrics = {
    "l1": CalibrationError(),
    "debiased": CalibrationError(norm="l2", debias=True),
    "classwise": CalibrationError(kind="classwise", num_classes=3, binning="paper", norm="max"),
    "brier": BrierScore(),
    "nll": NegativeLogLikelihood(),
}
rows = torch.arange(len(y))
rows = rows[rows % 3 == 0] if rank == 0 else rows[rows % 3 != 0]  # of different sizes
together = MetricCollection({"l2": CalibrationError(norm="l2"), "max": CalibrationError(norm="max")})
for start in range(0, len(rows), 17):
    part = rows[start : start + 17]
    for metric in (*metrics.values(), together):
        metric.update(p[part], y[part])
for _ in range(2):
    values = {name: metric.compute().item() for name, metric in metrics.items()}
    values |= {name: value.item() for name, value in together.compute().items()}
print({name: value.hex() for name, value in values.items()})
alone = CalibrationError(sync_on_compute=False)
alone.update(p[rows], y[rows])
print(alone.compute().item().hex())
each_step = BrierScore(dist_sync_on_step=True)
print(each_step(p[rows], y[rows]).item().hex())
dist.destroy_process_group()
"""


def test_two_processes(tmp_path: Path) -> None:
    p, y, _ = predictions(301)
    torch.save((p, y), tmp_path / "data.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(tmp_path / "data.pt")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=90) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    expected = {
        "l1": calibration_error(p, y),
        "debiased": calibration_error(p, y, norm="l2", debias=True),
        "classwise": calibration_error(p, y, kind="classwise", binning="paper", norm="max"),
        "brier": brier_score(p, y),
        "nll": negative_log_likelihood(p, y),
        "l2": calibration_error(p, y, norm="l2"),
        "max": calibration_error(p, y, norm="max"),
    }
    rows = torch.arange(301)
    for rank, (worker, (out, errors)) in enumerate(zip(workers, outputs, strict=True)):
        assert worker.returncode == 0, errors
        *_, together, alone, each_step = out.strip().splitlines()  # gloo of torch 2.10 prints first
        assert together == str({name: value.item().hex() for name, value in expected.items()})
        own = rows[rows % 3 == 0] if rank == 0 else rows[rows % 3 != 0]
        assert alone == calibration_error(p[own], y[own]).item().hex()
        assert each_step == expected["brier"].item().hex()


# Imports of torchmetrics.

IMPORTS = """
import sys
import numpy as np
import lr_relax.metrics as m

def errors(names):
    for name in names:
        for get in (lambda: getattr(m, name), lambda: exec(f"from lr_relax.metrics import {name}")):
            try:
                get()
            except (ImportError, AttributeError) as error:
                print(error)

assert not any(name.split(".")[0] == "torchmetrics" for name in sys.modules)
classes = ("CalibrationError", "BrierScore", "NegativeLogLikelihood")
assert set(classes) <= set(dir(m))
sys.modules["torchmetrics"] = None  # not installed
errors(classes)
p, y = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
print(round(float(m.calibration_error(p, y)), 6), round(float(m.brier_score(p, y)), 6))
del sys.modules["torchmetrics"]
sys.path.insert(0, sys.argv[1])  # broken
errors(["BrierScore", "NoSuchMetric"])
sys.path.pop(0)
from torchmetrics import Metric
print(issubclass(m.BrierScore, Metric))
"""


def test_torchmetrics_is_optional(tmp_path: Path) -> None:
    (tmp_path / "torchmetrics.py").write_text("import missing_dependency\n")
    command = [sys.executable, "-c", IMPORTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    missing = 'The streaming metrics need torchmetrics: pip install "lr-relax[torchmetrics]"'
    assert lines[:7] == [missing] * 6 + ["0.15 0.05"]
    assert all("missing_dependency" in line for line in lines[7:9])
    assert all("NoSuchMetric" in line for line in lines[9:11])
    assert lines[11:] == ["True"]
