"""The arguments of a loss beside `input` and `target`, from the public function to the kernel."""

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

Reduction: TypeAlias = Literal["mean", "sum", "none"]

SOFT = {"cross_entropy": "label_smoothing", "focal": "gamma", "confidence_penalty": "beta"}
"""The losses whose target may be a distribution, beside label relaxation, and their hyperparameters."""


class Options(NamedTuple):
    """Read by position in src/python/losses.rs."""

    loss: str
    """The name of the loss: that of its file in src/kernels/losses."""
    parameter: float | Tensor
    """The hyperparameter of the loss: alpha, gamma, ..."""
    reduction: Reduction
    dim: int
    ignore_index: int
    weight: Tensor | None
    from_logits: bool = True
    inplace: bool = False
    target_b: Tensor | None = None
    """For a mixture of two classes: the second class of each row."""
    lam: float | Tensor | None = None
    """For a mixture of two classes: the share of the first."""
