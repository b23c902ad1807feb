"""The paper's protocol: what of a data set one run is trained and evaluated on.

The paper's code merges a data set's train and test files and splits them anew for every seed: first the test
part is drawn, then, for temperature scaling, 15 % of the rest, then, to choose hyperparameters, a quarter of
what remains for validation. Pixels are scaled to [0, 1] and lose the mean image of what is trained on.
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
VALIDATION_SHARE = 0.25  # of what is left then; the paper says 1/6


class Rows(NamedTuple):
    """The row numbers of the parts, in the order of the paper's code."""

    train: NDArray[np.int64]
    evaluated: NDArray[np.int64]
    scaling: NDArray[np.int64]  # empty without temperature scaling


@dataclass(frozen=True)
class Split:
    """What one run is trained and evaluated on: pixels in [0, 1] minus the mean image, and class indices."""

    train_images: Tensor  # (images, channels, height, width)
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor
    scaling_images: Tensor  # to fit the temperature to; no rows without temperature scaling
    scaling_labels: Tensor
    mean_image: Tensor  # of the training part; zeros if it was not to be subtracted


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
    """Split as the paper's code does: the rows are the same, in the same order, for the same seed.

    Args:
        dataset: What :func:`data.load` returned.
        seed: The random state of the split.
        validation: Set the test part aside and evaluate on a part of the rest, to choose hyperparameters.
        temperature: Set a part aside to fit a temperature to.
        subtract_mean: Subtract the mean image of the training part from all images.
        validation_share: How much of what is not for the test nor the temperature is for validation.
    """
    rows = split_rows(
        len(dataset.labels),
        dataset.test_share,
        seed,
        validation=validation,
        temperature=temperature,
        validation_share=validation_share,
    )
    images = [_scaled(dataset, part) for part in rows]
    mean_image = np.zeros_like(images[0][0])
    if subtract_mean:
        # NumPy's float32 mean, rounding included: what the paper's code subtracts.
        mean_image = images[0].mean(axis=0)
        for part in images:
            part -= mean_image
    train_images, eval_images, scaling_images = map(torch.from_numpy, images)
    train_labels, eval_labels, scaling_labels = (torch.from_numpy(dataset.labels[part]) for part in rows)
    return Split(
        train_images=train_images,
        train_labels=train_labels,
        eval_images=eval_images,
        eval_labels=eval_labels,
        scaling_images=scaling_images,
        scaling_labels=scaling_labels,
        mean_image=torch.from_numpy(mean_image),
    )


def _scaled(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The images of some rows, in [0, 1]; only these are ever in memory as floats."""
    images = dataset.pixels[rows].astype(np.float32)
    images /= dataset.white
    return images
