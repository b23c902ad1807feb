"""Reliability diagrams, and plots of losses over three classes. Matplotlib is imported on first use."""

from .reliability import compare_reliability, reliability_diagram, reliability_diagrams
from .simplex import loss_on_simplex, relaxation_on_simplex

__all__ = [
    "compare_reliability",
    "loss_on_simplex",
    "relaxation_on_simplex",
    "reliability_diagram",
    "reliability_diagrams",
]
