"""Comparison with other packages, where they compute the same quantity.

The predictions are random, so that no confidence is on the edge of a bin: packages differ there.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import metrics

Array = np.ndarray[Any, Any]
Peer = Callable[[Any, Array, Array, int], float]  # of a module, probabilities, classes and a number of bins


# The definitions.


# Random predictions: no confidence is on the edge of a bin, so that it does not matter which side is closed.


def predictions(rows: int, classes: int) -> tuple[Array, Array]:
    """Confident predictions, about 60 % of them correct."""
    rng = np.random.default_rng([rows, classes])
    z = 2 * rng.normal(size=(rows, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, np.where(rng.random(rows) < 0.6, p.argmax(1), rng.integers(classes, size=rows))


def binary(rows: int) -> tuple[Array, Array]:
    p, y = predictions(rows, 3)
    return p[:, 1].copy(), (y == 1).astype(int)


# Rows, classes and bins. The number of rows is a multiple of the number of bins, because quantile bins of
# other packages differ otherwise. In the last two cases, bins hold two rows or one.
SIZES = [(1200, 5, 15), (700, 3, 7), (60, 4, 30), (64, 4, 64)]


def words(options: dict[str, Any]) -> str:
    return " ".join(name if value is True else str(value) for name, value in options.items())


# Calls of the other packages: the module, our options, and the function.


def uncertainty_calibration(p_norm: int, debias: bool, scheme: str, mode: str = "top-label") -> Peer:
    return lambda module, p, y, n: module.lower_bound_scaling_ce(
        p, y, p=p_norm, debias=debias, num_bins=n, binning_scheme=getattr(module, scheme), mode=mode
    )


def netcal(metric: str, **options: Any) -> Peer:
    return lambda module, p, y, n: getattr(module, metric)(n, **options).measure(p, y)


def pycalib(metric: str) -> Peer:
    return lambda module, p, y, n: getattr(module, metric)(y, p, bins=n)


def torchmetrics(norm: str) -> Peer:
    return lambda module, p, y, n: module.binary_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y), n, norm
    ).item()


UC, NC, PC = "calibration.utils", "netcal.metrics", "pycalib.metrics"
TM = "torchmetrics.functional.classification"
L2, DEBIASED = {"norm": "l2"}, {"norm": "l2", "debias": True}
QUANTILE, CLASSWISE = {"binning": "quantile"}, {"kind": "classwise"}
BOTH: list[tuple[str, dict[str, Any], Peer]] = [
    (UC, {}, uncertainty_calibration(1, False, "get_equal_prob_bins")),
    (UC, L2, uncertainty_calibration(2, False, "get_equal_prob_bins")),
    (UC, DEBIASED, uncertainty_calibration(2, True, "get_equal_prob_bins")),
    (UC, QUANTILE, uncertainty_calibration(1, False, "get_equal_bins")),
    (UC, QUANTILE | L2, uncertainty_calibration(2, False, "get_equal_bins")),
    (UC, QUANTILE | DEBIASED, uncertainty_calibration(2, True, "get_equal_bins")),
    (NC, {}, netcal("ECE")),
    (NC, {"norm": "max"}, netcal("MCE")),
    (NC, QUANTILE, netcal("ECE", equal_intervals=False)),
]
MULTICLASS = [
    *BOTH,
    # With p = 2 its "marginal" mode is the root of the mean square over classes, which is not our mean.
    (UC, CLASSWISE, uncertainty_calibration(1, False, "get_equal_prob_bins", "marginal")),
    (UC, CLASSWISE | QUANTILE, uncertainty_calibration(1, False, "get_equal_bins", "marginal")),
    (PC, {}, pycalib("conf_ECE")),
    (PC, {"norm": "max"}, pycalib("conf_MCE")),
    (PC, CLASSWISE, pycalib("classwise_ECE")),  # its classwise_MCE is a maximum over the classes
]
BINARY = [
    *BOTH,
    (PC, {}, pycalib("binary_ECE")),
    (PC, {"norm": "max"}, pycalib("binary_MCE")),
    *((TM, {"norm": norm}, torchmetrics(norm)) for norm in ("l1", "l2", "max")),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("is_binary", "module", "options", "peer"),
    [
        pytest.param(name == "binary", *case, id=f"{name} {case[0]} {words(case[1])}")
        for name, cases in (("multiclass", MULTICLASS), ("binary", BINARY))
        for case in cases
    ],
)
def test_calibration_errors(is_binary: bool, module: str, options: dict[str, Any], peer: Peer) -> None:
    imported = import_module(module)
    for rows, classes, n_bins in SIZES:
        p, y = binary(rows) if is_binary else predictions(rows, classes)
        got = metrics.calibration_error(p, y, n_bins=n_bins, **options)
        assert got == pytest.approx(peer(imported, p, y, n_bins), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics() -> None:
    """torchmetrics rounds confidences to float32."""
    module = import_module(TM)
    p, y = map(torch.from_numpy, predictions(1200, 5))
    for norm in ("l1", "l2", "max"):
        got = metrics.calibration_error(p, y, norm=norm).item()
        assert got == pytest.approx(module.multiclass_calibration_error(p, y, 5, 15, norm).item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_ties_in_quantile_bins() -> None:
    module = import_module(UC)
    p, y = binary(1200)
    for digits in (1, 2):
        tied = p.round(digits)
        got = metrics.adaptive_calibration_error(tied, y)
        assert got == pytest.approx(module.get_ece_em(tied, y), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_average_gap() -> None:
    """The average over the bins that are not empty."""
    p, y = predictions(1200, 5)
    curve = metrics.reliability_curve(p, y, n_bins=20)
    expected = import_module(NC).ACE(20).measure(p, y)
    assert np.nanmean(abs(curve.accuracy - curve.confidence)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_scores(weighted: bool) -> None:
    of_sklearn = import_module("sklearn.metrics")
    for p, y in (predictions(1200, 5), binary(1200)):
        w = np.random.default_rng(0).gamma(1, size=len(y)) if weighted else None
        labels = np.arange(5 if p.ndim == 2 else 2)
        brier = of_sklearn.brier_score_loss(y, p, sample_weight=w, labels=labels)
        assert metrics.brier_score(p, y, sample_weight=w) == pytest.approx(brier, abs=1e-12)
        nll = of_sklearn.log_loss(y, p, sample_weight=w, labels=labels)
        assert metrics.negative_log_likelihood(p, y, sample_weight=w) == pytest.approx(nll, abs=1e-12)
        predicted = p.argmax(1) if p.ndim == 2 else p > 0.5
        accuracy = of_sklearn.accuracy_score(y, predicted, sample_weight=w)
        assert metrics.accuracy(p, y, sample_weight=w) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_reliability_curve(strategy: str) -> None:
    module = import_module("sklearn.calibration")
    p, y = binary(1200)
    accuracy, confidence = module.calibration_curve(y, p, n_bins=15, strategy=strategy)
    curve = metrics.reliability_curve(p, y, n_bins=15, binning=strategy)
    filled = curve.counts > 0
    np.testing.assert_allclose(curve.accuracy[filled], accuracy, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.confidence[filled], confidence, rtol=0, atol=1e-12)


# Defects of others.


@pytest.mark.filterwarnings("ignore")
def test_temperature() -> None:
    """scikit-learn compares values of the loss, which resolves temperatures to about 1e-8."""
    module = import_module("sklearn.calibration")
    p, y = predictions(2000, 5)
    z = 4 * np.log(p)
    expected = 1 / module._TemperatureScaling().fit(z, y).beta_
    got = metrics.TemperatureScaling().fit(torch.from_numpy(z), torch.from_numpy(y)).temperature.item()
    assert got == pytest.approx(expected, rel=1e-6)
