"""Reliability diagrams, and losses over three classes. Matplotlib is only imported when one is drawn."""

from .reliability import reliability_diagram
from .simplex import loss_on_simplex, relaxation_on_simplex

__all__ = ["loss_on_simplex", "relaxation_on_simplex", "reliability_diagram"]
