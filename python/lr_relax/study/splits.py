"""The paper's protocol: how a run splits a data set into training, evaluation and held-out data.

The paper's code merges a data set's train and test files and splits them again for every seed: first the test
part is drawn, then, for temperature scaling, 15 % of the rest, then, for validation runs, a quarter of what
remains. Pixels are scaled to [0, 1], and the mean image of the training part is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data import Dataset

SCALING_SHARE = 0.15  # of what is not test data


class Rows(NamedTuple):
    """The row numbers of the parts, in the order of the paper's code."""

    train: NDArray[np.int64]
    evaluated: NDArray[np.int64]
    scaling: NDArray[np.int64]  # empty without temperature scaling


@dataclass(frozen=True)
class Split:
    """The data of a run: pixels (N, C, H, W) in [0, 1] minus the mean image, and class indices (N,)."""

    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor
    scaling_images: Tensor  # to fit the temperature to; empty without temperature scaling
    scaling_labels: Tensor
    mean_image: Tensor  # of the training part, or zeros


def split_rows(
    n: int,
    test_share: Fraction,
    seed: int,
    *,
    validation: bool = False,
    temperature: bool = False,
    validation_share: float = 0.25,
) -> Rows:
    """Split ``range(n)`` as the paper's code does: the same rows in the same order for the same seed.

    ``validation`` evaluates on a part of the training data instead of the test data, ``temperature`` holds
    out a part to fit a temperature to.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    train, evaluated = train_test_split(np.arange(n), test_size=float(test_share), random_state=seed)
    scaling = train[:0]
    if temperature:
        train, scaling = train_test_split(train, test_size=SCALING_SHARE, random_state=seed)
    if validation:
        train, evaluated = train_test_split(train, test_size=validation_share, random_state=seed)
    return Rows(train, evaluated, scaling)


def split(dataset: Dataset, seed: int, *, subtract_mean: bool = True, **parts: Any) -> Split:
    """Split a data set with :func:`split_rows`, whose options are ``parts``."""
    rows = split_rows(len(dataset.labels), dataset.test_share, seed, **parts)
    images = [dataset.pixels[part] / np.float32(dataset.white) for part in rows]
    # NumPy's float32 mean, rounding included: what the paper's code subtracts.
    mean_image = images[0].mean(axis=0) if subtract_mean else np.zeros_like(images[0][0])
    tensors: list[Tensor] = []
    for pixels, part in zip(images, rows, strict=True):
        pixels -= mean_image
        tensors += [torch.from_numpy(pixels), torch.from_numpy(dataset.labels[part])]
    tensors.append(torch.from_numpy(mean_image))
    return Split(*tensors)
