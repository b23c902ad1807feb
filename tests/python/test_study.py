"""The study: data and splits, the network, training, the results file, and the command line around them."""

import gzip
import json
import shlex
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from lr_relax.metrics import reliability_curve
from lr_relax.study import cli, compare, data, models, training
from lr_relax.study.atomic import replaced
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST

ONE_EPOCH = training.Recipe(epochs=1, batch_size=64, learning_rate=0.1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", Path("unused"))


# --- data -----------------------------------------------------------------------------------------


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


@pytest.fixture
def no_other_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither Debian's package nor a mirror that answers."""
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-package")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])


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


# --- model and training ---------------------------------------------------------------------------


def test_the_dense_network_is_the_papers() -> None:
    torch.manual_seed(0)
    model = models.simple_dense(784, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_863_690
    layers = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [
        (784, 1024),
        (1024, 1024),
        (1024, 10),
    ]
    for layer in layers:
        limit = (6 / (layer.in_features + layer.out_features)) ** 0.5  # Glorot and Bengio (2010), equation 16
        assert 0.99 * limit < layer.weight.abs().max() <= limit
        assert layer.weight.std().item() == pytest.approx(
            limit / 3**0.5, rel=0.02
        )  # of a uniform distribution
        assert not layer.bias.any()
    assert model(torch.zeros(3, 28, 28)).shape == (3, 10)
    assert [type(layer).__name__ for layer in model] == [
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
        "ReLU",
        "Linear",
    ]


def test_training_learns_and_reports_every_epoch(digits: data.Dataset) -> None:
    split = data.split(digits, seed=0)
    torch.manual_seed(0)
    model = models.simple_dense(64, 10)
    epochs = list(training.train(model, split, F.cross_entropy, replace(ONE_EPOCH, epochs=3)))
    assert len(epochs) == 3
    assert epochs[0].loss > epochs[1].loss > epochs[2].loss
    assert epochs[0].accuracy < epochs[2].accuracy > 0.9
    logits = training.predict(model, split.eval_images)
    assert (logits.argmax(1) == split.eval_labels).float().mean() > 0.85
    assert not logits.requires_grad


def test_an_epoch_uses_every_row_once(digits: data.Dataset) -> None:
    """With a rate too small to change anything, the epoch's loss is the loss over the whole training part."""
    split = data.split(digits, seed=0)
    model = models.simple_dense(64, 10)
    [epoch] = training.train(
        model, split, F.cross_entropy, replace(ONE_EPOCH, learning_rate=1e-12, batch_size=100)
    )
    logits = training.predict(model, split.train_images)
    assert epoch.loss == pytest.approx(F.cross_entropy(logits, split.train_labels).item(), rel=1e-5)
    assert epoch.accuracy == pytest.approx((logits.argmax(1) == split.train_labels).double().mean().item())


def test_diverging_training_is_noticed(digits: data.Dataset) -> None:
    model = models.simple_dense(64, 10)
    with pytest.raises(training.DivergedError, match="epoch 1"):
        list(
            training.train(
                model, data.split(digits, 0), F.cross_entropy, replace(ONE_EPOCH, learning_rate=1e9)
            )
        )


# --- runs and results -----------------------------------------------------------------------------


def tiny_plan(**changes: float) -> list[compare.Setting]:
    return compare.plan("digits", ONE_EPOCH, **{"seeds": 1, "alpha": 0.1, "smoothing": 0.1} | changes)


@pytest.fixture(scope="module")
def three_runs(digits: data.Dataset) -> list[compare.Run]:
    return [compare.run(setting, digits) for setting in tiny_plan()]


def test_a_plan_is_every_loss_for_every_seed_with_its_own_alpha() -> None:
    settings = tiny_plan(seeds=2, alpha=0.2, smoothing=0.3)
    losses = [("cross_entropy", 0.0), ("label_smoothing", 0.3), ("label_relaxation", 0.2)]
    assert [(each.seed, each.loss, each.alpha) for each in settings] == [
        (seed, *loss) for seed in (0, 1) for loss in losses
    ]


def test_a_run_repeats_exactly(digits: data.Dataset, three_runs: list[compare.Run]) -> None:
    torch.manual_seed(12345)  # what happened before does not matter
    again = compare.run(three_runs[2].setting, digits)
    assert replace(again, seconds=0) == replace(three_runs[2], seconds=0)


def test_losses_differ_in_nothing_but_the_loss(digits: data.Dataset) -> None:
    """With alpha 0 all three losses are cross-entropy: split, initial weights and batches are the same."""
    plain, *others = [compare.run(setting, digits) for setting in tiny_plan(alpha=0.0, smoothing=0.0)]
    for other in others:
        assert other.epoch_losses == pytest.approx(plain.epoch_losses, rel=1e-4)
        assert other.nll == pytest.approx(plain.nll, rel=1e-3)


def test_the_losses_are_what_their_names_say(three_runs: list[compare.Run]) -> None:
    """Relaxation forgives what cross-entropy does not; smoothing pays the entropy of its target on top."""
    cross_entropy, smoothing, relaxation = (each.epoch_losses[0] for each in three_runs)
    assert relaxation < cross_entropy < smoothing


def test_metrics_are_those_of_the_trained_network(
    digits: data.Dataset, three_runs: list[compare.Run]
) -> None:
    """Trained again by hand, step by step."""
    torch.manual_seed(0)
    model, split = models.simple_dense(64, 10), data.split(digits, 0)
    list(training.train(model, split, F.cross_entropy, ONE_EPOCH))
    logits = training.predict(model, split.eval_images).double()
    curve = reliability_curve(logits, split.eval_labels, from_logits=True, n_bins=15)
    got = three_runs[0]
    assert (got.n_train, got.n_eval) == (898, 899)
    assert got.accuracy == (logits.argmax(1) == split.eval_labels).double().mean().item()
    assert got.nll == F.cross_entropy(logits, split.eval_labels).item()
    assert got.ece == curve.expected_calibration_error
    assert got.bin_counts == curve.counts.tolist()
    assert [np.nan if mean is None else mean for mean in got.bin_accuracy] == pytest.approx(
        curve.accuracy, nan_ok=True
    )


def test_pooling_runs_is_pooling_their_predictions(three_runs: list[compare.Run]) -> None:
    """Six predictions in four bins, of two runs, and by hand: the third bin is filled by both."""
    some = replace(
        three_runs[0],
        bin_counts=[0, 0, 3, 1],
        bin_confidence=[None, None, 0.6, 0.9],
        bin_accuracy=[None, None, 1.0, 1.0],
    )
    more = replace(
        three_runs[0],
        bin_counts=[0, 1, 1, 0],
        bin_confidence=[None, 0.4, 0.7, None],
        bin_accuracy=[None, 0.0, 0.0, None],
    )
    curve = compare.pooled_curve([some, more])
    assert curve.counts.tolist() == [0, 1, 4, 1]
    assert curve.confidence == pytest.approx([np.nan, 0.4, 0.625, 0.9], nan_ok=True)
    assert curve.accuracy == pytest.approx([np.nan, 0.0, 0.75, 1.0], nan_ok=True)
    assert curve.edges == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert curve.expected_calibration_error == pytest.approx((0.4 + 4 * 0.125 + 0.1) / 6)


def test_the_summary_is_mean_and_sample_deviation(three_runs: list[compare.Run]) -> None:
    runs = [replace(three_runs[0], ece=ece) for ece in (0.01, 0.02, 0.06)]
    summary = compare.summarize(runs)
    assert list(summary) == ["accuracy", "ece", "nll"]
    assert summary["ece"] == pytest.approx((0.03, 0.0264575), rel=1e-5)
    assert np.isnan(compare.summarize(runs[:1])["ece"].deviation)


def test_results_survive_the_file_and_equal_settings_replace(
    three_runs: list[compare.Run], tmp_path: Path
) -> None:
    results = compare.Results(tmp_path / "results.json")
    for each in three_runs:
        results.add(each)
    assert compare.Results(results.path).runs == three_runs
    newer = replace(three_runs[1], seconds=123.0)
    results.add(newer)
    results.add(replace(newer, setting=replace(newer.setting, seed=1)))
    read = compare.Results(results.path)
    assert len(read.runs) == 4
    assert read.find(newer.setting) == newer
    assert read.find(replace(newer.setting, epochs=7)) is None


def test_a_failed_write_leaves_the_results_as_they_were(
    three_runs: list[compare.Run], tmp_path: Path
) -> None:
    results = compare.Results(tmp_path / "results.json")
    results.add(three_runs[0])
    before = results.path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        results.add(replace(three_runs[1], nll=float("nan")))
    assert results.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [results.path]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(then: Exception | None) -> None:
        with replaced(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            if then:
                raise then

    with pytest.raises(RuntimeError):
        write(then=RuntimeError())
    assert path.read_text() == "old"
    write(then=None)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


# --- command line ---------------------------------------------------------------------------------

TINY = ["compare", "--epochs", "1", "--seeds", "1"]


def lr_relax(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="lr-relax")


def runs_in(out: Path) -> list[dict[str, object]]:
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert isinstance(runs, list)
    return runs


def test_compare_prints_the_table_and_saves_runs_and_diagrams(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = lr_relax(
        "compare", "--epochs", "1", "--seeds", "2", "--alpha", "0.05", "--threads", "1", "--out", str(out)
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""  # no progress bar where there is no terminal
    runs = runs_in(out)
    assert [run["setting"]["loss"] for run in runs] == [*compare.LOSSES] * 2
    for run in runs:
        setting = run["setting"]
        assert isinstance(setting, dict)
        assert (setting["dataset"], setting["epochs"], setting["batch_size"]) == ("digits", 1, 64)
        assert (setting["n_bins"], setting["threads"], setting["evaluated_on"]) == (15, 1, "test")
        assert {"lr_relax", "torch", "python", "seed", "alpha", "learning_rate", "momentum"} <= setting.keys()
        assert len(run["epoch_losses"]) == 1
        assert sum(run["bin_counts"]) == run["n_eval"] == 899
        assert run["seconds"] > 0
        assert run["command"] in result.stdout.replace("\n", " ")
    eces = [run["ece"] for run in runs if run["setting"]["loss"] == "label_relaxation"]
    [row] = [line for line in result.stdout.splitlines() if "label relaxation 0.05" in line]
    assert f"{np.mean(eces):.4f} ± {np.std(eces, ddof=1):.4f}" in row
    assert "6 runs in" in result.stdout
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["reliability.png", "results.json"]


def test_the_printed_command_gives_the_same_runs(tmp_path: Path) -> None:
    first = lr_relax(*TINY, "--validation", "--n-bins", "7", "--lr", "0.05", "--out", str(tmp_path / "a b"))
    assert first.exit_code == 0, first.output
    runs = runs_in(tmp_path / "a b")
    assert {run["n_eval"] for run in runs} == {225}
    assert {run["n_train"] for run in runs} == {673}
    (tmp_path / "a b" / "results.json").unlink()
    assert lr_relax(*shlex.split(str(runs[0]["command"]))[1:]).exit_code == 0
    again = runs_in(tmp_path / "a b")
    assert [run | {"seconds": 0} for run in again] == [run | {"seconds": 0} for run in runs]


def test_an_interrupted_job_keeps_its_runs_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, trained = compare.run, []

    def interrupted(setting: compare.Setting, *args: object, **kwargs: object) -> compare.Run:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(setting)
        return train(setting, *args, **kwargs)

    monkeypatch.setattr(compare, "run", interrupted)
    assert lr_relax(*TINY, "--out", str(tmp_path)).exit_code == 1
    kept = runs_in(tmp_path)
    assert [run["setting"]["loss"] for run in kept] == ["cross_entropy", "label_smoothing"]
    trained.clear()
    assert lr_relax(*TINY, "--out", str(tmp_path), "--resume").exit_code == 0
    assert [setting.loss for setting in trained] == ["label_relaxation"]
    assert runs_in(tmp_path)[:2] == kept


def test_other_settings_are_trained_anew_and_added(tmp_path: Path) -> None:
    assert lr_relax(*TINY, "--out", str(tmp_path)).exit_code == 0
    result = lr_relax(*TINY, "--out", str(tmp_path), "--resume", "--alpha", "0.4")
    assert "1 run in" in result.stdout
    assert "2 from before" in result.stdout
    assert "label relaxation 0.4" in result.stdout
    assert len(runs_in(tmp_path)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "'mnist' is not one of 'digits', 'fashion_mnist'"),
        (["--alpha", "1"], "'--alpha': 1.0 is not in the range 0<=x<1"),
        (["--alpha", "-0.1"], "'--alpha': -0.1 is not in the range 0<=x<1"),
        (["--alpha", "nan"], "'--alpha': nan is not a finite number"),
        (["--smoothing", "1"], "'--smoothing': 1.0 is not in the range"),
        (["--seeds", "0"], "'--seeds': 0 is not in the range 1<=x<=10000"),
        (["--epochs", "0"], "'--epochs': 0 is not in the range 1<=x<=1000000"),
        (["--epochs", "1.5"], "'--epochs': '1.5' is not a valid integer"),
        (["--batch-size", "0"], "'--batch-size': 0 is not in the range 1<=x<=1000000"),
        (["--lr", "0"], "'--lr': 0.0 is not in the range x>0"),
        (["--lr", "inf"], "'--lr': inf is not a finite number"),
        (["--n-bins", "0"], "'--n-bins': 0 is not in the range 1<=x<=1000000"),
        (["--threads", "0"], "'--threads': 0 is not in the range 1<=x<=1024"),
        (["--n-bins", "2000000"], "'--n-bins': 2000000 is not in the range"),
        (["--threads", "3000000000"], "'--threads': 3000000000 is not in the range"),
        (["--batch-size", "9" * 30], "'--batch-size': 9999"),
        (["--seeds", "1000000000"], "'--seeds': 1000000000 is not in the range"),
        (["--out", ""], "'--out': a folder is needed"),
        (["--out", "{file}"], "'--out': {file} cannot be written to"),
        (["--out", "{file}/below"], "'--out': {file}/below cannot be written to"),
        (["--out", "{foreign}"], "results.json is not a results file of lr-relax compare"),
        (["--dataset", "fashion_mnist", "--data-dir", "{file}"], "fashion_mnist cannot be read from {file}"),
        (["--dataset", "fashion_mnist", "--data-dir", "{foreign}"], "or downloaded"),
        (["--no-such-option"], "No such option '--no-such-option'"),
        (["surplus"], "surplus"),
    ],
)
@pytest.mark.usefixtures("no_other_source")
def test_bad_arguments_give_one_line_and_exit_code_2_before_training(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {"file": str(tmp_path / "file"), "foreign": str(tmp_path / "foreign")}
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text('{"something": "else"}')
    monkeypatch.setattr(compare, "run", lambda *args, **kwargs: pytest.fail("training began"))
    monkeypatch.chdir(tmp_path)
    result = lr_relax("compare", *[argument.format(**names) for argument in arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message.format(**names) in result.stderr
    assert result.stdout == ""
    assert (tmp_path / "foreign" / "results.json").read_text() == '{"something": "else"}'


@pytest.mark.parametrize("arguments", [["--bogus"], ["no-such-command"]])
def test_bad_arguments_of_the_group_give_one_line_too(arguments: list[str]) -> None:
    result = lr_relax(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert arguments[0] in result.stderr


def test_diverging_training_ends_in_one_line(tmp_path: Path) -> None:
    result = lr_relax(*TINY, "--lr", "1e9", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cross_entropy, seed 0: the loss is")
    assert result.stderr.count("\n") == 1


def test_help_names_every_default() -> None:
    result = lr_relax("compare", "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for dataset, preset in compare.PRESETS.items():
        assert f"{preset.learning_rate:g} on {dataset}" in text


def test_the_console_script_is_this_command() -> None:
    [script] = entry_points(group="console_scripts", name="lr-relax")
    assert script.load() is cli.main
