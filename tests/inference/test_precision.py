"""The shipped network on the sample scans: the default way of computing gives the plain way's masks."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.inference.api import Segmenter

from tests.support import BUNDLE

PROMPTS = ["mandible in head and neck CT", "brainstem in head and neck CT", "lung nodule in chest CT"]


@pytest.mark.parametrize(("name", "step", "window"), [("head_neck_ct", 16, None), ("lung_nodule_crop", 1, [0, 255])])
def test_masks_of_the_samples_are_those_of_the_plain_path(name, step, window):
    image = nib.load(BUNDLE / "samples" / f"{name}.nii.gz")
    voxels = np.asarray(image.dataobj)[..., ::step]
    # the size of the crop's voxels is not known, and the network learned such crops as they are
    affine = None if window else image.affine @ np.diag([1, 1, step, 1])
    plain, default = (
        Segmenter.load(device="cpu", precision=precision)
        .segment(voxels, PROMPTS, affine, modality="CT", window=window)
        .mask_array
        for precision in ("plain", "float32")
    )
    found = plain.sum(axis=(1, 2, 3)) + default.sum(axis=(1, 2, 3))
    dice = 2 * (plain & default).sum(axis=(1, 2, 3))[found > 0] / found[found > 0]
    assert found.any()
    assert (dice >= 0.998).all()


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ],
)
def test_autocast_which_is_the_default_on_a_gpu_gives_nearly_the_same_masks(device):
    image = nib.load(BUNDLE / "samples" / "head_neck_ct.nii.gz")
    voxels, affine = np.asarray(image.dataobj)[..., ::8], image.affine @ np.diag([1, 1, 8, 1])
    exact, lower = (
        Segmenter.load(device=place, amp=amp, agreement_mm=20.0, coarse_mm=0.0)  # slices are 24 mm apart here
        .segment(voxels, PROMPTS[:2], affine, modality="CT")
        .mask_array
        for place, amp in (("cpu", False), (device, True))
    )
    common = (exact & lower).sum(axis=(1, 2, 3))
    dice = 2 * common / (exact.sum(axis=(1, 2, 3)) + lower.sum(axis=(1, 2, 3)))
    assert (common > 0).all()
    assert (dice > 0.97).all()
