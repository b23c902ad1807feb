"""The study's networks are those of the paper's code: layers, outputs, statistics, penalties, first weights.

``oracle/models.json`` lists that code's layers, ``oracle/forward.json`` has outputs and ``oracle/steps.json``
steps of training; all are from running it.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.study import models
from lr_relax.study.network import ImageNorm, Network, RowNorm, he_normal
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = Path(__file__).parents[1] / "oracle"
LAYERS = json.loads((ORACLE / "models.json").read_text())
FORWARD = json.loads((ORACLE / "forward.json").read_text())
STEPS = json.loads((ORACLE / "steps.json").read_text())

# Our name, the oracle's name, shape of an image.
NETWORKS = [
    ("simple_dense", "simple_dense", (1, 28, 28)),
    ("vgg", "VGG16", (3, 32, 32)),
    ("resnet", "ResNet56V2", (3, 32, 32)),
    ("densenet", "DenseNetBC", (3, 32, 32)),
]
with_outputs = pytest.mark.parametrize(("name", "oracle", "shape"), NETWORKS[:3])
of_all = pytest.mark.parametrize(("name", "oracle", "shape"), NETWORKS)


def of_kind(network: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, kinds)]


def filled(name: str, shape: tuple[int, ...]) -> Network:
    """A network with the weights of forward.json's recipe, ready for inference."""
    network = models.build(name, shape, 10)
    scale = 0.25 if name == "resnet" else 2.0
    with torch.no_grad():
        for kind, first_seed in ((nn.Conv2d, 1000), (nn.Linear, 9000)):
            for i, layer in enumerate(of_kind(network, kind)):
                random = np.random.RandomState(first_seed + i)
                n_out, n_in, *size = layer.weight.shape
                kernel = random.randn(*size, n_in, n_out) * np.sqrt(scale / layer.weight[0].numel())
                layer.weight.copy_(torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1))))
                if layer.bias is not None:
                    layer.bias.copy_(torch.from_numpy(0.05 * random.randn(n_out)))
        for i, norm in enumerate(of_kind(network, ImageNorm, RowNorm)):
            random = np.random.RandomState(5000 + i)
            for values, start, draw in (
                (norm.weight, 1, random.randn),
                (norm.bias, 0, random.randn),
                (norm.running_mean, 0, random.randn),
                (norm.running_var, 1, random.rand),
            ):
                values.copy_(torch.from_numpy(start + 0.1 * draw(len(values))))
    return network.eval()


def images(shape: tuple[int, ...], rows: int = 4, seed: int = 5) -> Tensor:
    """The images of the recipe; drawn with the channels last, as the paper's code has them."""
    channels, height, width = shape
    drawn = np.random.RandomState(seed).rand(rows, height, width, channels).astype(np.float32)
    return torch.from_numpy(np.moveaxis(drawn, 3, 1) - np.float32(0.5))


def assert_close(actual: Tensor, expected: Any, atol: float = 1e-5) -> None:
    torch.testing.assert_close(
        actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol
    )


# Layers.


