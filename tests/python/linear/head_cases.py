"""Every loss of a linear layer, and the same of its logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lr_relax
import torch
from torch import Tensor

N, D, C = 23, 6, 9

generator = torch.Generator().manual_seed(0)
Y = torch.randint(C, (N,), generator=generator)
Y[::5] = -100
OTHER = torch.randint(C, (N,), generator=generator)
SETS = torch.rand(N, C, generator=generator) < 0.3
SETS[range(N), OTHER] = True
SETS[3] = True
SHARES = torch.rand(N, C, generator=generator).softmax(1)
ALPHAS = torch.rand(N, generator=generator) / 2
WEIGHT = torch.rand(C, generator=generator) + 0.5


class Case(NamedTuple):
    of_layer: Callable[..., Tensor]
    of_logits: Callable[..., Tensor]
    targets: tuple[Any, ...]
    options: dict[str, Any]


def case(name: str, *targets: Any, **options: Any) -> Case:
    return Case(getattr(lr_relax, f"linear_{name}_loss"), getattr(lr_relax, f"{name}_loss"), targets, options)


CASES = {
    "class": case("label_relaxation", Y),
    "large alpha": case("label_relaxation", Y, alpha=0.8),
    "alpha 0": case("label_relaxation", Y, alpha=0.0),
    "alphas": case("label_relaxation", Y, alpha=ALPHAS),
    "weighted": case("label_relaxation", Y, weight=WEIGHT),
    "sets": case("label_relaxation", SETS, weight=WEIGHT),
    "distributions": case("label_relaxation", SHARES, alpha=0.4, weight=WEIGHT),
    "mixture": case("mixup_label_relaxation", Y, OTHER, 0.3, weight=WEIGHT),
    "mixtures": case("mixup_label_relaxation", Y, OTHER, 2 * ALPHAS),
    "cross-entropy": case("cross_entropy", Y),
    "smoothing": case("cross_entropy", Y, label_smoothing=0.2, weight=WEIGHT),
    "soft": case("cross_entropy", SHARES, weight=WEIGHT),
    "focal": case("focal", Y, weight=WEIGHT),
    "penalty": case("confidence_penalty", Y, beta=0.3, weight=WEIGHT),
}


def layer(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias, which give logits of which some rows are inside their sets."""
    generator = torch.Generator().manual_seed(1)
    x, w, b = (torch.randn(*shape, generator=generator) for shape in ((N, D), (C, D), (C,)))
    x[::2] = 1.5 * w[Y.clamp_min(0)][::2]
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (x, w, b))  # type: ignore[return-value]
