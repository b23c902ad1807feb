"""What the tests of the study share."""

from pathlib import Path

import pytest
from lr_relax.study import data
from torchvision.datasets import FashionMNIST


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits", Path("unused"))


@pytest.fixture
def no_other_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither Debian's package nor a mirror that answers."""
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-package")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
