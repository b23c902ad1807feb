"""The loop: what it trains on in which order, its steps, and what it tells of an epoch."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from lr_relax import LabelRelaxationLoss
from lr_relax.study import data, models, splits, training
from lr_relax.study.config import RunConfig
from lr_relax.study.network import Network
from lr_relax.study.optimizer import Plateau
from lr_relax.study.training import Training
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"initial_lr": 0.1, "steps": (), "data_augmentation": False}
CONFIG = RunConfig("simple_dense", "digits", "cross_entropy", epochs=3, **OPTIONS)


@pytest.fixture(scope="module")
def split(digits: data.Dataset) -> splits.Split:
    return splits.split(digits, seed=0, validation=True)


def in_training(
    split: splits.Split, network: Network | None = None, **changes: Any
) -> tuple[Training, list[tuple[Tensor, float]]]:
    """A training, and what it will have seen: the images of every batch, and the rate of its step."""
    config = replace(CONFIG, **changes)
    if network is None:
        torch.manual_seed(config.seed)
        network = models.simple_dense(64, 10)
    made = Training(config, split, network, device=torch.device("cpu"))
    seen: list[tuple[Tensor, float]] = []

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if module.training:
            seen.append((inputs[0].clone(), made.optimizer.param_groups[0]["lr"]))

    network.register_forward_pre_hook(note)
    return made, seen


def rows(split: splits.Split, images: Tensor) -> list[int]:
    """Which rows of the training part some images are."""
    each = {image.numpy().tobytes(): row for row, image in enumerate(split.train_images)}
    return [each[image.numpy().tobytes()] for image in images]


# What an epoch trains on.


def test_every_epoch_permutes_the_rows(split: splits.Split) -> None:
    made, seen = in_training(split, batch_size=100)
    made.epoch()
    made.epoch()
    order = rows(split, torch.cat([images for images, _ in seen]))
    one, two = order[:673], order[673:]
    everything = list(range(len(split.train_labels)))
    assert sorted(one) == sorted(two) == everything
    assert one != two
    assert everything not in (one, two)


def test_generators_are_independent() -> None:
    """Of every seed, epoch and process."""
    numbers = [*product((0, 1, 9), (0, 1), (0, 1), (0, 1, 2))]
    assert len({training._seed(*each) for each in numbers}) == len(numbers)


# Its steps.


def network_with_penalties() -> Network:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)
    return Network(*layers, l2=0.02, last_l2=0.05, activity_l2=0.3).double()


def double(split: splits.Split) -> splits.Split:
    return replace(split, train_images=split.train_images.double(), eval_images=split.eval_images.double())


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_steps_agree_with_keras(split: splits.Split, clip: float) -> None:
    """Trained again by hand: the gradient of loss and penalties is clipped, and Keras's momentum follows."""
    split = double(split)
    options: dict[str, Any] = {"steps": (0,), "lr_sched_multipler": 0.5, "decay": 1e-2, "warmup": 1}
    made, seen = in_training(split, network_with_penalties(), gradient_clipping=clip, **options)
    for _ in range(3):
        made.epoch()
    rates = [rate for _, rate in seen]
    batches = math.ceil(len(split.train_labels) / 64)
    of_epochs = (0.1, 0.05, 0.05)  # warmup of one epoch starts at the whole rate
    steps = [rate for rate in of_epochs for _ in range(batches)]
    assert rates == pytest.approx([rate / (1 + 1e-2 * step) for step, rate in enumerate(steps)])

    def by_hand(gradient_of: Callable[[Network, Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
        network = network_with_penalties()
        weights = [weight.detach() for weight in network.parameters()]
        velocities = [torch.zeros_like(weight) for weight in weights]
        for images, rate in seen:
            labels = split.train_labels[rows(split, images)]
            with torch.enable_grad():
                gradients = gradient_of(network, images, labels)
            for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
                velocity.mul_(0.9).sub_(rate * gradient)
                weight.add_(0.9 * velocity - rate * gradient)
        return weights

    def gradients(network: Network, images: Tensor, labels: Tensor, decay: bool = True) -> list[Tensor]:
        _, first, _, last = network
        logits = network(images)
        loss = F.cross_entropy(logits, labels) + 0.3 * logits.softmax(1).square().sum(1).mean()
        if decay:
            loss = loss + 0.02 * first.weight.square().sum() + 0.05 * last.weight.square().sum()
        return list(torch.autograd.grad(loss, list(network.parameters())))

    def clipped(*batch: Any) -> list[Tensor]:
        return [g.clamp(-clip, clip) if clip else g for g in gradients(*batch)]

    def clipped_before_decay(network: Network, *batch: Tensor) -> list[Tensor]:
        of_loss = gradients(network, *batch, decay=False)
        each = zip(of_loss, (0.04, 0, 0.1, 0), network.parameters(), strict=True)
        return [g.clamp(-clip, clip) + decay * weight.detach() for g, decay, weight in each]

    got = list(made.network.parameters())
    for mine, expected in zip(got, by_hand(clipped), strict=True):
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-9, atol=1e-11)
    if clip:  # the order of clipping and decay makes a difference
        assert (got[0] - by_hand(clipped_before_decay)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("legacy", [False, True])
def test_activity_penalty(split: splits.Split, legacy: bool) -> None:
    """Which under temperature scaling are logits in the paper's code."""
    options = {"temp_scaling": True, "legacy_temp_scaling": legacy}
    made, _ = in_training(split, network_with_penalties(), **options)
    logits, labels = torch.randn(6, 10), torch.arange(6)
    outputs = logits if legacy else logits.softmax(1)
    expected = F.cross_entropy(logits, labels) + 0.3 * outputs.square().sum() / 6
    torch.testing.assert_close(made._loss(logits, labels), expected)


# The learning rate.


def test_plateau_agrees_with_keras() -> None:
    """Factor .1, patience 2, improvements of more than .1, not below .002."""
    plateau = Plateau(factor=0.1, patience=2, least_change=0.1, least_rate=0.002)
    losses = (5, 4, 3.95, 3.9, 3.8, 3.85, 3.75, 3.6, 3.6, 3.6, 3.6, 3.6, 1.0)
    # best:   5  4  4     4    3.8  3.8   3.8   3.6  3.6  3.6  3.6  3.6  1
    # waited: 0  0  1     2    0    1     2     0    1    2    1    2    0
    expected = [1.0] * 3 + [0.1] * 3 + [0.01] * 3 + [0.002] * 4
    for loss, rate in zip(losses, expected, strict=True):
        plateau.see(loss)
        assert plateau.rate(1.0) == pytest.approx(rate)
    assert plateau.rate(0.001) == 0.001  # a rate below the least one is left alone
    plateau = Plateau()  # by default: factor the root of .1, patience 10, not below .5e-6
    for epochs, rate in ((11, 0.1 * 0.1**0.5), (200, 0.5e-6)):
        for _ in range(epochs):
            plateau.see(1.0 - 1e-5 * (epochs == 200))
        assert plateau.rate(0.1) == pytest.approx(rate)


def test_legacy_schedule_has_no_warmup(split: splits.Split) -> None:
    small = replace(split, train_images=split.train_images[:40], train_labels=split.train_labels[:40])
    for legacy, rates in ((False, [0.025, 0.05, 0.075, 0.1, 0.1]), (True, [0.1] * 5)):
        made, _ = in_training(small, warmup=4, legacy_schedule=legacy)
        assert [made.epoch().lr for _ in range(5)] == pytest.approx(rates)


# What it tells.


def test_training_learns(split: splits.Split) -> None:
    made, _ = in_training(split)
    epochs = [made.epoch() for _ in range(3)]
    assert made.epochs == epochs
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    assert epochs[0].loss > epochs[1].loss > epochs[2].loss
    assert epochs[0].accuracy < epochs[2].accuracy > 0.9
    assert epochs[2].val_accuracy > 0.85
    assert all(epoch.seconds > 0 for epoch in epochs)
    assert not training.predict(made.network, split.eval_images).requires_grad


@pytest.mark.parametrize("batch_size", [300, 673, 1000, 1])
def test_metrics_are_means_over_all_rows(split: splits.Split, batch_size: int) -> None:
    """With a rate too small to change anything, they are those of the whole training part."""
    made, _ = in_training(split, initial_lr=1e-12, batch_size=batch_size)
    told: list[float] = []
    epoch = made.epoch(told.append)
    logits = training.predict(made.network, split.train_images)
    assert epoch.loss == pytest.approx(F.cross_entropy(logits, split.train_labels).item(), rel=1e-5)
    assert epoch.accuracy == pytest.approx((logits.argmax(1) == split.train_labels).double().mean().item())
    n = math.ceil(673 / batch_size)
    assert told == [done / n for done in range(1, n + 1)]


def test_validation_metrics(split: splits.Split) -> None:
    """With another loss and 7 bins; `evaluate` is tested with the results of runs."""
    options = {"loss_name": "label_relaxation", "alpha": 0.2, "n_bins": 7, "reduce_on_plateau": True}
    made, _ = in_training(split, **options)
    epoch = made.epoch()
    logits = training.predict(made.network, split.eval_images)
    expected, _ = training.evaluate(logits, split.eval_labels, 7)
    got = epoch.val_nll, epoch.val_accuracy, epoch.val_ece
    assert got == (expected.nll, expected.accuracy, expected.ece)
    assert epoch.val_loss == LabelRelaxationLoss(0.2)(logits, split.eval_labels).item()
    assert made.plateau.best == epoch.val_loss + made.network.weight_penalty().item()


def test_predictions_do_not_depend_on_chunks(split: splits.Split) -> None:
    torch.manual_seed(0)
    network = Network(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    many = split.train_images.repeat(4, 1, 1, 1)
    got = training.predict(network, many)
    assert torch.equal(got, training.predict(network, many))  # without dropout
    torch.testing.assert_close(got[1500:1510], training.predict(network, many[1500:1510]))
