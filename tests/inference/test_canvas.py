"""Fields of view beside those of training, through inference and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.data.canvas import canvas_of
from boltzformer.inference.api import Segmenter
from boltzformer.inference.shared_encoding import SharedEncodingInferer
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from monai.data import MetaTensor

from tests.support import BUNDLE, body, save_nifti

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
    images[1] = images[0]
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
