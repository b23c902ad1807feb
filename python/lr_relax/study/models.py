"""The networks of the study, layer by layer as in the paper's code.

Source: https://github.com/julilien/LabelRelaxation (Lienen and Hüllermeier, AAAI 2021), with channels first
and logits instead of a softmax. TensorFlow pads images asymmetrically under a stride, but only 1x1
convolutions have one here, which pad nothing. ReLU is in place, which saves a fifth of DenseNet's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .network import ImageNorm, Network, RowNorm, glorot_uniform, he_normal, initialize


def build(name: str, input_shape: Sequence[int], n_classes: int) -> Network:
    """A network with new weights from torch's global generator; ``input_shape`` is (C, H, W) of an image."""
    if name not in NAMES:
        raise ValueError(f"Expected argument `name` to be one of {', '.join(NAMES)}, but got {name!r}.")
    if name == "simple_dense":
        return simple_dense(math.prod(input_shape), n_classes)
    if len(input_shape) != 3 or min(input_shape[1:]) < LEAST_SIZES[name]:
        expected = f"channels, height and width, of at least {LEAST_SIZES[name]} pixels, for {name!r}"
        raise ValueError(f"Expected argument `input_shape` to be {expected}, but got {tuple(input_shape)}.")
    make: Callable[..., Network] = {"vgg": vgg, "resnet": resnet, "densenet": densenet}[name]
    return make(*input_shape, n_classes)


# The least height and width of images, which the poolings leave a pixel of.
LEAST_SIZES = {"simple_dense": 1, "vgg": 32, "resnet": 29, "densenet": 6}
NAMES = tuple(LEAST_SIZES)


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def simple_dense(n_inputs: int, n_classes: int) -> Network:
    """Two hidden layers of 1024 ReLU units, initialized as in Keras: Glorot-uniform weights, zero biases."""
    hidden = [nn.Linear(n_inputs, 1024), _relu(), nn.Linear(1024, 1024), _relu()]
    return initialize(Network(nn.Flatten(), *hidden, nn.Linear(1024, n_classes)), glorot_uniform)


def vgg(channels: int, height: int, width: int, n_classes: int) -> Network:
    """VGG16 (Simonyan and Zisserman, 2015) for small images, with batch norm after each ReLU, and dropout.

    It has one hidden dense layer of 512 units. All weights except the last layer's have an L2 penalty.
    """
    layers: list[nn.Module] = []
    n_in = channels
    for stage, (n_out, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for index in range(depth):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), _relu(), ImageNorm(n_out)]
            if index < depth - 1:
                layers.append(nn.Dropout(0.4 if stage else 0.3))
            n_in = n_out
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Dropout(0.5), nn.Flatten(), nn.Linear(512 * (height // 32) * (width // 32), 512)]
    layers += [_relu(), RowNorm(512), nn.Dropout(0.5), nn.Linear(512, n_classes)]
    return initialize(Network(*layers, l2=5e-4), glorot_uniform)


def resnet(channels: int, height: int, width: int, n_classes: int) -> Network:
    """ResNet-56 version 2 (He et al., 2016, "Identity mappings in deep residual networks").

    Three stages of six bottlenecks. All weights have an L2 penalty, and so have the predicted probabilities.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1), ImageNorm(16), _relu()]
    n_in = 16
    for stage, (n_inner, n_out) in enumerate([(16, 64), (64, 128), (128, 256)]):
        for index in range(6):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(_Bottleneck(n_in, n_inner, n_out, stride, activated=stage == index == 0))
            n_in = n_out
    pooled = [math.ceil(size / 4) // 8 for size in (height, width)]
    layers += [ImageNorm(n_in), _relu(), nn.AvgPool2d(8), nn.Flatten()]
    layers.append(nn.Linear(n_in * math.prod(pooled), n_classes))
    return initialize(Network(*layers, l2=1e-4, last_l2=1e-2, activity_l2=1e-2), he_normal)


class _Bottleneck(nn.Module):
    """Adds a 1x1, a 3x3 and a 1x1 convolution, each after norm and ReLU, to the input.

    Where the number of channels changes, the input goes through a 1x1 convolution of its own. An input that
    is already normalized and ``activated`` is not so again.
    """

    def __init__(self, n_in: int, n_inner: int, n_out: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        layers = [] if activated else [ImageNorm(n_in), _relu()]
        layers += [nn.Conv2d(n_in, n_inner, 1, stride), ImageNorm(n_inner), _relu()]
        layers += [nn.Conv2d(n_inner, n_inner, 3, padding=1), ImageNorm(n_inner), _relu()]
        self.residual = nn.Sequential(*layers, nn.Conv2d(n_inner, n_out, 1))
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, input: Tensor) -> Tensor:
        return torch.add(self.residual(input), self.shortcut(input))


def densenet(channels: int, height: int, width: int, n_classes: int) -> Network:
    """DenseNet-BC (Huang et al., 2017) of 100 layers and growth 12: three dense blocks, halved in between.

    The first convolution has no padding, so that images shrink by two pixels. There are no penalties, no
    dropout, and no biases but the last layer's.
    """
    growth, n_out = 12, 24
    layers: list[nn.Module] = [nn.Conv2d(channels, n_out, 3, bias=False)]
    for block in range(3):
        if block > 0:
            layers += [ImageNorm(n_out), _relu(), nn.Conv2d(n_out, n_out // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            n_out //= 2
        for _ in range(16):
            layers.append(_DenseLayer(n_out, growth))
            n_out += growth
    layers += [ImageNorm(n_out), _relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return initialize(Network(*layers, nn.Linear(n_out, n_classes)), glorot_uniform)


class _DenseLayer(nn.Module):
    """Adds ``growth`` channels to the input's: a 1x1 and a 3x3 convolution, each after norm and ReLU."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        inner = [nn.Conv2d(n_in, 4 * growth, 1, bias=False), ImageNorm(4 * growth), _relu()]
        outer = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.added = nn.Sequential(ImageNorm(n_in), _relu(), *inner, outer)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([input, self.added(input)], 1)