@pytest.mark.parametrize(
    ("name", "oracle", "n_classes", "total"),
    [
        ("simple_dense", "simple_dense", 10, 1_863_690),
        ("vgg", "VGG16", 10, 15_001_418),
        ("vgg", "VGG16", 100, 15_047_588),
        ("resnet", "ResNet56V2", 10, 1_673_738),
        ("resnet", "ResNet56V2", 100, 1_696_868),
        ("densenet", "DenseNetBC", 10, 793_150),
        ("densenet", "DenseNetBC", 100, 824_020),
    ],
)
def test_numbers_of_parameters(name: str, oracle: str, n_classes: int, total: int) -> None:
    expected = LAYERS[f"{oracle}_{n_classes}"]
    assert expected["total"] == total
    network = models.build(name, (1, 28, 28) if name == "simple_dense" else (3, 32, 32), n_classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["trainable"]
    statistics = [buffer for buffer in network.buffers() if buffer.dim()]  # but for torch's count of batches
    assert sum(buffer.numel() for buffer in statistics) == expected["non_trainable"]
    assert expected["trainable"] + expected["non_trainable"] == total


def in_order_of_creation(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the number that Keras gives each layer of a kind; the list may have another order."""

    def number(layer: dict[str, Any]) -> int:
        match = re.fullmatch(
            r"(?:conv2d|batch_normalization|activation|dense|dropout|max_pooling2d)_(\d+)", layer["name"]
        )
        return int(match[1]) if match else -1

    return sorted(layers, key=number)


def described(layer: nn.Module, output: Tensor, network: Network) -> dict[str, Any] | None:
    """A layer of ours in the words of models.json."""
    channels_last = [None, *output.shape[2:], output.shape[1]] if output.dim() > 1 else None
    words: dict[str, Any] = {"out": channels_last}
    if isinstance(layer, nn.Conv2d | nn.Linear):
        *_, last = of_kind(network, nn.Conv2d, nn.Linear)
        words |= {
            "cls": "Conv2D" if isinstance(layer, nn.Conv2d) else "Dense",
            "use_bias": layer.bias is not None,
            "l2": network.last_l2 if layer is last else network.l2,
            "activity_l2": network.activity_l2 if layer is last else 0.0,
        }
    if isinstance(layer, nn.Conv2d):
        words |= {"kernel_size": [*layer.kernel_size], "strides": [*layer.stride]}
    elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        assert layer.momentum is not None
        words |= {"cls": "BatchNormalization", "epsilon": layer.eps, "momentum": 1 - layer.momentum}
        words["fused"] = isinstance(layer, nn.BatchNorm2d)
    elif isinstance(layer, nn.ReLU):
        words["cls"] = "ReLU"
    elif isinstance(layer, nn.Dropout):
        words |= {"cls": "Dropout", "rate": layer.p}
    elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        words["cls"] = "MaxPooling2D" if isinstance(layer, nn.MaxPool2d) else "AveragePooling2D"
        words |= {"pool_size": [layer.kernel_size] * 2, "strides": [layer.stride] * 2}
    elif isinstance(layer, nn.Flatten):
        words["cls"] = "Flatten"
    elif isinstance(layer, nn.AdaptiveAvgPool2d):
        return None  # with the flattening after it Keras's GlobalAveragePooling2D
    if "cls" not in words:
        return None
    words["params"] = sum(p.numel() for p in layer.parameters())
    words["params"] += sum(b.numel() for b in layer.buffers() if b.dim())
    return words


def expected_words(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """What `described` would say; an activation within a layer is one of its own."""
    kind = layer["cls"]
    keys = ("out", "params", "use_bias", "kernel_size", "strides", "epsilon", "fused", "pool_size")
    if kind in ("InputLayer", "ZeroPadding2D", "TFOpLambda", "Add"):
        return []  # their effect is in the outputs
    relu = {"cls": "ReLU", "out": layer["out"], "params": 0}
    if kind == "Activation":
        return [relu] if layer["activation"] == "relu" else []
    words = {"cls": kind, **{key: layer[key] for key in keys if key in layer}}
    if kind == "GlobalAveragePooling2D":
        words["cls"] = "Flatten"
    if kind == "Dropout":
        words["rate"] = layer["rate"]
    if kind == "BatchNormalization":
        words["momentum"] = pytest.approx(layer["momentum"])
    if kind in ("Conv2D", "Dense"):
        for key, regularizer in (("l2", "kernel_regularizer"), ("activity_l2", "activity_regularizer")):
            match = re.search(r"'L2', 'config': {'l2': ([\d.e-]+)}", layer.get(regularizer, ""))
            assert (match is None) == (regularizer not in layer)
            words[key] = pytest.approx(float(match[1]) if match else 0.0)
    return [words, relu] if layer.get("activation") == "relu" else [words]


@of_all
def test_layers(name: str, oracle: str, shape: tuple[int, ...]) -> None:
    """Kinds and order, output shapes, strides, biases, penalties; settings of norms, dropout and pooling."""
    network = models.build(name, shape, 10).eval()
    found: list[dict[str, Any]] = []
    for layer in network.modules():
        layer.register_forward_hook(
            lambda layer, _, output: found.extend(filter(None, [described(layer, output, network)]))
        )
    with torch.no_grad():
        network(images(shape))
    layers = LAYERS[f"{oracle}_10"]["layers"]
    if name == "resnet":  # its layers are not listed in the order in which they were made
        layers = in_order_of_creation(layers)
        found.sort(key=lambda words: words["cls"])
    expected = [words for layer in layers for words in expected_words(layer)]
    if name == "resnet":
        expected.sort(key=lambda words: words["cls"])
    assert found == expected


# Outputs.


@with_outputs
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_of_the_original_code(
    name: str, oracle: str, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    network = filled(name, shape).to(memory_format=memory_format)
    with torch.no_grad():
        logits = network(images(shape).to(memory_format=memory_format))
    expected = FORWARD["models"][oracle]
    assert_close(logits, expected["logits_inference"])
    assert_close(logits.softmax(1), expected["probs_inference"])


def run_graph(layers: list[dict[str, Any]], network: Network, batch: Tensor) -> Tensor:
    """The logits of Keras's list of layers and connections; weights are our network's as they are made."""
    weighted = {
        "Conv2D": of_kind(network, nn.Conv2d),
        "Dense": of_kind(network, nn.Linear),
        "BatchNormalization": of_kind(network, ImageNorm, RowNorm),
    }
    values_of: dict[str, Any] = {}
    for kind, ours in weighted.items():
        theirs = [layer["name"] for layer in in_order_of_creation(layers) if layer["cls"] == kind]
        values_of |= zip(theirs, ours, strict=True)
    outputs: dict[str, Tensor] = {}
    output = batch
    for layer in layers:
        kind, inputs = layer["cls"], [outputs.get(each, batch) for each in layer["in"]]
        input, ours = (inputs or [batch])[0], values_of.get(layer["name"])
        if kind == "Conv2D":
            pad: list[int] = []
            for size, kernel, stride in zip(
                input.shape[:1:-1], layer["kernel_size"], layer["strides"], strict=True
            ):
                needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)  # TensorFlow's "same"
                pad += [needed // 2, needed - needed // 2] if layer["padding"] == "same" else [0, 0]
            output = F.conv2d(F.pad(input, pad), ours.weight, ours.bias, layer["strides"])
        elif kind == "Dense":
            output = input @ ours.weight.T + ours.bias
        elif kind == "BatchNormalization":
            mean, variance, gamma, beta = (
                values.view(-1, *[1] * (input.dim() - 2))
                for values in (ours.running_mean, ours.running_var, ours.weight, ours.bias)
            )
            output = (input - mean) / (variance + layer["epsilon"]).sqrt() * gamma + beta
        elif kind == "ZeroPadding2D":
            output = F.pad(input, [*layer["padding"][1], *layer["padding"][0]])
        elif kind in ("MaxPooling2D", "AveragePooling2D"):
            pool = F.max_pool2d if kind == "MaxPooling2D" else F.avg_pool2d
            output = pool(input, layer["pool_size"], layer["strides"])
        elif kind == "GlobalAveragePooling2D":
            output = input.mean((2, 3))
        elif kind == "Flatten":
            output = input.movedim(1, -1).flatten(1)
        elif kind in ("Add", "TFOpLambda"):
            output = inputs[0] + inputs[1] if kind == "Add" else torch.cat(inputs, 1)
        elif kind in ("InputLayer", "Dropout", "Activation"):
            output = input
        else:
            raise AssertionError(kind)
        if layer.get("activation") == "relu":
            output = output.relu()
        outputs[layer["name"]] = output
    return output


@of_all
def test_outputs_of_the_keras_graph(name: str, oracle: str, shape: tuple[int, ...]) -> None:
    """As connected in the paper's code; forward.json says that this test reads connections as Keras does."""
    network = filled(name, shape).double()
    batch = images(shape).double()
    with torch.no_grad():
        expected = run_graph(LAYERS[f"{oracle}_10"]["layers"], network, batch)
        assert_close(network(batch), expected, 1e-12)
    if oracle in FORWARD["models"]:
        assert_close(expected.float(), FORWARD["models"][oracle]["logits_inference"])


def test_stride_without_padding() -> None:
    network = models.build("resnet", (1, 32, 32), 10)
    strided = [layer for layer in of_kind(network, nn.Conv2d) if layer.stride == (2, 2)]
    assert len(strided) == 4
    for layer in strided:
        layer = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, bias=False)
        nn.init.ones_(layer.weight)
        assert_close(
            layer(torch.arange(16.0).view(1, 1, 4, 4)).flatten(), FORWARD["conv1x1_stride2_same_samples"], 0
        )


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("vgg", (1, 64, 96), 512 * 2 * 3),
        ("resnet", (3, 29, 64), 256 * 2),
        ("densenet", (1, 28, 28), 342),
        ("densenet", (2, 6, 9), 342),
        ("simple_dense", (3, 4, 5), 60),
        ("simple_dense", (7,), 7),
    ],
)
def test_other_shapes_of_images(name: str, shape: tuple[int, ...], features: int) -> None:
    network = models.build(name, shape, 3)
    assert network(torch.rand(2, *shape)).shape == (2, 3)
    assert features in {layer.in_features for layer in of_kind(network, nn.Linear)}


