"""What a run minimises: our losses by default, by option those of the paper's code to its own values."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lr_relax
import pytest
import torch
from lr_relax.study import objective
from lr_relax.study.config import RunConfig
from torch import Tensor

ORACLE = json.loads((Path(__file__).parents[2] / "oracle" / "losses.json").read_text())
NAMES = {"lr": "label_relaxation", "focal": "focal", "confidence_penalty": "confidence_penalty"}


def made(loss_name: str, alpha: float, **options: Any) -> RunConfig:
    return RunConfig("simple_dense", "digits", loss_name, alpha, **options)


def value_and_gradient(loss: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    leaf = inputs.clone().requires_grad_()
    value = loss(leaf)
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize(
    "case",
    [case for case in ORACLE["cases"] if case["loss"] in NAMES],
    ids=lambda case: f"{case['loss']} {case['param']} {case['input']} {case['dtype']}",
)
def test_legacy_options_select_the_papers_code(case: dict[str, Any]) -> None:
    """Of logits, or with `legacy_temp_scaling` of what is taken for probabilities; saturated rows too."""
    of_probabilities = case["input"] == "probs"
    kind = "probs" if of_probabilities else "logits"
    dtype = getattr(torch, case["dtype"])
    rows, target = torch.tensor(ORACLE[kind], dtype=dtype), torch.tensor(ORACLE[f"{kind}_classes"])
    config = made(
        NAMES[case["loss"]],
        case["param"],
        legacy_clip=True,
        legacy_confidence_penalty=True,
        temp_scaling=of_probabilities,
        legacy_temp_scaling=of_probabilities,
    )
    criterion = objective.criterion(config)
    each = [
        value_and_gradient(lambda row: criterion(row[None], label[None]), row)
        for row, label in zip(rows, target, strict=True)
    ]
    values, gradients = (torch.stack(list(parts)) for parts in zip(*each, strict=True))
    assert criterion(rows, target).item() == pytest.approx(values.mean().item(), rel=1e-5)
    # Rounding decides in rows whose class has the probability 1 - alpha.
    own = (rows / rows.sum(1, keepdim=True) if of_probabilities else rows.softmax(1)).gather(
        1, target[:, None]
    )
    at_border = ((own[:, 0] - (1 - case["param"])).abs() < 1e-6) & (case["loss"] == "lr")
    assert at_border.sum() <= 3
    tolerance = 2e-6 if case["dtype"] == "float32" else 1e-11
    for got, theirs in ((values, case["value"]), (gradients, case["grad"])):
        expected = torch.tensor(theirs, dtype=dtype)[~at_border]
        torch.testing.assert_close(got[~at_border], expected, rtol=tolerance, atol=tolerance)


LOGITS = torch.randn(40, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
TARGET = torch.arange(40) % 10
PUBLIC: dict[str, Callable[[float], torch.nn.Module]] = {
    "label_relaxation": lr_relax.LabelRelaxationLoss,
    "cross_entropy": lambda alpha: lr_relax.CrossEntropyLoss(label_smoothing=alpha),
    "focal": lr_relax.FocalLoss,
    "confidence_penalty": lr_relax.ConfidencePenaltyLoss,
}


@pytest.mark.parametrize("temp_scaling", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("name", PUBLIC)
def test_default_losses(name: str, alpha: float, temp_scaling: bool) -> None:
    """On logits, also where a temperature is to be chosen."""
    criterion = objective.criterion(made(name, alpha, temp_scaling=temp_scaling))
    got = value_and_gradient(lambda logits: criterion(logits, TARGET), LOGITS)
    ours = value_and_gradient(lambda logits: PUBLIC[name](alpha)(logits, TARGET), LOGITS)
    assert torch.equal(got[0], ours[0])
    assert torch.equal(got[1], ours[1])


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_cross_entropy_has_no_legacy(alpha: float) -> None:
    """Keras computes it from the logits, unclipped, and under `temp_scaling` the paper's code knows them."""
    legacy = made("cross_entropy", alpha, legacy_clip=True, temp_scaling=True, legacy_temp_scaling=True)
    plain = objective.criterion(made("cross_entropy", alpha))
    assert objective.criterion(legacy)(LOGITS, TARGET).item() == plain(LOGITS, TARGET).item()


@pytest.mark.parametrize("clip", [False, True])
def test_sign_of_the_confidence_penalty(clip: bool) -> None:
    """The paper's penalises confidence, its code rewards it."""
    log_p = LOGITS.log_softmax(1)
    cross_entropy = -log_p.gather(1, TARGET[:, None]).mean().item()
    entropy = -(log_p.exp() * log_p).sum(1).mean().item()
    paper = made("confidence_penalty", 0.5, legacy_clip=clip)
    coded = replace(paper, legacy_confidence_penalty=True)
    tolerance = 1e-4 if clip else 1e-9
    for config, expected in ((paper, cross_entropy - 0.5 * entropy), (coded, cross_entropy + 0.5 * entropy)):
        assert objective.criterion(config)(LOGITS, TARGET).item() == pytest.approx(expected, rel=tolerance)
