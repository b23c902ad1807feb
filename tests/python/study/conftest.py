"""Fixtures that the tests of the study share."""

import shutil
from pathlib import Path

import pytest
from lr_relax.study import data, tracking
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

NOBODY_ANSWERS = "http://127.0.0.1:9/"


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits", Path("unused"))


@pytest.fixture
def no_other_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither Debian's package nor a server that answers."""
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-package")
    for idx in (MNIST, FashionMNIST):
        monkeypatch.setattr(idx, "mirrors", [NOBODY_ANSWERS])
    for cifar in (CIFAR10, CIFAR100):
        monkeypatch.setattr(cifar, "url", NOBODY_ANSWERS + cifar.filename)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; copying it is faster than creating one for each test."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.Experiment(f"sqlite:///{path}", "another study").open()
    return path


@pytest.fixture
def sqlite(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a store of the test's own, to which the commands track by default."""
    (tmp_path / "a store").mkdir()
    shutil.copy(database, tmp_path / "a store")
    uri = f"sqlite:///{tmp_path}/a store/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri
