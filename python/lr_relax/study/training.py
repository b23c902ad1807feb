"""One run: train a network on a split with a loss, and predict the split's evaluation part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .splits import Split

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (rows, classes) and class indices (rows,) to the mean loss."""


class DivergedError(Exception):
    """The training loss is no longer finite."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of SGD with Nesterov momentum."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9


@dataclass(frozen=True)
class Epoch:
    """The mean loss and the accuracy over an epoch's mini-batches, each seen before its step."""

    loss: float
    accuracy: float


def train(model: nn.Module, split: Split, loss: Loss, recipe: Recipe) -> Iterator[Epoch]:
    """Train in place, one epoch per iteration. Draws the order of the rows from torch's global generator.

    The data are one tensor that a permutation indexes: a DataLoader takes half as long again on small images.
    """
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True, fused=True
    )
    n = len(split.train_labels)
    for epoch in range(recipe.epochs):
        total_loss, correct = 0.0, 0
        for rows in torch.randperm(n).split(recipe.batch_size):  # type: ignore[no-untyped-call]
            labels = split.train_labels[rows]
            logits = model(split.train_images[rows])
            batch_loss = loss(logits, labels)
            optimizer.zero_grad()
            batch_loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += batch_loss.item() * len(rows)
            correct += int((logits.detach().argmax(1) == labels).sum())
        if not math.isfinite(total_loss):
            raise DivergedError(
                f"the loss is {total_loss} in epoch {epoch + 1}; a smaller learning rate may help"
            )
        yield Epoch(total_loss / n, correct / n)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of all images, in portions so that the activations of large sets fit in memory."""
    model.eval()
    return torch.cat([model(portion) for portion in images.split(1000)])  # type: ignore[no-untyped-call]
