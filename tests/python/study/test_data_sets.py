"""The study's data sets: the real digits, and small files of the formats of all others."""

import gzip
import hashlib
import os
import pickle
import re
import struct
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.study import data, splits
from torchvision import datasets

pytestmark = [
    pytest.mark.usefixtures("one_thread", "no_other_source"),
    pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter extracted tar archives"),
]

KINDS: dict[str, Any] = {
    "mnist": datasets.MNIST,
    "fashion_mnist": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
}
N_TRAIN, N_TEST = 60, 12

Files = dict[str, bytes]


def test_digits(digits: data.Dataset) -> None:
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.pixels.max() == digits.white
    assert digits.labels[:10].tolist() == list(range(10))
    split = splits.split(digits, seed=0)
    assert (len(split.train_labels), len(split.eval_labels)) == (898, 899)
    assert (split.train_images.dtype, split.train_labels.dtype) == (torch.float32, torch.int64)


def test_pixels_are_scaled_and_centered(digits: data.Dataset) -> None:
    split = splits.split(digits, seed=3, temperature=True)
    assert split.train_images.mean(0).abs().max() < 1e-6
    # The same image is subtracted from the other parts, whose own means are others.
    assert split.eval_images.mean(0).abs().max() > 1e-3
    assert split.scaling_images.mean(0).abs().max() > 1e-3
    images = torch.cat([split.train_images, split.eval_images, split.scaling_images]) + split.mean_image
    labels = torch.cat([split.train_labels, split.eval_labels, split.scaling_labels])
    assert torch.equal(labels.bincount(), torch.from_numpy(digits.labels).bincount())
    pixels = torch.from_numpy(digits.pixels).flatten(1)
    got = (images.flatten(1) * 16).round()
    assert sorted(got.tolist()) == sorted(pixels.tolist())
    assert torch.allclose(images.flatten(1) * 16, got, atol=1e-5)


def idx(values: np.ndarray) -> bytes:
    """The idx format: type (8 is uint8) and rank, the shape in big-endian int32, the values."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def images_and_labels(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, *data.FACTS[name].shape), dtype=np.uint8)
    return images, rng.integers(0, 100 if name == "cifar100" else 10, n)


def mnist_files(name: str) -> Files:
    """The unpacked files."""
    files = {}
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        images, labels = images_and_labels(name, n)
        files[f"{part}-images-idx3-ubyte"] = idx(images[:, 0])
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    return files


def cifar_files(name: str) -> Files:
    """Pickles of dictionaries, the training images of CIFAR-10 in five of them."""
    kind = KINDS[name]
    files = {kind.meta["filename"]: pickle.dumps({kind.meta["key"]: ["some class"]})}
    for part, n in ((kind.train_list, N_TRAIN), (kind.test_list, N_TEST)):
        images, labels = images_and_labels(name, n)
        key = "fine_labels" if name == "cifar100" else "labels"
        for (file, _), rows in zip(part, np.split(np.arange(n), len(part)), strict=True):
            batch = {"data": images[rows].reshape(len(rows), -1), key: labels[rows].tolist()}
            files[file] = pickle.dumps(batch)
    return files


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def make_files(name: str, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Small files, whose checksums torchvision knows from now on."""
    if name.endswith("mnist"):
        return mnist_files(name)
    files, kind = cifar_files(name), KINDS[name]
    for names in ("train_list", "test_list"):
        monkeypatch.setattr(kind, names, [[file, md5(files[file])] for file, _ in getattr(kind, names)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(files[kind.meta["filename"]])})
    return files


def put(name: str, data_dir: Path, files: Files) -> Path:
    """Write the files where torchvision wants them."""
    kind = KINDS[name]
    where = data_dir / (kind.base_folder if name.startswith("cifar") else f"{kind.__name__}/raw")
    where.mkdir(parents=True)
    for file, content in files.items():
        (where / file).write_bytes(content)
    return where


def make_archives(name: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a server offers, with checksums that torchvision knows from now on; returns the first."""
    files, kind = make_files(name, monkeypatch), KINDS[name]
    if name.endswith("mnist"):
        archives = [(archive, gzip.compress(files[Path(archive).stem])) for archive, _ in kind.resources]
        for archive, content in archives:
            (where / archive).write_bytes(content)
        monkeypatch.setattr(kind, "resources", [(archive, md5(content)) for archive, content in archives])
        return where / archives[0][0]
    put(name, where, files)
    with tarfile.open(where / kind.filename, "w:gz") as tar:
        tar.add(where / kind.base_folder, kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", md5((where / kind.filename).read_bytes()))
    return where / kind.filename


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that torchvision downloads from, for MNIST after a mirror that does not answer."""
    (where := tmp_path / "server").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(where))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        for name, kind in KINDS.items():
            if name.endswith("mnist"):
                monkeypatch.setattr(kind, "mirrors", [*kind.mirrors, url])
            else:
                monkeypatch.setattr(kind, "url", url + kind.filename)
        yield where
        server.shutdown()


