"""Plots of calibration, selective prediction and losses. Matplotlib is imported on first use."""

from .reliability import compare_reliability, reliability_diagram, reliability_diagrams
from .selective import compare_risk_coverage
from .simplex import loss_on_simplex, relaxation_on_simplex

__all__ = [
    "compare_reliability",
    "compare_risk_coverage",
    "loss_on_simplex",
    "relaxation_on_simplex",
    "reliability_diagram",
    "reliability_diagrams",
]
