"""The losses as functions, projections onto credal sets, and the test for being inside a set."""

import math
from contextlib import suppress

import torch
from torch import Tensor

from lr_relax import _dispatch
from lr_relax._arguments import (
    also_logits,
    binary_weight,
    check_hyperparameters,
    check_number,
    class_dim,
)
from lr_relax._chunked.loss import loss_of_topk
from lr_relax._options import Options, Reduction
from lr_relax.topk import TopK

__all__ = [
    "binary_label_relaxation_loss",
    "confidence_penalty_loss",
    "credal_projection",
    "cross_entropy_loss",
    "dual_focal_loss",
    "focal_loss",
    "in_credal_set",
    "label_relaxation_loss",
    "mixup_label_relaxation_loss",
]


@also_logits
def label_relaxation_loss(
    input: Tensor,
    target: Tensor | TopK,
    alpha: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    from_logits: bool = True,
    inplace: bool = False,
    uniform_penalty: float = 0.0,
) -> Tensor:
    r"""The divergence of the prediction from the set of distributions with ``p[target] >= 1 - alpha``.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)[range(N), target]
        loss = (1 - alpha) * log((1 - alpha) / p) + alpha * log(alpha / (1 - p))
        where(p >= 1 - alpha, 0, loss).mean()

    Loss and gradient are exactly 0 inside the set. Outside, the gradient is the prediction minus its
    projection onto the set. Both are computed in one pass over the logits, in float32 or better.

    Args:
        input: Logits of shape (..., C), C >= 2, with the classes in dimension `dim`; float16, bfloat16,
            float32 or float64, any strides.
        target: One of

            - class indices in [0, C), in the shape of `input` without the class dimension, any integer type;
            - sets of classes, bool in the shape of `input`, with at least one class per row. The set of
              distributions is ``p[target].sum() >= 1 - alpha``. A row with all classes has loss 0;
            - distributions, floating-point in the shape of `input`, with non-negative rows that sum to 1. The
              set of distributions is ``p >= (1 - alpha) * target``. Rows are divided by their sum, which may
              differ from 1 by 5e-3, as after a softmax in half precision.

            No gradient flows to the target.
        alpha: The imprecision in [0, 1): the probability that the set leaves to the other classes. 0 gives
            cross-entropy; for a distribution the divergence from it, which is smaller by its entropy and has
            the same gradient. A tensor that broadcasts to the rows gives each row its own; it may require a
            gradient.
        reduction: "mean" (over the rows that are not ignored, weighted by `weight`), "sum" or "none".
        dim: The class dimension, by default the last one. Pass 1 for inputs in the layout of
            `nn.CrossEntropyLoss`, (N, C, d1, ...). If the shape of class indices fits both, it must be given.
        ignore_index: Rows with this class index have loss and gradient 0 and are left out of the mean.
        weight: A weight for each class, of shape (C,). The weight of a set is the mean over its classes, that
            of a distribution the expected weight. It may not require a gradient.
        from_logits: Whether `input` holds logits. If False, it holds probabilities, and rows are divided by
            their sum; a row with a negative number, or with only zeros, has loss NaN.
        inplace: Whether to write the gradient over `input`, which saves its memory. The logits are lost:
            autograd raises an error if another operator needs them, and there is no second derivative. Not
            possible for leaves, float16, and tensors that share memory. Has no effect if no gradient is
            computed, in compiled graphs, and where no kernel is used.
        uniform_penalty: A factor b. Outside the set, ``b * (1 - alpha - p[target]) * KL(u || p)`` is added,
            where u is the smoothed target: ``1 - alpha`` for the class, ``alpha / (C - 1)`` for each other
            class. For class indices and alpha > 0 only. An option of the paper's TensorFlow code; it has no
            kernel. A class of probability 0, as of the logit -inf, makes the loss infinite and its gradient
            NaN.

    Returns:
        The loss in nats: a scalar, or for "none" a tensor in the shape of the rows. It is float32 for inputs
        in half precision, else of the type of `input`. A row with NaN or +inf has loss NaN; the mean of no
        rows is NaN, as in `F.cross_entropy`.

    Raises:
        ValueError: If `alpha`, `reduction`, `dim` or a shape is wrong, or if a row of `target` is an empty
            set or not a distribution. The message names the first such row.
        TypeError: If an argument has a wrong type or is not on the device of `input`.
        IndexError: If a class index is out of range. The message names the first one.

        Values in tensors are checked on the CPU, except under `torch.func`.

    Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7; sets as in
    Lienen & Hüllermeier, "Mitigating Label Noise through Data Ambiguation", AAAI 2024.

    >>> label_relaxation_loss(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0]), reduction="none")
    tensor([0.0018, 0.0000])
    """
    dim = _class_dim(input, target, dim)
    options = Options("label_relaxation", alpha, reduction, dim, ignore_index, weight, from_logits, inplace)
    if type(uniform_penalty) in (float, int) and uniform_penalty == 0:
        return _loss(input, target, options)
    check_number(
        "uniform_penalty", "a finite number of at least 0", lambda x: 0 <= x < math.inf, uniform_penalty
    )
    if inplace:
        raise ValueError("Expected argument `inplace` to be False with a `uniform_penalty`.")
    if isinstance(target, TopK):
        raise TypeError(
            "Expected argument `target` to be class indices with a `uniform_penalty`, but got TopK."
        )
    if isinstance(input, Tensor) and input.dtype in (torch.float16, torch.bfloat16):
        input = input.float()  # the gradients of both terms are added before they are rounded
    loss = _dispatch.loss(input, target, options)
    return loss + uniform_penalty * _dispatch.uniform_penalty(input, target, options)


