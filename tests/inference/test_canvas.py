"""Fields of view beside those of training, through inference and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.data.canvas import OUTSIDE, body_box, canvas_of
from boltzformer.data.slice_transforms import resize_image
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.canvas import BodyViews
from boltzformer.inference.shared_encoding import SharedEncodingInferer
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.inference.slices import Slices, blocks_of
from monai.data import MetaTensor

from tests.support import BUNDLE, body, save_nifti, small_network

PROMPTS = ["liver in abdominal CT", "a small nodule"]
RANGE = [1.5, 2.0]  # mm of the grid's pixels; the network's grid has 64


def _volume(mm: float, shape: tuple[int, int, int] = (40, 36, 3)) -> MetaTensor:
    array = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    return MetaTensor(array, affine=torch.diag(torch.tensor([mm, mm, 3.0, 1.0])))


@pytest.mark.parametrize("mm", [1.0, 4.5])
def test_a_slice_is_seen_through_its_canvas(network, mm):
    volume = _volume(mm)
    result = PromptedSliceInferer(PROMPTS, pixel_size_mm=RANGE, precision="plain")(volume, network)
    canvas = canvas_of((40, 36), (mm, mm), network.image_size, (1.5, 2.0))
    assert not canvas.is_whole
    with torch.no_grad():
        image = volume.as_tensor()[..., 1]
        expected = canvas.join([network.segment(view, PROMPTS) for view in canvas.views(image)])
    assert torch.equal(result[0, ..., 1].as_tensor(), expected[0].half())
    whole = PromptedSliceInferer(PROMPTS)(volume, network)
    assert not torch.equal(whole.as_tensor(), result.as_tensor())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nothing_changes_within_the_range_or_without_a_spacing(network, axis):
    shape = [40, 40, 40]
    shape[axis] = 2
    within = _volume(2.6, tuple(shape))
    within.affine[2, 2] = 2.6
    unknown = _volume(0.5, tuple(shape))
    unknown.meta["spacing_known"] = False
    for volume in (within, unknown, within.as_tensor()):
        seen = PromptedSliceInferer(PROMPTS, axis, pixel_size_mm=RANGE)(volume, network)
        plain = PromptedSliceInferer(PROMPTS, axis)(volume, network)
        assert torch.equal(torch.as_tensor(seen), torch.as_tensor(plain))


def test_evaluation_sees_the_same_canvas(network):
    images = torch.rand(4, 1, 40, 36)
    images[1], images[3] = images[0], images[2]  # the last one is the same slice with another spacing
    text = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    spacing = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [torch.nan, torch.nan]])
    with torch.no_grad():
        found = SharedEncodingInferer(RANGE)(images, network, text=text, known_spacing=spacing)
        whole = SharedEncodingInferer()(images, network, text=text, known_spacing=spacing)
    volume = MetaTensor(images[:3].permute(1, 2, 3, 0)[None], affine=torch.eye(4))
    expected = PromptedSliceInferer(PROMPTS, pixel_size_mm=RANGE, precision="plain")(volume, network).as_tensor()
    assert torch.equal(found[0, 0].half(), expected[0, 0, ..., 0])
    assert torch.equal(found[1, 0].half(), expected[0, 1, ..., 1])
    assert torch.equal(found[3], whole[3])
    assert not torch.equal(found[:3], whole[:3])


def test_from_a_file_to_masks_on_its_own_grid(weights, overlay, tmp_path):
    settings = {"window": "soft_tissue", "inferer#pixel_size_mm": RANGE}
    segmenter = Segmenter.from_bundle(BUNDLE, weights, [overlay], device="cpu", **settings)
    plain = Segmenter.from_bundle(BUNDLE, weights, [overlay], device="cpu", window="soft_tissue")
    path = save_nifti(tmp_path / "ct.nii.gz", body(), np.diag([-1.0, -1.0, 2.0, 1.0]))
    masks = segmenter.segment(path, PROMPTS).mask_array
    assert masks.shape == (2, *body().shape)
    assert not np.array_equal(masks, plain.segment(path, PROMPTS).mask_array)
    # a file whose voxel size means nothing, and an array that has none
    unknown = segmenter.segment(path, PROMPTS, spacing_known=False).mask_array
    assert np.array_equal(unknown, plain.segment(path, PROMPTS).mask_array)
    assert np.array_equal(
        segmenter.segment(body(), PROMPTS, modality="CT").mask_array,
        plain.segment(body(), PROMPTS, modality="CT").mask_array,
    )


NEAR = [0.5, 9.0]


def _body(mm: float = 1.0) -> MetaTensor:
    """Bodies of several sizes in a field of air, one slice of them empty."""
    array = torch.zeros(1, 1, 80, 72, 6)
    for i, (row, column, height, width) in enumerate(
        [(20, 20, 30, 30), (10, 30, 44, 20), (0, 0, 80, 72), (40, 40, 8, 8), (21, 20, 30, 30)]
    ):
        place = torch.rand(height, width, generator=torch.Generator().manual_seed(i)) * 0.5 + 0.3
        array[0, 0, row : row + height, column : column + width, i] = place
    return MetaTensor(array, affine=torch.diag(torch.tensor([mm, mm, 3.0, 1.0])))


@pytest.mark.parametrize("precision", ["plain", "float32"])
def test_each_slice_is_seen_through_the_box_of_its_own_body(network, precision):
    volume = _body()
    settings = {"pixel_size_mm": NEAR, "body_view": True, "precision": precision, "skip_blank": False}
    inferer = PromptedSliceInferer(PROMPTS, **settings)
    found = inferer(volume, network)[0].as_tensor()
    again = inferer(volume[..., 3:4], network)[0].as_tensor()
    assert torch.equal(found[..., 3:4], again)  # whatever else is in the volume
    for i in range(volume.shape[-1]):
        image = volume.as_tensor()[..., i]
        canvas = canvas_of((80, 72), (1.0, 1.0), network.image_size, tuple(NEAR), body_box(image[0]))
        with torch.no_grad():
            views = [resize_image(view[0], network.image_size)[None] for view in canvas.views(image)]
            logits = [network.segment(view, PROMPTS) for view in views]
        sized = [torch.nn.functional.interpolate(one, canvas.window, mode="bilinear") for one in logits]
        expected = canvas.join(sized)[0]
        close = {"atol": 0, "rtol": 0} if precision == "plain" else {"atol": 2e-2, "rtol": 1e-2}
        torch.testing.assert_close(found[..., i], expected.half(), **close)
    assert bool((found[..., 0, :, 3] == OUTSIDE).all()), "outside the view a mask is empty"
    far = PromptedSliceInferer(PROMPTS, pixel_size_mm=NEAR, precision=precision)(volume, network)[0].as_tensor()
    assert not torch.equal(far[..., 0], found[..., 0])


@pytest.mark.parametrize(("sizes", "first", "second"), [(NEAR, 0, 1), ([0.5, 0.9], 2, 0)], ids=["one view", "several"])
def test_evaluation_and_inference_see_the_same_bodies(network, sizes, first, second):
    volume = _body()
    images = volume.as_tensor()[0].permute(3, 0, 1, 2)[[first, first, second, 3]]
    counts = BodyViews(images, (1.0, 1.0), network.image_size, tuple(sizes)).counts
    assert counts == ([1, 1, 1, 1] if sizes is NEAR else [4, 4, 1, 1])
    text = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    spacing = torch.tensor([[1.0, 1.0]] * 3 + [[torch.nan, torch.nan]])
    encoded, encode = [], network.encode_image
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "encode_image", lambda views: (encoded.append(len(views)), encode(views))[1])
        found = SharedEncodingInferer(sizes, body_view=True)(images, network, text=text, known_spacing=spacing)
    assert sum(encoded) == sum(counts[1:])  # the second row has the first one's slice
    with torch.no_grad():
        whole = SharedEncodingInferer()(images, network, text=text, known_spacing=spacing)
    settings = {"pixel_size_mm": sizes, "body_view": True, "precision": "plain"}
    expected = PromptedSliceInferer(PROMPTS, **settings)(volume, network).as_tensor()
    for row, (prompt, where) in enumerate([(0, first), (1, first), (0, second)]):
        assert torch.equal(found[row, 0].half(), expected[0, prompt, ..., where])
    assert torch.equal(found[3], whole[3])


@pytest.mark.parametrize("body_view", [False, True])
def test_an_inferer_keeps_nothing_of_an_earlier_volume_or_network(network, body_view):
    settings = {"pixel_size_mm": [0.5, 0.9], "body_view": body_view, "precision": "plain", "progress": False}
    inferer, other = PromptedSliceInferer(PROMPTS, **settings), small_network(seed=7)
    for mm, asked in ((1.0, network), (1.5, network), (1.5, other), (1.0, network)):
        volume = _body(mm)[..., 1:2]
        found = inferer(volume, asked).as_tensor()
        assert torch.equal(found, PromptedSliceInferer(PROMPTS, **settings)(volume, asked).as_tensor())


def test_without_a_spacing_or_a_range_the_body_is_not_looked_for(network):
    volume = _body()
    unknown = _body()
    unknown.meta["spacing_known"] = False
    plain = PromptedSliceInferer(PROMPTS)(volume, network).as_tensor()
    assert torch.equal(PromptedSliceInferer(PROMPTS, body_view=True)(volume, network).as_tensor(), plain)
    seen = PromptedSliceInferer(PROMPTS, pixel_size_mm=NEAR, body_view=True)(unknown, network)
    assert torch.equal(seen.as_tensor(), plain)


def test_of_several_views_the_surest_says_whether_the_object_is_there():
    images = torch.zeros(2, 1, 60, 60)
    images[0, :, 20:30, 20:30] = 0.5  # one view, and a slice that is all body: four views
    images[1] = 0.5
    seen = BodyViews(images, (1.0, 1.0), (16, 16), (1.0, 2.5))
    assert seen.counts == [1, 4]
    assert seen.views.shape == (5, 1, 16, 16)
    scores = torch.tensor([[-1.0, 5.0], [0.0, -3.0], [2.0, -2.0], [1.0, -9.0], [-4.0, -8.0]])
    assert seen.surest(scores).tolist() == [[-1.0, 5.0], [2.0, -2.0]]
    assert seen.of_each(torch.tensor([[True, False], [False, True]])).tolist() == [[True, False]] + [[False, True]] * 4
    joined = seen.joined(torch.stack([torch.full((2, 16, 16), float(k)) for k in range(5)]))
    assert joined.shape == (2, 2, 60, 60)
    assert joined[1].amin() >= 1 - 1e-5
    assert joined[1].amax() <= 4 + 1e-5


@pytest.mark.parametrize(
    ("spacing", "resolution", "blocks"),
    [
        ((1.0, 1.0), 3.9, (4, 4)),
        ((0.5, 1.4), 3.9, (8, 3)),
        ((2.7, 3.9), 3.9, (1, 1)),
        ((9.0, 5.0), 3.9, (1, 1)),
        ((1.0, 1.0), None, (1, 1)),
        ((float("nan"), float("nan")), 3.9, (1, 1)),
    ],
)
def test_so_many_pixels_are_averaged_as_training_had_in_one(spacing, resolution, blocks):
    assert blocks_of(spacing, resolution) == blocks


def test_pixels_that_no_scanner_makes_are_refused_before_any_are_averaged():
    assert blocks_of((0.01, 0.01), 3.9) == (390, 390)  # of a micro-CT
    with pytest.raises(InputError, match="1e-05 x 1 mm: the voxel size in the file cannot be true"):
        blocks_of((1e-5, 1.0), 3.9)


def test_a_block_that_the_border_cuts_keeps_its_place():
    slices = Slices(torch.zeros(1, 6, 4), None, (4, 4))
    found = slices.enlarged(torch.tensor([[[[0.0], [1.0]]]]))
    assert found[0, 0, :, 0].tolist() == pytest.approx([0.0, 0.0, 0.125, 0.375, 0.625, 0.875])


@pytest.mark.parametrize("body_view", [False, True])
def test_a_finer_scan_is_seen_as_coarsely_as_in_training(network, body_view):
    coarse = _body(4.0)
    coarse.array[...] = (coarse.array * 64).round() / 64  # so that means are exact
    fine = MetaTensor(
        coarse.as_tensor().repeat_interleave(4, -3).repeat_interleave(4, -2)[..., 1:-2, :, :],
        affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])),
    )
    settings = {"pixel_size_mm": NEAR, "body_view": body_view, "precision": "plain", "skip_blank": False}
    plain = PromptedSliceInferer(PROMPTS, **settings)(coarse, network)[0].as_tensor().float()
    same = PromptedSliceInferer(PROMPTS, resolution_mm=4.0, **settings)(coarse, network)[0].as_tensor()
    assert torch.equal(same.float(), plain)
    whole = MetaTensor(coarse.as_tensor().repeat_interleave(4, -3).repeat_interleave(4, -2), affine=fine.affine)
    found = PromptedSliceInferer(PROMPTS, resolution_mm=4.0, **settings)(whole, network)[0].as_tensor().float()
    expected = torch.nn.functional.interpolate(
        plain.permute(3, 0, 1, 2), scale_factor=4, mode="bilinear", align_corners=False
    ).permute(1, 2, 3, 0)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=2e-3)  # half precision, before one and after the other
    cut = PromptedSliceInferer(PROMPTS, resolution_mm=4.0, **settings)(fine, network)[0]
    assert cut.shape[1:] == fine.shape[2:]  # no whole number of blocks
    unlike = PromptedSliceInferer(PROMPTS, **settings)(whole, network)[0].as_tensor().float()
    assert not torch.allclose(found, unlike, atol=0.05)


def test_pixels_are_averaged_before_the_window():
    voxels = torch.tensor([[[-1000.0, 1000.0], [0.0, 0.0]]])
    slices = Slices(voxels, (-100.0, 100.0), (1, 2))
    assert slices.size == (2, 1)
    assert slices.windowed(torch.tensor([[0]])).flatten().tolist() == [0.5, 0.5]
    assert slices.enlarged(torch.ones(1, 3, 2, 1)).shape == (1, 3, 2, 2)
    with pytest.raises(InputError, match="resolution_mm"):
        PromptedSliceInferer(resolution_mm=0.0)
