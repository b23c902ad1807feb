"""The losses of a linear layer as functions."""

from typing import Any

from torch import Tensor

from lr_relax._chunked.loss import loss_of_layer
from lr_relax._options import Options, Reduction
from lr_relax.topk import TopK


def linear_label_relaxation_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | TopK,
    alpha: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Label relaxation of the logits of a linear layer, without ever holding all of them.

    Equivalent to::

        label_relaxation_loss(F.linear(input, linear_weight, linear_bias), target, alpha, reduction)

    The rows are taken chunk by chunk: the logits of a chunk become their gradient in place, and are gone
    after the products that add it to the gradients of `input`, `linear_weight` and `linear_bias`. Rows that
    are ignored take part in no product, rows inside their set in no product of the gradients.

    Args:
        input: The input of the linear layer, (..., d); float16, bfloat16, float32 or float64. Under autocast
            it is cast as for `F.linear`.
        linear_weight: (C, d), C >= 2, of the type of `input`.
        target: Class indices (...), sets or distributions (..., C), as in `label_relaxation_loss`.
        alpha, reduction, weight, ignore_index: As in `label_relaxation_loss`. If `alpha` requires a gradient,
            all logits are computed at once.
        linear_bias: (C,).
        chunk_size: The rows in a chunk. By default so many that their logits take 24 MiB (256 MiB on a GPU),
            but at least 240 (1024), which matrix products need to be fast.
        process_group: For class indices, a group of `torch.distributed` whose processes each hold some of the
            classes: `linear_weight` and `linear_bias` are the slice of this process, in the order of the
            ranks; `input`, `target` and `weight` are the same in all of them. Every process gets the loss,
            the gradient of `input`, and that of its slice. Of a `DTensor`, pass ``to_local()`` and the group
            of its mesh.

    Returns:
        The loss, as `label_relaxation_loss` gives it. The gradients are computed with it, in float32 or
        better where they are sums over rows; for "none", in `backward`, which computes the logits again. For
        what chunks cannot do, as transforms of `torch.func` and gradients of gradients, all logits are
        computed.

    Raises:
        ValueError, TypeError, IndexError: As `label_relaxation_loss`, before anything is computed.

    Source: Lienen & Hüllermeier, AAAI 2021, eq. 5-7; the arguments are those of `F.linear_cross_entropy`.

    >>> x, w = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> linear_label_relaxation_loss(x, w, torch.tensor([0, 0]), reduction="none")
    tensor([0.0018, 0.0000])
    """
    options = Options("label_relaxation", alpha, reduction, -1, ignore_index, weight)
    return loss_of_layer(input, linear_weight, linear_bias, target, options, chunk_size, process_group)


def linear_mixup_label_relaxation_loss(
    input: Tensor,
    linear_weight: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    alpha: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Label relaxation of mixtures of two classes, of the logits of a linear layer.

    Equivalent to, without ever holding all logits::

        logits = F.linear(input, linear_weight, linear_bias)
        mixup_label_relaxation_loss(logits, target_a, target_b, lam, alpha, reduction)

    Args:
        target_a, target_b, lam: As in `mixup_label_relaxation_loss`.
        input, linear_weight, alpha, reduction, linear_bias, weight, ignore_index, chunk_size: As in
            `linear_label_relaxation_loss`, as are the result and the errors.

    Source: as `mixup_label_relaxation_loss`.

    >>> x, a, b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
    >>> linear_mixup_label_relaxation_loss(x, torch.eye(3), a, b, lam=0.5)
    tensor(0.3816)
    """
    for name, value in (("target_b", target_b), ("lam", lam)):
        if value is None:
            raise TypeError(f"Expected argument `{name}` to be given, but got None.")
    options = Options(
        "label_relaxation", alpha, reduction, -1, ignore_index, weight, target_b=target_b, lam=lam
    )
    return loss_of_layer(input, linear_weight, linear_bias, target_a, options, chunk_size, None)


def linear_cross_entropy_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | TopK,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Cross-entropy with label smoothing of the logits of a linear layer.

    Equivalent to, without ever holding all logits::

        cross_entropy_loss(F.linear(input, linear_weight, linear_bias), target, label_smoothing, reduction)

    Args:
        target, label_smoothing: As in `cross_entropy_loss`.
        input, linear_weight, reduction, linear_bias, weight, ignore_index, chunk_size, process_group: As in
            `linear_label_relaxation_loss`, as are the result and the errors.

    Source: as `cross_entropy_loss`.

    >>> linear_cross_entropy_loss(torch.tensor([[2.0, 0.0]]), torch.eye(2), torch.tensor([0]), 0.1)
    tensor(0.2269)
    """
    options = Options("cross_entropy", label_smoothing, reduction, -1, ignore_index, weight)
    return loss_of_layer(input, linear_weight, linear_bias, target, options, chunk_size, process_group)


def linear_focal_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | TopK,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""The focal loss of the logits of a linear layer.

    Equivalent to, without ever holding all logits::

        focal_loss(F.linear(input, linear_weight, linear_bias), target, gamma, reduction)

    Args:
        target, gamma: As in `focal_loss`.
        input, linear_weight, reduction, linear_bias, weight, ignore_index, chunk_size, process_group: As in
            `linear_label_relaxation_loss`, as are the result and the errors.

    Source: as `focal_loss`.

    >>> linear_focal_loss(torch.tensor([[0.0, 0.0]]), torch.eye(2), torch.tensor([0]))
    tensor(0.1733)
    """
    options = Options("focal", gamma, reduction, -1, ignore_index, weight)
    return loss_of_layer(input, linear_weight, linear_bias, target, options, chunk_size, process_group)


def linear_confidence_penalty_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | TopK,
    beta: float = 0.1,
    reduction: Reduction = "mean",
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Cross-entropy minus `beta` times the entropy of the prediction, of the logits of a linear layer.

    Equivalent to, without ever holding all logits::

        confidence_penalty_loss(F.linear(input, linear_weight, linear_bias), target, beta, reduction)

    Args:
        target, beta: As in `confidence_penalty_loss`.
        input, linear_weight, reduction, linear_bias, weight, ignore_index, chunk_size, process_group: As in
            `linear_label_relaxation_loss`, as are the result and the errors.

    Source: as `confidence_penalty_loss`.

    >>> linear_confidence_penalty_loss(torch.tensor([[0.0, 0.0]]), torch.eye(2), torch.tensor([0]))
    tensor(0.6238)
    """
    options = Options("confidence_penalty", beta, reduction, -1, ignore_index, weight)
    return loss_of_layer(input, linear_weight, linear_bias, target, options, chunk_size, process_group)
