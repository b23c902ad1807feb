"""The examples in the docstrings show what they say."""

import doctest
import importlib
import pkgutil

import lr_relax
import numpy as np
import pytest
import torch

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(lr_relax.__path__, "lr_relax.")
    if not name.endswith(("_native", "__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    names = {"torch": torch, "np": np}
    failed, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
