"""Robust data ambiguation: label relaxation of a set target that includes confidently predicted classes."""

import math
from typing import Any

import torch
from torch import Tensor

from lr_relax._arguments import (
    check,
    check_classes,
    check_hyperparameters,
    check_number,
    class_dim,
)
from lr_relax._dispatch import runs_natively
from lr_relax._options import Options, Reduction
from lr_relax.functional import label_relaxation_loss
from lr_relax.losses import LossModule

__all__ = ["RobustDataAmbiguationLoss", "ambiguous_target", "cosine_threshold"]


def ambiguous_target(
    input: Tensor,
    target: Tensor,
    threshold: float = 0.75,
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    from_logits: bool = True,
) -> Tensor:
    """The set of the label and all classes with a predicted probability above `threshold`.

    Equivalent to, for logits of shape (N, C)::

        F.one_hot(target, C).bool() | (softmax(input, 1) > threshold)

    Args:
        input: Logits of shape (..., C), or probabilities.
        target: Class indices in [0, C), of the shape of `input` without dimension `dim`.
        threshold: The threshold in [0, 1]; with 1, no classes are added.
        ignore_index: For rows with this target, the set holds all classes, so that the loss is 0.

    Returns:
        A bool tensor of the shape of `input`, a set target for `label_relaxation_loss`.

    Raises:
        As in `label_relaxation_loss`.

    Source: Lienen & Hüllermeier, "Mitigating Label Noise through Data Ambiguation", AAAI 2024.

    >>> ambiguous_target(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([1]), threshold=0.75)
    tensor([[ True,  True, False]])
    """
    _check_threshold(threshold)
    dim = class_dim(input, target, dim)
    # Checked as for a loss that takes nothing but class indices.
    check(input, target, Options("dual_focal", 0.0, "none", dim, ignore_index, None, from_logits))
    if runs_natively(input):
        check_classes(target, input.shape[dim], ignore_index)
    p = input.detach()
    p = p.float() if p.dtype in (torch.float16, torch.bfloat16) else p
    p = p.softmax(dim) if from_logits else p / p.sum(dim, keepdim=True)
    target = target.long()
    ignored = target == ignore_index
    y = target.where(~ignored, 0).unsqueeze(dim)
    return (p > threshold).scatter(dim, y, True) | ignored.unsqueeze(dim)


def cosine_threshold(epoch: float, epochs: int, start: float = 0.75, end: float = 0.6) -> float:
    """The threshold of an epoch, which decreases from `start` to `end` along half a cosine.

    Equivalent to ``end + (start - end) * (1 + cos(pi * epoch / epochs)) / 2``. The defaults are those of the
    paper for CIFAR-10.

    >>> [round(cosine_threshold(epoch, 10), 3) for epoch in (0, 5, 10)]
    [0.75, 0.675, 0.6]
    """
    check_number("epochs", "a finite number above 0", lambda x: 0 < x < math.inf, epochs)
    check_number("epoch", f"a number in [0, {epochs}]", lambda x: 0 <= x <= epochs, epoch)
    _check_threshold(start, "start")
    _check_threshold(end, "end")
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class RobustDataAmbiguationLoss(LossModule):
    """Label relaxation of the set of the label and all confidently predicted classes.

    The target is the set of the label and all classes with a probability above `threshold`, see
    `ambiguous_target`. So a wrong label does not pull the model away from a class that it predicts with
    confidence.

    The threshold is an attribute that can be set before each epoch::

        criterion = RobustDataAmbiguationLoss()
        for epoch in range(epochs):
            criterion.threshold = cosine_threshold(epoch, epochs)

    Args:
        alpha: The imprecision in [0, 1): the probability of the classes outside of the set.
        threshold: The threshold in [0, 1].
        reduction, dim, ignore_index, from_logits, inplace: As in `lr_relax.functional.label_relaxation_loss`.

    Shape:
        input: (..., C), logits with the classes in dimension `dim`.
        target: (...), class indices in [0, C).
        output: scalar, or (...) for ``reduction="none"``.

    Source: Lienen & Hüllermeier, "Mitigating Label Noise through Data Ambiguation", AAAI 2024, eq. 5-7.

    >>> import torch
    >>> RobustDataAmbiguationLoss()(torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([1]))
    tensor(0.)
    """

    alpha: float
    threshold: float
    reduction: Reduction
    dim: int | None
    ignore_index: int
    from_logits: bool
    inplace: bool

    def __init__(
        self,
        alpha: float = 0.05,
        threshold: float = 0.75,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        ignore_index: int = -100,
        from_logits: bool = True,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("label_relaxation", alpha, reduction)
        _check_threshold(threshold)
        super().__init__(
            alpha=alpha,
            threshold=threshold,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            from_logits=from_logits,
            inplace=inplace,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of `input`, (..., C), with the classes `target`, (...)."""
        dim = class_dim(input, target, self.dim)
        options: dict[str, Any] = {"dim": dim, "from_logits": self.from_logits}
        sets = ambiguous_target(input, target, self.threshold, ignore_index=self.ignore_index, **options)
        options["inplace"] = self.inplace
        if self.reduction != "mean":
            return label_relaxation_loss(input, sets, self.alpha, self.reduction, **options)
        loss = label_relaxation_loss(input, sets, self.alpha, "sum", **options)
        return loss / (target.long() != self.ignore_index).sum()


def _check_threshold(threshold: object, name: str = "threshold") -> None:
    check_number(name, "a number in [0, 1]", lambda x: 0 <= x <= 1, threshold)
