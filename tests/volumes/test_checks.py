from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.errors import InputError
from boltzformer.volumes.checks import (
    check_label_values,
    check_pair,
    check_volume,
    check_voxels,
    read_volume,
)

ARRAY = np.random.default_rng(0).integers(-500, 500, (20, 16, 12)).astype(np.int16)


def test_header_and_voxels_of_a_good_file(write_nifti):
    affine = np.array([[0, 0.7, 0, 5], [0, 0, -3, 1], [0.8, 0, 0, 2], [0, 0, 0, 1.0]])
    path = write_nifti("a.nii.gz", ARRAY[..., None], affine)
    header = check_volume(path)
    assert header.shape == (20, 16, 12)
    np.testing.assert_allclose(header.spacing, (0.8, 0.7, 3), rtol=1e-6)
    np.testing.assert_allclose(header.affine, affine, rtol=1e-6)
    array, _ = read_volume(path)
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, ARRAY)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(ARRAY + 1024, np.eye(4))
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / "a.nii")
    with open(tmp_path / "a.nii", "r+b") as file:  # nibabel rescales on saving; set the scale in the header alone
        file.seek(112)
        file.write(np.array([2, -1024], "<f4").tobytes())
    array, _ = read_volume(tmp_path / "a.nii")
    assert array.dtype == np.float32
    stored = np.asarray(nib.load(tmp_path / "a.nii").dataobj.get_unscaled(), dtype=np.float32)
    np.testing.assert_array_equal(array, stored * 2 - 1024)


@pytest.mark.parametrize("keep", [0, 10, 400, 0.5, 0.98])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_truncated_files_are_found_without_reading_voxels(write_nifti, ending, keep):
    path = Path(write_nifti(f"a.{ending}", ARRAY))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(InputError, match=r"truncated|empty") as error:
        check_volume(path)
    assert str(path) in str(error.value)


def test_gzip_of_several_members_is_no_truncation(write_nifti, tmp_path):
    content = Path(write_nifti("a.nii", ARRAY)).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    np.testing.assert_array_equal(read_volume(path)[0], ARRAY)


def test_damaged_data_is_reported(write_nifti):
    path = Path(write_nifti("a.nii.gz", ARRAY))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_wrong_kinds_of_files(write_nifti, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        check_volume(tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="folder"):
        check_volume(tmp_path)
    (tmp_path / "t.nii.gz").write_text("no volume")
    with pytest.raises(InputError, match="cannot be read as a volume"):
        check_volume(tmp_path / "t.nii.gz")
    with pytest.raises(InputError, match=r"expected 3 dimensions but found 4 .*several volumes"):
        check_volume(write_nifti("4d.nii.gz", np.zeros((4, 4, 4, 2), np.int16)))
    with pytest.raises(InputError, match="expected 3 dimensions but found 2"):
        check_volume(write_nifti("2d.nii.gz", np.zeros((4, 4), np.int16)))
    image = nib.Nifti1Image(ARRAY, None)
    image.header["sform_code"], image.header["srow_x"], image.header["srow_y"] = 1, [1, 0, 0, 0], [0, 1, 0, 0]
    image.to_filename(tmp_path / "flat.nii")
    with pytest.raises(InputError, match="affine"):
        check_volume(tmp_path / "flat.nii")


def test_pair_on_one_grid(write_nifti):
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    image = write_nifti("a.nii.gz", ARRAY, affine)
    rounded = affine + np.array([[1e-5, 0, 0, 1e-3], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    check_pair(image, write_nifti("b.nii.gz", ARRAY.astype(np.uint8), rounded))


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([0.8, -0.8, 2.5, 1.0]),  # flipped
        np.diag([-0.8, -0.8, 3.0, 1.0]),  # spacing
        np.diag([-0.8, -0.8, 2.5, 1.0]) + np.array([[0, 0, 0, 0.5]] + [[0.0] * 4] * 3),  # shifted
    ],
)
def test_pair_on_two_grids(write_nifti, affine):
    image = write_nifti("a.nii.gz", ARRAY, np.diag([-0.8, -0.8, 2.5, 1.0]))
    label = write_nifti("b.nii.gz", ARRAY.astype(np.uint8), affine)
    with pytest.raises(InputError, match="mm away") as error:
        check_pair(image, label)
    assert image in str(error.value)
    assert label in str(error.value)


def test_pair_of_two_shapes(write_nifti):
    with pytest.raises(InputError, match="shape"):
        check_pair(write_nifti("a.nii.gz", ARRAY), write_nifti("b.nii.gz", ARRAY[1:]))


@pytest.mark.parametrize("axcodes", ["LAS", "RPI", "SRA"])
def test_a_label_that_is_only_stored_in_another_direction_is_not_to_get_the_images_affine(write_nifti, axcodes):
    affine = np.diag([0.7, 0.8, 3.0, 1.0])
    image = write_nifti("a.nii.gz", ARRAY, affine)
    turn = nib.orientations.axcodes2ornt(axcodes)
    turned = nib.Nifti1Image(ARRAY, affine).as_reoriented(
        nib.orientations.ornt_transform(np.c_[range(3), [1] * 3], turn)
    )
    label = write_nifti("b.nii.gz", np.asarray(turned.dataobj), turned.affine)
    with pytest.raises(InputError, match="stored in another order or direction") as error:
        check_pair(image, label)
    assert "copy the image's affine" not in str(error.value)
    wrong = turned.affine + np.array([[0, 0, 0, 5.0], *[[0] * 4] * 3])
    with pytest.raises(InputError, match=r"mm away|its shape"):
        check_pair(image, write_nifti("c.nii.gz", np.asarray(turned.dataobj), wrong))


def test_a_single_slice_is_told_what_it_lacks(write_nifti):
    with pytest.raises(InputError, match="third axis of length 1"):
        check_volume(write_nifti("a.nii.gz", ARRAY[:, :, 0]))


def test_voxels_and_label_values(write_nifti):
    array = ARRAY.astype(np.float32)
    check_voxels(array, "f")
    array[3, 4, 5], array[0, 0, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="2 of 3840 voxels"):
        read_volume(write_nifti("nan.nii.gz", array))
    check_label_values([0, 1, 2], {1: "a", 2: "b"}, "f")
    with pytest.raises(InputError, match="f: label values 3, 7 not listed"):
        check_label_values([0, 7, 1, 3], {1: "a", 2: "b"}, "f")
