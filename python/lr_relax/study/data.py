"""The data sets: digits from scikit-learn, the others from torchvision, in memory.

Files, checksums and downloads are torchvision's, in its folders. What torchvision does not do: it unpacks
MNIST's files without a checksum, so here they are unpacked atomically, and a full disk or an interrupted
download leaves no partial file; and Debian's package ``dataset-fashion-mnist`` is used where it is installed.
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

import numpy as np
from numpy.typing import NDArray

from .files import replaced

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class DataError(Exception):
    """A data set cannot be loaded; the message is one line."""


class Facts(NamedTuple):
    """What is known of a data set before it is loaded."""

    shape: tuple[int, int, int]  # of an image: channels, height, width
    classes: int
    white: int  # the largest pixel value
    test_share: Fraction
    torchvision_class: str = ""


# Half of the digits are for testing: the ECE is biased upwards on few images. A perfectly calibrated network
# has an ECE of .010 to .015 on a fifth of the digits (360 images) and of .007 to .010 on half of them.
FACTS = {
    "digits": Facts((1, 8, 8), 10, 16, Fraction(1, 2)),
    "mnist": Facts((1, 28, 28), 10, 255, Fraction(1, 7), "MNIST"),
    "fashion_mnist": Facts((1, 28, 28), 10, 255, Fraction(1, 7), "FashionMNIST"),
    "cifar10": Facts((3, 32, 32), 10, 255, Fraction(1, 6), "CIFAR10"),
    "cifar100": Facts((3, 32, 32), 100, 255, Fraction(1, 6), "CIFAR100"),
}
DATASETS = tuple(FACTS)


@dataclass(frozen=True)
class Dataset:
    """All images of a data set, train and test files merged in this order."""

    name: str
    pixels: NDArray[np.uint8]  # (images, channels, height, width)
    labels: NDArray[np.int64]  # (images,)
    white: int
    classes: int
    test_share: Fraction


def load(name: str, data_dir: Path) -> Dataset:
    """Load a data set; missing files are copied from Debian's package or downloaded to ``data_dir``."""
    facts = FACTS[name]
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels, labels = digits.images[:, np.newaxis].astype(np.uint8), digits.target.astype(np.int64)
    else:
        try:
            pixels, labels = _of_torchvision(facts, data_dir)
        except ModuleNotFoundError as missing:
            raise DataError(f'{name} needs {missing.name}: pip install "lr-relax[study]"') from missing
        except Exception as error:  # torchvision raises whatever it stumbles over
            where = f"{name} cannot be read from {data_dir} or downloaded to it"
            raise DataError(f"{where}: {_reason(error)}") from error
    return Dataset(name, pixels, labels, facts.white, facts.classes, facts.test_share)


def _of_torchvision(facts: Facts, data_dir: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from torchvision import datasets  # slow to import, and not needed for the digits
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    kind = getattr(datasets, facts.torchvision_class)
    if issubclass(kind, datasets.MNIST):
        folder = data_dir / kind.__name__ / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for archive, md5 in kind.resources:
            if not (folder / Path(archive).stem).is_file():
                _fetch_idx(kind, folder, archive, md5)
    elif not check_integrity(data_dir / kind.base_folder / kind.meta["filename"], kind.meta["md5"]):
        # Which torchvision requires, but downloads only together with missing images.
        download_and_extract_archive(kind.url, data_dir, filename=kind.filename, md5=kind.tgz_md5)
    pixels, labels = [], []
    for train in (True, False):
        part = kind(data_dir, train=train, download=True)
        images, targets = np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)
        images = images[:, np.newaxis] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        if images.shape != (len(targets), *facts.shape):
            raise ValueError(f"{len(targets)} labels need images of {facts.shape}, got {images.shape}")
        if len(outside := targets[(targets < 0) | (targets >= facts.classes)]):
            raise ValueError(f"expected labels from 0 to {facts.classes - 1}, got {outside[0]}")
        pixels.append(images)
        labels.append(targets)
    return np.concatenate(pixels), np.concatenate(labels)


def _fetch_idx(kind: Any, folder: Path, archive: str, md5: str) -> None:
    """Unpack one of MNIST's files, of Debian's package or from the first mirror that works."""
    from torchvision.datasets.utils import download_url

    source = DEBIAN_FASHION_MNIST / archive
    if kind.__name__ != "FashionMNIST" or not source.is_file():
        source = folder / archive
        for mirror in kind.mirrors:
            try:
                download_url(f"{mirror}{archive}", folder, archive, md5)
                break
            except (OSError, RuntimeError) as error:
                failure = DataError(f"{archive}: {_reason(error)}")
        else:
            raise failure
    with (
        replaced(folder / Path(archive).stem) as unpacked,
        gzip.open(source) as compressed,
        unpacked.open("wb") as target,
    ):
        shutil.copyfileobj(compressed, target)


def _reason(error: Exception) -> str:
    """The reason of an error in one line."""
    if isinstance(error, HTTPError):
        error.close()  # it holds the connection
    text = " ".join(str(error).split())
    if isinstance(error, OSError | DataError):
        return text
    return f"a file is damaged, delete it to download it again: {text or 'it has another format'}"
