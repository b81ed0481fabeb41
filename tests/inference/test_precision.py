"""The shipped network on the sample scans: the default way of computing gives the plain way's masks."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
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
