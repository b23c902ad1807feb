"""The paper's protocol: how a run splits a data set into training, evaluation and held-out data.

The paper's code merges a data set's train and test files and splits them again for every seed: first the test
part is drawn, then, for temperature scaling, 15 % of the rest, then, for validation runs, a quarter of what
remains. Pixels are scaled to [0, 1], and the mean image of the training part is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data import Dataset

SCALING_SHARE = 0.15  # of what is not test data
VALIDATION_SHARE = 0.25  # of what remains; the paper says 1/6


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
    validation_share: float = VALIDATION_SHARE,
) -> Rows:
    """Split ``range(n)``; the arguments are those of :func:`split`."""
    from sklearn.model_selection import train_test_split  # takes a second to import

    def draw(rows: NDArray[np.int64], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rest, drawn = train_test_split(rows, test_size=share, random_state=seed)
        return rest, drawn

    train, evaluated = draw(np.arange(n), float(test_share))
    scaling = train[:0]
    if temperature:
        train, scaling = draw(train, SCALING_SHARE)
    if validation:
        train, evaluated = draw(train, validation_share)
    return Rows(train, evaluated, scaling)


def split(
    dataset: Dataset,
    seed: int,
    *,
    validation: bool = False,
    temperature: bool = False,
    subtract_mean: bool = True,
    validation_share: float = VALIDATION_SHARE,
) -> Split:
    """Split as the paper's code does: the same rows in the same order for the same seed.

    ``validation`` evaluates on a part of the training data instead of the test data, ``temperature`` holds
    out a part to fit a temperature to.
    """
    which = {"validation": validation, "temperature": temperature}
    rows = split_rows(
        len(dataset.labels), dataset.test_share, seed, validation_share=validation_share, **which
    )
    images = [dataset.pixels[part].astype(np.float32) for part in rows]
    for part in images:
        part /= dataset.white
    mean_image = np.zeros_like(images[0][0])
    if subtract_mean:
        # NumPy's float32 mean, rounding included: what the paper's code subtracts.
        mean_image = images[0].mean(axis=0)
        for part in images:
            part -= mean_image
    train_images, eval_images, scaling_images = map(torch.from_numpy, images)
    train_labels, eval_labels, scaling_labels = (torch.from_numpy(dataset.labels[part]) for part in rows)
    evaluation = (eval_images, eval_labels, scaling_images, scaling_labels)
    return Split(train_images, train_labels, *evaluation, torch.from_numpy(mean_image))
