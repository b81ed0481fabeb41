from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.data.augmentation import RandSliceAffined, RandSliceViewd, move_slice
from boltzformer.data.slice_transforms import ResizeSliced
from boltzformer.errors import InputError
from monai.transforms import Compose
from scipy import ndimage


def _plain(image: np.ndarray, turns: int, offset: tuple[float, float], factor: float) -> np.ndarray:
    """Reads every pixel at the inverse of: p lands at factor · R p + offset, from the centre."""
    height, width = image.shape
    angle = np.pi / 2 * turns
    # down and right; counter-clockwise on the screen, where rows count downwards
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(factor * rotation)
    centre = (np.array(image.shape) - 1) / 2
    shift = np.array([offset[0] * height, offset[1] * width])
    padded = np.pad(image, 1)  # `grid-constant` of scipy: linear down to 0 over one pixel
    return ndimage.affine_transform(
        padded, inverse, offset=centre - inverse @ (centre + shift) + 1, output_shape=image.shape, order=1
    )


@pytest.mark.parametrize("shape", [(24, 24), (20, 33)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("offset", "factor"), [((0, 0), 1.0), ((0.07, -0.1), 1.0), ((-0.033, 0.02), 0.93), ((0.1, 0.1), 1.1)]
)
def test_equals_a_plain_affine(shape, turns, offset, factor):
    image = np.random.default_rng(turns).random(shape).astype(np.float32)
    result = move_slice(torch.from_numpy(image)[None], turns, offset, factor)[0]
    np.testing.assert_allclose(result, _plain(image, turns, offset, factor), atol=2e-5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_exact(turns):
    image = torch.rand(3, 16, 16)
    assert torch.equal(move_slice(image, turns, (0.0, 0.0), 1.0), torch.rot90(image, turns, (1, 2)))


def _draws(transform: RandSliceAffined, number: int) -> list[tuple[bool, int, float, float, float]]:
    drawn = []
    for _ in range(number):
        transform.randomize()
        drawn.append((transform._do_transform, transform.turns, *transform.offset, transform.factor))
    return drawn


def test_draws_are_those_of_the_paper():
    transform = RandSliceAffined()
    transform.set_random_state(0)
    drawn = np.array(_draws(transform, 4000))
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(np.bincount(drawn[:, 1].astype(int)) / 4000, [0.25] * 4, atol=0.03)
    for column, low, high in ((2, -0.1, 0.1), (3, -0.1, 0.1), (4, 0.9, 1.1)):
        counts, _ = np.histogram(drawn[:, column], 5, (low, high))
        assert counts.sum() == 4000
        np.testing.assert_allclose(counts / 4000, [0.2] * 5, atol=0.03)


def test_label_and_image_move_together_and_small_objects_stay():
    transform = RandSliceAffined(prob=1.0)
    image = torch.zeros(1, 64, 64)
    image[0, 30, 25], image[0, 40:44, 20:24] = 1, 1
    for seed in range(30):
        transform.set_random_state(seed)
        moved = transform({"image": image, "label": image.clone()})
        assert set(moved["label"].unique().tolist()) == {0.0, 1.0}
        assert (moved["image"][moved["label"] > 0] > 0.2).all()
        # the 16 pixels and the single one are both still there
        assert ndimage.label(moved["label"][0].numpy(), np.ones((3, 3)))[1] == 2


def test_spacing_follows_turn_and_scale():
    transform = RandSliceAffined(prob=1.0, shift=0.0)
    item = {"image": torch.rand(1, 8, 8), "spacing": torch.tensor([1.0, 3.0])}
    seen = set()
    for seed in range(20):
        transform.set_random_state(seed)
        spacing = transform(item)["spacing"] * transform.factor
        torch.testing.assert_close(spacing, torch.tensor([3.0, 1.0] if transform.turns % 2 else [1.0, 3.0]))
        seen.add(transform.turns)
    assert seen == {0, 1, 2, 3}


def test_inside_compose_the_seed_decides_and_the_item_is_not_changed():
    compose = Compose([RandSliceAffined(prob=0.7), RandSliceAffined(prob=0.7, turn=False)])
    item = {"image": torch.rand(1, 20, 20), "label": torch.ones(1, 20, 20), "text": "x"}
    before = item["image"].clone()
    results = []
    for seed in (1, 1, 2, 3, 4):
        compose.set_random_state(seed=seed)
        results.append(compose(item))
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert any(not torch.equal(results[0]["image"], other["image"]) for other in results[2:])
    assert torch.equal(item["image"], before)
    assert results[0]["text"] == "x"


def test_probability_zero_passes_the_item_on():
    item = {"image": torch.rand(1, 9, 9)}
    assert RandSliceAffined(prob=0.0)(item)["image"] is item["image"]


@pytest.mark.parametrize("arguments", [{"prob": 1.5}, {"shift": 1.0}, {"scale": -0.1}])
def test_bad_arguments(arguments):
    with pytest.raises(InputError, match="RandSliceAffined"):
        RandSliceAffined(**arguments)


@pytest.mark.parametrize("degrees", [90.0, -90.0])
def test_a_turn_by_any_angle_goes_the_way_of_quarter_turns(degrees):
    image = torch.rand(2, 20, 20)
    moved = move_slice(image, 0, (0.1, -0.05), 1.0, degrees)
    expected = move_slice(image, 1 if degrees > 0 else 3, (0.1, -0.05), 1.0)
    assert torch.allclose(moved, expected, atol=1e-4)


@pytest.mark.parametrize("turns", [0, 3])
def test_small_turns_equal_a_plain_affine(turns):
    image = np.random.default_rng(turns).random((24, 24)).astype(np.float32)
    result = move_slice(torch.from_numpy(image)[None], turns, (0.07, -0.1), 0.93, degrees=12.0)[0]
    np.testing.assert_allclose(result, _plain(image, turns + 12 / 90, (0.07, -0.1), 0.93), atol=1e-4)


def test_several_masks_move_as_each_alone_and_a_dataset_has_its_own_shift():
    item = {"image": torch.rand(1, 32, 32), "label": (torch.rand(3, 32, 32) > 0.9).float(), "dataset": "crops"}
    transform = RandSliceAffined(prob=1.0, shift={"crops": 0.4, "*": 0.0}, scale=0.0, turn=False, angle=10)
    moved = transform.set_random_state(seed=3)(item)
    for k in range(3):
        alone = transform.set_random_state(seed=3)({**item, "label": item["label"][k : k + 1]})
        assert torch.equal(alone["label"], moved["label"][k : k + 1])
    assert max(abs(share) for share in transform.offset) > 0.1
    assert 0 < abs(transform.degrees) <= 10
    transform.set_random_state(seed=3)({**item, "dataset": "other"})
    assert transform.offset == (0.0, 0.0)
    with pytest.raises(InputError, match="45"):
        RandSliceAffined(angle=50)


def _body_with_organ() -> dict[str, torch.Tensor]:
    image, label = torch.zeros(1, 256, 256), torch.zeros(1, 256, 256)
    image[:, 70:180, 60:200] = 0.4
    label[:, 110:130, 90:110] = 1
    return {"image": image, "label": label, "known_spacing": torch.tensor([1.0, 1.0])}


def test_shift_and_scale_move_the_object_within_the_body_s_view():
    view, affine = RandSliceViewd(64, [0.5, 8.0], body_view=True), RandSliceAffined(1.0, 0.1, 0.2, turn=False)
    steps = Compose([view, affine, ResizeSliced(64)])
    sides, columns, factors, offsets = [], [], [], []
    for seed in range(120):
        steps.set_random_state(seed)
        label = steps(_body_with_organ())["label"][0]
        if not view.loosely:
            sides.append(float(label.sum()) ** 0.5)
            columns.append(float(label.nonzero()[:, 1].float().mean()))
            factors.append(affine.factor)
            offsets.append(affine.offset[1])
    assert 40 < len(sides) < 80  # the others are seen from farther away
    assert np.corrcoef(sides, factors)[0, 1] > 0.95
    assert np.std(sides) / np.mean(sides) == pytest.approx(np.std(factors), rel=0.2)
    assert np.polyfit(offsets, columns, 1)[0] == pytest.approx(64, rel=0.15)  # of the view's side


def test_a_slice_without_the_object_is_seen_in_any_of_its_views():
    view, seen = RandSliceViewd(64, [1.0, 2.0]), set()  # views of 128 mm in 256 mm
    view.set_random_state(0)
    for _ in range(60):
        item = _body_with_organ()
        item["image"] = torch.arange(256.0 * 256).view(1, 256, 256)
        item["label"].zero_()
        seen.add(float(view(item)["image"][0, 0, 0]))
    assert len(seen) == 9
    cut = view(_body_with_organ())
    assert cut["label"].sum() == 400
    assert cut["image"].shape == (1, 128, 128)
    assert view({**_body_with_organ(), "known_spacing": torch.tensor([torch.nan] * 2)})["image"].shape[-1] == 256


def test_a_quarter_turn_swaps_the_spacing_that_a_later_resize_goes_by():
    move = RandSliceAffined(prob=1.0, shift=0.0, scale=0.2)
    move.set_random_state(0)
    sizes = torch.tensor([1.0, 3.0])
    for _ in range(8):
        item = move({"image": torch.rand(1, 12, 10), "spacing": sizes, "known_spacing": sizes})
        turned = bool(move.turns % 2)
        assert torch.equal(item["known_spacing"], sizes.flip(0) if turned else sizes)
        assert torch.allclose(item["spacing"], item["known_spacing"] / move.factor)
    assert sizes.tolist() == [1.0, 3.0]
