"""Masks lie on the input's own grid, whatever its orientation, and mean the same place in the patient."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.support import body, in_orientation, save_nifti

RAS = np.array([[0.8, 0, 0, -30], [0, 0.9, 0, -20], [0, 0, 3.0, 10], [0, 0, 0, 1]])
PROMPTS = ["liver in abdominal CT", "nodule"]


def _oblique() -> np.ndarray:
    affine = RAS.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -17, 9], degrees=True).as_matrix() @ affine[:3, :3]
    return affine


@pytest.fixture(scope="module")
def reference(segmenter):
    result = segmenter.segment(body(), PROMPTS, affine=RAS)
    assert all(0 < mask.sum() < mask.size for mask in result.masks.values())  # a comparison that can fail
    return result


@pytest.mark.parametrize("affine", [RAS, _oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PLI", "LAS", "RPI", "SAR", "ILP"])
def test_same_place_in_every_orientation(segmenter, reference, tmp_path, axcodes, affine):
    array, stored = in_orientation(body(), affine, axcodes)
    assert nib.aff2axcodes(stored) == tuple(axcodes)
    path = save_nifti(tmp_path / "scan.nii.gz", array, stored)
    segmenter.segment(path, PROMPTS).save(tmp_path / "out", probability=True)

    image = nib.load(path)
    files = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert len(files) == 5
    for file in files:
        saved = nib.load(file)
        assert saved.shape == image.shape
        assert np.array_equal(saved.affine, image.affine)
        assert saved.get_data_dtype() == (np.float32 if "probability" in file.name else np.uint8)
    for name, mask in reference.masks.items():
        saved = nib.load(tmp_path / "out" / "scan" / f"{name}.nii.gz")
        back, _ = in_orientation(np.asarray(saved.dataobj), saved.affine, "RAS")
        assert np.array_equal(back, mask)
    label_map = nib.load(tmp_path / "out" / "scan.nii.gz")
    assert np.array_equal(in_orientation(np.asarray(label_map.dataobj), stored, "RAS")[0], reference.label_map)


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 2), (1, 4), (0, 0)])
def test_header_forms_are_kept(segmenter, tmp_path, qform, sform):
    path = save_nifti(tmp_path / "scan.nii", body(), _oblique(), qform, sform)
    segmenter.segment(path, "nodule").save(tmp_path / "out")
    image, saved = nib.load(path), nib.load(tmp_path / "out" / "scan.nii.gz")
    assert np.array_equal(saved.affine, image.affine)
    assert saved.header["qform_code"] == image.header["qform_code"] == qform
    assert saved.header["sform_code"] == image.header["sform_code"] == sform
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z", "pixdim"):
        assert np.array_equal(saved.header[field], image.header[field]), field
    assert saved.header.get_xyzt_units() == ("mm", "sec")
    assert saved.header["scl_slope"] in (1, np.nan) or np.isnan(saved.header["scl_slope"])


def test_anisotropic_and_sheared_grids(segmenter, reference, tmp_path):
    affine = np.diag([0.4, 2.0, 7.5, 1.0])
    affine[0, 2] = 1.3  # a tilted gantry
    path = save_nifti(tmp_path / "scan.nii.gz", body(), affine, qform=0, sform=1)
    segmenter.segment(path, PROMPTS).save(tmp_path / "out")
    saved = nib.load(tmp_path / "out" / "scan.nii.gz")
    assert np.array_equal(saved.affine, nib.load(path).affine)
    assert np.array_equal(np.asarray(saved.dataobj), reference.label_map)  # the slices are the same


def test_trailing_axis_of_one(segmenter, tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", body()[..., None], RAS)
    segmenter.segment(path, "nodule").save(tmp_path / "out")
    assert nib.load(tmp_path / "out" / "scan.nii.gz").shape == body().shape


def test_slope_and_intercept_are_applied(segmenter, tmp_path):
    plain = save_nifti(tmp_path / "plain.nii", body(), RAS)
    # on disk: half of (HU + 1024), the header says how to get back
    stored = ((body().astype(np.int32) + 1024) // 2 * 2).astype(np.int16)
    even = save_nifti(tmp_path / "even.nii", stored - 1024, RAS)
    scaled = save_nifti(tmp_path / "scaled.nii", stored // 2, RAS)
    data = bytearray(scaled.read_bytes())
    data[112:120] = np.array([2.0, -1024.0], "<f4").tobytes()  # scl_slope, scl_inter
    scaled.write_bytes(bytes(data))
    assert np.array_equal(np.asarray(nib.load(scaled).dataobj), np.asarray(nib.load(even).dataobj))
    results = [segmenter.segment(path, "nodule").probabilities["nodule"] for path in (even, scaled, plain)]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
