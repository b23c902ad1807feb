"""Targets of any kind, one-hot, floats or labels of any type, as class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import Array


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
