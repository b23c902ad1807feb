"""The data sets: digits from scikit-learn, the others from torchvision's files, in memory.

Files, checksums and downloads are torchvision's, in its folders; Debian's package ``dataset-fashion-mnist``
is used where it is installed. Files are unpacked atomically, so that a full disk or an interrupted download
leaves no partial file.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError

import numpy as np
from numpy.typing import NDArray

from .files import replaced

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class DataError(Exception):
    """A data set cannot be loaded; the message is one line."""


@dataclass(frozen=True)
class Dataset:
    """All images of a data set, train and test files merged in this order."""

    name: str
    pixels: NDArray[np.uint8]  # (images, channels, height, width)
    labels: NDArray[np.int64]  # (images,)
    white: int  # the largest pixel value
    classes: int
    test_share: Fraction


class _Files(NamedTuple):
    """A data set's torchvision class, image shape, number of classes and share of test images."""

    kind: str
    shape: tuple[int, int, int]
    classes: int
    test_share: Fraction


_FILES = {
    "mnist": _Files("MNIST", (1, 28, 28), 10, Fraction(1, 7)),
    "fashion_mnist": _Files("FashionMNIST", (1, 28, 28), 10, Fraction(1, 7)),
    "cifar10": _Files("CIFAR10", (3, 32, 32), 10, Fraction(1, 6)),
    "cifar100": _Files("CIFAR100", (3, 32, 32), 100, Fraction(1, 6)),
}
DATASETS = ("digits", *_FILES)


def image_shape(name: str) -> tuple[int, int, int]:
    """Channels, height and width of a data set's images."""
    return (1, 8, 8) if name == "digits" else _FILES[name].shape


# What readers raise for files of another format.
_NOT_IDX = (AssertionError, KeyError, TypeError, ValueError, RuntimeError)
_NOT_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)

_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load(name: str, data_dir: Path) -> Dataset:
    """Load a data set; missing files are copied from Debian's package or downloaded to ``data_dir``."""
    if name not in DATASETS:
        raise ValueError(f"Expected argument `name` to be one of {', '.join(DATASETS)}, but got {name!r}.")
    if name == "digits":
        return _digits()
    pixels, labels = _from_files(name, data_dir)
    files = _FILES[name]
    return Dataset(name, pixels, labels, white=255, classes=files.classes, test_share=files.test_share)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = digits.images[:, np.newaxis].astype(np.uint8), digits.target.astype(np.int64)
    # Half for testing: the ECE is biased upwards on few images. A perfectly calibrated network has an ECE of
    # .010 to .015 on a fifth of the digits (360 images) and of .007 to .010 on half of them.
    return Dataset("digits", pixels, labels, white=16, classes=10, test_share=Fraction(1, 2))


def _from_files(name: str, data_dir: Path) -> _Arrays:
    try:
        from torchvision import datasets  # slow to import, and not needed for the digits
    except ModuleNotFoundError as missing:
        raise DataError(f'{name} needs {missing.name}: pip install "lr-relax[study]"') from missing

    files = _FILES[name]
    torchvision_class = getattr(datasets, files.kind)
    read: Callable[[Any, Path], _Arrays]
    if hasattr(torchvision_class, "base_folder"):
        folder, read = data_dir / torchvision_class.base_folder, _cifar
    else:
        folder, read = data_dir / files.kind / "raw", _mnist
    try:
        pixels, labels = read(torchvision_class, folder)
        wanted = (len(labels), *files.shape)
        if pixels.shape != wanted:
            raise ValueError(f"expected pixels of shape {wanted}, got {pixels.shape}")
        if len(outside := labels[(labels < 0) | (labels >= files.classes)]):
            raise ValueError(f"expected labels from 0 to {files.classes - 1}, got {outside[0]}")
    except Exception as error:  # torchvision's readers raise whatever they stumble over
        reason = f"{name} cannot be read from {folder} or downloaded to it: {_reason(error)}"
        raise DataError(reason) from error
    return pixels, labels


def _mnist(torchvision_class: Any, folder: Path) -> _Arrays:
    """Read the four idx files, each copied or downloaded where it is missing."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    read = []
    for archive, md5 in torchvision_class.resources:
        path = folder / Path(archive).stem
        if not path.is_file():
            _fetch_idx(torchvision_class, archive, md5, path)
        with _about(f"{path.name} is damaged", *_NOT_IDX):
            values = (read_label_file if "labels" in path.name else read_image_file)(str(path))
        read.append(values.numpy())
    train_pixels, train_labels, test_pixels, test_labels = read
    for pixels, labels in ((train_pixels, train_labels), (test_pixels, test_labels)):
        if len(pixels) != len(labels):
            raise ValueError(f"there are {len(pixels)} images and {len(labels)} labels")
    pixels = np.concatenate([train_pixels, test_pixels])[:, np.newaxis]
    return pixels, np.concatenate([train_labels, test_labels])


def _fetch_idx(torchvision_class: Any, archive: str, md5: str, path: Path) -> None:
    from torchvision.datasets.utils import download_url

    path.parent.mkdir(parents=True, exist_ok=True)
    source = DEBIAN_FASHION_MNIST / archive
    if torchvision_class.__name__ != "FashionMNIST" or not source.is_file():
        source = path.with_name(archive)
        for mirror in torchvision_class.mirrors:
            try:
                with _about(archive, Exception):
                    download_url(f"{mirror}{archive}", path.parent, archive, md5)
                break
            except _Explained as error:
                failure = error
        else:
            raise failure
    with (
        _about(f"{source} is damaged", *_NOT_GZIP),
        replaced(path) as unpacked,
        gzip.open(source) as compressed,
        unpacked.open("wb") as target,
    ):
        shutil.copyfileobj(compressed, target)


def _cifar(torchvision_class: Any, folder: Path) -> _Arrays:
    """Read the pickles; missing or damaged ones, by torchvision's checksums, are downloaded again."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    meta = torchvision_class.meta
    pickles = [*torchvision_class.train_list, *torchvision_class.test_list, (meta["filename"], meta["md5"])]
    bad = [name for name, md5 in pickles if not check_integrity(folder / name, md5)]
    if bad:
        folder.mkdir(parents=True, exist_ok=True)
        with _about(f"{bad[0]} is missing or damaged, {torchvision_class.filename}", Exception):
            archive = {"filename": torchvision_class.filename, "md5": torchvision_class.tgz_md5}
            download_and_extract_archive(torchvision_class.url, folder.parent, **archive)
    parts = [torchvision_class(folder.parent, train=train) for train in (True, False)]
    channels_last = np.concatenate([part.data for part in parts])
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
    return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)), labels


class _Explained(Exception):
    """An error whose message names the file."""


@contextmanager
def _about(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Add ``what`` to the message of ``errors``."""
    try:
        yield
    except errors as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise _Explained(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The reason of an error in one line."""
    if isinstance(error, URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, AssertionError):
        return "not the format that was expected"
    return " ".join(str(error).split()) or type(error).__name__
