"""Masks come back as the kind of image that was given, with the same voxels."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from boltzformer import Segmenter
from boltzformer.errors import InputError
from boltzformer.inference import api
from monai.data import MetaTensor

from tests.support import BUNDLE, body, save_nifti

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])  # LPS, as SimpleITK images are made


@pytest.fixture(scope="module")
def array():
    return body((24, 20, 4))


@pytest.fixture(scope="module")
def expected(segmenter, array):
    mask = segmenter.segment(array, "liver", AFFINE, modality="CT").masks["liver"]
    assert isinstance(mask, np.ndarray)
    assert 0 < mask.sum() < mask.size
    return mask


def test_a_path_gives_an_array(segmenter, array, expected, tmp_path):
    path = save_nifti(tmp_path / "ct.nii.gz", array, AFFINE)
    assert np.array_equal(segmenter.segment(str(path), "liver").masks["liver"], expected)


def test_a_metatensor_gives_a_metatensor(segmenter, array, expected):
    given = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(AFFINE))
    mask = segmenter.segment(given, "liver").masks["liver"]
    assert isinstance(mask, MetaTensor)
    assert mask.shape == given.shape
    assert torch.equal(mask.affine, given.affine)
    assert np.array_equal(mask[0].numpy(), expected)


def test_a_tensor_gives_a_tensor(segmenter, array, expected):
    mask = segmenter.segment(torch.from_numpy(array), "liver", AFFINE).masks["liver"]
    assert type(mask) is torch.Tensor
    assert np.array_equal(mask.numpy(), expected)


def test_a_simpleitk_image_with_a_fourth_axis_gives_one(segmenter, array, expected):
    given = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    given.SetSpacing((1.0, 1.0, 3.0))
    given = sitk.JoinSeries([given])
    mask = segmenter.segment(given, "liver").masks["liver"]
    assert mask.GetSize() == given.GetSize()
    assert np.array_equal(sitk.GetArrayFromImage(mask)[0].transpose(2, 1, 0), expected)


def test_a_simpleitk_image_gives_one(segmenter, array, expected):
    given = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    given.SetSpacing((1.0, 1.0, 3.0))
    mask = segmenter.segment(given, "liver").masks["liver"]
    assert isinstance(mask, sitk.Image)
    assert (mask.GetSpacing(), mask.GetOrigin(), mask.GetDirection()) == (
        given.GetSpacing(),
        given.GetOrigin(),
        given.GetDirection(),
    )
    assert np.array_equal(sitk.GetArrayFromImage(mask).transpose(2, 1, 0), expected)


def test_a_nibabel_image_gives_one_also_with_a_scaling_of_its_own(segmenter, array, expected, tmp_path):
    made = nib.Nifti1Image((array + 1024).astype(np.int16), AFFINE)  # the file holds array + 1024 and says so
    made.header.set_slope_inter(1.0, -1024.0)
    nib.save(made, tmp_path / "scaled.nii")
    given = nib.load(tmp_path / "scaled.nii")
    assert np.array_equal(given.get_fdata(), array)
    mask = segmenter.segment(given, "liver").masks["liver"]
    assert isinstance(mask, nib.Nifti1Image)
    assert np.array_equal(mask.affine, given.affine)
    nib.save(mask, tmp_path / "mask.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), expected)


def test_load_takes_the_shipped_weights_or_says_that_there_are_none(monkeypatch, tmp_path, weights, overlay):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "configs").symlink_to(BUNDLE / "configs")
    monkeypatch.setattr(api, "BUNDLE_DIR", tmp_path / "bundle")
    with pytest.raises(InputError, match=r"models.model\.pt"):
        Segmenter.load(device="cpu", overlays=[overlay])
    (tmp_path / "bundle" / "models").mkdir()
    (tmp_path / "bundle" / "models" / "model.pt").symlink_to(weights)
    loaded = Segmenter.load(device="cpu", overlays=[overlay], window="soft_tissue")
    assert loaded.segment(body((24, 20, 4)), "liver", np.eye(4)).masks["liver"].shape == (24, 20, 4)


def test_the_package_is_quick_to_import():
    code = "import sys, boltzformer; assert 'torch' not in sys.modules; assert 'Segmenter' in boltzformer.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(BUNDLE)})
    assert Segmenter is api.Segmenter
