"""Every loss with every kind of target, as a function of logits of shape (N, C) and of further options."""

from collections.abc import Callable

import torch
from lr_relax import functional
from torch import Tensor

N, C = 6, 5
Y = torch.tensor([0, 1, 4, 2, -100, 3])
OTHER = torch.tensor([1, 1, 0, 3, 2, 2])
ALPHAS = torch.linspace(0.05, 0.3, N)
WEIGHT = torch.linspace(0.5, 2.0, C)
SETS = torch.eye(C, dtype=torch.bool)[OTHER] | torch.eye(C, dtype=torch.bool)[2]
SHARES = torch.randn(N, C, generator=torch.Generator().manual_seed(1)).softmax(1)

CASES: dict[str, Callable[..., Tensor]] = {
    "class": lambda z, **options: functional.label_relaxation_loss(z, Y, 0.1, **options),
    "alphas": lambda z, **options: functional.label_relaxation_loss(z, Y, ALPHAS.to(z), **options),
    "weight": lambda z, **options: functional.label_relaxation_loss(z, Y, weight=WEIGHT, **options),
    "set": lambda z, **options: functional.label_relaxation_loss(z, SETS, **options),
    "distribution": lambda z, **options: functional.label_relaxation_loss(z, SHARES, **options),
    "mixture": lambda z, **options: functional.mixup_label_relaxation_loss(z, Y, OTHER, 0.3, **options),
    "mixtures": lambda z, **options: functional.mixup_label_relaxation_loss(z, Y, OTHER, ALPHAS, **options),
    "cross_entropy": lambda z, **options: functional.cross_entropy_loss(z, Y, 0.1, **options),
    "soft": lambda z, **options: functional.cross_entropy_loss(z, SHARES, **options),
    "focal": lambda z, **options: functional.focal_loss(z, Y, **options),
    "dual_focal": lambda z, **options: functional.dual_focal_loss(z, Y, **options),
    "penalty": lambda z, **options: functional.confidence_penalty_loss(z, Y, **options),
    "binary": lambda z, **options: functional.binary_label_relaxation_loss(z, SETS, **options),
}
