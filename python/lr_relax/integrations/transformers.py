"""Losses for `transformers.Trainer`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def loss_for(criterion: nn.Module, *, causal: bool = False) -> Callable[..., Tensor]:
    """A loss for ``Trainer(compute_loss_func=...)``.

    Equivalent to, for logits (..., C) and labels (...)::

        criterion(logits.flatten(0, -2), labels.flatten())  # with reduction="sum", / num_items_in_batch

    The trainer passes the number of labels in all batches of an optimizer step; so gradients do not depend on
    how these are split into batches. Without that number, `criterion` is called as it is.

    Args:
        criterion: A loss with an attribute `reduction`, such as those of lr_relax and of `torch.nn`. Labels
            of its `ignore_index` do not count.
        causal: Whether the logits of each position predict the label of the next one, as in language models.

    >>> import torch, lr_relax
    >>> loss = loss_for(lr_relax.LabelRelaxationLoss(alpha=0.1), causal=True)
    >>> logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    >>> loss({"logits": logits}, labels, num_items_in_batch=8).shape
    torch.Size([])
    """
    if not hasattr(criterion, "reduction"):
        raise TypeError(
            f"Expected argument `criterion` to have an attribute `reduction`, but got {criterion!r}."
        )
    sum_of: Any = copy.copy(criterion)
    sum_of.reduction = "sum"

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if labels.ndim != logits.ndim - 1:
            raise ValueError(
                f"Expected the labels to have shape {tuple(logits.shape[:-1])}, that of the logits "
                f"{tuple(logits.shape)} without the classes, but got {tuple(labels.shape)}."
            )
        if causal:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        logits, labels = logits.flatten(0, -2), labels.flatten().to(logits.device)
        if num_items_in_batch is None:
            loss: Tensor = criterion(logits, labels)
            return loss
        total: Tensor = sum_of(logits, labels)
        # For several devices, the trainer passes a part of the number for each.
        count = num_items_in_batch.sum() if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
        return total / count

    return compute_loss