def mixup_label_relaxation_loss(
    logits: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    alpha: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""Label relaxation of inputs that are mixtures of two classes, without a dense target.

    Equivalent to, for logits of shape (N, C)::

        one_hot = lambda target: F.one_hot(target, C).to(logits)
        label_relaxation_loss(logits, lam * one_hot(target_a) + (1 - lam) * one_hot(target_b), alpha)

    The set is ``p[target_a] >= (1 - alpha) * lam`` and ``p[target_b] >= (1 - alpha) * (1 - lam)``. If ``lam``
    is 1 or 0, or both classes are the same, the result equals `label_relaxation_loss` of that class.

    Args:
        target_a, target_b: Class indices in [0, C), in the shape of `logits` without the class dimension.
        lam: The share of `target_a`, in [0, 1]: a number, or a tensor that broadcasts to the rows. No
            gradient flows to it.
        logits, alpha, reduction, dim, ignore_index, weight, inplace: As in
            `label_relaxation_loss`, as are the result and the errors.

    Source: Lienen & Hüllermeier, AAAI 2021, with the targets of Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", ICLR 2018; the same as in the package `label-relaxation`.

    >>> logits, target_a, target_b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
    >>> mixup_label_relaxation_loss(logits, target_a, target_b, lam=0.5)
    tensor(0.3816)
    """
    if target_b is None:
        raise TypeError("Expected argument `target_b` to be a tensor, but got NoneType.")
    if lam is None:
        raise TypeError("Expected argument `lam` to be a number in [0, 1], but got None.")
    dim = class_dim(logits, target_a, dim)
    options = Options(
        "label_relaxation", alpha, reduction, dim, ignore_index, weight, True, inplace, target_b, lam
    )
    return _dispatch.loss(logits, target_a, options)


def binary_label_relaxation_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.1,
    reduction: Reduction = "mean",
    *,
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    from_logits: bool = True,
) -> Tensor:
    r"""Label relaxation of one logit for each event, as for several labels or two classes.

    Equivalent to, for the mean, with the two classes "no" and "yes" of the logits 0 and ``input``::

        logits = stack([zeros_like(input), input], -1)
        label_relaxation_loss(logits, target.long(), alpha, dim=-1)

    For the target 1 the set is ``p >= 1 - alpha``, for the target 0 ``p <= alpha``, with
    ``p = sigmoid(input)``. With alpha 0 it is `F.binary_cross_entropy_with_logits` of these targets.

    Args:
        input: Logits of any shape, such as (N,) or (N, K) for K labels; or probabilities.
        target: 0 or 1, in the shape of `input`, of any type.
        alpha: The imprecision in [0, 1): the probability that the set leaves to the other outcome.
        reduction: "mean" (over all elements, whatever their weights, as in
            `F.binary_cross_entropy_with_logits`), "sum" or "none".
        pos_weight: A factor of the loss where the target is 1; it broadcasts to `input`, as (K,) does.
        weight: A factor of the loss, which broadcasts to `input`. Neither weight may require a gradient. As
            in torch, 0 times an infinite loss, that of an impossible event, is NaN.
        from_logits: Whether `input` holds logits. If False, it holds probabilities of 1; the loss of one
            outside of [0, 1] is NaN.

    Returns:
        The loss in nats: a scalar, or for "none" a tensor in the shape of `input`. It is float32 for inputs
        in half precision, else of the type of `input`.

    Raises:
        ValueError: If `alpha`, `reduction` or a shape is wrong, or if `target` holds another number.
        TypeError: If an argument has a wrong type or is not on the device of `input`.

        The numbers in `target` are checked on the CPU, except under `torch.func`. Elsewhere, the loss of
        another number than 0 and 1 is NaN.

    Source: Lienen & Hüllermeier, AAAI 2021, eq. 5-7, for two classes.

    >>> binary_label_relaxation_loss(torch.tensor([0.0, 3.0]), torch.tensor([1, 1]), reduction="none")
    tensor([0.3681, 0.0000])
    """
    for name, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(tensor).__name__}.")
    if target.shape != input.shape:
        raise ValueError(
            f"Expected argument `target` to have shape {tuple(input.shape)}, that of `input`, "
            f"but got {tuple(target.shape)}."
        )
    weight = None if weight is None else binary_weight(input, weight, "weight")
    if pos_weight is not None:
        pos_weight = binary_weight(input, pos_weight, "pos_weight").where(target == 1, 1.0)
        weight = pos_weight if weight is None else weight * pos_weight
    check_hyperparameters("binary_label_relaxation", alpha, reduction)
    options = Options("binary_label_relaxation", alpha, reduction, -1, -100, None, from_logits)
    if weight is None:
        return _dispatch.loss(input.unsqueeze(-1), target, options)
    losses = weight * _dispatch.loss(input.unsqueeze(-1), target, options._replace(reduction="none"))
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def cross_entropy_loss(
    input: Tensor,
    target: Tensor | TopK,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""Cross-entropy with label smoothing, in one pass over the logits.

    Equivalent to, for logits of shape (N, C)::

        F.cross_entropy(input, target, label_smoothing=label_smoothing)

    including the meaning of `weight` and of "mean". With distributions as target, the sum over the classes of
    ``-weight * target * log_softmax(input)``, the "mean" is over all rows, whatever their weights.

    Args:
        target: Class indices in [0, C), or distributions: floating-point in the shape of `input`, with
            non-negative rows that sum to 1. They have no `ignore_index`; one of at least 0 is refused. No
            gradient flows to them, and where one is 0, so is its term.
        label_smoothing: The part of the target that is spread evenly over all classes, in [0, 1].
        input, reduction, dim, ignore_index, weight, inplace: As in
            `label_relaxation_loss`, as are the result and the errors.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.

    >>> cross_entropy_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 0.1)
    tensor(0.2269)
    """
    dim = _class_dim(input, target, dim)
    options = Options("cross_entropy", label_smoothing, reduction, dim, ignore_index, weight, inplace=inplace)
    return _loss(input, target, options)


def focal_loss(
    input: Tensor,
    target: Tensor | TopK,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""The focal loss: cross-entropy that discounts rows whose class is predicted with confidence.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)[range(N), target]
        (-((1 - p) ** gamma) * log(p)).mean()

    Args:
        target: Class indices in [0, C), or distributions as in `cross_entropy_loss`. The loss of a
            distribution is defined as ``-(target * (1 - p) ** gamma * log(p)).sum(1)`` with
            ``p = softmax(input, 1)``, the expected loss of a class that is drawn from it.
        gamma: How much confident rows are discounted, at least 0; 0 gives cross-entropy.
        input, reduction, dim, ignore_index, weight, inplace: As in
            `label_relaxation_loss`, as are the result and the errors. `weight` is called alpha in the
            paper.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, for a softmax; on its
    effect on calibration: Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020.

    >>> focal_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.1733)
    """
    dim = _class_dim(input, target, dim)
    options = Options("focal", gamma, reduction, dim, ignore_index, weight, inplace=inplace)
    return _loss(input, target, options)


def dual_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 5.0,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""The dual focal loss: the focal loss with the class next below the target in probability.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)
        p_y = p[range(N), target]
        p_j = where(p < p_y[:, None], p, 0).max(1).values
        (-((1 - p_y + p_j) ** gamma) * log(p_y)).mean()

    Training enlarges the gap between the two classes, which counters the underconfidence that the focal loss
    can cause.

    Args:
        target: Class indices in [0, C).
        gamma: How much confident rows are discounted, at least 0; 0 gives cross-entropy.
        input, reduction, dim, ignore_index, weight, inplace: As in
            `label_relaxation_loss`, as are the result and the errors.

    Source: Tao, Dong and Xu, "Dual Focal Loss for Calibration", ICML 2023.

    >>> dual_focal_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), gamma=2.0)
    tensor(0.1733)
    """
    dim = class_dim(input, target, dim)
    options = Options("dual_focal", gamma, reduction, dim, ignore_index, weight, inplace=inplace)
    return _dispatch.loss(input, target, options)


