"""Losses of a linear layer, as of a classifier with many classes, which never hold all its logits."""

from lr_relax.linear.functional import (
    linear_confidence_penalty_loss,
    linear_cross_entropy_loss,
    linear_focal_loss,
    linear_label_relaxation_loss,
    linear_mixup_label_relaxation_loss,
)
from lr_relax.linear.modules import (
    LinearConfidencePenaltyLoss,
    LinearCrossEntropyLoss,
    LinearFocalLoss,
    LinearLabelRelaxationLoss,
)

__all__ = [
    "LinearConfidencePenaltyLoss",
    "LinearCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearLabelRelaxationLoss",
    "linear_confidence_penalty_loss",
    "linear_cross_entropy_loss",
    "linear_focal_loss",
    "linear_label_relaxation_loss",
    "linear_mixup_label_relaxation_loss",
]
