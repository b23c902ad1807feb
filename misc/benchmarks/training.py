"""The rows of training: the study's training beside a plain PyTorch loop with a DataLoader.

Both train the same network with cross-entropy, Nesterov momentum and the paper's weight penalties, on random
images in memory: an epoch of the size of Fashion-MNIST, or one step with images of the size of CIFAR.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from lr_relax.study import models
from lr_relax.study.config import RunConfig
from lr_relax.study.splits import Split
from lr_relax.study.training import Training
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from row import Row

BATCH = 64

Epoch = Callable[[], object]


def epochs(name: str, n: int, *shape: int) -> tuple[Epoch, Epoch]:
    """One epoch of the study's training and one of the plain loop, as functions."""
    images, labels = torch.rand(n, *shape) - 0.5, torch.randint(10, (n,))
    return study(name, images, labels), plain_loop(name, images, labels)


def study(name: str, images: Tensor, labels: Tensor) -> Epoch:
    config = RunConfig(
        model_name=name,
        loss_name="cross_entropy",
        batch_size=BATCH,
        initial_lr=0.01,
        data_augmentation=False,
        test_run=True,
    )
    split = Split(images, labels, images[:0], labels[:0], images[:0], labels[:0], images[0])
    network = models.build(name, images.shape[1:], 10)
    return Training(config, split, network, device=torch.device("cpu")).epoch


def plain_loop(name: str, images: Tensor, labels: Tensor) -> Epoch:
    network = models.build(name, images.shape[1:], 10)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(network.parameter_groups(), lr=0.01, momentum=0.9, nesterov=True)

    def epoch() -> None:
        loss_sum = correct = 0.0
        network.train()
        for batch, target in loader:
            logits = network(batch)
            loss = F.cross_entropy(logits, target)
            if network.activity_l2:
                loss = loss + network.activity_penalty(logits)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(target)
            correct += (logits.argmax(1) == target).sum().item()

    return epoch


TRAINING_ROWS = [
    Row(
        f"Training {name}",
        shape,
        partial(epochs, name),
        ours=lambda ours, _: ours(),
        yardstick=("plain loop", lambda _, plain: plain()),
        target=1.0,
    )
    for name, shape in [
        ("simple_dense", (60_000, 1, 28, 28)),
        *((name, (BATCH, 3, 32, 32)) for name in ("vgg", "resnet", "densenet")),
    ]
]
