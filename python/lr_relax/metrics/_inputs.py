"""Reading the arguments of the metrics: predictions, targets, weights and the options that all share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from lr_relax._arguments import FLOATS

from ._checks import Array, ArrayLike, Floats, as_array, check_choice, check_flag, check_integer
from ._device import can_reduce
from ._predictions import Predictions, PredictionsElsewhere, warn_of_probabilities
from ._targets import class_indices

Task = Literal["multiclass", "binary", "multilabel"]

TASKS = get_args(Task)
MAX_WEIGHT = 2.0**32
"""The largest weight of a row, as in the kernels."""


class Options(TypedDict, total=False):
    """The options that all metrics share; `calibration_error` documents them."""

    task: Task | None
    from_logits: bool
    dim: int | None
    labels: Sequence[Any] | Array | None
    normalize: bool
    ignore_index: int | None


def read(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    sample_weight: Tensor | ArrayLike | None = None,  # not an option: few metrics have it
    /,
    *,
    name: str = "preds",
    task: Task | None = None,
    from_logits: bool = False,
    dim: int | None = None,
    labels: Sequence[Any] | Array | None = None,
    normalize: bool = False,
    ignore_index: int | None = None,
) -> Predictions:
    """Check the arguments of a metric; `name` is that of `preds` in messages."""
    check_options(task=task, from_logits=from_logits, dim=dim, normalize=normalize, ignore_index=ignore_index)
    device = preds.device if isinstance(preds, Tensor) else None
    is_elsewhere = isinstance(preds, Tensor) and not preds.is_cpu
    scores, classes = as_array(name, preds, is_elsewhere), as_array("target", target, is_elsewhere)
    weight = None if sample_weight is None else as_array("sample_weight", sample_weight)
    task, scores, classes, weight = arranged(name, task, scores, classes, weight, dim)
    n_classes = scores.shape[-1] if task == "multiclass" and scores.ndim else 2
    is_one_hot = task == "multiclass" and scores.shape == classes.shape
    if is_elsewhere:
        can_stay = task == "multiclass" and labels is None and not normalize
        if can_stay and isinstance(scores, Tensor) and can_reduce(scores, classes):
            weights = (
                None if weight is None else _weights(weight, classes, tuple(classes.shape), ignore_index)
            )
            return PredictionsElsewhere(scores, classes, weights, from_logits, ignore_index, 0, device, name)
        scores, classes = as_array(name, scores), as_array("target", classes)
    classes, ignore_index = class_indices(classes, n_classes, is_one_hot, labels, ignore_index)
    shape = tuple(classes.shape)
    n_labels = {"multiclass": 0, "binary": 1}.get(task, shape[-1] if shape else 1)
    if n_labels:
        scores, classes = scores.reshape(-1), classes.reshape(-1)
    if normalize:
        check_normalize(from_logits, bool(n_labels))
        scores = _normalized(scores)
    if from_logits:
        warn_of_probabilities(name, scores, classes, ignore_index)
    weights = None if weight is None else _weights(weight, classes, shape, ignore_index)
    return Predictions(scores, classes, weights, bool(from_logits), ignore_index, n_labels, device)


def arranged(
    name: str,
    task: Task | None,
    scores: Any,
    classes: Any,
    weight: Any,
    dim: int | None,
) -> tuple[Task, Any, Any, Any]:
    """The task, and the three arrays with the dimension of the classes or labels at the end."""
    task = task or _task(name, scores, classes)
    if task == "multiclass":
        return task, *_classes_last(name, scores, classes, dim), weight
    return task, *_events(name, task, scores, classes, weight, dim)


def check_options(
    *,
    task: object = None,
    from_logits: object = False,
    dim: object = None,
    labels: object = None,
    normalize: object = False,
    ignore_index: object = None,
) -> None:
    """Check what can be checked without predictions."""
    if task is not None:
        check_choice("task", task, TASKS)
    check_flag("from_logits", from_logits)
    if dim is not None:
        check_integer("dim", dim, -64, 63)
    check_flag("normalize", normalize)
    if ignore_index is not None:
        check_integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)


def _task(name: str, scores: Tensor | Array, classes: Tensor | Array) -> Task:
    """The only possible task; ValueError if several are."""
    if tuple(scores.shape) != tuple(classes.shape):
        return "multiclass"
    if scores.ndim <= 1:
        return "binary"
    raise ValueError(
        f"Expected argument `target` to hold the classes of `{name}`, but got shape {tuple(classes.shape)}, "
        f"that of `{name}`. Pass task='multiclass' if `target` is one-hot, task='binary' if every element is "
        "a binary event, or task='multilabel' for binary events of several labels."
    )


def _classes_last(
    name: str, scores: Tensor | Array, classes: Tensor | Array, dim: int | None
) -> tuple[Tensor | Array, Tensor | Array]:
    """Move the dimension of the classes to the end."""
    shape, n, is_one_hot = tuple(scores.shape), scores.ndim, scores.shape == classes.shape
    if dim is not None:
        dim = check_integer("dim", dim, -n, n - 1) if n else None
    elif n > 2:
        fits = [d for d in (1, n - 1) if is_one_hot or shape[:d] + shape[d + 1 :] == tuple(classes.shape)]
        if len(fits) == 2:
            raise ValueError(
                f"Expected argument `dim`, because the classes of `{name}` of shape {shape} may lie in "
                "dimension 1 or in the last one: pass dim=1, as for `nn.CrossEntropyLoss`, or dim=-1."
            )
        if fits == [1]:
            raise ValueError(
                f"Expected argument `target` to have shape {shape[:-1]}, that of `{name}` without its last "
                f"dimension, but got {tuple(classes.shape)}; pass dim=1 if dimension 1 holds the classes."
            )
    if dim is None:
        return scores, classes
    return _moved(scores, dim), _moved(classes, dim) if is_one_hot else classes


def _events(
    name: str,
    task: str,
    scores: Tensor | Array,
    classes: Tensor | Array,
    weight: Tensor | Array | None,
    dim: int | None,
) -> tuple[Tensor | Array, Tensor | Array, Tensor | Array | None]:
    """Check the shapes of events; move the dimension of several labels to the end."""
    shape = tuple(classes.shape)
    if tuple(scores.shape) != shape:
        hint = ""
        if scores.ndim == classes.ndim + 1 and scores.shape[-1] <= 2:
            hint = f"; pass `{name}[..., {scores.shape[-1] - 1}]`, the probability of class 1"
        raise ValueError(
            f"Expected argument `{name}` to have shape {shape}, that of `target`, with task='{task}', "
            f"but got {tuple(scores.shape)}{hint}."
        )
    if task == "binary":
        if dim is not None:
            raise ValueError(f"Expected argument `dim` to be None for binary events, but got {dim!r}.")
        return scores, classes, weight
    if len(shape) < 2:
        raise ValueError(f"Expected argument `{name}` to have shape (N, K), with K labels, but got {shape}.")
    if len(shape) > 2 and dim is None:
        raise ValueError(
            f"Expected argument `dim`, the dimension of the labels, because `{name}` has shape {shape}."
        )
    dim = -1 if dim is None else check_integer("dim", dim, -len(shape), len(shape) - 1)
    if weight is not None and weight.ndim == len(shape):
        weight = _moved(weight, dim)
    elif weight is not None and tuple(weight.shape) == shape[:dim] + shape[dim:][1:]:  # of whole rows
        whole = tuple(_moved(classes, dim).shape)
        weight = weight[..., None]
        weight = weight.expand(whole) if isinstance(weight, Tensor) else np.broadcast_to(weight, whole)
    return _moved(scores, dim), _moved(classes, dim), weight


def _moved(array: Any, dim: int) -> Any:
    return array.movedim(dim, -1) if isinstance(array, Tensor) else np.moveaxis(array, dim, -1)


def check_normalize(from_logits: bool, is_event: bool) -> None:
    """Refuse to normalize."""
    if from_logits or is_event:
        raise ValueError(
            "Expected argument `normalize` to be False for logits and binary events, but got True."
        )


def _normalized(scores: Tensor | Array) -> Tensor | Array:
    """Probabilities divided by the sum of their row."""
    # Divided by absolute values: rows with a negative sum, as of log-probabilities, stay negative.
    if isinstance(scores, Tensor):
        if scores.dtype not in FLOATS:
            return scores  # the kernel refuses it
        wide = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
        return wide / wide.sum(-1, keepdim=True, dtype=torch.float64).abs().to(wide.dtype)
    if scores.dtype.kind != "f":
        return scores
    with np.errstate(divide="ignore", invalid="ignore"):
        array: Array = scores if scores.dtype.itemsize > 2 else scores.astype(np.float32)
        divided: Array = array / np.abs(array.sum(-1, keepdims=True, dtype=np.float64)).astype(array.dtype)
    return divided


def _weights(
    weight: Tensor | Array, classes: Tensor | Array, shape: tuple[int, ...], ignore_index: int | None
) -> Floats:
    """The weights in double precision; 0 for ignored rows with an invalid one."""
    if isinstance(weight, Tensor):
        is_real, array = not weight.is_complex(), weight.double().numpy() if not weight.is_complex() else None
    else:
        is_real, array = weight.dtype.kind in "fiub" and weight.dtype.itemsize <= 8, weight
    if not is_real or array is None:
        raise TypeError(f"Expected argument `sample_weight` to hold real numbers, but got {weight.dtype}.")
    if tuple(weight.shape) != shape:
        raise ValueError(
            f"Expected argument `sample_weight` to have shape {shape}, that of `target`, "
            f"but got {tuple(weight.shape)}."
        )
    weights = np.ascontiguousarray(array, dtype=np.float64).reshape(-1)
    invalid = ~((weights >= 0) & (weights <= MAX_WEIGHT))
    if ignore_index is not None and invalid.any():
        ignored = invalid & (np.asarray(as_array("target", classes)).reshape(-1) == ignore_index)
        weights, invalid = np.where(ignored, 0, weights), invalid & ~ignored
    if invalid.any():
        row = int(invalid.argmax())
        raise ValueError(
            "Expected argument `sample_weight` to hold numbers in [0, 2^32], "
            f"but got {weights[row]} at row {row}."
        )
    return weights
