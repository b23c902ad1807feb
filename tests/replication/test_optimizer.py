"""Learning rates, steps and trainings are those of the paper's code (optimizer.json), and Keras's formula."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import CrossEntropyLoss, LabelRelaxationLoss
from lr_relax.study.models import simple_dense
from lr_relax.study.optimizer import KerasSGD, Schedule
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[1] / "oracle/optimizer.json").read_text())
SCHEDULES = {
    "schedule_fashion": Schedule(0.05, (30, 50), 0.3162),
    "schedule_mnist": Schedule(0.05, (25, 40), 0.3162),
    "schedule_resnet_c10": Schedule(0.1, (50, 100, 150), 0.3162),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_of_epochs(name: str) -> None:
    schedule = SCHEDULES[name]
    assert {epoch: schedule.of_epoch(int(epoch)) for epoch in ORACLE[name]} == ORACLE[name]


def test_the_scalar_trajectory() -> None:
    """A gradient of 1 throughout, three mini-batches per epoch."""
    weight = torch.ones(1, requires_grad=True)
    schedule = Schedule(0.1, (0, 1), 0.3162, decay=0.05)
    optimizer = KerasSGD([weight], schedule.initial)
    rows = ORACLE["scalar_trajectory"]["rows"]
    assert len(rows) == 12
    for row in rows:
        rate = schedule.rate(row["epoch"], row["iter"])
        assert schedule.of_epoch(row["epoch"]) == pytest.approx(row["lr_var"], rel=1e-7)
        assert rate == pytest.approx(row["lr_eff"], rel=2e-7)
        optimizer.set_rate(rate)
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() == pytest.approx(row["w"], abs=1e-6)


def seeded_data() -> tuple[Tensor, Tensor]:
    rng = np.random.RandomState(7)  # what the file was made with
    labels = rng.randint(0, 10, 640)
    prototypes = rng.rand(10, 28, 28, 1)
    images = (0.5 * rng.rand(640, 28, 28, 1) + 0.5 * prototypes[labels]).astype(np.float32)
    labels = np.where(rng.rand(640) < 0.2, rng.randint(0, 10, 640), labels)
    images -= images.mean(axis=0)
    e2e = ORACLE["e2e"]
    assert images.ravel()[:5].tolist() == e2e["x_first5"]
    assert np.abs(images).sum(dtype=np.float64) == pytest.approx(e2e["x_abs_sum"], rel=1e-9)
    assert labels[:20].tolist() == e2e["y_first20"]
    return torch.from_numpy(images), torch.from_numpy(labels)


def seeded_network() -> torch.nn.Sequential:
    rng = np.random.RandomState(11)
    model = simple_dense(784, 10)
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            n_in, n_out = layer.in_features, layer.out_features
            limit = (6 / (n_in + n_out)) ** 0.5
            weights = rng.uniform(-limit, limit, (n_in, n_out))
            layer.weight.data = torch.from_numpy(weights.astype(np.float32)).T.contiguous()
    return model


def penalty_as_coded(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy *plus* the entropy."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        return F.cross_entropy(logits, labels) - beta * (log_p.exp() * log_p).sum(1).mean()

    return loss


LOSSES: dict[str, Callable[[float], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross_entropy": lambda smoothing: CrossEntropyLoss(label_smoothing=smoothing),
    "cross_entropy_from_logits": lambda smoothing: CrossEntropyLoss(label_smoothing=smoothing),
    "lr": LabelRelaxationLoss,
    "confidence_penalty": penalty_as_coded,
}


@pytest.mark.parametrize("case", ORACLE["e2e"]["runs"], ids=lambda case: f"{case['loss']} {case['param']}")
def test_thirty_steps_of_the_dense_network(case: dict[str, Any]) -> None:
    images, labels = seeded_data()
    model, loss = seeded_network(), LOSSES[case["loss"]](case["param"])
    schedule = Schedule(0.05, (0, 1), 0.3162, decay=1e-3)
    optimizer = KerasSGD(model.parameters(), schedule.initial)

    def outputs() -> np.ndarray:
        with torch.no_grad():
            logits = model(images[:4])
            return np.asarray(logits if case["loss"].endswith("logits") else logits.softmax(1))

    assert np.allclose(outputs(), case["probs_before"], rtol=0, atol=1e-6)
    iteration, running = 0, []
    for epoch in range(3):
        assert schedule.of_epoch(epoch) == pytest.approx(case["epochs"][epoch]["lr"], rel=1e-7)
        losses, correct = [], 0
        for rows in torch.arange(640).split(64):
            optimizer.set_rate(schedule.rate(epoch, iteration))
            optimizer.zero_grad()
            logits = model(images[rows])
            value = loss(logits, labels[rows])
            value.backward()
            optimizer.step()
            iteration += 1
            losses.append(value.item())
            running.append(np.mean(losses))
            correct += int((logits.argmax(1) == labels[rows]).sum())
        assert np.mean(losses) == pytest.approx(case["epochs"][epoch]["loss"], abs=1e-5)
        assert correct / 640 == pytest.approx(case["epochs"][epoch]["accuracy"], abs=1e-7)
    assert running == pytest.approx(case["running_loss_per_batch"], abs=1e-5)
    assert np.allclose(outputs(), case["probs_after"], rtol=0, atol=1e-5)
    parameters = [parameter.detach().double() for parameter in model.parameters()]
    assert [p.sum().item() for p in parameters] == pytest.approx(case["weight_sums"], abs=1e-2)
    assert [p.square().sum().item() for p in parameters] == pytest.approx(case["weight_sq_sums"], rel=1e-5)
    assert parameters[-1].tolist() == pytest.approx(case["bias3"], abs=1e-6)
    with torch.no_grad():
        final = loss(model(images), labels).item()
    assert final == pytest.approx(case["final_eval"][0], abs=1e-5)
    assert (model(images).argmax(1) == labels).double().mean().item() == pytest.approx(case["final_eval"][1])


def keras(gradients: np.ndarray, rates: np.ndarray, weight: np.ndarray, penalty: float = 0.0) -> np.ndarray:
    """The update of Keras with momentum .9 and Nesterov, as its documentation writes it, in float64."""
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        step = rate * (gradient + 2 * penalty * weight)
        velocity = 0.9 * velocity - step
        weight = weight + 0.9 * velocity - step
    return weight


def steps(
    optimizer: torch.optim.SGD, weight: Tensor, gradients: np.ndarray, rates: np.ndarray
) -> torch.optim.SGD:
    for gradient, rate in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    return optimizer


GRADIENTS = np.random.default_rng(0).normal(size=(50, 7))
RATES = np.random.default_rng(1).uniform(0.001, 1, 50)  # up and down, by factors of hundreds
START = np.linspace(-1, 1, 7)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_rates_that_change_a_lot(penalty: float, fused: bool) -> None:
    weight = torch.tensor(START, requires_grad=True)
    steps(KerasSGD([weight], 1.0, weight_decay=2 * penalty, fused=fused), weight, GRADIENTS, RATES)
    expected = keras(GRADIENTS, RATES, START, penalty)
    assert weight.detach().numpy() == pytest.approx(expected, rel=1e-9)


def test_a_constant_rate_is_pytorchs_to_the_bit() -> None:
    weights = [torch.tensor(START, requires_grad=True) for _ in range(2)]
    steps(KerasSGD(weights[:1], 0.1), weights[0], GRADIENTS, np.full(50, 0.1))
    theirs = torch.optim.SGD(weights[1:], 0.1, momentum=0.9, nesterov=True, fused=True)
    steps(theirs, weights[1], GRADIENTS, np.full(50, 0.1))
    assert torch.equal(*weights)


def test_a_saved_optimizer_goes_on_where_it_was() -> None:
    weight = torch.tensor(START, requires_grad=True)
    saved = steps(KerasSGD([weight], 1.0), weight, GRADIENTS[:20], RATES[:20]).state_dict()
    resumed = KerasSGD([weight], 1.0)
    resumed.load_state_dict(saved)
    steps(resumed, weight, GRADIENTS[20:], RATES[20:])
    assert weight.detach().numpy() == pytest.approx(keras(GRADIENTS, RATES, START), rel=1e-9)


def test_a_parameter_without_gradient_keeps_its_velocity() -> None:
    """For ten steps in the middle, in which another one is updated and the rate changes."""
    weight, other = torch.tensor(START, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = KerasSGD([weight, other], 1.0)
    steps(optimizer, weight, GRADIENTS[:20], RATES[:20])
    weight.grad = None
    steps(optimizer, other, np.ones((10, 1), np.float32), RATES[20:30])
    other.grad = None
    steps(optimizer, weight, GRADIENTS[30:], RATES[30:])
    kept = [*range(20), *range(30, 50)]
    assert weight.detach().numpy() == pytest.approx(keras(GRADIENTS[kept], RATES[kept], START), rel=1e-9)


def test_a_scheduler_of_pytorch_may_set_the_rate() -> None:
    weight = torch.tensor(START, requires_grad=True)
    schedule = Schedule(0.1, (1, 3), 0.5, decay=0.01, warmup=1)
    optimizer = KerasSGD([weight], 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: schedule.rate(i // 10, i))
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        scheduler.step()
    rates = np.array([schedule.rate(i // 10, i) for i in range(50)])
    assert weight.detach().numpy() == pytest.approx(keras(GRADIENTS, rates, START), rel=1e-9)


def test_warmup_rises_to_the_initial_rate() -> None:
    schedule = Schedule(0.1, (5,), 0.5, decay=0.1, warmup=4)
    assert [schedule.of_epoch(epoch) for epoch in range(7)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.05]
    )
    assert schedule.rate(6, 10) == pytest.approx(0.025)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(rate: float) -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = KerasSGD([weight], 0.1)
    weight.grad = torch.ones(1)
    optimizer.set_rate(rate)
    with pytest.raises(ValueError, match="positive learning rate"):
        optimizer.step()
    assert weight.item() == 1
