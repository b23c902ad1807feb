"""The benchmark's rows: the losses, and the rows of metrics.py and training.py; run.py measures them."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from label_relaxation import label_relaxation_loss as label_relaxation_package
from label_relaxation import mixup_label_relaxation_loss as mixup_package
from lr_relax import RobustDataAmbiguationLoss
from lr_relax.functional import (
    binary_label_relaxation_loss,
    confidence_penalty_loss,
    cross_entropy_loss,
    dual_focal_loss,
    focal_loss,
    label_relaxation_loss,
    mixup_label_relaxation_loss,
)
from torch import Tensor

from heads import HEAD_ROWS
from metrics import METRIC_ROWS
from row import Contender, Inputs, Row
from training import TRAINING_ROWS

TCH_BUILD = Path(__file__).parents[2] / "target" / "tch"
ALPHA = 0.1

Loss = Callable[..., Tensor]  # takes logits and targets


# Inputs; run.py sets the seed.


def classification(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Logits that require a gradient, and class indices."""
    return torch.randn(rows, classes).to(dtype).requires_grad_(), torch.randint(classes, (rows,))


def with_sets(rows: int, classes: int) -> Inputs:
    """With sets of classes: the class and about a tenth of the others."""
    x, y = classification(rows, classes)
    return x, y, (torch.rand(rows, classes) < 0.1).scatter(1, y[:, None], True)


def with_distributions(rows: int, classes: int) -> Inputs:
    """With dense distributions that are far from the predictions, as of a teacher."""
    return *classification(rows, classes), torch.randn(rows, classes).softmax(1)


def with_mixed_rows(rows: int, classes: int) -> Inputs:
    """With the dense distributions of mixup."""
    x, y, other = with_second_class(rows, classes)
    return x, y, 0.3 * F.one_hot(y, classes).float() + 0.7 * F.one_hot(other, classes).float()


def events(rows: int, labels: int) -> Inputs:
    """Logits that require a gradient, one for each of several labels, and which of the labels hold."""
    return torch.randn(rows, labels).requires_grad_(), torch.randint(2, (rows, labels)).float()


def with_second_class(rows: int, classes: int) -> Inputs:
    return *classification(rows, classes), torch.randint(classes, (rows,))


# Contenders.


def step(loss: Loss) -> Contender:
    """Forward and backward; frees the gradient."""

    def run(x: Tensor, *targets: Tensor) -> None:
        loss(x, *targets).backward()  # type: ignore[no-untyped-call]
        x.grad = None

    return run


def compiled(loss: Loss) -> Contender:
    """A compiled loss, forward and backward; compiled by the first call."""
    return step(torch.compile(loss, fullgraph=True, dynamic=False))


def first_target(loss: Loss) -> Loss:
    return lambda x, y, *_: loss(x, y)


def second_target(loss: Loss) -> Loss:
    return lambda x, _, target: loss(x, target)


def of_layer(loss: Loss) -> Loss:
    """The loss of a layer's output, which is not a leaf."""
    return lambda x, *targets: loss(x + 0, *targets)


def no_grad(function: Contender) -> Contender:
    def run(*inputs: Tensor) -> object:
        with torch.no_grad():
            return function(*inputs)

    return run


def paper(logits: Tensor, target: Tensor) -> Tensor:
    """Equations 5 to 7 of the paper in plain PyTorch."""
    p = logits.softmax(1)
    one_hot = F.one_hot(target, logits.shape[1])
    with torch.no_grad():  # the projection is a constant target
        others = p * (1 - one_hot)
        projection = torch.where(one_hot == 1, 1 - ALPHA, ALPHA * p / others.sum(1, keepdim=True))
    divergence = F.kl_div(p.log(), projection, reduction="none").sum(1)
    p_y = (p * one_hot).sum(1)
    return torch.where(p_y >= 1 - ALPHA, 0.0, divergence).mean()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """The focal loss in plain PyTorch."""
    ln_p = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
    return -((1 - ln_p.exp()) ** 2 * ln_p).mean()


def dual_focal(logits: Tensor, target: Tensor) -> Tensor:
    """The dual focal loss in plain PyTorch."""
    ln_p = F.log_softmax(logits, 1)
    p, own = ln_p.exp(), ln_p.gather(1, target[:, None])
    p_j = p.masked_fill(ln_p >= own, 0.0).amax(1)
    return -((1 - own[:, 0].exp() + p_j) ** 5 * own[:, 0]).mean()


