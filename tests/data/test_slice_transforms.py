from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.data.slice_transforms import ResizeSliced, harden_mask, resize_image, resize_mask
from boltzformer.errors import InputError
from PIL import Image


def test_shrinking_equals_pillows_antialiased_bilinear():
    image = torch.rand(2, 40, 30, generator=torch.Generator().manual_seed(0))
    result = resize_image(image, (17, 12))
    for channel, expected in zip(image, result, strict=True):
        plain = Image.fromarray(channel.numpy()).resize((12, 17), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(expected, np.asarray(plain), atol=1e-5)


def test_halved_mask_equals_the_plain_count_but_for_ties():
    mask = torch.zeros(1, 64, 64)
    mask[0, 10:41, 7:50] = 1
    coverage = mask[0].numpy().reshape(32, 2, 32, 2).mean(axis=(1, 3))
    result = resize_mask(mask, (32, 32))[0].numpy()
    np.testing.assert_array_equal(result[coverage != 0.5], (coverage > 0.5)[coverage != 0.5])
    ties = result[coverage == 0.5]
    assert abs(ties.mean() - 0.5) <= 0.5 / len(ties) + 0.02


@pytest.mark.parametrize("size", [(20, 20), (33, 47), (80, 80), (32, 90), (150, 170)])
def test_no_single_pixel_vanishes_or_spreads(size):
    for row, column in np.random.default_rng(0).integers(0, 80, (60, 2)).tolist():
        mask = torch.zeros(1, 80, 80)
        mask[0, row, column] = 1
        result = resize_mask(mask, size)[0]
        grown = max(size[0] / 80, 1) * max(size[1] / 80, 1)
        assert 1 <= result.sum() <= max(np.ceil(size[0] / 80) * np.ceil(size[1] / 80), 1.5 * grown)
        centre = torch.nonzero(result).double().mean(0).numpy() + 0.5
        assert np.abs(centre / size * 80 - [row + 0.5, column + 0.5]).max() <= max(80 / min(size), 1)


def test_small_lesions_stay_beside_a_large_one():
    mask = torch.zeros(1, 96, 96)
    mask[0, 40:70, 40:70] = 1
    dots = [(5, 5), (5, 60), (81, 9), (90, 90)]
    for row, column in dots:
        mask[0, row, column] = 1
    result = resize_mask(mask, (32, 32))[0]
    assert all(result[row // 3, column // 3] == 1 for row, column in dots)
    coverage = mask[0].numpy().reshape(32, 3, 32, 3).mean(axis=(1, 3))
    assert result.sum() == np.count_nonzero(coverage > 0.5) + len(dots)


def test_areas_are_kept_on_average():
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(40):
        y, x, radius = *rng.uniform(20, 100, 2), rng.uniform(2, 8)
        grid = torch.arange(120)
        mask = ((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2 < radius**2).float()[None]
        ratios.append(float(4 * resize_mask(mask, (60, 60)).sum() / mask.sum()))
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def test_ties_leave_one_pixel():
    coverage = torch.zeros(1, 8, 8)
    coverage[0, 3:5, 3:5] = 0.25
    assert harden_mask(coverage).sum() == 1
    assert harden_mask(torch.zeros(1, 8, 8)).sum() == 0


def test_transform_resizes_everything_and_nothing_else():
    item = {
        "image": torch.rand(3, 30, 20),
        "label": torch.ones(1, 30, 20),
        "spacing": torch.tensor([1.0, 2.0]),
        "t": 1,
    }
    result = ResizeSliced([60, 10])(item)
    assert result["image"].shape == (3, 60, 10)
    assert torch.equal(result["label"], torch.ones(1, 60, 10))
    assert result["spacing"].tolist() == [0.5, 4.0]
    assert result["t"] == 1
    assert item["image"].shape == (3, 30, 20)
    same = ResizeSliced((30, 20))(item)
    assert torch.equal(same["image"], item["image"])
    assert ResizeSliced(16)({"image": torch.rand(1, 8, 8)})["image"].shape == (1, 16, 16)


@pytest.mark.parametrize("size", [0, [1, 2, 3], [5, -1]])
def test_bad_sizes(size):
    with pytest.raises(InputError, match="spatial_size"):
        ResizeSliced(size)
