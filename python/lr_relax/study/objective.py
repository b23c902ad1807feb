"""The loss that a run minimizes: the paper's, or with the legacy options as the paper's code computes it.

Criteria map logits (N, C) and class indices (N,) to the mean over the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..losses import ConfidencePenaltyLoss, CrossEntropyLoss, FocalLoss, LabelRelaxationLoss
from .config import RunConfig

Criterion = Callable[[Tensor, Tensor], Tensor]

CLIP = 1e-7  # Keras's epsilon


def clipped_label_relaxation(outputs: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Label relaxation of each row in the paper's code: clipped, and zero for p[target] >= 1 - alpha."""
    p = (outputs / outputs.sum(1, keepdim=True)).clamp(CLIP, 1 - CLIP)
    is_target = torch.nn.functional.one_hot(target, p.shape[1]).bool()
    others = p.masked_fill(is_target, 0).sum(1, keepdim=True)
    nearest = torch.where(is_target, 1 - alpha, alpha * p / (others + CLIP)).clamp(CLIP, 1)
    divergence = (nearest * (nearest / p).log()).sum(1)
    return divergence.masked_fill(p[is_target] >= 1 - alpha, 0)


def clipped_focal(outputs: Tensor, target: Tensor, gamma: float) -> Tensor:
    """The focal loss of each row in the paper's code."""
    p = outputs.clamp(CLIP, 1 - CLIP).gather(1, target[:, None])[:, 0]
    return -((1 - p) ** gamma) * p.log()


def clipped_confidence_penalty(outputs: Tensor, target: Tensor, beta: float) -> Tensor:
    """Cross-entropy minus beta times the entropy of each row; the paper's code has a negative beta."""
    p = outputs.clamp(CLIP, 1 - CLIP)
    entropy = -(p * p.log()).sum(1)
    return -p.gather(1, target[:, None])[:, 0].log() - beta * entropy


_LOSSES = {
    "label_relaxation": (LabelRelaxationLoss, clipped_label_relaxation),
    "focal": (FocalLoss, clipped_focal),
    "confidence_penalty": (ConfidencePenaltyLoss, clipped_confidence_penalty),
}


def criterion(config: RunConfig) -> Criterion:
    """The loss of a configuration."""
    if config.loss_name == "cross_entropy":
        return CrossEntropyLoss(label_smoothing=config.alpha)
    module, clipped = _LOSSES[config.loss_name]
    rewards_confidence = config.legacy_confidence_penalty and module is ConfidencePenaltyLoss
    as_probabilities = config.temp_scaling and config.legacy_temp_scaling
    if config.legacy_clip or as_probabilities:
        alpha = -config.alpha if rewards_confidence else config.alpha
        return lambda logits, target: clipped(
            logits if as_probabilities else logits.softmax(1), target, alpha
        ).mean()
    loss: Criterion = module(config.alpha)
    if not rewards_confidence:
        return loss
    cross_entropy = CrossEntropyLoss()
    # CE + beta H = 2 CE - (CE - beta H)
    return lambda logits, target: 2 * cross_entropy(logits, target) - loss(logits, target)