def check(name: str, loaded: data.Dataset) -> None:
    """Train and test files merged, in this order, channels first."""
    parts = [images_and_labels(name, n) for n in (N_TRAIN, N_TEST)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert np.array_equal(loaded.pixels, images)
    assert np.array_equal(loaded.labels, labels)
    assert loaded.pixels.flags.c_contiguous
    assert (loaded.pixels.dtype, loaded.labels.dtype) == (np.uint8, np.int64)
    assert (loaded.name, loaded.white, loaded.classes) == (name, 255, 100 if name == "cifar100" else 10)
    assert len(splits.split(loaded, 0).eval_labels) == (11 if name.endswith("mnist") else 12)


def refusal(name: str, data_dir: Path) -> str:
    with pytest.raises(data.DataError) as refused:
        data.load(name, data_dir)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{name} cannot be read from {data_dir} or downloaded to it: ")
    return message.split("downloaded to it: ", 1)[1]


@pytest.mark.parametrize("name", KINDS)
def test_downloads_missing_files(
    name: str,
    served: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Unless the server lacks a file or has it with another checksum."""
    archive = make_archives(name, served, monkeypatch)
    good, new = archive.read_bytes(), tmp_path / "new" / "data"
    archive.unlink()
    assert refusal(name, new).endswith("HTTP Error 404: File not found")
    archive.write_bytes(good[:-1] + b"x")
    assert refusal(name, new).endswith("File not found or corrupted.")
    archive.write_bytes(good)
    check(name, data.load(name, new))
    assert "100%" in capfd.readouterr().err
    archive.unlink()  # so that a second download would fail
    check(name, data.load(name, new))


def make_package(where: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Debian's package."""
    files = mnist_files("fashion_mnist")
    where.mkdir()
    for file, content in files.items():
        (where / f"{file}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", where)
    return files


def test_reads_debians_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = make_package(tmp_path / "package", monkeypatch)
    check("fashion_mnist", data.load("fashion_mnist", tmp_path))
    assert {path.name for path in (tmp_path / "FashionMNIST/raw").iterdir()} == files.keys()
    # MNIST's files have the same names.
    assert re.fullmatch("train-images-idx3-ubyte.gz: .*Connection refused.*", refusal("mnist", tmp_path))


def test_full_disk_leaves_no_partial_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_package(tmp_path / "package", monkeypatch)
    raw = put("fashion_mnist", tmp_path, {})
    (raw / f".train-labels-idx1-ubyte.{os.getpid()}").symlink_to("/dev/full")  # where it is unpacked to
    assert refusal("fashion_mnist", tmp_path) == "[Errno 28] No space left on device"
    assert [path.name for path in raw.iterdir()] == ["train-images-idx3-ubyte"]
    check("fashion_mnist", data.load("fashion_mnist", tmp_path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"train-images-idx3-ubyte": b""}, ""),
        ({"train-images-idx3-ubyte": b"\0" * 100}, "it has another format"),
        (
            {"t10k-images-idx3-ubyte": mnist_files("mnist")["t10k-images-idx3-ubyte"][:-1]},
            "for input of size 9407",
        ),
        (
            {  # as many labels in all
                "train-labels-idx1-ubyte": idx(np.zeros(N_TRAIN + 1)),
                "t10k-labels-idx1-ubyte": idx(np.zeros(N_TEST - 1)),
            },
            "61 labels need images of (1, 28, 28), got (60, 1, 28, 28)",
        ),
        ({"t10k-labels-idx1-ubyte": idx(np.full(N_TEST, 10))}, "expected labels from 0 to 9, got 10"),
        ({"t10k-images-idx3-ubyte": idx(np.zeros((N_TEST, 28, 27)))}, "got (12, 1, 28, 27)"),
    ],
)
def test_rejects_damaged_idx_files(damage: Files, reason: str, tmp_path: Path) -> None:
    put("mnist", tmp_path, mnist_files("mnist") | damage)
    message = refusal("mnist", tmp_path)
    assert message.startswith("a file is damaged, delete it to download it again: ")
    assert message.endswith(reason)


def test_downloads_damaged_pickles_again(
    served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are not even opened: unpickling runs code."""
    make_archives("cifar10", served, monkeypatch)
    where = put("cifar10", tmp_path, cifar_files("cifar10") | {"data_batch_3": b"cos\nabort\n(tR."})
    (where / "test_batch").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(KINDS["cifar10"], "url", "http://127.0.0.1:9/a.tar.gz")
        assert "Connection refused" in refusal("cifar10", tmp_path)
    check("cifar10", data.load("cifar10", tmp_path))
    (where / "batches.meta").unlink()
    check("cifar10", data.load("cifar10", tmp_path))
