"""Warnings that point at the user's code."""

import sys
import warnings

_CALLERS = ("lr_relax", "torch", "torchmetrics")  # modules and metrics are called through those


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that has called into this package, directly or as a module or a metric."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _CALLERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
