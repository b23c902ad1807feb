"""The options of a run: what each may be, the names of their combinations, the files that they come from."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.study import config, data
from lr_relax.study.config import ConfigError, RunConfig, hyperparameters
from lr_relax.study.files import load_json

DIGITS = RunConfig(model_name="simple_dense", dataset_name="digits")
BOOLS = {field.name: st.booleans() for field in fields(RunConfig) if isinstance(field.default, bool)}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model_name", ["vgg16", "VGG", None, 1, ["vgg"]]),
        ("dataset_name", ["imagenet", "svhn", "", None]),
        ("loss_name", ["lr", "label_smoothing", None]),
        ("alpha", [-0.1, 1.0, float("nan"), float("inf"), "0.1", None, True, 10**400]),
        ("seed", [-1, 2**32, 0.0, "0", None, True]),
        ("epochs", [0, -1, 1_000_001, 1.0, "10", None, True]),
        ("batch_size", [0, -1, 1_000_001, 64.0, True]),
        ("initial_lr", [0.0, -0.1, float("nan"), float("inf"), "0.1", None, True]),
        ("steps", [(2, 1), (1, 1), (-1,), (1.0,), (True,), ("1",), (1, "2"), (1_000_001,), "12", 5, None]),
        ("lr_sched_multipler", [0.0, -1.0, float("nan"), float("inf"), None]),
        ("decay", [-1e-9, float("nan"), float("inf"), None]),
        ("warmup", [-1, 1.0, 1_000_001, True]),
        ("gradient_clipping", [-1e-9, float("nan"), float("inf"), None]),
        ("temperature", ["ece", 1.0, None]),
        ("validation_share", [0.0, 1.0, -0.1, float("nan"), None]),
        ("n_bins", [0, 15.0, 1_000_001, True]),
        *((name, [0, 1, "True", None]) for name in BOOLS),
    ],
)
def test_rejects_values_out_of_range(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=f"`{name}`") as raised:
            replace(DIGITS, **{name: value})
        assert "\n" not in str(raised.value)
        assert "got" in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.999, "loss_name": "label_relaxation"},
        {"alpha": 100, "loss_name": "focal"},
        {"seed": 2**32 - 1, "epochs": 1, "batch_size": 1, "n_bins": 1},
        {"epochs": 1_000_000, "batch_size": 1_000_000, "n_bins": 1000, "warmup": 1_000_000},
        {"initial_lr": 1e-300, "lr_sched_multipler": 2, "decay": 1, "gradient_clipping": 1},
        {"steps": (), "validation_share": 1 / 6},
        {"steps": (0, 1_000_000), "validation_share": 0.999},
    ],
)
def test_accepts_the_ends_of_the_ranges(changes: dict[str, Any]) -> None:
    made = replace(DIGITS, **changes)
    for name, value in changes.items():
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(getattr(DIGITS, name))  # integers are floats where these are


@pytest.mark.parametrize(
    ("model", "small", "large"),
    [("vgg", "mnist", "cifar10"), ("resnet", "mnist", "cifar10"), ("vgg", "digits", "cifar100")],
)
def test_rejects_images_too_small_for_the_network(model: str, small: str, large: str) -> None:
    with pytest.raises(ConfigError, match=f"pixels, as those of {small}, but got '{model}'"):
        RunConfig(model_name=model, dataset_name=small)
    RunConfig(model_name=model, dataset_name=large)


# Every option over some of its range.
POSITIVE = st.floats(0, 1e6, exclude_min=True)
CONFIGS = st.builds(
    RunConfig,
    model_name=st.sampled_from(["simple_dense"]),
    dataset_name=st.sampled_from(data.DATASETS),
    loss_name=st.sampled_from(config.LOSSES),
    alpha=st.floats(0, 1, exclude_max=True) | st.just(-0.0),
    seed=st.integers(0, 2**32 - 1),
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 1000),
    initial_lr=POSITIVE,
    steps=st.lists(st.integers(0, 300), unique=True).map(sorted).map(tuple),
    lr_sched_multipler=POSITIVE,
    decay=st.floats(0, 1),
    warmup=st.integers(0, 10),
    gradient_clipping=st.floats(0, 10),
    temperature=st.sampled_from(["grid", "nll"]),
    validation_share=st.floats(0, 1, exclude_min=True, exclude_max=True),
    n_bins=st.integers(1, 100),
    **BOOLS,
)


@given(CONFIGS)
def test_json_round_trip(made: RunConfig) -> None:
    again = RunConfig.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert again == made
    assert again.key == made.key
    assert made.key == Path(made.key).name  # the name of a folder
    assert len(made.key) < 128


@given(CONFIGS, st.data())
def test_every_option_changes_the_key(made: RunConfig, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from([field.name for field in fields(RunConfig)]))
    other = replace(made, **{name: getattr(draw.draw(CONFIGS), name)})
    assert (other.key == made.key) == (other == made)


def test_defaults_are_those_of_the_papers_code() -> None:
    made = RunConfig()
    assert (made.model_name, made.dataset_name, made.loss_name) == ("vgg", "cifar100", "label_relaxation")
    assert (made.epochs, made.batch_size, made.initial_lr, made.lr_sched_multipler) == (200, 64, 1e-3, 0.1)
    assert (made.steps, made.validation_share) == ((80, 120, 160, 180), 0.25)
    switched_on = [field.name for field in fields(made) if getattr(made, field.name) is True]
    assert switched_on == ["data_augmentation", "subtract_pixel_mean"]
    zeros = ("alpha", "seed", "decay", "warmup", "gradient_clipping")
    assert [getattr(made, name) for name in zeros] == [0] * 5


def test_keys_do_not_change_between_versions() -> None:
    """They are the names of folders that people have."""
    assert DIGITS.key == "simple_dense-digits-label_relaxation-0-seed0-validation-7e3f4521"
    made = replace(DIGITS, alpha=0.1, seed=3, test_run=True, steps=(30, 50))
    assert made.key == "simple_dense-digits-label_relaxation-0.1-seed3-test-952ef8aa"


OF_CROSS_ENTROPY = {"loss_name": "cross_entropy", "temp_scaling": True, "legacy_temp_scaling": True}


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({"loss_name": "cross_entropy", "legacy_clip": True}, ["legacy_clip"]),
        ({"loss_name": "focal", "legacy_clip": True}, []),
        ({"loss_name": "focal", "legacy_confidence_penalty": True}, ["legacy_confidence_penalty"]),
        ({"loss_name": "confidence_penalty", "legacy_confidence_penalty": True}, []),
        ({"temperature": "nll"}, ["temperature"]),
        ({"temperature": "nll", "temp_scaling": True}, []),
        ({"legacy_temp_scaling": True}, ["legacy_temp_scaling"]),
        ({"legacy_temp_scaling": True, "temp_scaling": True}, []),
        (OF_CROSS_ENTROPY, ["legacy_temp_scaling"]),
        (OF_CROSS_ENTROPY | {"model_name": "resnet", "dataset_name": "cifar10"}, []),
        ({"legacy_schedule": True}, ["legacy_schedule"]),
        ({"legacy_schedule": True, "warmup": 1}, []),
        ({"legacy_schedule": True, "reduce_on_plateau": True}, []),
        ({"legacy_checkpoints": True}, ["legacy_checkpoints"]),
        ({"legacy_checkpoints": True, "model_checkpoints": True}, []),
    ],
)
def test_effective_resets_options_without_effect(changes: dict[str, Any], idle: list[str]) -> None:
    made = replace(DIGITS, **changes)
    assert made.effective() == replace(made, **{name: getattr(DIGITS, name) for name in idle})
    assert (made.effective() == made) == (not idle)


def test_rejects_unknown_options() -> None:
    with pytest.raises(ConfigError, match="'learning_rate'"):
        RunConfig.from_dict({"learning_rate": 0.1})
    assert RunConfig.from_dict({}) == RunConfig()


def test_titles() -> None:
    smoothed = replace(DIGITS, loss_name="cross_entropy", alpha=0.1)
    assert smoothed.title == "label smoothing 0.1"
    assert replace(smoothed, alpha=0, temp_scaling=True).title == "cross-entropy + temperature"
    assert replace(DIGITS, temp_scaling=True).title == "label relaxation 0 + temperature"


# Files of hyperparameters.

ROW = {"initial_lr": 0.1, "epochs": 3, "steps": [1, 2], "data_augmentation": "False"}


def in_file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_own_hyperparameter_file(tmp_path: Path) -> None:
    path = in_file(tmp_path, {"VGG16_cifar10": ROW, "simple_dense_mnist": {"reduce_on_plateau": "True"}})
    of_vgg = hyperparameters("focal", "vgg", "cifar10", path=path)
    assert of_vgg == {"initial_lr": 0.1, "epochs": 3, "steps": [1, 2], "data_augmentation": False}
    assert hyperparameters("focal", "simple_dense", "mnist", path=path) == {"reduce_on_plateau": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ([1], "there is no such row"),
        ({"simple_dense_digits": ROW}, "there is no such row"),
        ({"VGG16_cifar10": [1]}, "there is no such row"),
        ({"VGG16_cifar10": {"learning_rate": 1}}, "'learning_rate'"),
        ({"VGG16_cifar10": {"loss_name": "focal"}}, "`loss_name` cannot be set in a row"),
        ({"VGG16_cifar10": {"epochs": 1.5}}, "`epochs`"),
        ({"VGG16_cifar10": {"data_augmentation": "no"}}, "`data_augmentation`"),
        ({"VGG16_cifar10": {"steps": [1, "2"]}}, "`steps`"),
    ],
)
def test_rejects_invalid_hyperparameter_files(content: Any, message: str, tmp_path: Path) -> None:
    path = in_file(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as raised:
        hyperparameters("focal", "vgg", "cifar10", path=path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path}, row VGG16_cifar10: ")


def test_selects_the_file_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(config, "load_json", lambda name: asked.append(name) or load_json(name))
    of_losses = {loss: hyperparameters(loss, "vgg", "cifar10") for loss in config.LOSSES}
    assert {row["batch_size"] for row in of_losses.values()} == {64}
    assert asked == [f"hyperparams_{name}.json" for name in ("lr", "ce", "focal", "conf_pen")]
    assert hyperparameters("focal", "vgg", "cifar10", short=True)["epochs"] == 3
    for loss in config.LOSSES:  # only two files differ
        legacy = hyperparameters(loss, "vgg", "cifar10", legacy=True)
        assert legacy["batch_size"] == (32 if loss in ("focal", "confidence_penalty") else 64)
        assert hyperparameters(loss, "resnet", "cifar10", legacy=True)["batch_size"] == 64
    with pytest.raises(ConfigError, match="row legacy_DenseNetBC_cifar10: there is no such row"):
        hyperparameters("focal", "densenet", "cifar10", legacy=True)