# Training.


def test_outputs_and_moving_statistics_in_training() -> None:
    expected = FORWARD["models"]["ResNet56V2"]
    network = filled("resnet", (3, 32, 32)).train()
    with torch.no_grad():
        probabilities = network(images((3, 32, 32))).softmax(1)
    assert_close(probabilities, expected["probs_training_mode"])
    norms = of_kind(network, ImageNorm)
    for values in expected["bn_after_one_training_call"]:
        norm = norms[int((values["name"] + "_0").split("_")[2])]
        assert_close(norm.running_mean[:4], values["mean_first4"])
        assert_close(norm.running_var[:4], values["var_first4"])


@pytest.mark.parametrize(
    ("name", "oracle", "penalty_in"),
    [
        ("vgg", "VGG16", "loss"),
        ("vgg", "VGG16", "optimizer"),
        ("resnet", "ResNet56V2", "loss"),
        ("resnet", "ResNet56V2", "optimizer"),
        ("densenet", "DenseNetBC", "optimizer"),
    ],
)
def test_steps_of_training(name: str, oracle: str, penalty_in: str) -> None:
    """Two Nesterov steps on one batch, dropout off: gradients of all layers and penalties."""
    expected = STEPS["models"][oracle]
    network = filled(name, (3, 32, 32)).double()
    with torch.no_grad():
        assert_close(network(images((3, 32, 32)).double()), expected["logits_inference"], 1e-12)
    for layer in of_kind(network, nn.Dropout):
        layer.p = 0.0
    batch, labels = images((3, 32, 32), rows=8, seed=6).double(), torch.arange(8)
    optimizer = torch.optim.SGD(
        network.parameters() if penalty_in == "loss" else network.parameter_groups(),
        lr=STEPS["rate"],
        momentum=STEPS["momentum"],
        nesterov=True,
    )
    network.train()
    for keras_loss in expected["losses"]:
        logits = network(batch)
        loss = F.cross_entropy(logits, labels) + network.activity_penalty(logits)
        penalty = network.weight_penalty()
        assert (loss + penalty).item() == pytest.approx(keras_loss, rel=1e-9)
        optimizer.zero_grad()
        (loss + penalty if penalty_in == "loss" else loss).backward()
        optimizer.step()
    convolutions, norms = of_kind(network, nn.Conv2d), of_kind(network, ImageNorm, RowNorm)
    for key, values in {
        "first_convolution": convolutions[0].weight,
        "last_convolution": convolutions[-1].weight,
        "last_dense": network[-1].weight,
        "last_dense_bias": network[-1].bias,
        "last_gamma": norms[-1].weight,
        "last_beta": norms[-1].bias,
        "last_moving_mean": norms[-1].running_mean,
        "last_moving_variance": norms[-1].running_var,
    }.items():
        if f"{key}_first8" in expected:
            assert_close(values.flatten()[:8], expected[f"{key}_first8"], 1e-8)


