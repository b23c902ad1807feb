"""The study's data: the real digits, Fashion-MNIST's files, and the paper's splits."""

import gzip
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from lr_relax.study import data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_digits_are_the_real_ones_and_half_are_for_testing(digits: data.Dataset) -> None:
    assert digits.pixels.shape == (1797, 8, 8)
    assert digits.pixels.max() == digits.white
    assert digits.labels[:10].tolist() == list(range(10))
    split = data.split(digits, seed=0)
    assert (len(split.train_labels), len(split.eval_labels)) == (898, 899)
    assert (split.train_images.dtype, split.train_labels.dtype) == (torch.float32, torch.int64)


def test_pixels_are_scaled_and_lose_the_mean_image_of_the_training_part(digits: data.Dataset) -> None:
    split = data.split(digits, seed=3)
    assert split.train_images.mean(0).abs().max() < 1e-6
    # The same image is subtracted from the evaluation part, whose own mean is another.
    assert split.eval_images.mean(0).abs().max() > 1e-3
    images, labels = (
        torch.cat([split.train_images, split.eval_images]),
        torch.cat([split.train_labels, split.eval_labels]),
    )
    assert torch.equal(labels.bincount(), torch.from_numpy(digits.labels).bincount())
    # Pixels are 0 to 16 in steps of one: differences between images are multiples of 1/16.
    steps = (images[1:] - images[:1]) * 16
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert steps.abs().max().round() == 16


@pytest.mark.parametrize(
    ("seed", "train", "test", "inner_train", "validation"),
    [
        (0, 1780381433, 541472704, 2485615714, 4015369522),
        (1, 76740768, 3703933028, 3948640682, 601610751),
        (2, 1949088531, 2010637055, 3550506607, 2169515682),
    ],
)
def test_fashion_mnist_rows_are_split_as_the_paper_code_splits_them(
    seed: int, train: int, test: int, inner_train: int, validation: int
) -> None:
    """Checksums of the row numbers (little-endian int32) from running the paper's code."""
    rows = np.arange(70000)
    numbered = data.Dataset("rows", np.zeros((70000, 1, 1), np.uint8), rows, 255, 10, Fraction(1, 7))

    def checksum(labels: torch.Tensor) -> int:
        return zlib.crc32(labels.numpy().astype("<i4").tobytes())

    split = data.split(numbered, seed)
    assert (len(split.train_labels), len(split.eval_labels)) == (60000, 10000)
    assert (checksum(split.train_labels), checksum(split.eval_labels)) == (train, test)
    inner = data.split(numbered, seed, validation=True)
    assert (len(inner.train_labels), len(inner.eval_labels)) == (45000, 15000)
    assert (checksum(inner.train_labels), checksum(inner.eval_labels)) == (inner_train, validation)


def idx(values: np.ndarray) -> bytes:
    """The idx format: type (8 is uint8) and rank, the shape in big-endian int32, the values."""
    return (
        struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        + values.astype(np.uint8).tobytes()
    )


def fashion_files(n_train: int = 60, n_test: int = 10) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n))
    return files


def write_raw(data_dir: Path, files: dict[str, bytes]) -> Path:
    raw = data_dir / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


def check_fashion(loaded: data.Dataset, files: dict[str, bytes]) -> None:
    """Train and test files merged, in this order."""
    for values, kind, header in ((loaded.pixels, "images-idx3", 16), (loaded.labels, "labels-idx1", 8)):
        content = b"".join(files[f"{part}-{kind}-ubyte"][header:] for part in ("train", "t10k"))
        assert values.astype(np.uint8).tobytes() == content
    assert loaded.pixels.shape == (70, 28, 28)


@pytest.mark.usefixtures("no_other_source")
def test_fashion_mnist_is_read_from_torchvisions_files(tmp_path: Path) -> None:
    files = fashion_files()
    write_raw(tmp_path, files)
    loaded = data.load("fashion_mnist", tmp_path)
    check_fashion(loaded, files)
    assert len(data.split(loaded, 0).eval_labels) == 10


@pytest.mark.usefixtures("no_other_source")
def test_fashion_mnist_is_unpacked_from_debians_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package, files = tmp_path / "package", fashion_files()
    package.mkdir()
    for name, content in files.items():
        (package / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", package)
    check_fashion(data.load("fashion_mnist", tmp_path / "new"), files)
    raw = tmp_path / "new" / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(files)


@pytest.mark.usefixtures("no_other_source")
def test_a_damaged_package_leaves_no_partial_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name, content in fashion_files().items():
        (package / f"{name}.gz").write_bytes(gzip.compress(content)[:-20])
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", package)
    with pytest.raises(data.DataError, match="FashionMNIST/raw"):
        data.load("fashion_mnist", tmp_path)
    assert list((tmp_path / "FashionMNIST" / "raw").iterdir()) == []


@pytest.mark.usefixtures("no_other_source")
@pytest.mark.parametrize(
    "damage",
    [
        {"train-images-idx3-ubyte": b""},
        {"train-images-idx3-ubyte": fashion_files()["train-images-idx3-ubyte"][:-1]},
        {"t10k-labels-idx1-ubyte": idx(np.zeros(9))},
        {"t10k-labels-idx1-ubyte": idx(np.full(10, 10))},
        {"t10k-images-idx3-ubyte": idx(np.zeros((10, 28, 27)))},
    ],
    ids=["empty", "truncated", "label missing", "label out of range", "wrong size"],
)
def test_damaged_files_are_refused_in_one_line(damage: dict[str, bytes], tmp_path: Path) -> None:
    write_raw(tmp_path, fashion_files() | damage)
    with pytest.raises(data.DataError, match=r"\Afashion_mnist .*FashionMNIST/raw.*\Z") as refused:
        data.load("fashion_mnist", tmp_path)
    assert "\n" not in str(refused.value)


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of digits, fashion_mnist, got 'mnist'"):
        data.load("mnist", Path("unused"))
