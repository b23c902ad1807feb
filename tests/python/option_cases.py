"""Selects combinations of options for tests of all losses."""

from collections.abc import Iterable
from itertools import cycle, product
from typing import Any

import pytest

REDUCTIONS = ("mean", "sum", "none")


def option_cases(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by the product of the axes and one reduction for each combination.

    The reductions take turns: each meets each value of every axis, at a third of the full product's size.
    """
    cases = [(*case, reduction) for case, reduction in zip(product(*axes.values()), cycle(REDUCTIONS))]
    names = [*axes, "reduction"]
    for i in range(len(axes)):  # a selection that misses a pair is an error of the test
        pairs = {(case[i], case[-1]) for case in cases}
        assert len(pairs) == len({case[i] for case in cases}) * len(REDUCTIONS), names[i]
    return pytest.mark.parametrize(names, cases)