@pytest.mark.parametrize(
    ("norm", "shape", "key"), [(ImageNorm, (4, 1, 1, 1), "4d_fused"), (RowNorm, (4, 1), "2d_nonfused")]
)
def test_moving_statistics(norm: type[ImageNorm | RowNorm], shape: tuple[int, ...], key: str) -> None:
    expected, layer = FORWARD["bn_convention"][key], norm(1)
    output = layer(torch.tensor(expected["x"], dtype=torch.float32).view(shape))
    assert_close(output.flatten(), expected["y"], 1e-6)
    assert_close(layer.running_mean, [expected["moving_mean"]], 1e-7)
    assert_close(layer.running_var, [expected["moving_var"]], 1e-6)
    assert layer.num_batches_tracked == 1


def test_row_norm_against_torch() -> None:
    torch.manual_seed(0)
    ours, torchs = RowNorm(5).double(), nn.BatchNorm1d(5, eps=1e-3, momentum=0.01).double()
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        torchs.weight.normal_()
        torchs.bias.normal_()
    ours.load_state_dict(torchs.state_dict())
    gradients = []
    for norm in (ours, torchs):
        output = norm(x)
        gradients.append((output, *torch.autograd.grad(output, (x, norm.weight, norm.bias), upstream)))
    for actual, expected in zip(*gradients, strict=True):
        assert_close(actual, expected, 1e-12)
    assert_close(ours.running_var - 0.99, (torchs.running_var - 0.99) * 6 / 7, 1e-12)
    assert_close(
        ours.eval()(x), (x - ours.running_mean) / (ours.running_var + 1e-3).sqrt() * ours.weight + ours.bias
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert RowNorm(5)(torch.ones(1, 5, dtype=torch.bfloat16)).eq(0).all()  # a single row, too


# Penalties.


@with_outputs
def test_values_of_the_penalties(name: str, oracle: str, shape: tuple[int, ...]) -> None:
    expected, network = FORWARD["models"][oracle], filled(name, shape)
    logits = network(images(shape))
    weights, activity = network.weight_penalty(), network.activity_penalty(logits)
    assert (weights + activity).item() == pytest.approx(expected["reg_loss_sum_inference_call"], rel=1e-5)
    of_logits = network.activity_penalty(logits, of_logits=True)
    assert (weights + of_logits).item() == pytest.approx(
        expected["reg_loss_sum_with_final_activation_None"], rel=1e-5
    )
    if name == "resnet":
        *convolutions, last = of_kind(network, nn.Conv2d, nn.Linear)
        sums = sum(layer.weight.square().sum().item() for layer in convolutions)
        assert 1e-4 * sums == pytest.approx(expected["conv_kernel_reg_1e-4"], rel=1e-5)
        of_last = 1e-2 * last.weight.square().sum().item()
        assert of_last == pytest.approx(expected["final_dense_kernel_reg"], rel=1e-5)
        assert activity.item() == pytest.approx(
            expected["activity_reg_expected_0.01*sum(p^2)/batch"], rel=1e-5
        )
        assert weights.item() == pytest.approx(1e-4 * sums + of_last, rel=1e-6)


def test_densenet_has_no_penalty() -> None:
    network = models.build("densenet", (3, 32, 32), 10)
    assert network.weight_penalty() == network.activity_penalty(torch.randn(2, 10)) == 0
    [group] = network.parameter_groups()
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("name", "decays"),
    [("vgg", {1e-3: 14, 0.0: 44}), ("resnet", {2e-4: 58, 2e-2: 1, 0.0: 169})],
)
def test_parameter_groups(name: str, decays: dict[float, int]) -> None:
    network = models.build(name, (3, 32, 32), 10)
    groups = network.parameter_groups()
    assert {group["weight_decay"]: len(group["params"]) for group in groups} == decays
    grouped = Counter(parameter for group in groups for parameter in group["params"])
    assert grouped == Counter(network.parameters())


