"""The data sets, and the splits of them that the paper's protocol trains and tests on.

The paper merges a data set's train and test files and splits them anew for every seed, scales the pixels to
[0, 1] and subtracts the mean image of the training part.
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from .atomic import replaced

DATASETS = ("digits", "fashion_mnist")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
VALIDATION_SHARE = 0.25  # of what is not test data


class DataError(Exception):
    """A data set cannot be had; the message says why in one line."""


@dataclass(frozen=True)
class Dataset:
    """All images of a data set, train and test files merged in this order."""

    name: str
    pixels: NDArray[np.uint8]  # (images, height, width)
    labels: NDArray[np.int64]  # (images,)
    white: int  # the largest pixel value
    classes: int
    test_share: Fraction


@dataclass(frozen=True)
class Split:
    """What one run trains and is evaluated on: pixels in [0, 1] minus the mean image of the training part."""

    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor


def load(name: str, data_dir: Path) -> Dataset:
    """Load a data set by name; ``data_dir`` is where files that do not come with a package are kept."""
    if name == "digits":
        digits = load_digits()
        pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
        # Half for testing: on few images even a perfectly calibrated network has an ECE far from 0, here .010
        # to .015 on a fifth of the digits (360 images) and .007 to .010 on half of them.
        return Dataset(name, pixels, labels, white=16, classes=10, test_share=Fraction(1, 2))
    if name == "fashion_mnist":
        pixels, labels = _fashion_mnist(data_dir)
        return Dataset(name, pixels, labels, white=255, classes=10, test_share=Fraction(1, 7))
    raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")


def split(dataset: Dataset, seed: int, *, validation: bool = False) -> Split:
    """Split as the paper's code does: the rows are the same, in the same order, for the same seed.

    Args:
        dataset: What :func:`load` returned.
        seed: The random state of the split.
        validation: Set the test part aside and evaluate on a quarter of the rest, to choose hyperparameters.
    """
    rows = np.arange(len(dataset.labels))
    train, evaluated = train_test_split(rows, test_size=float(dataset.test_share), random_state=seed)
    if validation:
        train, evaluated = train_test_split(train, test_size=VALIDATION_SHARE, random_state=seed)
    scaled = dataset.pixels.astype(np.float32) / dataset.white
    train_images, eval_images = scaled[train], scaled[evaluated]
    # NumPy's float32 mean, rounding included: what the paper's code subtracts.
    mean_image = train_images.mean(axis=0)
    return Split(
        train_images=torch.from_numpy(train_images - mean_image),
        train_labels=torch.from_numpy(dataset.labels[train]),
        eval_images=torch.from_numpy(eval_images - mean_image),
        eval_labels=torch.from_numpy(dataset.labels[evaluated]),
    )


def _fashion_mnist(data_dir: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read torchvision's files in ``data_dir``; missing ones come from Debian's package or a download."""
    try:
        from torchvision.datasets import (
            FashionMNIST,
        )  # takes seconds to import, and only this data set needs it
    except ModuleNotFoundError as missing:
        raise DataError(f'fashion_mnist needs {missing.name}: pip install "lr-relax[study]"') from missing

    raw = data_dir / "FashionMNIST" / "raw"
    names = [Path(archive).stem for archive, _ in FashionMNIST.resources]
    try:
        missing_files = [name for name in names if not (raw / name).is_file()]
        if missing_files and DEBIAN_FASHION_MNIST.is_dir():
            raw.mkdir(parents=True, exist_ok=True)
            for name in missing_files:
                _unpack(DEBIAN_FASHION_MNIST / f"{name}.gz", raw / name)
        parts = [FashionMNIST(data_dir, train=train, download=True) for train in (True, False)]
        pixels = np.concatenate([part.data.numpy() for part in parts])
        labels = np.concatenate([part.targets.numpy() for part in parts])
        if pixels.shape != (len(labels), 28, 28) or labels.max() > 9:
            raise ValueError(
                "expected images of 28 x 28 pixels with a label from 0 to 9 each, "
                f"got shape {pixels.shape} and {len(labels)} labels up to {labels.max()}"
            )
    except Exception as error:  # torchvision's reader raises whatever it stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"fashion_mnist cannot be read from {raw} or downloaded to it: {reason}") from error
    return pixels, labels


def _unpack(archive: Path, path: Path) -> None:
    with replaced(path) as unpacked, gzip.open(archive) as source, unpacked.open("wb") as target:
        shutil.copyfileobj(source, target)
