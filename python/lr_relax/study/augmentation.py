"""The augmentation of the paper's code: every image of a batch is shifted, and half of them are mirrored.

Shifts are continuous and up to a tenth of the size in both directions, interpolated linearly; beyond the
border lies the border's nearest pixel. Images are mirrored left to right, after the shift. All is done to a
whole batch at once, on the device of the batch, after the mean image is subtracted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_SHIFT = 0.1  # of the height, of the width


def augmented(
    images: Tensor, generator: torch.Generator, *, batch: int | None = None, share: slice = slice(None)
) -> Tensor:
    """Shift every image at random and mirror about half of them; the generator decides.

    With a generator of the CPU the result is the same, up to rounding, wherever the images are, and where
    they are only a share of a batch of so many: then each becomes what it becomes in the whole batch.
    """
    size = len(images) if batch is None else batch
    draws = torch.rand(3, size, generator=generator, device=generator.device)[:, share].to(images)
    down, right = (2 * draws[:2] - 1) * LARGEST_SHIFT
    return shifted(images, down * images.shape[-2], right * images.shape[-1], mirrored=draws[2] < 0.5)


def shifted(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Pixel (i, j) of each result is what its image has at (i + down, j + right); then some are mirrored.

    Args:
        images: Of shape (images, channels, height, width).
        down: Pixels, one number for each image.
        right: Likewise.
        mirrored: Which of the images to mirror, bool.
    """
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    # As grid_sample counts, the image's edges, half a pixel beyond its outer pixels, are at -1 and 1.
    y, x = (2 * rows + 1) / height - 1, (2 * columns + 1) / width - 1
    grid = torch.stack([x[:, None, :].expand(n, height, width), y[:, :, None].expand(n, height, width)], -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
