"""Reading the arguments of the metrics: predictions, targets, weights and the options that all share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from lr_relax import _native
from lr_relax._arguments import FLOATS
from lr_relax._warnings import warn

from ._checks import (
    Array,
    ArrayLike,
    Bools,
    Floats,
    as_array,
    check_choice,
    check_flag,
    check_integer,
    check_not_empty,
    on_device,
)
from ._device import Rows, can_reduce, is_in_top

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


class ProbabilitiesWarning(UserWarning):
    """Every row of what is said to be logits is already a probability distribution."""


@dataclass(frozen=True)
class Predictions:
    """Checked predictions, in the form that the kernels take, which check their values."""

    preds: Tensor | Array
    """(..., C); for events, (N,)."""
    target: Tensor | Array
    """(...); for events, (N,)."""
    weight: Floats | None
    """(N,), of all rows."""
    from_logits: bool
    ignore_index: int | None
    n_labels: int
    """0 for classes, 1 for binary events, K for events of K labels, which alternate."""
    device: torch.device | None
    """The device of the results; None if they are NumPy numbers."""

    @property
    def elsewhere(self) -> Rows | None:
        """The rows, if they are not on the CPU."""
        return None

    @property
    def on_cpu(self) -> Predictions:
        """The same on the CPU."""
        return self

    @property
    def top_events(self) -> Predictions:
        """Predictions on the CPU with the same top labels, perhaps as binary events."""
        return self

    def counted(self) -> Bools | None:
        """A mask of the rows that are not ignored; None if none are."""
        if self.ignore_index is None:
            return None
        rows = self.top_events
        mask: Bools = (np.asarray(rows.target) != rows.ignore_index).reshape(-1)
        return mask

    def of_rows(self, values: Array) -> Array:
        """The values of the rows that are not ignored."""
        counted = self.counted()
        return values if counted is None else values[counted]

    def weights(self) -> Floats | None:
        """The weights of the rows that are not ignored."""
        return None if self.weight is None else self.of_rows(self.weight)

    def top_labels(self) -> tuple[Floats, Bools]:
        """The confidence of each row that is not ignored, and whether its prediction is correct.

        For events, these are the probability of class 1 and whether the target is 1.
        """
        rows = self.top_events
        confidence, outcome = _native.top_labels(rows.preds, rows.target, rows.from_logits, rows.ignore_index)
        confidence, outcome = self.of_rows(confidence), self.of_rows(outcome)
        check_not_empty(len(outcome))
        return confidence, outcome == 1

    def is_correct(self, confidence: Floats, correct: Bools) -> Bools:
        """Whether the predicted class is the target, from the results of `top_labels`.

        Of an event, class 1 is predicted if its probability is above 1/2.
        """
        return (confidence > 0.5) == correct if self.n_labels else correct

    def in_top(self, k: int) -> Bools:
        """Whether the target of each row that is not ignored is among the k most probable classes."""
        self.top_labels()  # checks the values
        preds, target = (
            array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
            for array in (self.preds, self.target)
        )
        # Ignored rows may have any target.
        in_top: Bools = is_in_top(preds, target.long().clamp(0, preds.shape[-1] - 1), k).numpy()
        return self.of_rows(in_top)

    def row_scores(self, name: str) -> Floats:
        """The score of each row that is not ignored, "brier" or "log_likelihood"."""
        return self.of_rows(
            _native.row_scores(self.preds, self.target, self.from_logits, self.ignore_index, name)
        )

    def binned(self, binning: object) -> Predictions:
        """Predictions on the CPU that fall into the same bins of confidence."""
        return self

    def by_label(self) -> list[Predictions]:
        """The events of each label; one element for classes and binary events."""
        if self.n_labels < 2:
            return [self]

        def column(array: Any, k: int) -> Any:
            return None if array is None else array.reshape(-1, self.n_labels)[:, k]

        return [
            replace(
                self,
                preds=column(self.preds, k),
                target=column(self.target, k),
                weight=column(self.weight, k),
                n_labels=1,
            )
            for k in range(self.n_labels)
        ]

    def result(self, value: Any) -> Any:
        """A number or an array in double precision, as a tensor or as NumPy has it."""
        return np.float64(value) if self.device is None else on_device(value, self.device)


@dataclass(frozen=True)
class PredictionsElsewhere(Predictions):
    """Predictions of classes on another device, whose rows are reduced there.

    The kernels get the block itself, as `on_cpu`, where they have to see it.
    """

    preds: Tensor
    target: Tensor
    name: str
    """The argument that held them, for warnings."""

    @cached_property
    def elsewhere(self) -> Rows:
        return Rows(self.preds, self.target, self.from_logits, self.ignore_index)

    @cached_property
    def on_cpu(self) -> Predictions:
        preds, target = as_array(self.name, self.preds), as_array("target", self.target)
        if self.from_logits:
            warn_of_probabilities(self.name, preds, target, self.ignore_index)
        return self._with(preds, target, self.from_logits, self.ignore_index)

    @cached_property
    def top_events(self) -> Predictions:
        return self._events(*self.elsewhere.top_labels()) or self.on_cpu

    def in_top(self, k: int) -> Bools:
        rows = self._events(*self.elsewhere.in_top(k))
        if rows is None:
            return self.on_cpu.in_top(k)
        in_top = rows.of_rows(np.asarray(rows.target) == 1)
        check_not_empty(len(in_top))
        return in_top

    def row_scores(self, name: str) -> Floats:
        if name == "log_likelihood" and not self.from_logits:
            # The kernels take the logarithm.
            return (self._events(*self.elsewhere.of_targets()) or self.on_cpu).row_scores(name)
        found = self.elsewhere.fetched(*self.elsewhere.row_scores(name))
        if not found:
            return self.on_cpu.row_scores(name)
        scores, ignored = found
        floats: Floats = scores[~ignored].double().numpy()
        return floats

    def binned(self, binning: object) -> Predictions:
        # Edges are rounded to the type of the predictions; the softmax of half precision has another one.
        is_same = binning == "quantile" or self.top_events.preds.dtype == self.preds.dtype
        return self.top_events if is_same else self.on_cpu

    def _events(self, divisor: Tensor, probability: Tensor, outcome: Tensor) -> Predictions | None:
        """Binary events on the CPU; None if the kernels have to see the rows."""
        found = self.elsewhere.fetched(divisor, probability, outcome)
        if not found:
            return None
        probability, outcome, ignored = found
        outcome = outcome.to(torch.int8).masked_fill(ignored, -1)
        return self._with(probability.clamp(0, 1), outcome, False, -1)

    def _with(self, preds: Any, target: Any, from_logits: bool, ignore_index: int | None) -> Predictions:
        return Predictions(preds, target, self.weight, from_logits, ignore_index, 0, self.device)


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


def class_indices(
    classes: Tensor | Array,
    n_classes: int,
    is_one_hot: bool,
    labels: Sequence[Any] | Array | None,
    ignore_index: int | None,
) -> tuple[Tensor | Array, int | None]:
    """Targets of any kind as integers, and the one of ignored rows."""
    if labels is not None and is_one_hot:
        raise ValueError("Expected argument `labels` to be None for one-hot targets.")
    if labels is not None:
        classes, ignore_index = _codes(classes, labels, n_classes, ignore_index), -1
    classes = _whole_numbers(classes)
    if n_classes == 2 and classes.dtype in (torch.bool, np.bool_):
        classes = classes * 1
    return _one_hot_classes(classes, ignore_index) if is_one_hot else classes, ignore_index


def _one_hot_classes(classes: Tensor | Array, ignore_index: int | None) -> Array:
    """The classes that one-hot rows encode."""
    if ignore_index is not None:
        raise ValueError("Expected argument `ignore_index` to be None for one-hot targets.")
    rows = np.asarray(classes)
    one_hot = ((rows == 0) | (rows == 1)).all(-1) & (rows.sum(-1) == 1)
    if not one_hot.all():
        raise ValueError(
            "Expected argument `target` to be one-hot, with a single 1 in each row, but row "
            f"{int((~one_hot).reshape(-1).argmax())} is not. Targets that are distributions have no metric."
        )
    labels: Array = rows.argmax(-1)
    return labels


def _codes(classes: Tensor | Array, labels: Any, n_classes: int, ignore_index: int | None) -> Array:
    """The index of each target in `labels`, -1 where it is ignored."""
    names, targets = np.asarray(labels), np.asarray(classes)
    for name, floats, others in (("labels", names, targets), ("target", targets, names)):
        if floats.dtype.kind == "f" and others.dtype.kind in "iu":
            _check_exact(name, floats)
    try:
        order = np.argsort(names)
    except TypeError:
        raise TypeError(
            f"Expected argument `labels` to hold labels of one type, but got {labels!r:.200}."
        ) from None
    if names.ndim != 1 or len(np.unique(names)) != len(names) or len(names) != n_classes:
        raise ValueError(
            f"Expected argument `labels` to hold {n_classes} different labels, one for each class, "
            f"but got {labels!r:.200}."
        )
    try:
        place = order[np.searchsorted(names, targets, sorter=order).clip(max=n_classes - 1)]
        known = names[place] == targets
    except TypeError:
        known = np.zeros(targets.shape, np.bool_)
    ignored = np.zeros(targets.shape, np.bool_) if ignore_index is None else targets == ignore_index
    unknown = ~(known | ignored)
    if unknown.any():
        row = int(unknown.reshape(-1).argmax())
        raise ValueError(
            f"Expected argument `target` to hold only `labels`, but got {targets.reshape(-1)[row]!r} at "
            f"row {row}."
        )
    codes: Array = np.where(ignored, -1, place)
    return codes


def _check_exact(name: str, floats: Array) -> None:
    """Refuse floats that may have been other integers before they were rounded."""
    limit = 2 / np.finfo(floats.dtype).eps
    rounded = np.abs(floats.reshape(-1)) >= limit
    if rounded.any():
        raise ValueError(
            f"Expected argument `{name}` to hold integers or floats below {limit:.0f}, from which on "
            f"{floats.dtype} rounds integers, but got {floats.reshape(-1)[rounded.argmax()]:.0f}."
        )


def _whole_numbers(classes: Tensor | Array) -> Tensor | Array:
    """Targets in floats as integers; TypeError if they are no whole numbers."""
    if isinstance(classes, Tensor):
        if not classes.is_floating_point():
            return classes
        classes = classes.detach().cpu().double().numpy()
    if classes.dtype.kind in "OSU":
        raise TypeError(
            f"Expected argument `target` to hold class indices, but got {classes.dtype}; pass `labels`, "
            "the label of each class."
        )
    if classes.dtype.kind != "f":
        return classes
    broken = ~((classes == np.rint(classes)) & (np.abs(classes) < np.float64(2**53)))
    if broken.any():
        row = int(broken.reshape(-1).argmax())
        raise TypeError(
            f"Expected argument `target` to hold class indices, but got {classes.reshape(-1)[row]} of type "
            f"{classes.dtype} at row {row}."
        )
    return classes.astype(np.int64)


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


def warn_of_probabilities(name: str, scores: Any, classes: Any, ignore_index: int | None) -> None:
    is_float = scores.dtype in FLOATS if isinstance(scores, Tensor) else scores.dtype.kind == "f"
    is_counted = None if ignore_index is None else np.asarray(classes != ignore_index).reshape(-1)
    if is_float and _are_probabilities(scores, is_counted):
        warn(
            f"Every row of `{name}` is a probability distribution, but from_logits=True: pass "
            "from_logits=False for probabilities.",
            ProbabilitiesWarning,
        )


def _are_probabilities(scores: Any, is_counted: Bools | None) -> bool:
    """Whether all of at least 2 rows that count are distributions, or all of at least 32 events in [0, 1]."""
    is_event = scores.ndim == 1
    rows = tuple(scores.shape) if is_event else tuple(scores.shape[:-1])
    n_rows = math.prod(rows)
    if is_counted is not None:
        n_rows = int(is_counted.sum()) if len(is_counted) == n_rows else 0  # the kernel refuses the shape
    if scores.ndim == 0 or n_rows < (32 if is_event else 2) or scores.shape[-1] < 2:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        if is_event:
            fits = (scores >= 0) & (scores <= 1)
        else:
            # Of logits, already the first row is no distribution, nearly always.
            first = np.unravel_index(0 if is_counted is None else int(is_counted.argmax()), rows)
            if not abs(float(scores[first].sum()) - 1) < 5e-3:
                return False
            fits = (scores >= 0).all(-1) & (abs(scores.sum(-1) - 1) < 5e-3)
    fits = np.asarray(fits).reshape(-1)
    return bool((fits if is_counted is None else fits[is_counted]).all())


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
