"""The augmentation: beside SciPy image by image, the examples of the paper's code, and its randomness."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lr_relax.study.augmentation import augmented, shifted
from scipy import ndimage

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[2] / "oracle/preprocessing.json").read_text())["augmentation"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(images: np.ndarray, down: np.ndarray, right: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """What Keras calls for each channel of each image: linear interpolation, the nearest pixel outside."""
    results = np.empty_like(images)
    for n, image in enumerate(images):
        for c, channel in enumerate(image):
            moved = ndimage.affine_transform(channel, np.eye(2), [down[n], right[n]], order=1, mode="nearest")
            results[n, c] = moved[:, ::-1] if mirrored[n] else moved
    return results


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 9), (1, 1, 1)])
@pytest.mark.parametrize("largest", [0.1, 2.0])
def test_batch_agrees_with_scipy(shape: tuple[int, int, int], largest: float) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(20, *shape))
    down, right = (rng.uniform(-largest, largest, (2, 20)).T * shape[1:]).T
    mirrored = rng.random(20) < 0.5
    expected = one_by_one(images, down, right, mirrored)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        got = shifted(
            torch.from_numpy(images).to(dtype),
            torch.from_numpy(down).to(dtype),
            torch.from_numpy(right).to(dtype),
            torch.from_numpy(mirrored),
        )
        assert got.dtype == dtype
        assert np.abs(got.numpy() - expected).max() < tolerance


@pytest.mark.parametrize(
    ("example", "right", "mirrored"),
    [("ty=+1.5", 1.5, False), ("ty=-2", -2, False), ("ty=0.25,flip", 0.25, True)],
)
def test_papers_examples(example: str, right: float, mirrored: bool) -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    expected = torch.tensor(ORACLE["ramp_columns_0_to_7"][example])
    got = shifted(ramp, torch.zeros(1), torch.tensor([float(right)]), torch.tensor([mirrored]))
    assert torch.allclose(got, expected.expand(8, 8), atol=1e-5)
    # Likewise down, without the mirror.
    got = shifted(ramp.mT, torch.tensor([float(right)]), torch.zeros(1), torch.tensor([False]))
    expected = expected.flip(0) if mirrored else expected
    assert torch.allclose(got.mT, expected.expand(8, 8), atol=1e-5)


def test_distribution_of_the_draws() -> None:
    """Read off an image whose values tell where they came from."""
    n, size = 20_000, 32
    pixels = torch.arange(float(size))
    position = torch.stack([pixels[:, None].expand(size, size), pixels.expand(size, size)])
    result = augmented(position.expand(n, 2, size, size), seeded())
    rows, columns = result[:, 0, size // 2, :], result[:, 1, :, size // 2]
    down = rows[:, 0] - size // 2
    mirrored = result[:, 1, 0, 4] > result[:, 1, 0, -5]
    right = columns[:, 0] - torch.where(mirrored, size // 2 - 1, size // 2)
    for shift, limits in ((down, ORACLE["tx_range"]), (right, ORACLE["ty_range"])):
        assert shift.abs().max() <= 3.2 + 1e-4
        assert shift.min().item() == pytest.approx(limits[0], abs=0.01)
        assert shift.max().item() == pytest.approx(limits[1], abs=0.01)
        assert shift.mean().abs() < 0.05
        assert shift.std().item() == pytest.approx(3.2 / 3**0.5, rel=0.02)  # of a uniform distribution
        assert (shift - shift.round()).abs().gt(1e-3).double().mean() > 0.99  # continuous
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=0.02)
    together = torch.corrcoef(torch.stack([down, right, mirrored.float()]))
    assert (together - torch.eye(3)).abs().max() < 0.03  # independent
