"""The losses of a linear layer as modules, which own the layer; the functions compute."""

from typing import Any

import torch
from torch import Tensor, nn

from lr_relax._arguments import check_hyperparameters
from lr_relax._chunked.arguments import check_chunk_size
from lr_relax._options import Reduction
from lr_relax.linear.functional import (
    linear_confidence_penalty_loss,
    linear_cross_entropy_loss,
    linear_focal_loss,
    linear_label_relaxation_loss,
)
from lr_relax.losses import LossModule
from lr_relax.topk import TopK


class _LinearLoss(LossModule):
    """A loss with its linear layer, `linear`."""

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        bias: bool,
        linear_weight: nn.Parameter | None,
        device: Any,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        options["chunk_size"] = check_chunk_size(options["chunk_size"])
        weight = options["weight"]
        if n_classes < 2:
            raise ValueError(f"Expected argument `n_classes` to be at least 2, but got {n_classes}.")
        if isinstance(weight, Tensor) and tuple(weight.shape) != (n_classes,):
            raise ValueError(
                f"Expected argument `weight` to have shape ({n_classes},), a number for each class, "
                f"but got {tuple(weight.shape)}."
            )
        super().__init__(**options)
        if linear_weight is None:
            self.linear = nn.Linear(in_features, n_classes, bias, device, dtype)
            return
        if device is not None or dtype is not None:
            raise ValueError(
                "Expected `device` and `dtype` to be left out with a `linear_weight`, which has both."
            )
        if not isinstance(linear_weight, nn.Parameter):
            raise TypeError(
                "Expected argument `linear_weight` to be a parameter, "
                f"but got {type(linear_weight).__name__}."
            )
        if tuple(linear_weight.shape) != (n_classes, in_features):
            raise ValueError(
                f"Expected argument `linear_weight` to have shape ({n_classes}, {in_features}), "
                f"but got {tuple(linear_weight.shape)}."
            )
        self.linear = nn.Linear(in_features, n_classes, bias, "meta")  # takes no memory
        self.linear.weight = linear_weight
        if bias:
            self.linear.bias = nn.Parameter(linear_weight.detach().new_zeros(n_classes))

    def _arguments(self) -> dict[str, Any]:
        layer = self.linear
        if not isinstance(layer, nn.Linear) or layer._forward_pre_hooks or layer._forward_hooks:
            raise RuntimeError(
                "Expected the attribute `linear` to be an `nn.Linear` without hooks of its forward pass, as "
                f"the loss takes its weight and never calls it, but got {type(layer).__name__}. Call the "
                "function of this loss with the weight, or the plain loss with the logits."
            )
        return {"linear_weight": layer.weight, "linear_bias": layer.bias, **self._options()}


class LinearLabelRelaxationLoss(_LinearLoss):
    """A linear layer with label relaxation of its logits, which are never all held.

    In place of ``nn.Linear(in_features, n_classes)`` and `LabelRelaxationLoss`. See
    `linear_label_relaxation_loss` for how it computes, and for the arguments.

    Args:
        in_features, n_classes: The sizes d and C of the layer.
        bias: Whether the layer has a bias.
        linear_weight: A parameter of shape (C, d) that another layer also uses, such as that of an embedding.
            By default the layer makes its own, as `nn.Linear` does.
        device, dtype: Of the layer's own parameters.
        alpha, reduction, weight, ignore_index, chunk_size: As in `linear_label_relaxation_loss`.

    Attributes:
        linear: The layer, an `nn.Linear`: ``criterion.linear(input)`` gives the logits for predictions.
            The loss takes its weight and does not call it, so it raises if hooks of the layer would be lost.

    Shape:
        input: (..., d).
        target: (...), class indices; (..., C), sets (bool) or distributions (floating-point); or a `TopK`.
        output: scalar, or (...) for ``reduction="none"``.

    Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7.

    >>> import torch
    >>> criterion = LinearLabelRelaxationLoss(16, 1000, alpha=0.1)
    >>> criterion(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
    >>> criterion.linear.weight.grad.shape
    torch.Size([1000, 16])
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        alpha: float | Tensor = 0.1,
        reduction: Reduction = "mean",
        *,
        bias: bool = False,
        linear_weight: nn.Parameter | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        chunk_size: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_hyperparameters("label_relaxation", alpha, reduction)
        layer = (in_features, n_classes, bias, linear_weight, device, dtype)
        options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "chunk_size": chunk_size}
        super().__init__(*layer, alpha=alpha, reduction=reduction, **options)

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of the layer's logits for `input`, (..., d), and `target`."""
        return linear_label_relaxation_loss(input, target=target, **self._arguments())


class LinearCrossEntropyLoss(_LinearLoss):
    """A linear layer with cross-entropy of its logits, with label smoothing.

    See `LinearLabelRelaxationLoss` for the other arguments and the shapes, and
    `linear_cross_entropy_loss` for the formula.

    >>> import torch
    >>> criterion = LinearCrossEntropyLoss(16, 1000, label_smoothing=0.1)
    >>> criterion(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        *,
        bias: bool = False,
        linear_weight: nn.Parameter | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        chunk_size: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_hyperparameters("cross_entropy", label_smoothing, reduction)
        layer = (in_features, n_classes, bias, linear_weight, device, dtype)
        options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "chunk_size": chunk_size}
        super().__init__(*layer, label_smoothing=label_smoothing, reduction=reduction, **options)

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of the layer's logits for `input`, (..., d), and `target`."""
        return linear_cross_entropy_loss(input, target=target, **self._arguments())


class LinearFocalLoss(_LinearLoss):
    """A linear layer with the focal loss of its logits.

    See `LinearLabelRelaxationLoss` for the other arguments and the shapes, and `linear_focal_loss`
    for the formula.

    >>> import torch
    >>> LinearFocalLoss(16, 1000, gamma=2.0)(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        gamma: float = 2.0,
        reduction: Reduction = "mean",
        *,
        bias: bool = False,
        linear_weight: nn.Parameter | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        chunk_size: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_hyperparameters("focal", gamma, reduction)
        layer = (in_features, n_classes, bias, linear_weight, device, dtype)
        options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "chunk_size": chunk_size}
        super().__init__(*layer, gamma=gamma, reduction=reduction, **options)

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of the layer's logits for `input`, (..., d), and `target`."""
        return linear_focal_loss(input, target=target, **self._arguments())


class LinearConfidencePenaltyLoss(_LinearLoss):
    """A linear layer with cross-entropy of its logits minus `beta` times their entropy.

    See `LinearLabelRelaxationLoss` for the other arguments and the shapes, and
    `linear_confidence_penalty_loss` for the formula.

    >>> import torch
    >>> criterion = LinearConfidencePenaltyLoss(16, 1000, beta=0.1)
    >>> criterion(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        beta: float = 0.1,
        reduction: Reduction = "mean",
        *,
        bias: bool = False,
        linear_weight: nn.Parameter | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        chunk_size: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_hyperparameters("confidence_penalty", beta, reduction)
        layer = (in_features, n_classes, bias, linear_weight, device, dtype)
        options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "chunk_size": chunk_size}
        super().__init__(*layer, beta=beta, reduction=reduction, **options)

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of the layer's logits for `input`, (..., d), and `target`."""
        return linear_confidence_penalty_loss(input, target=target, **self._arguments())
