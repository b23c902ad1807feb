"""The networks of the study, by the names that the paper's code gives them."""

from __future__ import annotations

from torch import nn


def simple_dense(n_inputs: int, n_classes: int) -> nn.Sequential:
    """Two hidden layers of 1024 ReLU units, initialised as in Keras: Glorot-uniform weights, zero biases."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(n_inputs, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, n_classes),
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model
