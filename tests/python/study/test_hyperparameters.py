"""The files of misc/: the paper's hyperparameters and short ones, published results; builds have them all."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from lr_relax.study import config, data, models
from lr_relax.study.files import load_json
from lr_relax.study.optimizer import Schedule

ROOT = Path(__file__).parents[3]
MISC = sorted(path.name for path in (ROOT / "misc").glob("*.json"))

LOSSES = ("lr", "ce", "focal", "conf_pen")
CNNS = ("ResNet56V2", "VGG16", "DenseNetBC")
NETWORKS = {"ResNet56V2": "resnet", "VGG16": "vgg", "DenseNetBC": "densenet", "simple_dense": "simple_dense"}

# Initial rate, steps, their factor, epochs: the supplement of the paper, and the files of its code.
PAPER = {
    "ResNet56V2_cifar10": (0.1, [50, 100, 150], 0.3162, 200),
    "ResNet56V2_cifar100": (0.1, [75, 150, 225], 0.3162, 300),
    "VGG16_cifar10": (0.01, [50, 100, 150], 0.1, 200),
    "VGG16_cifar100": (0.01, [150, 225], 0.1, 300),
    "DenseNetBC_cifar10": (0.1, [50, 100, 150], 0.1, 200),
    "DenseNetBC_cifar100": (0.1, [150, 225], 0.1, 300),
    "simple_dense_mnist": (0.05, [25, 40], 0.3162, 25),
    "simple_dense_fashion_mnist": (0.05, [30, 50], 0.3162, 50),
}
# What its code has instead for the focal loss and the confidence penalty.
LEGACY = {
    "legacy_VGG16_cifar10": (0.001, [50, 100, 150], 0.1, 200),
    "legacy_VGG16_cifar100": (0.01, [75, 150, 225], 0.1, 300),
}


def schedule(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["initial_lr"], row["steps"], row["lr_sched_multipler"], row["epochs"]


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_the_paper_and_its_code(loss: str) -> None:
    rows = load_json(f"hyperparams_{loss}.json")
    assert {key: schedule(row) for key, row in rows.items() if key in PAPER} == PAPER
    for key in PAPER:
        rest = {name: rows[key][name] for name in ("batch_size", "data_augmentation", "decay")}
        assert rest == {"batch_size": 64, "data_augmentation": key.startswith(CNNS), "decay": 1e-5}
        assert len(rows[key]) == 7
    legacy = {key: row for key, row in rows.items() if key not in PAPER}
    expected = LEGACY if loss in ("focal", "conf_pen") else {}
    assert {key: schedule(row) for key, row in legacy.items()} == expected
    for row in legacy.values():
        assert (row["batch_size"], row["data_augmentation"]) == (32, False)
        assert "decay" not in row


def test_short_rows() -> None:
    """Ten epochs of the first rate, or three with a drop before the last."""
    rows = load_json("hyperparams_short.json")
    assert {*rows} == {*PAPER, "simple_dense_digits"}
    for key, row in rows.items():
        rate, _, factor, _ = PAPER.get(key, PAPER["simple_dense_mnist"])
        made = Schedule(row["initial_lr"], tuple(row["steps"]), row["lr_sched_multipler"])
        rates = [made.of_epoch(epoch) for epoch in range(row["epochs"])]
        assert rates == ([rate, rate, rate * factor] if key.startswith(CNNS) else [rate] * 10)
        rest = {name: row[name] for name in ("batch_size", "data_augmentation", "decay")}
        assert rest == {"batch_size": 64, "data_augmentation": key.startswith(CNNS), "decay": 1e-5}


@pytest.mark.parametrize("loss_name", config.LOSSES)
@pytest.mark.parametrize("key", PAPER)
def test_every_row_is_valid(loss_name: str, key: str) -> None:
    (network,) = [name for name in NETWORKS if key.startswith(f"{name}_")]
    of = (loss_name, NETWORKS[network], key.removeprefix(f"{network}_"))
    assert schedule(config.hyperparameters(*of)) == PAPER[key]
    assert config.hyperparameters(*of, short=True)["epochs"] < PAPER[key][3]


def test_published_results_are_valid() -> None:
    rows = load_json("published.json")["rows"]
    for row in rows:
        assert list(row) == list(rows[0])
        assert row["dataset_name"] in data.DATASETS
        assert row["model_name"] in models.NAMES
        assert (row["alpha"] is None) == (row["chosen_for"] in ("accuracy", "ece"))
        assert 0.89 < row["accuracy"] < 1
        assert 0 < row["ece"] < 0.16
        assert (row["accuracy_std"] is None) == (row["ece_std"] is None)
        assert row["source"].startswith(("the paper, ", "the paper's code, "))
        assert min(row["epochs"], row["seeds"]) > 0
    told = ("dataset_name", "loss_name", "alpha", "chosen_for", "temp_scaling", "epochs", "source")
    assert len({tuple(row[name] for name in told) for row in rows}) == len(rows)
    by_key = {tuple(row[name] for name in told[:6]): row for row in reversed(rows)}
    for key, expected in {
        ("mnist", "cross_entropy", None, "accuracy", False, 25): (0.988, 0.106, 10),
        ("fashion_mnist", "label_relaxation", None, "ece", False, 50): (0.911, 0.015, 10),
        ("fashion_mnist", "label_relaxation", 0.1, None, False, 10): (0.9022, 0.0111, 3),
    }.items():
        assert tuple(by_key[key][name] for name in ("accuracy", "ece", "seeds")) == expected


@pytest.mark.parametrize("name", MISC)
def test_package_links_to_misc(name: str) -> None:
    file = ROOT / "misc" / name
    assert load_json(name) == json.loads(file.read_text())
    link = ROOT / "python/lr_relax/study/misc" / name
    assert link.is_symlink()
    assert link.resolve() == file


def test_source_distribution_has_the_files(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "maturin", "sdist", "--out", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True, timeout=60)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {
            member.name.rpartition("/")[2]: (tar.extractfile(member) or io.BytesIO()).read()
            for member in tar
            if "/study/misc/" in member.name and member.isreg()
        }
    assert packed == {name: (ROOT / "misc" / name).read_bytes() for name in MISC}
