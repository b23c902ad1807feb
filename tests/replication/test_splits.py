"""Splits, labels and mean images are those of the paper's code, to the bit (splits.json, preprocessing.json).

What needs Fashion-MNIST's images is skipped where they are neither in data/ nor in Debian's package.
"""

import json
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lr_relax.study import data, splits

ROOT = Path(__file__).parents[2]
ORACLE = json.loads((ROOT / "tests/oracle/splits.json").read_text())
MEANS = json.loads((ROOT / "tests/oracle/preprocessing.json").read_text())["pixel_mean_rounding"]
PARTS = [case for case in ORACLE["fashion_splits"] if "parts" in case]
ROWS = [case for case in ORACLE["fashion_splits"] if "index_level" in case]

# Images and the share of the test part.
SIZES = {
    "mnist": (70000, Fraction(1, 7)),
    "fashion_mnist": (70000, Fraction(1, 7)),
    "cifar10": (60000, Fraction(1, 6)),
    "cifar100": (60000, Fraction(1, 6)),
}


@pytest.fixture(scope="module")
def fashion_mnist(tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    if (ROOT / "data/FashionMNIST/raw/train-images-idx3-ubyte").is_file():
        return data.load("fashion_mnist", ROOT / "data")
    if data.DEBIAN_FASHION_MNIST.is_dir():
        return data.load("fashion_mnist", tmp_path_factory.mktemp("data"))
    pytest.skip("Fashion-MNIST is not here")


def checksum(rows: np.ndarray) -> int:
    return zlib.crc32(rows.astype("<i4").tobytes())


@pytest.mark.parametrize(
    "case", ORACLE["sizes"], ids=lambda case: "-".join(str(value) for value in list(case.values())[:3])
)
def test_sizes(case: dict[str, Any]) -> None:
    n, test_share = SIZES[case["dataset"]]
    validation = not case["test_run"]
    rows = splits.split_rows(n, test_share, 0, validation=validation, temperature=case["temp_scaling"])
    sizes = tuple(map(len, rows))
    assert sizes == (case["train"], case["val" if validation else "test"], case.get("scaling", 0))
    assert sum(sizes) == case["outer_train"] + (0 if validation else case["outer_test"])


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"seed {case['seed']}")
def test_rows_and_their_order(case: dict[str, Any]) -> None:
    n, test_share = SIZES["fashion_mnist"]
    plain = splits.split_rows(n, test_share, case["seed"])
    inner = splits.split_rows(n, test_share, case["seed"], validation=True)
    scaled = splits.split_rows(n, test_share, case["seed"], temperature=True)
    parts = {
        "test": plain.evaluated,
        "train": plain.train,
        "temp_train": scaled.train,
        "scaling": scaled.scaling,
        "plain_train": inner.train,
        "val": inner.evaluated,
    }
    for name, rows in parts.items():
        assert rows[:10].tolist() == case[f"{name}_first10"], name
        assert checksum(rows) == case[f"crc_{name}"], name
    assert np.array_equal(scaled.evaluated, plain.evaluated)
    assert (plain.evaluated >= 60000).sum() == case["overlap_test_with_official_test"]


@pytest.mark.parametrize("temperature", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_parts_do_not_overlap(validation: bool, temperature: bool) -> None:
    test = splits.split_rows(60000, Fraction(1, 6), 4).evaluated
    parts = splits.split_rows(60000, Fraction(1, 6), 4, validation=validation, temperature=temperature)
    rows = np.concatenate([*parts, test] if validation else [*parts])
    assert np.array_equal(np.sort(rows), np.arange(60000))


def test_fashion_mnist_is_the_papers(fashion_mnist: data.Dataset) -> None:
    raw, pixels, labels = ORACLE["fashion_raw"], fashion_mnist.pixels, fashion_mnist.labels
    assert pixels.shape == (70000, 1, 28, 28)
    for part, rows in (("train", slice(0, 60000)), ("test", slice(60000, None))):
        assert pixels[rows].sum(dtype=np.int64) == raw[f"{part}_sum"]
        assert zlib.crc32(pixels[rows].tobytes()) == raw[f"crc_{part}_images"]
        assert zlib.crc32(labels[rows].astype(np.uint8).tobytes()) == raw[f"crc_{part}_labels"]
    assert labels[:10].tolist() == raw["train_label_first10"]


def check_part(images: np.ndarray, labels: np.ndarray, part: dict[str, Any]) -> None:
    assert len(images) == len(labels) == part["n"]
    assert images.dtype == np.dtype(part["dtype"])
    assert labels[:10].tolist() == part["labels_first10"]
    assert np.bincount(labels).tolist() == part["label_hist"]
    assert (images.min(), images.max()) == (part["x_min"], part["x_max"])
    # The paper's mean is of float32 in another order.
    assert images.mean(dtype=np.float64) == pytest.approx(part["x_mean"], abs=1e-7)


def parts_of(split: splits.Split) -> list[tuple[np.ndarray, np.ndarray]]:
    parts = [
        (split.train_images, split.train_labels),
        (split.eval_images, split.eval_labels),
        (split.scaling_images, split.scaling_labels),
    ]
    return [(images.numpy(), labels.numpy()) for images, labels in parts if len(labels)]


@pytest.mark.parametrize(
    "case", PARTS, ids=lambda case: f"test={case['test_run']}-temperature={case['temp_scaling']}"
)
def test_images_and_labels(case: dict[str, Any], fashion_mnist: data.Dataset) -> None:
    validation, temperature = not case["test_run"], case["temp_scaling"]
    split = splits.split(fashion_mnist, case["seed"], validation=validation, temperature=temperature)
    for (images, labels), part in zip(parts_of(split), case["parts"], strict=True):
        check_part(images, labels, part)


def test_without_the_mean(fashion_mnist: data.Dataset) -> None:
    split = splits.split(fashion_mnist, 0, temperature=True, subtract_mean=False)
    assert not split.mean_image.any()
    for (images, labels), part in zip(parts_of(split), ORACLE["no_mean"], strict=True):
        check_part(images, labels, part)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mean_image_is_rounded_as_the_papers(seed: int, fashion_mnist: data.Dataset) -> None:
    """The float32 mean, whose sum is off by .01 from that of the exact one."""
    mean_image = splits.split(fashion_mnist, seed).mean_image
    assert mean_image.double().sum().item() == MEANS[str(seed)]["pixel_mean_float32_sum"]
    assert mean_image[0, 14, 14].item() == ROWS[seed]["full_train_pixel_mean_center"]
