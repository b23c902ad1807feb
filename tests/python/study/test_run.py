"""A run: the same however often it is stopped, evaluated as by hand, careful with its folder."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_are_at_most
from lr_relax.metrics.temperature import PAPER_GRID
from lr_relax.study import data, files, models, splits, training
from lr_relax.study import folder as store
from lr_relax.study import run as module
from lr_relax.study.config import RunConfig
from lr_relax.study.files import RunError
from lr_relax.study.folder import Result
from lr_relax.study.run import run
from lr_relax.study.training import Epoch
from made_results import timeless
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT: dict[str, Any] = {"epochs": 3, "initial_lr": 0.05, "steps": (1,), "decay": 1e-4}
CONFIG = RunConfig("simple_dense", "digits", alpha=0.1, data_augmentation=False, **SHORT)
Array = NDArray[Any]


@pytest.fixture(scope="module")
def few() -> data.Dataset:
    """Images as those of CIFAR-10, as many as make two batches."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    return data.Dataset("cifar10", pixels, np.arange(30) % 10, 255, 10, Fraction(1, 6))


OF_FEW = RunConfig("vgg", "cifar10", alpha=0.1, epochs=2, batch_size=13, initial_lr=0.01, steps=(0,))


class Stopped(BaseException):
    """As if Ctrl-C had been pressed."""


def stop_in(epoch: int) -> Any:
    def on_batch(done: float) -> None:
        if done > epoch:
            raise Stopped

    return on_batch


# Stopped and started again.


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_resumes_bit_for_bit(
    epoch: int, digits: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first epoch, in the last one, or before the evaluation."""
    expected = run(CONFIG, digits)

    def stopped(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(module, "_evaluate", stopped)
        with pytest.raises(Stopped):
            run(CONFIG, digits, folder=tmp_path, on_batch=stop_in(epoch))
    assert (tmp_path / "checkpoint.pt").exists() == (epoch > 0)
    assert store.load_result(tmp_path) is None
    torch.rand(5)
    trained: list[float] = []
    told: list[Epoch] = []
    result = run(CONFIG, digits, folder=tmp_path, on_epoch=told.append, on_batch=trained.append)
    assert timeless(result) == timeless(expected)
    assert all(done > epoch for done in trained)
    assert told == result.history  # those from before too, each once
    assert result.seconds >= sum(each.seconds for each in told)  # of both processes
    names = [".lock", "config.json", "predictions.npz", "reliability.png", "result.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_resumes_dropout_augmentation_and_batch_norm(few: data.Dataset, tmp_path: Path) -> None:
    """The paper's VGG16; also without a folder nothing is different."""
    expected = run(OF_FEW, few)
    with pytest.raises(Stopped):
        run(OF_FEW, few, folder=tmp_path, on_batch=stop_in(1))
    resumed = run(OF_FEW, few, folder=tmp_path)
    assert timeless(resumed) == timeless(expected)
    assert resumed.history[0].loss != resumed.history[1].loss


# The best epoch is neither the first nor the last.
RESTLESS = replace(
    CONFIG, epochs=18, initial_lr=1.0, steps=(), decay=0, batch_size=300, model_checkpoints=True
)


def test_resumes_best_model_and_plateau(digits: data.Dataset, tmp_path: Path) -> None:
    """Stopped in and after the best epoch, on the plateau, and after the rate has dropped."""
    config = replace(RESTLESS, reduce_on_plateau=True)
    expected = run(config, digits, folder=tmp_path / "whole")
    accuracies, rates = zip(*[(epoch.val_accuracy, epoch.lr) for epoch in expected.history], strict=True)
    best = accuracies.index(max(accuracies))
    assert 0 < best < 17
    assert rates[-1] < rates[0]
    for epoch in (best, best + 1, 17):
        with pytest.raises(Stopped):
            run(config, digits, folder=tmp_path / "stopped", on_batch=stop_in(epoch))
    resumed = run(config, digits, folder=tmp_path / "stopped")
    assert timeless(resumed) == timeless(expected)
    assert resumed.accuracy == accuracies[best] == max(accuracies)
    models_of = [files.load_checkpoint(tmp_path / name / "model.pt") for name in ("whole", "stopped")]
    for name, weight in models_of[0]["network"].items():
        assert torch.equal(weight, models_of[1]["network"][name])


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.5], True), ([0.5, 0.7], True), ([0.7, 0.7], False), ([None, None], True)]
)
def test_first_best_model_is_kept(accuracies: list[float | None], best: bool) -> None:
    """Without validation the last one."""
    assert module._is_best([SimpleNamespace(val_accuracy=accuracy) for accuracy in accuracies]) == best


