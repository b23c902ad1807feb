"""The rows of training: the study's beside a loop as PyTorch's tutorials write it.

Both train the same network with cross-entropy, Nesterov's momentum and the paper's weight penalties, on
random images that are in memory. The work is an epoch of Fashion-MNIST's size, or one step with images of
CIFAR's. Of the networks' layers this shows nothing: they are the same.
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
from row import Row
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64

Epoch = Callable[[], object]


def epochs(name: str, n: int, shape: tuple[int, int, int]) -> tuple[Epoch, Epoch]:
    """An epoch of the study's training, and one of the plain loop."""
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
    optimiser = torch.optim.SGD(network.parameter_groups(), lr=0.01, momentum=0.9, nesterov=True)

    def epoch() -> None:
        loss_sum = hits = 0.0
        network.train()
        for batch, target in loader:
            logits = network(batch)
            loss = F.cross_entropy(logits, target)
            if network.activity_l2:
                loss = loss + network.activity_penalty(logits)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss_sum += loss.item() * len(target)
            hits += (logits.argmax(1) == target).sum().item()

    return epoch


TRAINING_ROWS = [
    Row(
        f"Training {work}",
        partial(epochs, name, n, shape),
        ours=lambda ours, _: ours(),
        yardstick=("plain loop", lambda _, plain: plain()),
        target=1.0,
    )
    for name, work, n, shape in [
        ("simple_dense", "simple_dense, 60,000 images of 28 x 28", 60_000, (1, 28, 28)),
        ("vgg", "vgg, 64 images of 32 x 32", BATCH, (3, 32, 32)),
        ("resnet", "resnet, 64 images of 32 x 32", BATCH, (3, 32, 32)),
        ("densenet", "densenet, 64 images of 32 x 32", BATCH, (3, 32, 32)),
    ]
]