# First weights.


@of_all
def test_first_weights(name: str, oracle: str, shape: tuple[int, ...]) -> None:
    """Each layer's limits and the distribution of all weights, in units of the layer's own scale."""
    torch.manual_seed(0)
    network = models.build(name, shape, 10)
    weighted = [layer for layer in LAYERS[f"{oracle}_10"]["layers"] if "kernel_initializer" in layer]
    assert {layer["bias_initializer"] for layer in weighted} == {"Zeros"}
    [initializer] = {layer["kernel_initializer"] for layer in weighted}
    scaled, random = [], np.random.default_rng(0)
    for layer in of_kind(network, nn.Conv2d, nn.Linear):
        fan_in = layer.weight[0].numel()
        fan_out = layer.weight[:, 0].numel()
        if initializer == "GlorotUniform":
            unit = limit = (6 / (fan_in + fan_out)) ** 0.5
        else:
            assert initializer == "HeNormal"
            unit = (2 / fan_in) ** 0.5 / stats.truncnorm.std(-2, 2)
            limit = 2 * unit
        assert 0.9 * limit < layer.weight.abs().max() <= limit * (1 + 1e-6)
        assert layer.bias is None or not layer.bias.any()
        values = layer.weight.detach().flatten().numpy().astype(np.float64)
        scaled.append(random.choice(values, min(len(values), 20_000), replace=False) / unit)
    distribution = stats.uniform(-1, 2) if initializer == "GlorotUniform" else stats.truncnorm(-2, 2)
    assert stats.kstest(np.concatenate(scaled), distribution.cdf).pvalue > 1e-3
    for norm in of_kind(network, ImageNorm, RowNorm):
        assert norm.weight.eq(1).all()
        assert norm.running_var.eq(1).all()
        assert not norm.bias.any()
        assert not norm.running_mean.any()


def test_he_normal() -> None:
    torch.manual_seed(0)
    weight = he_normal(torch.empty(2000, 5, 5, 4))
    assert weight.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.01)


@of_all
def test_seed_determines_weights(name: str, oracle: str, shape: tuple[int, ...]) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(models.build(name, shape, 10)[-1].weight)
    assert states[0].equal(states[1])
    assert not states[0].equal(states[2])


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("lenet", (3, 32, 32), 10),
            "Expected argument `name` to be one of simple_dense, vgg, resnet, densenet, but got 'lenet'.",
        ),
        (
            ("vgg", (1, 28, 28), 10),
            "Expected argument `input_shape` to be channels, height and width, of at least 32 pixels, "
            "for 'vgg', but got (1, 28, 28).",
        ),
        (("resnet", (3, 32, 28), 10), "of at least 29 pixels, for 'resnet', but got (3, 32, 28)."),
        (("densenet", (3, 5, 5), 10), "of at least 6 pixels, for 'densenet', but got (3, 5, 5)."),
        (("resnet", (32, 32), 10), "to be channels, height and width, "),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        models.build(*arguments)
