"""Other packages as second opinions where they are right, and the defects of theirs that we must not share.

The definitions are written out below in plain NumPy and float64. A package is asked only for what it computes
as defined; what it lacks or does otherwise is not compared.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import metrics

Array = np.ndarray[Any, Any]
Peer = Callable[[Any, Array, Array, int], float]  # of a module, probabilities, classes and a number of bins


# The definitions.


def uniform_bins(c: Array, n: int) -> Array:
    return np.clip(np.searchsorted(np.arange(n + 1) / n, c, side="right") - 1, 0, n - 1)


def quantile_bins(c: Array, n: int) -> Array:
    """Cut after the smallest value at which j/n of the rows are reached."""
    values, counts = np.unique(c, return_counts=True)
    reached = n * np.cumsum(counts)
    cuts = sorted({int(np.searchsorted(reached, j * len(c))) for j in range(1, n)})
    bins: Array = np.searchsorted(values[cuts], c, side="left")
    return bins


def error_of_bins(c: Array, hit: Array, bins: Array, norm: str = "l1", debias: bool = False) -> float:
    parts = []
    for b in np.unique(bins):
        size, accuracy, confidence = (bins == b).sum(), hit[bins == b].mean(), c[bins == b].mean()
        gap, share = abs(accuracy - confidence), size / len(c)
        if norm == "max":
            parts.append(gap)
        elif norm == "l1":
            parts.append(share * gap)
        elif not debias:
            parts.append(share * gap**2)
        elif size > 1:
            parts.append(share * (gap**2 - accuracy * (1 - accuracy) / (size - 1)))
    return {"max": max, "l1": math.fsum, "l2": lambda x: max(0.0, math.fsum(x)) ** 0.5}[norm](parts)


def definition(
    p: Array,
    y: Array,
    n_bins: int,
    norm: str = "l1",
    binning: str = "uniform",
    kind: str = "top_label",
    debias: bool = False,
) -> float:
    which = {"uniform": uniform_bins, "quantile": quantile_bins}[binning]
    if p.ndim == 1:
        parts = [(p, y)]
    elif kind == "top_label":
        parts = [(p.max(1), p.argmax(1) == y)]
    else:
        parts = [(p[:, k], y == k) for k in range(p.shape[1])]
    return float(np.mean([error_of_bins(c, hit, which(c, n_bins), norm, debias) for c, hit in parts]))


# Random predictions: no confidence is on a border, so that it does not matter which side of a bin is closed.


def predictions(rows: int, classes: int) -> tuple[Array, Array]:
    """Confident ones, some 60 % of them right."""
    rng = np.random.default_rng([rows, classes])
    z = 2 * rng.normal(size=(rows, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, np.where(rng.random(rows) < 0.6, p.argmax(1), rng.integers(classes, size=rows))


def binary(rows: int) -> tuple[Array, Array]:
    p, y = predictions(rows, 3)
    return p[:, 1].copy(), (y == 1).astype(int)


# Rows, classes and bins. The rows divide by the bins, as quantile bins of other packages are ours only there;
# in the last two, bins hold two rows or one.
SIZES = [(1200, 5, 15), (700, 3, 7), (60, 4, 30), (64, 4, 64)]
OPTIONS: list[dict[str, Any]] = [
    {"kind": kind, "binning": binning, **norm}
    for kind in ("top_label", "classwise")
    for binning in ("uniform", "quantile")
    for norm in ({"norm": "l1"}, {"norm": "l2"}, {"norm": "l2", "debias": True}, {"norm": "max"})
]


def words(options: dict[str, Any]) -> str:
    return " ".join(name if value is True else str(value) for name, value in options.items())


@pytest.mark.parametrize("options", OPTIONS, ids=words)
def test_every_option_is_its_definition(options: dict[str, Any]) -> None:
    for rows, classes, n_bins in SIZES:
        inputs = [predictions(rows, classes)]
        if options["kind"] == "top_label":
            inputs.append(binary(rows))
        for p, y in inputs:
            got = metrics.calibration_error(p, y, n_bins=n_bins, **options)
            assert got == pytest.approx(definition(p, y, n_bins, **options), abs=1e-14)


# What each package is asked for: the module, our options, and the call.


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
    (PC, CLASSWISE, pycalib("classwise_ECE")),  # its classwise_MCE is the maximum over classes, too
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
def test_torchmetrics_of_classes() -> None:
    """It takes confidences in float32, whatever it is given."""
    module = import_module(TM)
    p, y = map(torch.from_numpy, predictions(1200, 5))
    for norm in ("l1", "l2", "max"):
        got = metrics.calibration_error(p, y, norm=norm).item()
        assert got == pytest.approx(module.multiclass_calibration_error(p, y, 5, 15, norm).item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_ties_in_quantile_bins_are_as_in_uncertainty_calibration() -> None:
    module = import_module(UC)
    p, y = binary(1200)
    for digits in (1, 2):
        tied = p.round(digits)
        got = metrics.adaptive_calibration_error(tied, y)
        assert got == pytest.approx(module.get_ece_em(tied, y), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_the_average_gap_of_netcal() -> None:
    """Every bin that is not empty counts alike."""
    p, y = predictions(1200, 5)
    curve = metrics.reliability_curve(p, y, n_bins=20)
    expected = import_module(NC).ACE(20).measure(p, y)
    assert np.nanmean(abs(curve.accuracy - curve.confidence)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_smooth_error_of_relplot() -> None:
    """It evaluates the kernel on a grid, and bisects the bandwidth in ten steps."""
    module = import_module("relplot")
    for p, y in (predictions(5000, 5), binary(5000)):
        c, hit = (p, y) if p.ndim == 1 else (p.max(1), p.argmax(1) == y)
        expected, width = module.smECE(c, hit.astype(float), return_width=True)
        got, bandwidth = metrics.smooth_calibration_error(p, y, return_bandwidth=True)
        assert got == pytest.approx(expected, abs=1e-3)
        assert bandwidth == pytest.approx(width, abs=2e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_scikit_learn(weighted: bool) -> None:
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
def test_curve_of_scikit_learn(strategy: str) -> None:
    module = import_module("sklearn.calibration")
    p, y = binary(1200)
    accuracy, confidence = module.calibration_curve(y, p, n_bins=15, strategy=strategy)
    curve = metrics.reliability_curve(p, y, n_bins=15, binning=strategy)
    filled = curve.counts > 0
    np.testing.assert_allclose(curve.accuracy[filled], accuracy, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.confidence[filled], confidence, rtol=0, atol=1e-12)


# Defects of others.

N_BINS = [1, 2, 3, 6, 7, 10, 14, 15, 20, 24, 28, 49, 100]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_certainty_is_in_the_last_bin(dtype: Any) -> None:
    """Not in one of its own (torchmetrics, relplot), nor dropped at 6, 14, 24 or 28 bins (pycalib)."""
    for n_bins in N_BINS:
        c = np.array([1.0, 1 - 0.01 / n_bins], dtype)
        p, y = np.stack([c, 1 - c], 1), np.array([1, 0])
        for preds in (p, p[:, 0]):
            target = y if preds.ndim == 2 else 1 - y
            curve = metrics.reliability_curve(preds, target, n_bins=n_bins)
            assert curve.counts.tolist() == [0] * (n_bins - 1) + [2]
        for kind in ("top_label", "classwise"):
            got = metrics.calibration_error(p, y, n_bins=n_bins, kind=kind)
            # Its own bin would make it about .5: one gap of 1, one of nothing.
            assert got == pytest.approx(abs(0.5 - c.astype(float).mean()), abs=1e-7)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("binning", ["uniform", "quantile", "paper"])
def test_bins_are_a_partition(dtype: Any, binning: str) -> None:
    """Also of confidences on the borders and next to them, where netcal counts rows twice or not at all."""
    for n_bins in N_BINS:
        border = (np.arange(n_bins + 1) / n_bins).astype(dtype)
        c = np.concatenate([border, np.nextafter(border, dtype(0)), np.nextafter(border, dtype(1))])
        y = np.arange(len(c)) % 2
        curve = metrics.reliability_curve(c, y, n_bins=n_bins, binning=binning)
        assert curve.counts.sum() == len(c)
        if binning == "uniform":
            which = np.searchsorted(border, c, side="right") - 1  # the border, too, is rounded to the dtype
            assert curve.counts.tolist() == np.bincount(which.clip(max=n_bins - 1), minlength=n_bins).tolist()
        filled = curve.counts > 0
        gaps = curve.counts[filled] * abs(curve.accuracy - curve.confidence)[filled]
        error = metrics.calibration_error(c, y, n_bins=n_bins, binning=binning)
        assert error == pytest.approx(gaps.sum() / len(c), abs=1e-14)
        interval = metrics.bootstrap_ci(c, y, n_bins=n_bins, binning=binning, n_resamples=2)
        assert interval.estimate == pytest.approx(error, abs=1e-14)


@pytest.mark.parametrize("binning", ["uniform", "quantile", "paper"])
def test_there_are_as_many_bins_as_asked_for(binning: str) -> None:
    """MAPIE has one too few."""
    for n_bins in N_BINS:
        middle = (np.arange(n_bins) + 0.5) / n_bins
        curve = metrics.reliability_curve(middle, np.zeros(n_bins, int), n_bins=n_bins, binning=binning)
        assert curve.counts.tolist() == [1] * n_bins


def test_classes_that_are_no_target_count() -> None:
    """probmetrics drops them."""
    p, y = predictions(700, 5)
    y[(y == 1) | (y == 4)] = 0
    assert metrics.classwise_calibration_error(p, y) == pytest.approx(
        definition(p, y, 15, kind="classwise"), abs=1e-14
    )
    one_hot = np.eye(5)[y]
    assert metrics.brier_score(p, y) == pytest.approx(((p - one_hot) ** 2).sum(1).mean(), abs=1e-14)
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(
        -np.log(p[np.arange(700), y]).mean(), abs=1e-14
    )


EVERY_SCORE: dict[str, Callable[..., Any]] = {
    **{words(options): partial(metrics.calibration_error, **options) for options in OPTIONS},
    "paper": partial(metrics.calibration_error, binning="paper"),
    "smooth": metrics.smooth_calibration_error,
    "brier": metrics.brier_score,
    "decomposition": metrics.brier_decomposition,
    "nll": metrics.negative_log_likelihood,
    "accuracy": metrics.accuracy,
    "risk-coverage": metrics.area_under_risk_coverage_curve,
    "curve": metrics.reliability_curve,
    "test": metrics.calibration_test,
    "bootstrap": partial(metrics.bootstrap_ci, n_resamples=10),
}


@pytest.mark.parametrize("name", EVERY_SCORE)
def test_nan_is_refused(name: str) -> None:
    """torchmetrics and netcal count such rows."""
    score = EVERY_SCORE[name]
    p, y = predictions(40, 3)
    p[7, 2] = np.nan
    for from_logits in (False, True):
        with pytest.raises(ValueError, match="row 7"):
            score(p, y, from_logits=from_logits)
        if "classwise" not in name:  # which is of several classes only
            with pytest.raises(ValueError, match="row 7"):
                score(p[:, 2], y % 2, from_logits=from_logits)


NUMBERS = [name for name in EVERY_SCORE if name not in ("decomposition", "curve", "test", "bootstrap")]


@pytest.mark.parametrize("name", NUMBERS)
def test_logits_are_what_the_caller_says(name: str) -> None:
    """Also where all of them are in [0, 1], from which torchmetrics takes them for probabilities."""
    score = EVERY_SCORE[name]
    z, y = torch.rand(50, 4, dtype=torch.float64), torch.arange(50) % 4
    got = score(z, y, from_logits=True).item()
    assert got == pytest.approx(score(z.softmax(1), y).item(), abs=1e-12)
    if "classwise" not in name:
        got = score(z[:, 0], y % 2, from_logits=True).item()
        assert got == pytest.approx(score(z[:, 0].sigmoid(), y % 2).item(), abs=1e-12)


FOUR_MILLION = 4_000_000
C = float(np.float32(0.97))
EXACT = {
    "top_label uniform l1": C - 0.5,
    "top_label uniform l2": C - 0.5,
    "top_label uniform max": C - 0.5,
    "top_label quantile l1": C - 0.5,
    "classwise uniform l1": C - 0.5,
    "paper": C - 0.5,
    "brier": (1 - C) ** 2 + C**2,
    "nll": -(math.log(C) + math.log(1 - C)) / 2,
    "accuracy": 0.5,
}


@pytest.mark.parametrize("name", EXACT)
def test_millions_of_float32_lose_nothing(name: str) -> None:
    """In torchmetrics, whose sums are float32, this calibration error is off by a third."""
    p = torch.tensor([[0.97, 0.03]])
    p[0, 1] = 1 - p[0, 0].double()
    y = (torch.arange(FOUR_MILLION) % 2).to(torch.int8)
    got = EVERY_SCORE[name](p.expand(FOUR_MILLION, 2), y)
    assert got.item() == pytest.approx(EXACT[name], abs=1e-14)


def optimal_temperature(z: Array, y: Array) -> float:
    """Where the derivative of the negative log-likelihood by the inverse temperature is 0."""
    from scipy.optimize import brentq

    def slope(ln_t: float) -> float:
        p = np.exp((z - z.max(1, keepdims=True)) * math.exp(-ln_t))
        p /= p.sum(1, keepdims=True)
        return math.fsum((p * z).sum(1) - z[np.arange(len(y)), y])

    return math.exp(brentq(slope, -5, 5, xtol=1e-14))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.3, 2.5, 20])
def test_temperatures_are_optimal(temperature: float, dtype: torch.dtype) -> None:
    """In float32 netcal returns 1. A common script of LBFGS stops at 1.7 where 2.5 is best."""
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(3000, 10))
    y = (z / temperature + rng.gumbel(size=z.shape)).argmax(1)
    logits, target = torch.from_numpy(z).to(dtype), torch.from_numpy(y)
    best = optimal_temperature(logits.double().numpy(), y)
    assert best == pytest.approx(temperature, rel=0.1 if temperature < 10 else 0.5)
    fitted = metrics.TemperatureScaling().fit(logits, target)
    assert fitted.temperature.item() == pytest.approx(best, rel=1e-8)


@pytest.mark.filterwarnings("ignore")
def test_temperature_of_scikit_learn() -> None:
    """It searches by values of the loss, which tell temperatures apart to about 1e-8."""
    module = import_module("sklearn.calibration")
    p, y = predictions(2000, 5)
    z = 4 * np.log(p)
    expected = 1 / module._TemperatureScaling().fit(z, y).beta_
    got = metrics.TemperatureScaling().fit(torch.from_numpy(z), torch.from_numpy(y)).temperature.item()
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["spiegelhalter", "ks", "kuiper"])
def test_over_and_underconfidence_are_both_found(method: str) -> None:
    """MAPIE's Spiegelhalter test finds one of them only, and its KS test has p-values below 0."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.6, 0.9, 2000)
    hit = (rng.random(2000) < truth).astype(int)
    p_values = {
        shift: metrics.calibration_test(truth + shift, hit, method=method).p_value
        for shift in (-0.09, -0.05, 0.0, 0.05, 0.09)
    }
    assert all(0 <= p_value <= 1 for p_value in p_values.values())
    assert p_values[0.0] > 0.01
    assert max(p_values[-0.05], p_values[0.05]) < 1e-3
