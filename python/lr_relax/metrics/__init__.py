"""Calibration metrics of torch tensors and NumPy arrays, from exact counts and sums.

The streaming metrics `CalibrationError`, `BrierScore` and `NegativeLogLikelihood` need torchmetrics, which is
imported on first access to one of them.
"""

from typing import TYPE_CHECKING, Any

from ._predictions import ProbabilitiesWarning
from .bootstrap import BootstrapInterval, bootstrap_ci
from .calibration import (
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)
from .chance import ChanceBins, ChanceLevel, chance_level
from .comparison import CalibrationComparison, compare_calibration
from .hypothesis_test import CalibrationTest, calibration_test
from .reliability import ReliabilityCurve, reliability_curve
from .report import CalibrationReport, calibration_report
from .scores import BrierDecomposition, accuracy, brier_decomposition, brier_score, negative_log_likelihood
from .selective import RiskCoverageCurve, area_under_risk_coverage_curve, risk_coverage_curve
from .smooth import smooth_calibration_error
from .soft import soft_calibration_error
from .temperature import PAPER_GRID, TemperatureScaling

if TYPE_CHECKING:
    from .streaming import BrierScore as BrierScore
    from .streaming import CalibrationError as CalibrationError
    from .streaming import NegativeLogLikelihood as NegativeLogLikelihood

__all__ = [
    "PAPER_GRID",
    "BootstrapInterval",
    "BrierDecomposition",
    "CalibrationComparison",
    "CalibrationReport",
    "CalibrationTest",
    "ChanceBins",
    "ChanceLevel",
    "ProbabilitiesWarning",
    "ReliabilityCurve",
    "RiskCoverageCurve",
    "TemperatureScaling",
    "accuracy",
    "adaptive_calibration_error",
    "area_under_risk_coverage_curve",
    "bootstrap_ci",
    "brier_decomposition",
    "brier_score",
    "calibration_error",
    "calibration_report",
    "calibration_test",
    "chance_level",
    "classwise_calibration_error",
    "compare_calibration",
    "expected_calibration_error",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability_curve",
    "risk_coverage_curve",
    "smooth_calibration_error",
    "soft_calibration_error",
]
_STREAMING = ("BrierScore", "CalibrationError", "NegativeLogLikelihood")


def __getattr__(name: str) -> Any:
    if name in _STREAMING:
        from . import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_STREAMING])
