"""The calibration report shows what the single functions give."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.metrics import (
    TemperatureScaling,
    accuracy,
    bootstrap_ci,
    brier_score,
    calibration_report,
    calibration_test,
    chance_level,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)

METRICS = [
    accuracy,
    negative_log_likelihood,
    brier_score,
    expected_calibration_error,
    maximum_calibration_error,
]


def sample(n: int = 800) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(n, 4))
    return logits, (logits / 2 + rng.gumbel(size=(n, 4))).argmax(1)


def test_classes() -> None:
    z, y = sample()
    p = torch.from_numpy(z).softmax(1)
    for preds, target, options in ((z, y, {"from_logits": True}), (p, torch.from_numpy(y), {})):
        report = calibration_report(preds, target, n_resamples=200, **options)
        fitted = TemperatureScaling().fit(preds, target, **{"from_logits": False, **options})
        assert report.temperature == fitted.temperature.item() == pytest.approx(2, rel=0.2)
        row = report.to_dict()["metrics"]
        for metric in METRICS:
            name = metric.__name__
            interval = bootstrap_ci(preds, target, metric=name, n_resamples=200, **options)
            assert tuple(report.intervals[name]) == tuple(interval)
            assert row[name]["estimate"] == pytest.approx(float(metric(preds, target, **options)), rel=1e-12)
            scaled = metric(z / report.temperature, y, from_logits=True)
            assert row[name]["after_scaling"] == pytest.approx(scaled, rel=1e-9)
        chance = chance_level(preds, target, n_resamples=200, **options)
        assert row["expected_calibration_error"]["by_chance"] == chance.mean
        assert report.test == calibration_test(preds, target, **options)
        assert report.curve.counts.tolist() == reliability_curve(preds, target, **options).counts.tolist()
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
        assert report.frequency == report.intervals["accuracy"].estimate


def test_events() -> None:
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=500) - 1
    y = rng.random(500) < 1 / (1 + np.exp(-z / 2))
    report = calibration_report(z, y, from_logits=True, n_resamples=100)
    assert report.temperature == pytest.approx(2, rel=0.2)
    assert report.frequency == y.mean()
    assert report.mean_confidence == pytest.approx((1 / (1 + np.exp(-z))).mean())
    scaled = expected_calibration_error(z / report.temperature, y, from_logits=True)
    assert report.after_scaling["expected_calibration_error"] == pytest.approx(scaled, rel=1e-9)


def test_impossible_targets() -> None:
    """The likelihood is 0: there is no temperature."""
    y = np.array([0, 1, 2, 1])
    report = calibration_report(np.eye(3)[[0, 1, 1, 1]], y, n_resamples=50)
    assert (report.temperature, report.after_scaling) == (None, {})
    assert report.to_dict()["metrics"]["negative_log_likelihood"]["estimate"] == math.inf
    assert "inf" in repr(report)
    assert "T =" not in repr(report)


def test_shows_a_table() -> None:
    z, y = sample()
    report = calibration_report(z, y, from_logits=True, n_resamples=50, confidence_level=0.9)
    page = report._repr_html_()
    for name, interval in report.intervals.items():
        line = next(line for line in repr(report).splitlines() if line[:5].lower() == name[:5])
        for number in interval:
            assert f"{number:.4f}" in line
            assert f"{number:.4f}" in page
    assert "90 % interval" in repr(report)
    assert page.count("<tr>") == 6


def test_plots() -> None:
    pytest.importorskip("matplotlib").use("agg")
    z, y = sample()
    ax = calibration_report(z, y, from_logits=True, n_resamples=10).plot(title="a model")
    assert ax.get_title() == "a model"


def test_rejects_arguments() -> None:
    z, y = sample(20)
    for options, name in (
        ({"n_resamples": 1}, "n_resamples"),
        ({"confidence_level": 2}, "confidence_level"),
        ({"n_bins": 0}, "n_bins"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=name):
            calibration_report(z, y, from_logits=True, **options)  # type: ignore[arg-type]