def confidence_penalty(logits: Tensor, target: Tensor) -> Tensor:
    """The confidence penalty in plain PyTorch."""
    ln_p = F.log_softmax(logits, 1)
    return F.nll_loss(ln_p, target) + 0.1 * (ln_p.exp() * ln_p).sum(1).mean()


def set_relaxation(logits: Tensor, target: Tensor) -> Tensor:
    """Label relaxation of a set as one writes it in PyTorch."""
    ln_in = logits.masked_fill(~target, -torch.inf).logsumexp(1)
    ln_out = logits.masked_fill(target, -torch.inf).logsumexp(1)
    d = ln_in - ln_out
    losses = (1 - ALPHA) * (math.log(1 - ALPHA) + F.softplus(-d)) + ALPHA * (math.log(ALPHA) + F.softplus(d))
    return torch.where(torch.sigmoid(d) >= 1 - ALPHA, 0.0, losses).mean()


def ambiguation(logits: Tensor, target: Tensor) -> Tensor:
    """Robust data ambiguation in plain PyTorch."""
    p = logits.detach().softmax(1)
    return set_relaxation(logits, (p > 0.75).scatter(1, target[:, None], True))


def pyo3_tch() -> Loss:
    """Label relaxation of the build with pyo3-tch, imported from its folder beside the default build."""

    def remove_modules() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == "lr_relax"]
        return {name: sys.modules.pop(name) for name in names}

    default = remove_modules()
    sys.path.insert(0, str(TCH_BUILD))
    try:
        build = importlib.import_module("lr_relax")
    finally:
        sys.path.remove(str(TCH_BUILD))
        remove_modules()
        sys.modules.update(default)
    assert Path(build.__file__ or "").is_relative_to(TCH_BUILD)
    return partial(build.label_relaxation_loss, alpha=ALPHA)


ours = partial(label_relaxation_loss, alpha=ALPHA)
ours_pyo3_tch = pyo3_tch() if (TCH_BUILD / "lr_relax").is_dir() else None
mixup = partial(mixup_label_relaxation_loss, lam=0.3, alpha=ALPHA)
smoothed = partial(cross_entropy_loss, label_smoothing=0.1)
package = partial(label_relaxation_package, alpha=ALPHA)
package_mixup = partial(mixup_package, lam=0.3, alpha=ALPHA)
torch_smoothed = partial(F.cross_entropy, label_smoothing=0.1)
soft_cross_entropy = second_target(F.cross_entropy)

CLONE = ("logits.clone()", no_grad(lambda x, y: x.clone()))
AMAX = ("logits.amax(1)", no_grad(lambda x, y: x.amax(1)))
CROSS_ENTROPY = ("F.cross_entropy", step(F.cross_entropy))
OTHER_RELAXATIONS = {"label-relaxation": step(package), "paper": step(paper)}
OTHER_BUILD = {"pyo3-tch build": step(ours_pyo3_tch)} if ours_pyo3_tch else {}

# Name, inputs, our loss, target ratio to our label relaxation of a class, name and loss of the closest peer.
OTHER_LOSSES: list[tuple[str, Callable[[int, int], Inputs], Loss, float, str, Loss]] = [
    ("Cross-entropy", classification, cross_entropy_loss, 1.15, "F.cross_entropy", F.cross_entropy),
    ("Label smoothing", classification, smoothed, 1.15, "F.cross_entropy", torch_smoothed),
    ("Focal", classification, focal_loss, 1.3, "torch", focal),
    ("Dual focal", classification, dual_focal_loss, 1.3, "torch", dual_focal),
    ("Confidence penalty", classification, confidence_penalty_loss, 1.15, "torch", confidence_penalty),
    (
        "LR of distributions",
        with_distributions,
        second_target(ours),
        2.0,
        "F.cross_entropy",
        soft_cross_entropy,
    ),
    ("LR of dense mixup", with_mixed_rows, second_target(ours), 2.0, "F.cross_entropy", soft_cross_entropy),
    ("LR of sets", with_sets, second_target(ours), 2.0, "torch", second_target(set_relaxation)),
    ("Mixup LR", with_second_class, mixup, 2.0, "label-relaxation", package_mixup),
]

