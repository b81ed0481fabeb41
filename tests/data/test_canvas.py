"""Views of a slice at a size in mm that the network knows, and the way back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from boltzformer.data.canvas import OUTSIDE, OVERLAP, body_box, body_boxes, canvas_of, check_pixel_sizes
from boltzformer.data.slice_transforms import ResizeSliced
from boltzformer.errors import InputError

RANGE = (1.9, 2.8)
GRID = (256, 256)
FIELDS = [  # pixels, mm: padded, whole, padded along one axis, cut into views, and both
    ((512, 512), (0.5, 0.5)),
    ((512, 512), (1.0, 1.0)),
    ((128, 128), (4.5, 4.5)),
    ((101, 512), (1.0, 1.0)),
    ((700, 900), (1.1, 1.3)),
    ((33, 1500), (2.0, 1.0)),
]


@pytest.mark.parametrize(("size", "spacing"), FIELDS)
def test_every_view_has_a_size_that_the_network_knows(size, spacing):
    canvas = canvas_of(size, spacing, GRID, RANGE)
    for pixels, mm in zip(canvas.window, spacing, strict=True):
        assert RANGE[0] * 0.99 <= pixels * mm / 256 <= RANGE[1] * 1.01


@pytest.mark.parametrize(("size", "spacing"), FIELDS)
def test_what_goes_in_comes_back_on_the_slice_s_own_pixels(size, spacing):
    image = torch.rand(2, 1, *size)
    canvas = canvas_of(size, spacing, GRID, RANGE)
    back = canvas.join(canvas.views(image))
    if len(canvas.rows) * len(canvas.columns) == 1:
        assert torch.equal(back, image)
    assert torch.allclose(back, image, atol=1e-6)


def test_the_padding_is_empty_and_around_the_slice():
    canvas = canvas_of((512, 512), (0.5, 0.5), GRID, RANGE)
    (view,) = canvas.views(torch.ones(1, 512, 512))
    assert view.shape[-1] == canvas.window[0] == round(1.9 * 256 / 0.5)
    assert view.sum() == 512 * 512
    assert view[..., 231:-231, 231:-231].sum() >= 510 * 510


def test_views_cover_the_slice_and_overlap():
    canvas = canvas_of((700, 900), (1.5, 1.5), GRID, RANGE)
    for starts, length, pixels in zip((canvas.rows, canvas.columns), canvas.window, canvas.size, strict=True):
        assert starts[0] == 0
        assert starts[-1] + length == pixels
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert max(steps) <= length * (1 - OVERLAP) + 1


@pytest.mark.parametrize("pixel_size", [None, RANGE])
def test_off_without_a_range_and_without_a_known_spacing(pixel_size):
    spacing = (0.2, 0.2) if pixel_size is None else (math.nan, math.nan)
    image = torch.rand(1, 30, 20)
    canvas = canvas_of((30, 20), spacing, GRID, pixel_size)
    assert canvas.is_whole
    assert canvas.views(image)[0] is image


@pytest.mark.parametrize("value", [0, -1, [3, 2], [1, 2, 3], ["a", 2], [1, 1000], [math.nan, 2]])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="pixel_size_mm"):
        check_pixel_sizes(value)


def test_training_sees_the_same_padding():
    item = {
        "image": torch.ones(1, 64, 64),
        "label": torch.ones(1, 64, 64),
        "spacing": torch.tensor([1.0, 1.0]),
        "known_spacing": torch.tensor([1.0, 1.0]),
    }
    resized = ResizeSliced(32, pixel_size_mm=[4.0, 5.0])(item)
    assert resized["image"].shape[-1] == 32
    assert resized["spacing"].tolist() == [4.0, 4.0]
    assert resized["label"].sum() == 16 * 16  # half of each side
    plain = ResizeSliced(32)(item)
    assert plain["label"].sum() == 32 * 32
    unknown = {**item, "known_spacing": torch.tensor([math.nan, math.nan])}
    assert ResizeSliced(32, pixel_size_mm=[4.0, 5.0])(unknown)["label"].sum() == 32 * 32


def test_training_takes_the_view_with_the_object():
    label = torch.zeros(1, 100, 100)
    label[0, 90:, 90:] = 1
    item = {"image": label.clone(), "label": label, "known_spacing": torch.tensor([2.0, 2.0])}
    seen = ResizeSliced(32, pixel_size_mm=[1.0, 2.0])(item)  # views of 64 mm in a slice of 200 mm
    assert seen["label"].sum() > 0
    assert torch.equal(seen["label"] > 0, seen["image"] >= 0.5)


def _slice(size: tuple[int, int], box: tuple[int, int, int, int], value: float = 0.4) -> torch.Tensor:
    image = torch.zeros(1, *size)
    image[:, box[0] : box[2], box[1] : box[3]] = value
    return image


@pytest.mark.parametrize("scale", [1, 4])
def test_the_box_of_the_body_holds_all_of_it_and_little_more(scale):
    box = tuple(scale * edge for edge in (30, 41, 75, 90))
    image = _slice((128 * scale, 120 * scale), box)
    found = body_box(image)
    assert all(inner - 2 * scale < outer <= inner for inner, outer in zip(box[:2], found[:2], strict=True))
    assert all(inner <= outer < inner + 2 * scale for inner, outer in zip(box[2:], found[2:], strict=True))
    fat = _slice((128 * scale, 120 * scale), box, 0.15)
    assert body_box(fat) == found
    image[:, 110 * scale, 10 * scale] = 1  # a speck beside it, of one pixel
    assert scale == 1 or body_box(image) == found
    near = torch.cat((image, torch.zeros_like(image), _slice(image.shape[-2:], (0, 0, 8 * scale, 8 * scale))))
    assert body_box(near)[:2] == (0, 0)  # of the neighbours that go in as channels, too
    assert body_box(torch.zeros(1, 40, 40)) is None
    assert body_boxes(torch.stack((image, fat))) == [body_box(image), body_box(fat)]


@pytest.mark.parametrize(
    ("mm", "box"), [(1.0, (200, 150, 380, 330)), (4.0, (40, 40, 80, 100)), (0.9, (10, 30, 500, 490))]
)
def test_the_view_is_as_near_as_the_body_and_the_smallest_pixels_allow(mm, box):
    size = (512, 512) if mm < 2 else (128, 128)
    canvas = canvas_of(size, (mm, mm), GRID, (1.0, 2.75), box)
    whole = canvas_of(size, (mm, mm), GRID, (1.0, 2.75))
    assert canvas.window[0] <= whole.window[0]
    assert canvas.window[0] == canvas.window[1]  # square pixels
    assert canvas.window[0] * mm / 256 >= 0.99
    assert canvas.rows[0] <= box[0]
    assert canvas.rows[0] + canvas.window[0] >= box[2]
    assert canvas.columns[0] <= box[1]
    assert canvas.columns[0] + canvas.window[1] >= box[3]
    need = max(box[2] - box[0], box[3] - box[1]) * mm / 256
    assert canvas.window[0] * mm / 256 <= max(1.01, need * 1.1, 0.99 * min(need * 1.1, whole.window[0] * mm / 256))
    sides = [canvas_of(size, (mm, mm), GRID, (1.0, 2.75), box, loosely).window[0] for loosely in (0, 0.3, 0.7, 1)]
    assert sides == sorted(sides)
    assert sides[-1] == whole.window[0]


def test_outside_the_view_of_a_body_nothing_can_be_found():
    image = _slice((128, 128), (40, 40, 80, 100))
    canvas = canvas_of((128, 128), (4.0, 4.0), GRID, (1.0, 2.75), (40, 40, 80, 100))
    (view,) = canvas.views(image)
    back = canvas.join([view])
    assert view.shape[-2:] == canvas.window
    assert float(back[back > OUTSIDE].sum()) == pytest.approx(float(image.sum()))
    assert torch.equal(back[:, 40:80, 40:100], image[:, 40:80, 40:100])
    assert bool((back[:, :20] == OUTSIDE).all())
    assert torch.sigmoid(back[0, 0, 0]) < 1e-6
    assert canvas_of((128, 128), (math.nan, 4.0), GRID, (1.0, 2.75), (40, 40, 80, 100)).is_whole


def test_training_sees_the_body_alone():
    item = {"image": _slice((128, 128), (40, 40, 80, 100)), "label": _slice((128, 128), (50, 50, 60, 60), 1.0)}
    item |= {"spacing": torch.tensor([4.0, 4.0]), "known_spacing": torch.tensor([4.0, 4.0])}
    near = ResizeSliced(64, pixel_size_mm=[1.0, 9.0], body_view=True)(item)
    far = ResizeSliced(64, pixel_size_mm=[1.0, 9.0])(item)
    grown = float(near["label"].sum() / far["label"].sum())
    ratio = float((far["spacing"] / near["spacing"]).prod())
    assert grown == pytest.approx(ratio, rel=0.15)
    assert near["spacing"][0] == pytest.approx(60 * 4 * 1.08 / 64, rel=0.05)


def test_a_body_that_the_field_cuts_off_is_seen_as_what_it_is_part_of():
    box = (0, 100, 512, 400)
    cut = canvas_of((512, 512), (0.5, 0.5), GRID, (1.0, 2.75), box)
    assert cut.window[0] * 0.5 / 256 == pytest.approx(math.sqrt(2.75), rel=0.01)
    assert cut.window[0] > 512  # from farther away than the slice reaches
    (view,) = cut.views(torch.ones(1, 512, 512))
    assert view.shape[-2:] == cut.window
    assert torch.equal(cut.join([view]), torch.ones(1, 512, 512))
    inside = canvas_of((512, 512), (0.5, 0.5), GRID, (1.0, 2.75), (8, 100, 512, 400))
    assert inside.window[0] * 0.5 / 256 == pytest.approx(1.0, rel=0.1)
    wide = canvas_of((512, 512), (1.0, 1.0), GRID, (1.0, 2.75), (100, 0, 300, 512))
    assert wide.is_whole  # 512 mm are seen with large enough pixels as they are


@pytest.mark.parametrize("mm", [542.0, 0.0005])
def test_a_voxel_size_that_cannot_be_true_takes_no_memory(mm):
    with pytest.raises(InputError, match="cannot be true"):
        canvas_of((128, 128), (mm, mm), GRID, RANGE)
