"""Parts of the study's networks: Keras's regularizers, initializers and batch normalization.

Where Keras, which the paper's code uses, differs from PyTorch, these follow Keras (Lienen and Hüllermeier,
AAAI 2021, https://github.com/julilien/LabelRelaxation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn, no_grad, var_mean

NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01  # the share of the new batch; Keras counts the rest, .99


class Network(nn.Sequential):
    """A sequence of layers that returns logits, and the penalties that training adds to the loss.

    ``l2`` is the factor of the sum of squares of each convolution's and linear layer's weights, ``last_l2``
    that of the last one; ``activity_l2`` that of the mean over rows of the probabilities' sum of squares.

    The weight penalty belongs in the loss, as in Keras, or as weight decay in the optimizer,
    ``SGD(network.parameter_groups(), ...)``: the same steps, and faster, unless gradients are clipped,
    because Keras clips the sum. The activity penalty always belongs in the loss.
    """

    def __init__(self, *layers: Any, l2: float = 0.0, last_l2: float = 0.0, activity_l2: float = 0.0) -> None:
        super().__init__(*layers)
        self.l2, self.last_l2, self.activity_l2 = l2, last_l2, activity_l2

    def weight_penalty(self) -> Tensor:
        """Keras's L2: the factor times the sum of squares, without the half that weight decay has."""
        terms = [l2 * weight.square().sum() for weight, l2 in self._factors().items() if l2]
        return sum(terms, next(self.parameters()).new_zeros(()))

    def activity_penalty(self, logits: Tensor, *, of_logits: bool = False) -> Tensor:
        """The penalty of a batch's probabilities, or of logits where the paper's code has no softmax."""
        if not self.activity_l2:
            return logits.new_zeros(())
        outputs = logits if of_logits else logits.softmax(1)
        return self.activity_l2 * outputs.square().sum() / len(logits)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters for an optimizer; a weight decay of 2 l2 has the gradient of the weight penalty."""
        factors = self._factors()
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in self.parameters():
            groups.setdefault(2 * factors.get(parameter, 0.0), []).append(parameter)
        return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]

    def _factors(self) -> dict[Tensor, float]:
        *others, last = _weighted_layers(self)
        return {layer.weight: self.l2 for layer in others} | {last.weight: self.last_l2}


glorot_uniform = nn.init.xavier_uniform_  # Keras's default


def initialize(network: Network, weights: Callable[[Tensor], Tensor]) -> Network:
    """Give every convolution and linear layer new weights, and biases of zero; return the network."""
    for layer in _weighted_layers(network):
        weights(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


def he_normal(weight: Tensor) -> Tensor:
    """Keras's He normal (He et al., 2015): cut off at two standard deviations, of variance 2 / fan in."""
    left = 0.87962566103423978  # standard deviation of a standard normal that is cut off at -2 and 2
    deviation = math.sqrt(2 / weight[0].numel()) / left
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class ImageNorm(nn.BatchNorm2d):
    """Batch normalization of images; the moving variance is of unbiased variances, in Keras and PyTorch."""

    def __init__(self, n_channels: int) -> None:
        super().__init__(n_channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class RowNorm(nn.BatchNorm1d):
    """Batch normalization of rows, one or more; the moving variance is of biased variances, as in Keras."""

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, eps=NORM_EPS, momentum=NORM_MOMENTUM)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        input = input.to(self.running_mean.dtype)
        variance, mean = var_mean(input, 0, correction=0)
        with no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, NORM_MOMENTUM)
            self.running_var.lerp_(variance, NORM_MOMENTUM)
        return (input - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


def _weighted_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
