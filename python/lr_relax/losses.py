"""The losses as modules. They hold the hyperparameters; the functions in `lr_relax.functional` compute."""

from typing import Any

from torch import Tensor, nn

from lr_relax._arguments import also_logits, check_hyperparameters
from lr_relax._options import Reduction
from lr_relax.functional import (
    binary_label_relaxation_loss,
    confidence_penalty_loss,
    cross_entropy_loss,
    dual_focal_loss,
    focal_loss,
    label_relaxation_loss,
    mixup_label_relaxation_loss,
)
from lr_relax.topk import TopK

__all__ = [
    "BinaryLabelRelaxationLoss",
    "ConfidencePenaltyLoss",
    "CrossEntropyLoss",
    "DualFocalLoss",
    "FocalLoss",
    "LabelRelaxationLoss",
    "MixupLabelRelaxationLoss",
]


class LossModule(nn.Module):
    """Stores the arguments of a loss function under their names."""

    weight: Tensor | None

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            has_values = name == "alpha" and isinstance(value, Tensor) and not value.is_meta
            if has_values and not ((value >= 0) & (value < 1)).all():
                raise ValueError(f"Expected argument `alpha` to hold numbers in [0, 1), but got {value!r}.")
            if name.endswith("weight") and not isinstance(value, Tensor | None):
                raise TypeError(f"Expected argument `{name}` to be a tensor, but got {value!r}.")
            is_parameter = isinstance(value, nn.Parameter)
            if name.endswith("weight") or (isinstance(value, Tensor) and not is_parameter):
                self.register_buffer(name, value)  # moves with .to()
            else:
                setattr(self, name, value)
        self._names = tuple(options)

    def _options(self) -> dict[str, Any]:
        buffers = self._buffers  # `getattr` finds them last, which takes 1 us
        return {name: buffers[name] if name in buffers else getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """The arguments that `print(module)` shows: hyperparameter, reduction, and what is not a default."""
        defaults = {"weight": None, "pos_weight": None, "dim": None, "ignore_index": -100}
        defaults |= {"from_logits": True, "inplace": False, "chunk_size": None}
        shown = []
        for name, value in self._options().items():
            if isinstance(value, Tensor):
                shown.append(f"{name}=tensor of shape {tuple(value.shape)}")
            elif name not in defaults or value != defaults[name]:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


class LabelRelaxationLoss(LossModule):
    """The divergence of the prediction from the set of distributions with ``p[target] >= 1 - alpha``.

    Classifiers trained with it are calibrated without scaling their probabilities afterward. See
    `lr_relax.functional.label_relaxation_loss` for the formula, the arguments and their ranges.

    Shape:
        input: (..., C), logits with the classes in dimension `dim`.
        target: (...), class indices in [0, C); (..., C), sets (bool) or distributions (floating-point); or a
            `TopK`.
        output: scalar, or (...) for ``reduction="none"``.

    Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7.

    >>> import torch
    >>> criterion = LabelRelaxationLoss(alpha=0.1)
    >>> criterion(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    tensor(0.4441)
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.1,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        from_logits: bool = True,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("label_relaxation", alpha, reduction)
        super().__init__(
            alpha=alpha,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            weight=weight,
            from_logits=from_logits,
            inplace=inplace,
        )

    @also_logits
    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of `input`, (..., C), for `target`: classes, (...); sets or distributions, (..., C)."""
        return label_relaxation_loss(input, target, **self._options())


class MixupLabelRelaxationLoss(LossModule):
    """Label relaxation of inputs that are mixtures of two classes, without a dense target.

    See `lr_relax.functional.mixup_label_relaxation_loss` for the formula, the arguments and their ranges.

    Shape:
        logits: (..., C), with the classes in dimension `dim`.
        target_a, target_b: (...), class indices in [0, C).
        lam: a number, or (...).
        output: scalar, or (...) for ``reduction="none"``.

    Source: Lienen & Hüllermeier, AAAI 2021, with the targets of Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", ICLR 2018.

    >>> import torch
    >>> criterion = MixupLabelRelaxationLoss(alpha=0.1)
    >>> criterion(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([1]), 0.5)
    tensor(0.3816)
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.1,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("label_relaxation", alpha, reduction)
        super().__init__(
            alpha=alpha,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            weight=weight,
            inplace=inplace,
        )

    def forward(self, logits: Tensor, target_a: Tensor, target_b: Tensor, lam: float | Tensor) -> Tensor:
        """The loss of `logits`, (..., C), for the classes `target_a`, with share `lam`, and `target_b`."""
        return mixup_label_relaxation_loss(logits, target_a, target_b, lam, **self._options())


class BinaryLabelRelaxationLoss(LossModule):
    """Label relaxation of one logit for each event, as for several labels or two classes.

    In place of `nn.BCEWithLogitsLoss`. See `lr_relax.functional.binary_label_relaxation_loss` for the
    formula, the arguments and their ranges.

    Shape:
        input: any, logits.
        target: the same, 0 or 1.
        output: scalar, or the same for ``reduction="none"``.

    Source: Lienen & Hüllermeier, AAAI 2021, eq. 5-7, for two classes.

    >>> import torch
    >>> criterion = BinaryLabelRelaxationLoss(alpha=0.1)
    >>> criterion(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(0.1840)
    """

    def __init__(
        self,
        alpha: float = 0.1,
        reduction: Reduction = "mean",
        *,
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        from_logits: bool = True,
    ) -> None:
        check_hyperparameters("binary_label_relaxation", alpha, reduction)
        super().__init__(
            alpha=alpha,
            reduction=reduction,
            pos_weight=pos_weight,
            weight=weight,
            from_logits=from_logits,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` for `target`, 0 or 1, in the same shape."""
        return binary_label_relaxation_loss(input, target, **self._options())


class CrossEntropyLoss(LossModule):
    """Cross-entropy with label smoothing, in one pass over the logits.

    Equivalent to `nn.CrossEntropyLoss(weight, ignore_index=..., reduction=..., label_smoothing=...)`, with
    the classes in dimension `dim`. See `lr_relax.functional.cross_entropy_loss` for the arguments and their
    ranges, and `LabelRelaxationLoss` for the shapes; a target is class indices or distributions.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.

    >>> import torch
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> criterion(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.2269)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        dim: int | None = None,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("cross_entropy", label_smoothing, reduction)
        super().__init__(
            label_smoothing=label_smoothing,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            weight=weight,
            inplace=inplace,
        )

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of `input`, (..., C), for `target`: class indices, (...), or distributions, (..., C)."""
        return cross_entropy_loss(input, target, **self._options())


class FocalLoss(LossModule):
    """The focal loss: cross-entropy that discounts rows whose class is predicted with confidence.

    See `lr_relax.functional.focal_loss` for the formula, the arguments and their ranges, and
    `LabelRelaxationLoss` for the shapes.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4.

    >>> import torch
    >>> FocalLoss(gamma=2.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.1733)
    """

    def __init__(
        self,
        gamma: float = 2.0,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("focal", gamma, reduction)
        super().__init__(
            gamma=gamma,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            weight=weight,
            inplace=inplace,
        )

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of `input`, (..., C), for `target`: class indices, (...), or distributions, (..., C)."""
        return focal_loss(input, target, **self._options())


class DualFocalLoss(LossModule):
    """The dual focal loss: the focal loss with the class next below the target in probability.

    See `lr_relax.functional.dual_focal_loss` for the formula, the arguments and their ranges, and
    `LabelRelaxationLoss` for the shapes.

    Source: Tao, Dong and Xu, "Dual Focal Loss for Calibration", ICML 2023.

    >>> import torch
    >>> DualFocalLoss(gamma=2.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.1733)
    """

    def __init__(
        self,
        gamma: float = 5.0,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("dual_focal", gamma, reduction)
        super().__init__(
            gamma=gamma,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            weight=weight,
            inplace=inplace,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input`, (..., C), for the class indices `target`, (...)."""
        return dual_focal_loss(input, target, **self._options())


class ConfidencePenaltyLoss(LossModule):
    """Cross-entropy minus `beta` times the entropy of the prediction.

    See `lr_relax.functional.confidence_penalty_loss` for the formula, the arguments and their ranges, and
    `LabelRelaxationLoss` for the shapes.

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017,
    section 3.

    >>> import torch
    >>> ConfidencePenaltyLoss(beta=0.1)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6238)
    """

    def __init__(
        self,
        beta: float = 0.1,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        inplace: bool = False,
    ) -> None:
        check_hyperparameters("confidence_penalty", beta, reduction)
        super().__init__(
            beta=beta,
            reduction=reduction,
            dim=dim,
            ignore_index=ignore_index,
            weight=weight,
            inplace=inplace,
        )

    def forward(self, input: Tensor, target: Tensor | TopK) -> Tensor:
        """The loss of `input`, (..., C), for `target`: class indices, (...), or distributions, (..., C)."""
        return confidence_penalty_loss(input, target, **self._options())
