"""The losses as modules: they hold the hyperparameters, the functions compute."""

from torch import Tensor, nn

from lr_relax.functional import check_hyperparameters, label_relaxation_loss

__all__ = ["LabelRelaxationLoss"]


class LabelRelaxationLoss(nn.Module):
    """The divergence of the prediction from the set of distributions with ``p[target] >= 1 - alpha``.

    Trains classifiers that are calibrated without scaling their probabilities afterwards; see
    `lr_relax.functional.label_relaxation_loss` for the formula, the arguments and their ranges.

    Shape:
        input: (..., C), logits with the classes in dimension `dim`.
        target: (...), class indices in [0, C).
        output: scalar, or (...) for ``reduction="none"``.

    Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7.

    >>> import torch
    >>> criterion = LabelRelaxationLoss(alpha=0.1)
    >>> criterion(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    tensor(0.4441)
    """

    weight: Tensor | None

    def __init__(
        self,
        alpha: float = 0.1,
        reduction: str = "mean",
        *,
        dim: int = -1,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        from_logits: bool = True,
    ) -> None:
        super().__init__()
        check_hyperparameters(alpha, reduction)
        self.alpha = alpha
        self.reduction = reduction
        self.dim = dim
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)
        self.from_logits = from_logits

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input`, (..., C), for the classes `target`, (...)."""
        return label_relaxation_loss(
            input,
            target,
            self.alpha,
            self.reduction,
            dim=self.dim,
            ignore_index=self.ignore_index,
            weight=self.weight,
            from_logits=self.from_logits,
        )

    def extra_repr(self) -> str:
        """What `print(module)` shows: the hyperparameters, defaults left out but for the first two."""
        shown = f"alpha={self.alpha}, reduction={self.reduction!r}"
        for name, default in (("dim", -1), ("ignore_index", -100), ("from_logits", True)):
            value = getattr(self, name)
            if value != default:
                shown += f", {name}={value}"
        return shown
