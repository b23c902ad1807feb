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


def criterion(config: RunConfig) -> Criterion:
    """The loss of a configuration."""
    name, alpha = config.loss_name, config.alpha
    if name == "cross_entropy":
        return CrossEntropyLoss(label_smoothing=alpha)
    as_probabilities = config.temp_scaling and config.legacy_temp_scaling
    if config.legacy_clip or as_probabilities:
        sign = 1 if config.legacy_confidence_penalty else -1

        def as_coded(logits: Tensor, target: Tensor) -> Tensor:
            outputs = logits if as_probabilities else logits.softmax(1)
            if name == "label_relaxation":
                return clipped_label_relaxation(outputs, target, alpha).mean()
            if name == "focal":
                return clipped_focal(outputs, target, alpha).mean()
            return clipped_confidence_penalty(outputs, target, sign * alpha).mean()

        return as_coded
    if name == "label_relaxation":
        return LabelRelaxationLoss(alpha)
    if name == "focal":
        return FocalLoss(alpha)
    penalized = ConfidencePenaltyLoss(alpha)
    if not config.legacy_confidence_penalty:
        return penalized
    cross_entropy = CrossEntropyLoss()
    # CE + beta H = 2 CE - (CE - beta H)
    return lambda logits, target: 2 * cross_entropy(logits, target) - penalized(logits, target)


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
    """Cross-entropy plus beta times the entropy of each row; the paper's penalty has a negative beta."""
    p = outputs.clamp(CLIP, 1 - CLIP)
    entropy = -(p * p.log()).sum(1)
    return -p.gather(1, target[:, None])[:, 0].log() + beta * entropy
