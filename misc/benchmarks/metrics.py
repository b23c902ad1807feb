"""The rows of the metrics, beside other packages.

The packages are imported in their calls, because importing them takes seconds. Each gets the array type that
it is made for, without a copy. A package that is missing from a row lacks the metric, takes it from another
package (probmetrics: from torchmetrics and relplot), or takes many times as long as all others.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lr_relax.metrics import (
    PAPER_GRID,
    CalibrationError,
    TemperatureScaling,
    accuracy,
    adaptive_calibration_error,
    bootstrap_ci,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
    smooth_calibration_error,
)
from torch import Tensor

from row import Contender, Inputs, Row

PEERS = (
    "torchmetrics",
    "netcal",
    "probmetrics",
    "scikit-learn",
    "relplot",
    "uncertainty-calibration",
    "pycalib",
)
BINS = 15


# Inputs; run.py sets the seed.


def predictions(rows: int, classes: int, probabilities: bool) -> Inputs:
    """Confident predictions, about two thirds of them correct."""
    logits = 3 * torch.randn(rows, classes)
    target = torch.where(torch.rand(rows) < 2 / 3, logits.argmax(1), torch.randint(classes, (rows,)))
    return logits.softmax(1) if probabilities else logits, target


def binary_predictions(rows: int) -> Inputs:
    logits = 3 * torch.randn(rows)
    return logits.sigmoid(), (torch.rand(rows) < (logits / 2).sigmoid()).long()


def logits_and_probabilities(rows: int, classes: int) -> Inputs:
    """With probabilities in float64, for packages that fit only these."""
    logits, target = predictions(rows, classes, probabilities=False)
    return logits, target, logits.double().softmax(1)


# Contenders.


def peer(module: str) -> Any:
    return import_module(module)


def of_logits(contender: Contender) -> Contender:
    return lambda logits, target, _: contender(logits, target)


def torchmetrics_ece(x: Tensor, y: Tensor) -> object:
    """Of probabilities or logits, which it tells apart by the values."""
    return peer("torchmetrics.functional.classification").multiclass_calibration_error(x, y, x.shape[1], BINS)


def torchmetrics_by_class(x: Tensor, y: Tensor) -> object:
    binary = peer("torchmetrics.functional.classification").binary_calibration_error
    return torch.stack([binary(p, (y == k).long(), BINS) for k, p in enumerate(x.unbind(1))]).mean()


def torchmetrics_binary(x: Tensor, y: Tensor) -> object:
    return peer("torchmetrics.functional.classification").binary_calibration_error(x, y, BINS)


def torchmetrics_accuracy(x: Tensor, y: Tensor) -> object:
    module = peer("torchmetrics.functional.classification")
    return module.multiclass_accuracy(x, y, x.shape[1], average="micro")


def torchmetrics_stream(x: Tensor, y: Tensor) -> object:
    metric = peer("torchmetrics.classification").MulticlassCalibrationError(x.shape[1], BINS)
    return stream(metric, x, y)


def torchmetrics_bootstrap(x: Tensor, y: Tensor) -> object:
    metric = peer("torchmetrics.classification").MulticlassCalibrationError(x.shape[1], BINS)
    wrapper = peer("torchmetrics.wrappers").BootStrapper
    resampled = wrapper(metric, num_bootstraps=100, quantile=torch.tensor([0.025, 0.975]))
    resampled.update(x, y)
    return resampled.compute()


def netcal_ece(x: Tensor, y: Tensor, equal_intervals: bool = True) -> object:
    metric = peer("netcal.metrics").ECE(BINS, equal_intervals=equal_intervals)
    return metric.measure(x.numpy(), y.numpy())


def netcal_temperature(_: Tensor, y: Tensor, p: Tensor) -> object:
    return peer("netcal.scaling").TemperatureScaling().fit(p.numpy(), y.numpy())


def probmetrics(name: str, logits: bool = False, **options: Any) -> Contender:
    def run(x: Tensor, y: Tensor) -> object:
        metric = getattr(peer("probmetrics.metrics"), name)(**options)
        return (metric.compute_from_labels_logits if logits else metric.compute_from_labels_probs)(y, x)

    return run


def probmetrics_temperature(x: Tensor, y: Tensor) -> object:
    logits = peer("probmetrics.distributions").CategoricalLogits(x)
    scaling = peer("probmetrics.calibrators.temperature_scaling").TemperatureScalingCalibrator()
    return scaling.fit_torch(logits, y)


def sklearn_brier(x: Tensor, y: Tensor) -> object:
    labels = np.arange(x.shape[1])
    return peer("sklearn.metrics").brier_score_loss(y.numpy(), x.numpy(), labels=labels)


def sklearn_nll(x: Tensor, y: Tensor) -> object:
    return peer("sklearn.metrics").log_loss(y.numpy(), x.numpy(), labels=np.arange(x.shape[1]))


def sklearn_accuracy(x: Tensor, y: Tensor) -> object:
    return peer("sklearn.metrics").accuracy_score(y.numpy(), x.argmax(1).numpy())


def sklearn_curve(x: Tensor, y: Tensor) -> object:
    return peer("sklearn.calibration").calibration_curve(y.numpy(), x.numpy(), n_bins=BINS)


def sklearn_temperature(x: Tensor, y: Tensor) -> object:
    """The fit inside CalibratedClassifierCV(method="temperature")."""
    return peer("sklearn.calibration")._TemperatureScaling().fit(x.numpy(), y.numpy())


def relplot_smooth(x: Tensor, y: Tensor) -> object:
    module = peer("relplot")
    return module.smECE(*module.multiclass_logits_to_confidences(x.numpy(), y.numpy(), probs=True))


def uncertainty_calibration_adaptive(x: Tensor, y: Tensor) -> object:
    return peer("calibration").get_ece_em(x.numpy(), y.numpy(), num_bins=BINS)


def uncertainty_calibration_bootstrap(x: Tensor, y: Tensor) -> object:
    """100 resamples, of the ECE in bins of equal mass."""
    interval = peer("calibration").get_calibration_error_uncertainties
    return interval(x.numpy(), y.numpy(), p=1, alpha=5.0, mode="top-label")


def pycalib_classwise(x: Tensor, y: Tensor) -> object:
    return peer("pycalib.metrics").classwise_ECE(y.numpy(), x.numpy(), bins=BINS)


def torch_brier(x: Tensor, y: Tensor) -> Tensor:
    """Expanded, so that no one-hot matrix is needed."""
    return (x.square().sum(1) - 2 * x.gather(1, y[:, None])[:, 0] + 1).mean()


def torch_temperature(x: Tensor, y: Tensor) -> Tensor:
    """LBFGS on the logarithm of the inverse temperature; without a line search it stops early."""
    ln_beta = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([ln_beta], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nll = F.cross_entropy(x * ln_beta.exp(), y)
        nll.backward()  # type: ignore[no-untyped-call]
        return nll

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return torch.exp(-ln_beta)


def torchmetrics_grid(x: Tensor, y: Tensor) -> float:
    return min(PAPER_GRID, key=lambda t: torchmetrics_ece((x / t).softmax(1), y))  # type: ignore[arg-type, return-value]


def numpy_bootstrap(x: Tensor, y: Tensor) -> object:
    """100 resamples, each summed by bins."""
    confidence, label = x.max(1)
    c, correct, rng = confidence.double().numpy(), (label == y).numpy(), np.random.default_rng(0)
    bins, gaps, n = np.minimum(c * BINS, BINS - 1).astype(np.intp), correct - c, len(c)
    errors = []
    for _ in range(100):
        rows = rng.integers(n, size=n)
        errors.append(np.abs(np.bincount(bins[rows], gaps[rows], BINS)).sum() / n)
    return np.quantile(errors, [0.025, 0.975])


def stream(metric: Any, x: Tensor, y: Tensor) -> object:
    for i in range(0, len(y), 10_000):
        metric.update(x[i : i + 10_000], y[i : i + 10_000])
    return metric.compute()


MAX = ("x.max(1)", lambda x, y: x.max(1))
SOFTMAX = ("torch.softmax(x, 1)", lambda x, y: torch.softmax(x, 1))
PROBABILITIES, LOGITS = (partial(predictions, probabilities=p) for p in (True, False))
SIZES = [(1_000_000, 10), (100_000, 1000)]

# The target is the time of one pass over the input or of a formula in torch, or half the time of a package.
METRIC_ROWS = [
    *(
        Row(
            "ECE of probabilities",
            size,
            PROBABILITIES,
            ours=expected_calibration_error,
            yardstick=MAX,
            target=1.0,
            peers={
                "torchmetrics": torchmetrics_ece,
                "netcal": netcal_ece,
                "probmetrics": probmetrics("CalibrationError", n_bins=BINS),
            },
        )
        for size in SIZES
    ),
    *(
        Row(
            "ECE of logits",
            size,
            LOGITS,
            ours=partial(expected_calibration_error, from_logits=True),
            yardstick=SOFTMAX,
            target=1.0,
            peers={
                "torchmetrics": torchmetrics_ece,
                "probmetrics": probmetrics("CalibrationError", logits=True, n_bins=BINS),
            },
        )
        for size in SIZES
    ),
    Row(
        "ECE of probabilities in batches of 10000",
        (1_000_000, 10),
        PROBABILITIES,
        ours=lambda x, y: stream(CalibrationError(n_bins=BINS), x, y),
        yardstick=("torchmetrics", torchmetrics_stream),
        target=0.5,
    ),
    Row(
        "Reliability curve of binary probabilities",
        (1_000_000,),
        binary_predictions,
        ours=reliability_curve,
        yardstick=("scikit-learn", sklearn_curve),
        target=0.5,
        peers={"torchmetrics ECE": torchmetrics_binary, "netcal ECE": netcal_ece},
    ),
    Row(
        "Classwise ECE of probabilities",
        (100_000, 100),
        PROBABILITIES,
        ours=classwise_calibration_error,
        yardstick=("torchmetrics by class", torchmetrics_by_class),
        target=0.5,
        peers={"pycalib": pycalib_classwise},
    ),
    Row(
        "Adaptive ECE of probabilities",
        (1_000_000, 10),
        PROBABILITIES,
        ours=adaptive_calibration_error,
        yardstick=("netcal", partial(netcal_ece, equal_intervals=False)),
        target=0.5,
        peers={"uncertainty-calibration": uncertainty_calibration_adaptive},
    ),
    Row(
        "Smooth ECE of probabilities",
        (100_000, 10),
        PROBABILITIES,
        ours=smooth_calibration_error,
        yardstick=("relplot", relplot_smooth),
        target=0.5,
    ),
    *(
        Row(
            "Brier score of probabilities",
            size,
            PROBABILITIES,
            ours=brier_score,
            yardstick=("torch", torch_brier),
            target=1.0,
            peers={"scikit-learn": sklearn_brier, "probmetrics": probmetrics("BrierLoss")},
        )
        for size in SIZES
    ),
    Row(
        "NLL of probabilities",
        (1_000_000, 10),
        PROBABILITIES,
        ours=negative_log_likelihood,
        yardstick=("F.nll_loss(x.log(), y)", lambda x, y: F.nll_loss(x.log(), y)),
        target=1.0,
        peers={"scikit-learn": sklearn_nll, "probmetrics": probmetrics("LogLoss")},
    ),
    *(
        Row(
            "NLL of logits",
            size,
            LOGITS,
            ours=partial(negative_log_likelihood, from_logits=True),
            yardstick=("F.cross_entropy", F.cross_entropy),
            target=1.0,
            peers={"probmetrics": probmetrics("LogLoss", logits=True)},
        )
        for size in SIZES
    ),
    Row(
        "Accuracy of probabilities",
        (1_000_000, 10),
        PROBABILITIES,
        ours=accuracy,
        yardstick=MAX,
        target=1.0,
        peers={"torchmetrics": torchmetrics_accuracy, "scikit-learn": sklearn_accuracy},
    ),
    Row(
        "Temperature by NLL",
        (100_000, 100),
        logits_and_probabilities,
        ours=of_logits(lambda x, y: TemperatureScaling().fit(x, y)),
        yardstick=("scikit-learn", of_logits(sklearn_temperature)),
        target=0.1,
        peers={
            "torch LBFGS": of_logits(torch_temperature),
            "probmetrics": of_logits(probmetrics_temperature),
            "netcal": netcal_temperature,
        },
    ),
    Row(
        "Temperature by the paper's grid of 16",
        (100_000, 100),
        LOGITS,
        ours=lambda x, y: TemperatureScaling().fit(x, y, method="grid"),
        yardstick=("torchmetrics", torchmetrics_grid),
        target=0.05,
    ),
    Row(
        "ECE's interval by 1000 resamples",
        (100_000, 1000),
        PROBABILITIES,
        ours=partial(bootstrap_ci, method="percentile"),
        yardstick=MAX,
        target=1.0,
    ),
    Row(
        "ECE's interval by 100 resamples",
        (10_000, 10),
        PROBABILITIES,
        ours=partial(bootstrap_ci, method="percentile", n_resamples=100),
        yardstick=("NumPy", numpy_bootstrap),
        target=0.5,
        peers={
            "torchmetrics": torchmetrics_bootstrap,
            "uncertainty-calibration": uncertainty_calibration_bootstrap,
        },
    ),
]
