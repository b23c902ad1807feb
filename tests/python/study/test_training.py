"""The study's network and its training."""

from dataclasses import replace

import pytest
import torch
from lr_relax.study import data, models, splits, training
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_EPOCH = training.Recipe(epochs=1, batch_size=64, learning_rate=0.1)


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
    split = splits.split(digits, seed=0)
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
    split = splits.split(digits, seed=0)
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
                model, splits.split(digits, 0), F.cross_entropy, replace(ONE_EPOCH, learning_rate=1e9)
            )
        )