LOSS_ROWS = [
    Row(
        "LR forward + backward",
        (1024, 32000),
        classification,
        ours=step(ours),
        yardstick=CLONE,
        target=1.0,
        peers={"F.cross_entropy": step(F.cross_entropy), **OTHER_RELAXATIONS},
    ),
    Row(
        "LR forward only",
        (1024, 32000),
        classification,
        ours=no_grad(ours),
        yardstick=AMAX,
        target=1.5,
        peers={"F.cross_entropy": no_grad(F.cross_entropy)},
    ),
    Row(
        "LR forward + backward",
        (4096, 1000),
        classification,
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.45,
        peers={**OTHER_RELAXATIONS, **OTHER_BUILD},
    ),
    Row(
        "LR forward + backward",
        (256, 1000),
        classification,
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.6,
        peers=OTHER_RELAXATIONS,
    ),
    Row(
        "LR forward + backward",
        (64, 10),
        classification,
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.8,
        peers={**OTHER_RELAXATIONS, **OTHER_BUILD},
        threads=1,
    ),
    Row(
        "LR forward + backward",
        (1024, 32000),
        partial(classification, dtype=torch.bfloat16),
        ours=step(ours),
        yardstick=CROSS_ENTROPY,
        target=0.5,
        dtype="bfloat16",
    ),
    *(
        Row(
            f"{name} forward + backward",
            size,
            inputs,
            ours=step(loss),
            yardstick=("our LR", step(first_target(ours))),
            target=target,
            peers={peer_name: step(peer)},
        )
        for size in [(4096, 1000), (1024, 32000)]
        for name, inputs, loss, target, peer_name, peer in OTHER_LOSSES
    ),
    Row(
        "Ambiguation forward + backward",
        (4096, 1000),
        classification,
        ours=step(RobustDataAmbiguationLoss(ALPHA)),
        yardstick=("torch", step(ambiguation)),
        target=0.5,
    ),
    Row(
        "Cross-entropy of distributions forward + backward",
        (4096, 1000),
        with_distributions,
        ours=step(second_target(cross_entropy_loss)),
        yardstick=("F.cross_entropy", step(soft_cross_entropy)),
        target=0.7,
    ),
    *(
        Row(
            "Binary LR forward + backward",
            size,
            events,
            ours=step(binary_label_relaxation_loss),
            yardstick=("F.binary_cross_entropy_with_logits", step(F.binary_cross_entropy_with_logits)),
            target=1.0,
        )
        for size in [(1000, 100), (10000, 1000)]
    ),
    Row(
        "x + 0 and LR in place, forward + backward",
        (1024, 32000),
        classification,
        ours=step(of_layer(partial(ours, inplace=True))),
        yardstick=("not in place", step(of_layer(ours))),
        target=1.0,
    ),
    Row(
        "x + 0 and LR in place, peak extra memory",
        (1024, 32000),
        classification,
        ours=step(of_layer(partial(ours, inplace=True))),
        yardstick=CLONE,
        target=1.05,
        peers={"not in place": step(of_layer(ours))},
        unit="MiB",
    ),
    Row(
        "LR peak extra memory",
        (1024, 32000),
        classification,
        ours=step(ours),
        yardstick=CLONE,  # the size of the logits
        target=1.05,
        peers={"F.cross_entropy": step(F.cross_entropy), "label-relaxation": step(package)},
        unit="MiB",
    ),
]

COMPILED_CROSS_ENTROPY = ("compiled F.cross_entropy", compiled(F.cross_entropy))
COMPILED_ROWS = [
    Row(
        "Compiled LR forward + backward",
        (64, 10),
        classification,
        ours=compiled(ours),
        yardstick=COMPILED_CROSS_ENTROPY,
        target=1.0,
        peers={"our eager LR": step(ours)},
        threads=1,
    ),
    *(
        Row(
            "Compiled LR forward + backward",
            size,
            classification,
            ours=compiled(ours),
            yardstick=("our eager LR", step(ours)),
            target=1.15,
            peers=dict([COMPILED_CROSS_ENTROPY]),
        )
        for size in [(4096, 1000), (1024, 32000)]
    ),
]

# lr-relax keeps the memory of one large gradient by itself. With memory that malloc retains, this is no
# advantage: these rows show the computation alone.
RETAINED_ROWS = [
    replace(row, retain_memory=True) for row in LOSS_ROWS if row.shape == (1024, 32000) and row.unit == "ms"
]

ROWS = [*LOSS_ROWS, *HEAD_ROWS, *COMPILED_ROWS, *RETAINED_ROWS, *METRIC_ROWS, *TRAINING_ROWS]
