"""A resident training set gives what the items of `SliceDataset` give, but for 8-bit grey levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boltzformer.data.augmentation import move_slice
from boltzformer.data.case_prompts import NO_VALUE
from boltzformer.data.cases import load_cases
from boltzformer.data.collate import collate_prompts
from boltzformer.data.moves import Move, bends, sampling_matrices
from boltzformer.data.resident import Choice, Draws, ResidentSlices, collate_choices
from boltzformer.data.slice_dataset import Draw, SliceDataset
from boltzformer.data.slice_transforms import ResizeSliced
from boltzformer.errors import InputError
from torch.nn import functional

QUIET = {"progress": False, "num_workers": 1}
GREY_LEVEL = 0.5 / 255 + 1e-6


@pytest.fixture
def phantom_cases(phantom_dir: Path) -> list[dict[str, Any]]:
    return load_cases(phantom_dir)


def plain(dataset: SliceDataset, size: int) -> Draws:
    return Draws(dataset, size, prob=0.0, intensity_prob=0.0)


@pytest.mark.parametrize("size", [64, 48])
@pytest.mark.parametrize("num_adjacent", [0, 1])
def test_without_augmentation_a_batch_is_that_of_the_slice_dataset(phantom_cases, tmp_path, size, num_adjacent):
    arguments = {"training": True, **QUIET, "prompts_per_slice": 3, "negative_share": 0.4, "num_adjacent": num_adjacent}
    data = SliceDataset(phantom_cases, tmp_path, transform=ResizeSliced(size), **arguments)
    data.set_epoch(3)
    draws, slices = plain(data, size), ResidentSlices(data, size, "cpu")
    chosen = list(range(0, len(data), max(1, len(data) // 7)))
    expected = collate_prompts([data[i] for i in chosen])
    image, label, _, extra = slices(collate_choices([draws[i] for i in chosen]))
    assert extra["text"] == expected["text"]
    assert image.shape == expected["image"].shape
    assert label.shape == expected["label"].shape
    if size == data.volumes[0].shape[1]:
        assert (image - expected["image"]).abs().max() <= GREY_LEVEL
        assert torch.equal(label, expected["label"])
    else:  # the low-pass filter differs from block means
        assert (image - expected["image"]).abs().mean() < 0.02
        overlap = 2 * (label * expected["label"]).sum() / (label.sum() + expected["label"].sum())
        assert overlap > 0.9  # objects of a few pixels lie otherwise on the coarser grid
    assert label.flatten(1).any(1).equal(expected["label"].flatten(1).any(1))


def test_a_move_is_that_of_the_augmentation():
    torch.manual_seed(0)
    image = functional.avg_pool2d(torch.rand(1, 1, 42, 50), 3, stride=1)[0]
    height, width = image.shape[-2:]
    offset, factor, degrees = (0.1, -0.05), 1.15, 11.0
    move = Move((height, width), (0, 0), offset, factor, np.deg2rad(degrees))
    matrix = torch.from_numpy(sampling_matrices([move], (height, width)))
    grid = functional.affine_grid(matrix, [1, 1, height, width], align_corners=False)
    moved = functional.grid_sample(image[None], grid, align_corners=False)[0]
    torch.testing.assert_close(moved, move_slice(image, 0, offset, factor, degrees), atol=1e-4, rtol=0)


def test_a_view_larger_than_the_slice_pads_it():
    move = Move((20, 20), (-5, -5))
    matrix = torch.from_numpy(sampling_matrices([move], (10, 10)))
    grid = functional.affine_grid(matrix, [1, 1, 20, 20], align_corners=False)
    seen = functional.grid_sample(torch.ones(1, 1, 10, 10), grid, align_corners=False)[0, 0]
    assert torch.equal(seen, functional.pad(torch.ones(10, 10), (5, 5, 5, 5)))


def test_what_is_foreign_has_an_empty_mask_also_where_every_pixel_has_a_label(phantom_cases, tmp_path):
    data = SliceDataset(phantom_cases, tmp_path, training=True, **QUIET)
    volume = data.volumes[0]
    number, position = 0, int(volume.areas.sum(0).argmax())
    move = Move(volume.shape[1:], (0, 0))
    values = (int(volume.values[0]), NO_VALUE)
    _, label, _, _ = ResidentSlices(data, 32, "cpu")(
        collate_choices([Choice(Draw(number, position, values, ("a", "b"), ("a", "foreign")), move)])
    )
    assert label.shape == (2, 1, 32, 32)
    assert not label[1].any()


def test_augmentation_depends_on_seed_epoch_and_index_alone(phantom_cases, tmp_path):
    data = SliceDataset(phantom_cases, tmp_path, training=True, prompts_per_slice=2, **QUIET)
    draws = Draws(data, 32, gamma=0.2, noise=0.03)
    first, other = draws[5].move, draws[6].move
    assert draws[5].move == first != other
    data.set_epoch(1)
    assert draws[5].move != first


def test_noise_and_intensities_stay_in_range(phantom_cases, tmp_path):
    data = SliceDataset(phantom_cases, tmp_path, training=True, prompts_per_slice=2, **QUIET)
    draws = Draws(data, 32, intensity_prob=1.0, gamma=0.3, noise=0.2, offset=0.3)
    slices = ResidentSlices(data, 32, "cpu")
    batch = collate_choices([draws[i] for i in range(4)])
    image, _, _, _ = slices(batch)
    assert image.min() >= 0
    assert image.max() <= 1
    assert torch.equal(image, slices(batch)[0])


@pytest.mark.parametrize(
    "arguments",
    [{"prob": 1.5}, {"shift": {"*": 1.0}}, {"scale": 1.0}, {"gamma": 1.0}, {"angle": 90.0}, {"noise": -1.0}],
)
def test_bad_arguments_are_named(phantom_cases, tmp_path, arguments):
    data = SliceDataset(phantom_cases, tmp_path, training=True, **QUIET)
    with pytest.raises(InputError, match="Draws"):
        Draws(data, 32, **arguments)


def test_the_body_s_view_is_that_of_the_slice_dataset(phantom_cases, tmp_path):
    sizes = {"pixel_size_mm": [0.2, 50.0], "body_view": True}
    data = SliceDataset(phantom_cases, tmp_path, transform=ResizeSliced(64, **sizes), **QUIET)
    draws = Draws(data, 64, prob=0.0, intensity_prob=0.0, **sizes)
    slices = ResidentSlices(data, 64, "cpu")
    chosen = list(range(0, len(data), max(1, len(data) // 9)))
    choices = [draws[i] for i in chosen]
    image, label, _, _ = slices(collate_choices(choices))
    assert any(c.move.window != data.volumes[c.draw.case].shape[1:] for c in choices)
    for k, i in enumerate(chosen):
        expected = data[i]
        assert (image[k] - expected["image"]).abs().mean() < 0.02
        overlap = 2 * (label[k] * expected["label"]).sum() / (label[k].sum() + expected["label"].sum())
        assert overlap > 0.9


def test_in_training_the_view_is_at_times_looser_than_the_box(phantom_cases, tmp_path):
    data = SliceDataset(phantom_cases, tmp_path, training=True, **QUIET)
    draws = Draws(data, 64, [0.2, 50.0], body_view=True)
    sides = []
    for epoch in range(12):
        data.set_epoch(epoch)
        sides.append(draws[0].move.window[0])
    assert min(sides) < max(sides) <= data.volumes[0].shape[1]
    assert 2 <= sides.count(min(sides)) <= 10  # half of them are the box itself


def test_a_slice_looks_the_same_whatever_else_is_in_its_batch(phantom_cases, tmp_path):
    data = SliceDataset(phantom_cases, tmp_path, training=True, **QUIET)
    slices, side = ResidentSlices(data, 32, "cpu"), data.volumes[0].shape[1]
    drawn, _ = data.draw(0)
    near = Choice(drawn, Move((32, 32), (side // 2 - 16, side // 2 - 16)))
    far = [Choice(drawn, Move((factor * side, factor * side), (0, 0))) for factor in (1, 3)]
    image, label, _, _ = slices(collate_choices([near]))
    images, labels, _, _ = slices(collate_choices([far[0], near, far[1]]))
    assert side > 48
    assert torch.equal(images[1], image[0])
    assert torch.equal(labels[1], label[0])


def test_a_bend_is_smooth_and_reproducible():
    reach = torch.tensor([0.0, 0.02])
    moved = bends(reach, (40, 48), seed=3)
    assert moved.shape == (2, 40, 48, 2)
    assert not moved[0].any()
    assert 0.005 < float(moved[1].abs().max()) <= 0.05  # in a grid of [-1, 1]; bicubic overshoots a little
    assert float((moved[1, 1:] - moved[1, :-1]).abs().max()) < 2 / 40  # it never folds
    assert torch.equal(moved, bends(reach, (40, 48), seed=3))
    assert not torch.equal(moved, bends(reach, (40, 48), seed=4))


@pytest.mark.parametrize("change", [{"warp": 0.05}, {"stretch": 0.3}])
def test_bent_and_stretched_objects_stay_on_their_image(phantom_cases, tmp_path, change):
    data = SliceDataset(phantom_cases, tmp_path, training=True, **QUIET)
    slices = ResidentSlices(data, 64, "cpu")
    plain = Draws(data, 64, prob=0.0, intensity_prob=0.0)
    moved = Draws(data, 64, prob=1.0, shift=0.0, scale=0.0, angle=0.0, intensity_prob=0.0, **change)
    some = list(range(0, len(data), max(1, len(data) // 20)))
    before_image, before, _, _ = slices(collate_choices([plain[i] for i in some]))
    after_image, after, _, _ = slices(collate_choices([moved[i] for i in some]))
    assert not torch.equal(before, after)
    assert not torch.equal(before_image, after_image)

    def brightness(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (image * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    there = (before.flatten(1).sum(1) > 20) & (after.flatten(1).sum(1) > 20)
    assert there.sum() >= 3
    assert torch.allclose(brightness(before_image, before)[there], brightness(after_image, after)[there], atol=0.06)


def test_a_stretch_is_along_the_rows():
    wide = sampling_matrices([Move((20, 30), (0, 0), stretch=1.25)], (20, 30))[0]
    assert wide[0, 0] == pytest.approx(1 / 1.25)
    assert wide[1, 1] == pytest.approx(1)
