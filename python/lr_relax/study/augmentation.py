"""The augmentation of the paper's code: random shifts and horizontal flips.

Shifts are continuous, up to a tenth of the size in both directions, with bilinear interpolation and the
nearest pixel beyond the border. Half of the images are flipped after the shift. A whole batch is augmented at
once, on its device, after the mean image is subtracted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_SHIFT = 0.1  # of the height, of the width


def augmented(
    images: Tensor, generator: torch.Generator, *, batch: int | None = None, share: slice = slice(None)
) -> Tensor:
    """Shift every image at random and flip about half of them.

    With a CPU generator the result is the same, up to rounding, on every device, and for a ``share`` of a
    batch of ``batch`` images: each image becomes what it becomes in the whole batch.
    """
    size = len(images) if batch is None else batch
    draws = torch.rand(3, size, generator=generator, device=generator.device)[:, share].to(images)
    down, right = (2 * draws[:2] - 1) * LARGEST_SHIFT
    return shifted(images, down * images.shape[-2], right * images.shape[-1], mirrored=draws[2] < 0.5)


def shifted(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Shift images (N, C, H, W): pixel (i, j) comes from (i + down, j + right); then flip those ``mirrored``.

    ``down`` and ``right`` have shape (N,), in pixels; ``mirrored`` is a bool tensor (N,).
    """
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    # In grid_sample's coordinates -1 and 1 are the image's edges, half a pixel outside the pixels' centers.
    y, x = (2 * rows + 1) / height - 1, (2 * columns + 1) / width - 1
    grid = torch.stack([x[:, None, :].expand(n, height, width), y[:, :, None].expand(n, height, width)], -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
