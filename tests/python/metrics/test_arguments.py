"""All metrics reject the same invalid predictions, targets, weights and common options."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import metrics

Array = np.ndarray[Any, Any]

CLASSWISE = partial(metrics.calibration_error, kind="classwise")
WEIGHTED: list[Callable[..., Any]] = [
    metrics.calibration_error,
    partial(metrics.calibration_error, binning="quantile"),
    CLASSWISE,
    metrics.brier_score,
    metrics.negative_log_likelihood,
    metrics.accuracy,
    metrics.brier_decomposition,
]
NAMES = ("expected_calibration_error", "maximum_calibration_error", "brier_score", "negative_log_likelihood")
OTHERS = ("accuracy", "smooth_calibration_error", "area_under_risk_coverage_curve")
ALL: list[Callable[..., Any]] = [
    *WEIGHTED,
    metrics.expected_calibration_error,
    metrics.smooth_calibration_error,
    metrics.soft_calibration_error,
    metrics.area_under_risk_coverage_curve,
    metrics.risk_coverage_curve,
    metrics.reliability_curve,
    metrics.calibration_test,
    *(partial(metrics.bootstrap_ci, metric=name, n_resamples=2) for name in (*NAMES, *OTHERS)),
    *(partial(metrics.chance_level, metric=name, n_resamples=2) for name in (NAMES[0], OTHERS[1])),
]

P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]])
Y = np.array([0, 1, 1, 0])
W = np.ones(4)
NAN, INF = math.nan, math.inf
LOGITS = {"from_logits": True}


def put(array: Array, row: int, value: Any) -> Array:
    array = array.copy()
    array[row] = value
    return array


INVALID = [
    *(
        (put(put(P, 3, NAN), 1, row), Y, {}, ValueError, r"`preds`.*from_logits=True.* row 1 ")
        for row in ([NAN, 1], [1, NAN], [-0.5, 1.5], [INF, 0], [0, 0], [-INF, INF], [1 + 1e-5, -1e-5])
    ),
    *(
        (put(put(P, 3, NAN), 1, row), Y, {}, ValueError, rf"`preds`.*{sum(row):.6f}.*normalize=True.* row 1 ")
        for row in ([0.5, 0.4], [0.6, 0.6], [0.5, 0.4949], [0.5, 0.5051])
    ),
    *(
        (put(P, 2, row), Y, LOGITS, ValueError, r"softmax.* row 2 ")
        for row in ([NAN, 1], [1, NAN], [INF, 0], [INF, INF], [-INF, -INF], [INF, -INF])
    ),
    *((put(P[:, 0], 1, x), Y, {}, ValueError, r"in \[0, 1\].* row 1 ") for x in (NAN, -1e-5, 1 + 1e-5, INF)),
    (put(P[:, 0], 3, NAN), Y, LOGITS, ValueError, "NaN.* row 3 "),
    (P.reshape(2, 2, 2) * [[[1], [1]], [[1], [2]]], Y.reshape(2, 2), {"dim": -1}, ValueError, "row 3 "),
    (put(P, 1, NAN), Y, {"ignore_index": 0}, ValueError, "row 1 "),
    (P, put(Y, 2, 2), {}, IndexError, "2 at row 2"),
    (P, put(Y, 2, -1), {}, IndexError, "-1 at row 2"),
    (P, put(Y, 2, -1), {"ignore_index": -100}, IndexError, "-1 at row 2"),
    (P[:, 0], put(Y, 2, 2), {}, IndexError, "2 at row 2"),
    (P[:0], Y[:0], {}, ValueError, "at least one row"),
    (P[:0, 0], Y[:0], {}, ValueError, "at least one row"),
    (P, 0 * Y, {"ignore_index": 0}, ValueError, "at least one row"),
    (P[:, :0], Y, {}, ValueError, "`preds`.*at least 2 classes.*4, 0"),
    (P, Y[:3], {}, ValueError, "`target`.*4.*3"),
    (P, Y[:, None], {}, ValueError, "`target`"),
    (P.reshape(2, 2, 2), Y, {}, ValueError, "`target`"),
    (P[:, 0], Y[:3], {}, ValueError, "`preds`.*4"),
    (P[0], np.array(0), {}, ValueError, "`preds`.*2"),
    *((P, Y, {"from_logits": flag}, TypeError, "`from_logits`") for flag in (1, None, "no")),
    *((P, Y, {"ignore_index": i}, ValueError, "`ignore_index`") for i in (1.0, True, "0", 2**63)),
    (P[:, :1], Y, {}, ValueError, r"at least 2 classes.*\(4, 1\).*shape \(N,\)"),
    *((P.astype(t), Y, {}, TypeError, "`preds`") for t in (int, bool, complex, np.longdouble)),
    *((p, Y, o, TypeError, "`preds`") for p in ([["a", "b"]] * 4, P * 1j) for o in ({}, LOGITS)),
    ([[0.5, 0.5], [1.0]], Y, {}, TypeError, "`preds`.*list"),
    (P, Y + 0.5, {}, TypeError, "`target`.*0.5 of type float64 at row 0"),
    (P, put(Y.astype(float), 2, NAN), {}, TypeError, "`target`.*nan.*row 2"),
    (np.full((4, 4), 0.25), Y == 0, {"dim": -1}, TypeError, "`target`.*bool"),
    (np.ma.masked_array(P), Y, {}, TypeError, "`preds`.*MaskedArray"),
    (torch.from_numpy(P).long(), torch.from_numpy(Y), {}, TypeError, "`preds`.*int64"),
    (torch.from_numpy(P), torch.from_numpy(Y) + 0.5, {}, TypeError, "`target`.*float"),
]  # fmt: skip

INVALID_WEIGHTS = [
    *((put(W, 2, w), ValueError, "`sample_weight`.*row 2") for w in (-1e-300, NAN, INF, 2.0**33)),
    *((w, ValueError, "`sample_weight`.*shape") for w in (W[:3], W[:, None], 1.0, P)),
    (np.ma.masked_array(W), TypeError, "`sample_weight`"),
    *((w, TypeError, "`sample_weight`") for w in (W * 1j, torch.from_numpy(W * 1j))),
    *((np.array([w] * 4), TypeError, "`sample_weight`") for w in ("x", "1", None)),
    (0 * W, ValueError, "at least one row"),
]  # fmt: skip


def message(function: Callable[..., Any], error: type[Exception], *arrays: Any, **options: Any) -> str:
    try:
        function(*arrays, **options)
    except error as raised:
        return str(raised)
    return "no error"


@pytest.mark.parametrize(("preds", "target", "options", "error", "words"), INVALID)
def test_rejects_input(preds: Any, target: Any, options: Any, error: type[Exception], words: str) -> None:
    is_binary = isinstance(preds, np.ndarray) and preds.ndim == 1
    for function in ALL:
        if not (is_binary and function is CLASSWISE):
            assert re.search(words, message(function, error, preds, target, **options)), function


@pytest.mark.parametrize(("weight", "error", "words"), INVALID_WEIGHTS)
def test_rejects_weights(weight: Any, error: type[Exception], words: str) -> None:
    for function in WEIGHTED:
        assert re.search(words, message(function, error, P, Y, sample_weight=weight)), function


def test_weights_of_ignored_rows() -> None:
    y = put(Y, 2, -100)
    for function in (*WEIGHTED, metrics.smooth_calibration_error, metrics.reliability_curve):
        got = function(P, y, sample_weight=put(W, 2, NAN), ignore_index=-100)
        assert repr(got) == repr(function(P, y, sample_weight=W, ignore_index=-100))
        w = torch.from_numpy(put(W, 2, -1))
        function(torch.from_numpy(P), torch.from_numpy(y), sample_weight=w, ignore_index=-100)
        assert "row 1." in message(
            function, ValueError, P, y, sample_weight=put(W, 1, NAN), ignore_index=-100
        )


def test_zero_weights_do_not_hide_errors() -> None:
    for function in WEIGHTED:
        got = message(function, ValueError, put(P, 1, NAN), Y, sample_weight=put(W, 1, 0))
        assert "row 1 " in got, function
        got = message(function, ValueError, P, Y, sample_weight=1.0 * (Y == 0), ignore_index=0)
        assert "at least one row" in got, function