def test_resumes_bit_for_bit_after_sigkill(digits: data.Dataset, tmp_path: Path) -> None:
    """The paper's command, killed after an epoch."""
    config = RunConfig("simple_dense", "digits", alpha=0.1, epochs=12, initial_lr=0.05)
    folder = tmp_path / "out" / config.key
    command = [sys.executable, "-m", "lr_relax.study.lr_study", "--model_name", "simple_dense"]
    command += ["--dataset_name", "digits", "--alpha", "0.1", "--epochs", "12", "--initial_lr", "0.05"]
    command += ["--threads", "1", "--device", "cpu", "--tracking_uri", "none", "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert any("epoch 2/12" in line for line in process.stderr)
        process.kill()
    assert not (folder / "result.json").exists()
    assert 0 < len(files.load_checkpoint(folder / "checkpoint.pt")["epochs"]) < 12
    assert timeless(run(config, digits, folder=folder)) == timeless(run(config, digits))


# Folders.


def test_finished_run_is_not_repeated(
    digits: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder holds the configuration and the result."""
    config, folder = replace(CONFIG, epochs=1, test_run=True), tmp_path / "made" / "by it"
    module.commit.cache_clear()
    kept: list[int] = []

    def note(_: Epoch) -> None:
        kept.append(module.commit.cache_info().currsize)

    result = run(config, digits, folder=folder, command="the first", on_epoch=note)
    assert kept == [1]  # the commit is that of the start
    assert RunConfig.from_dict(json.loads((folder / "config.json").read_text())) == result.config == config
    assert Result.from_dict(json.loads((folder / "result.json").read_text())) == result
    assert (folder / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert (result.command, result.n_train, result.n_eval) == ("the first", 898, 899)
    assert [epoch.val_accuracy for epoch in result.history] == [None]
    about = result.environment
    assert (about["torch"], about["threads"], about["device"]) == (torch.__version__, "1", "cpu")
    assert len(about["commit"].split("-")[0]) in (0, 40)
    monkeypatch.setattr(module, "Training", lambda *args, **kwargs: pytest.fail("trained again"))
    told: list[Epoch] = []
    assert run(config, folder=folder, command="another", on_epoch=told.append) == result
    assert told == result.history


def test_rejects_the_folder_of_another_run(digits: data.Dataset, tmp_path: Path) -> None:
    """Unfinished or finished."""
    one = replace(CONFIG, epochs=1)
    for stop in (0, 9):
        with suppress(Stopped):
            run(one, digits, folder=tmp_path, on_batch=stop_in(stop))
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(RunError, match=f"{tmp_path} is the folder of another run"):
            run(replace(one, alpha=0.2), digits, folder=tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"epoch": 1}', b"\xff\xfe", b"null"])
@pytest.mark.parametrize("name", ["config.json", "checkpoint.pt", "result.json"])
def test_rejects_damaged_files(name: str, content: bytes, digits: data.Dataset, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{tmp_path / name} is .*delete it to") as raised:
        run(CONFIG, digits, folder=tmp_path)
    assert "\n" not in str(raised.value)
    assert (tmp_path / name).read_bytes() == content


def test_full_disk_or_another_checkpoint(digits: data.Dataset, tmp_path: Path) -> None:
    """Neither changes the folder; when the disk has room, or the checkpoint is deleted, the run goes on."""
    with pytest.raises(Stopped):
        run(CONFIG, digits, folder=tmp_path, on_batch=stop_in(1))
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    with files_are_at_most(10_000), pytest.raises(OSError, match="too large"):
        run(CONFIG, digits, folder=tmp_path)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "checkpoint.pt", "config.json"]
    state = files.load_checkpoint(path)
    wrong = ("network", {}), ("optimizer", None), ("plateau", {"no": 1}), ("epochs", 5), ("seconds", None)
    for name, value in wrong:
        files.save_checkpoint(state | {name: value}, path)
        with pytest.raises(RunError, match=rf"\A{path} is not a checkpoint of this run, delete it.*\Z"):
            run(CONFIG, digits, folder=tmp_path)
    expected = timeless(run(CONFIG, digits))
    path.write_bytes(before)
    with pytest.raises(Stopped):
        run(CONFIG, digits, folder=tmp_path, on_batch=stop_in(2))
    assert timeless(run(CONFIG, digits, folder=tmp_path)) == expected


# What cannot be run.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # The loss before the only step of an epoch is finite, the validation after it is not.
        ({"batch_size": 673}, "the network's logits are no longer finite"),
        ({"batch_size": 300}, r"the loss is (nan|inf) in epoch \d+"),
    ],
)
def test_diverging_run_keeps_its_last_checkpoint(
    changes: dict[str, int], reason: str, digits: data.Dataset, tmp_path: Path
) -> None:
    """The rate rises slowly enough for an epoch to pass; the run ends alike when it goes on."""
    config = replace(CONFIG, **changes, initial_lr=3e7, warmup=10**6, epochs=10**6)
    for _ in range(2):
        with pytest.raises(RunError, match=f"^{reason}; a smaller learning rate may help$"):
            run(config, digits, folder=tmp_path)
    state = files.load_checkpoint(tmp_path / "checkpoint.pt")
    assert len(state["epochs"]) >= 1
    assert all(np.isfinite(epoch["loss"]) for epoch in state["epochs"])
    assert store.load_result(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_checkpoints": True}, "`folder`"),
        ({"dataset_name": "mnist"}, "`dataset` to be mnist, but got digits"),
        ({"decay": 1e308}, r"\Athe learning rate is 0.0 in epoch 1: it falls too fast\Z"),
        ({"initial_lr": 5e-324, "warmup": 10}, r"\Athe learning rate is 0.0 in epoch 1: it falls too fast\Z"),
        ({"validation_share": 0.9999}, r"\Adigits cannot be split: .*train set will be empty.*\Z"),
        # Finite before the only step, not after it.
        (
            {"initial_lr": 1e30, "epochs": 1, "batch_size": 1000, "test_run": True},
            r"\Athe network's logits are no longer finite; a smaller learning rate may help\Z",
        ),
    ],
)
def test_rejects_what_cannot_run(changes: dict[str, Any], reason: str, digits: data.Dataset) -> None:
    with pytest.raises((RunError, ValueError), match=reason):
        run(replace(CONFIG, **changes), digits)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_missing_best_model(damage: Callable[[Path], object], digits: data.Dataset, tmp_path: Path) -> None:
    """It cannot be had again from the checkpoint, so that the run has to start over."""
    config = replace(CONFIG, model_checkpoints=True)
    with pytest.raises(Stopped):
        run(config, digits, folder=tmp_path, on_batch=stop_in(2))
    damage(tmp_path / "model.pt")
    reason = f"model.pt is not the best network, delete {tmp_path} to start over"
    with pytest.MonkeyPatch.context() as patch:  # no later epoch is better
        patch.setattr(training.Training, "_validate", lambda self: (9.0, training.Metrics(0, 0.5, 9, 1)))
        with pytest.raises(RunError, match=reason):
            run(config, digits, folder=tmp_path)


def test_lock(digits: data.Dataset, tmp_path: Path) -> None:
    """A lock belongs to who has opened its file, so that the test can play both."""

    def meanwhile(epoch: Epoch) -> None:
        with pytest.raises(BlockingIOError, match="another process is using it"):
            run(CONFIG, digits, folder=tmp_path)

    result = run(CONFIG, digits, folder=tmp_path, on_epoch=meanwhile)
    assert run(CONFIG, digits, folder=tmp_path) == result


# Evaluation.


def by_hand(logits: Array, labels: Array, n_bins: int = 15) -> dict[str, Any]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    hits, confidence = p.argmax(1) == labels, p.max(1)
    bins = np.minimum((confidence // (1 / n_bins)).astype(int), n_bins - 1)
    each = [(confidence[bins == k], hits[bins == k]) for k in range(n_bins)]
    return {
        "accuracy": hits.mean(),
        "ece": sum(len(c) * abs(c.mean() - h.mean()) for c, h in each if len(c)) / len(p),
        "nll": -np.log(p[np.arange(len(p)), labels]).mean(),
        "brier": ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean(),
        "bin_counts": [len(c) for c, _ in each],
        "bin_confidence": [c.mean() if len(c) else None for c, _ in each],
        "bin_accuracy": [h.mean() if len(h) else None for _, h in each],
    }


def assert_is(result: Any, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        got = getattr(result, name)
        if isinstance(value, list):  # None is nan
            got, value = np.array(got, dtype=float), np.array(value, dtype=float)
        assert got == pytest.approx(value, rel=1e-9, nan_ok=True), name


def parts_and_logits(
    config: RunConfig, digits: data.Dataset, folder: Path
) -> tuple[Result, splits.Split, Array, Array]:
    """A run, its split, and the logits of its evaluation and of what its temperature is chosen on."""
    result = run(config, digits, folder=folder)
    held_out = {"validation": not config.test_run, "temperature": config.temp_scaling}
    split = splits.split(digits, config.seed, **held_out)
    network = models.build("simple_dense", (1, 8, 8), 10)
    network.load_state_dict(files.load_checkpoint(folder / "model.pt")["network"])
    parts = split.eval_images, split.scaling_images
    return result, split, *[training.predict(network, images).numpy() for images in parts]


@pytest.mark.parametrize(("test_run", "n_bins"), [(False, 15), (True, 4)])
def test_metrics_agree_with_numpy(test_run: bool, n_bins: int, digits: data.Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, test_run=test_run, n_bins=n_bins, seed=3, model_checkpoints=True)
    result, split, logits, _ = parts_and_logits(config, digits, tmp_path)
    assert_is(result, by_hand(logits, split.eval_labels.numpy(), n_bins))
    assert (result.temperature, result.unscaled) == (None, None)
    assert (result.n_train, result.n_eval) == ((898, 899) if test_run else (673, 225))
    assert sum(result.bin_counts) == result.n_eval


@pytest.mark.parametrize(("test_run", "temperature"), [(False, "grid"), (True, "nll")])
def test_temperature_is_chosen_on_held_out_data(
    test_run: bool, temperature: str, digits: data.Dataset, tmp_path: Path
) -> None:
    """Metrics after it, and before it: with label relaxation the network is too cautious or too bold."""
    config = replace(CONFIG, test_run=test_run, alpha=0.3, model_checkpoints=True)
    config = replace(config, temp_scaling=True, temperature=temperature)
    result, split, logits, held_out = parts_and_logits(config, digits, tmp_path)
    labels = split.scaling_labels.numpy()
    sizes = (763, 135, 899) if test_run else (572, 135, 191)
    assert (result.n_train, len(labels), result.n_eval) == sizes
    if temperature == "grid":
        eces = [by_hand(held_out / t, labels)["ece"] for t in PAPER_GRID]
        assert result.temperature == PAPER_GRID[int(np.argmin(eces))]
    else:
        found = minimize_scalar(lambda t: by_hand(held_out / t, labels)["nll"], (0.05, 1, 20))
        assert result.temperature == pytest.approx(found.x, rel=1e-3)
    assert result.temperature is not None
    assert result.temperature != 1
    assert_is(result, by_hand(logits / result.temperature, split.eval_labels.numpy()))
    before = by_hand(logits, split.eval_labels.numpy())
    assert_is(result.unscaled, {name: before[name] for name in ("accuracy", "ece", "nll", "brier")})
    assert result.accuracy == before["accuracy"]


def test_subtract_pixel_mean(digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[torch.Tensor] = []
    made = training.Training
    monkeypatch.setattr(
        module, "Training", lambda c, s, *a, **k: (trained.append(s.train_images), made(c, s, *a, **k))[1]
    )
    for subtracted in (True, False):
        run(replace(CONFIG, epochs=1, subtract_pixel_mean=subtracted), digits)
    torch.testing.assert_close(trained[0], trained[1] - trained[1].mean(0))
    assert trained[1].min() == 0 < trained[1].mean()


def test_legacy_checkpoints_evaluate_the_last_model(digits: data.Dataset, tmp_path: Path) -> None:
    config = replace(RESTLESS, legacy_checkpoints=True)
    result = run(config, digits, folder=tmp_path)
    assert (tmp_path / "model.pt").exists()
    assert result.accuracy == result.history[-1].val_accuracy
    assert result.accuracy < max(epoch.val_accuracy or 0 for epoch in result.history)