def confidence_penalty_loss(
    input: Tensor,
    target: Tensor | TopK,
    beta: float = 0.1,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""Cross-entropy minus `beta` times the entropy of the prediction.

    Equivalent to, for logits of shape (N, C) and the mean::

        p = softmax(input, 1)
        (-log(p[range(N), target]) + beta * (p * log(p)).sum(1)).mean()

    Args:
        target: Class indices in [0, C), or distributions as in `cross_entropy_loss`; the first term is the
            cross-entropy with them. `weight` scales the entropy by the expected weight of the row.
        beta: The factor of the entropy, at least 0; 0 gives cross-entropy.
        input, reduction, dim, ignore_index, weight, inplace: As in
            `label_relaxation_loss`, as are the result and the errors.

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017,
    section 3.

    >>> confidence_penalty_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6238)
    """
    dim = _class_dim(input, target, dim)
    options = Options("confidence_penalty", beta, reduction, dim, ignore_index, weight, inplace=inplace)
    return _loss(input, target, options)


def credal_projection(
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor = 0.1,
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    from_logits: bool = True,
) -> Tensor:
    r"""The distribution in the target's set that is nearest to the prediction.

    Equivalent to, for one row with ``p = softmax(input)`` and a class as target::

        q = where(arange(C) == target, 1 - alpha, alpha * p / (1 - p[target]))
        where(p[target] >= 1 - alpha, p, q)

    The distance is the Kullback-Leibler divergence ``KL(q || p)``. Its value at the projection q is
    `label_relaxation_loss`, and the gradient of that loss with respect to the logits is ``p - q``.

    Args:
        input, target, alpha, dim, from_logits: As in `label_relaxation_loss`.
        ignore_index: Rows with this class are their own projection.

    Returns:
        Probabilities in the shape of `input`, float32 for inputs in half precision. Rows without a
        projection, such as those with NaN, are NaN.

    Raises:
        The errors of `label_relaxation_loss`.

    Source: Lienen & Hüllermeier, AAAI 2021, Proposition 1; for distributions by water-filling.

    >>> credal_projection(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([0]), 0.1, from_logits=False)
    tensor([[0.9000, 0.0600, 0.0400]])
    """
    dim = class_dim(input, target, dim)
    options = Options("label_relaxation", alpha, "none", dim, ignore_index, None, from_logits)
    return _dispatch.projection(input, target, options)


def in_credal_set(
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor = 0.1,
    *,
    dim: int | None = None,
    ignore_index: int = -100,
    from_logits: bool = True,
) -> Tensor:
    r"""Marks predictions inside the target's set of distributions, where the loss is 0.

    Equivalent to, for logits of shape (N, C) and class indices::

        softmax(input, 1)[range(N), target] >= 1 - alpha

    Args:
        input, target, alpha, dim, from_logits: As in `label_relaxation_loss`.
        ignore_index: Rows with this class index are marked.

    Returns:
        A bool tensor in the shape of the rows; False for rows with NaN.

    Raises:
        The errors of `label_relaxation_loss`.

    Source: Lienen & Hüllermeier, AAAI 2021, eq. 5.

    >>> p = torch.tensor([[0.5, 0.3, 0.2], [0.95, 0.05, 0.0]])
    >>> in_credal_set(p, torch.tensor([0, 0]), from_logits=False)
    tensor([False,  True])
    """
    alpha = alpha.detach() if isinstance(alpha, Tensor) else alpha
    dim = class_dim(input, target, dim)
    options = Options("label_relaxation", alpha, "none", dim, ignore_index, None, from_logits)
    if isinstance(input, Tensor) and isinstance(target, Tensor):
        input = input.detach()
        if target.is_floating_point() and input.is_floating_point():
            # Sums in float32 have errors of 1e-7 near the boundary. Some devices have no float64.
            with suppress(TypeError, RuntimeError):
                input = input.double()
    return _dispatch.loss(input, target, options) == 0


def _loss(input: Tensor, target: Tensor | TopK, options: Options) -> Tensor:
    if isinstance(target, TopK):
        return loss_of_topk(input, target, options)
    return _dispatch.loss(input, target, options)


def _class_dim(input: Tensor, target: Tensor | TopK, dim: int | None) -> int:
    return class_dim(input, target.indices[..., 0] if isinstance(target, TopK) else target, dim)
