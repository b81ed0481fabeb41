"""Whatever holds a volume gives the same volume."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_pair, check_volume, read_volume
from boltzformer.volumes.sources import open_volume
from monai.data import MetaTensor

from tests.support import body, save_nifti
from tests.volumes.small_series import straight, write_small_series

ARRAY = body((12, 10, 4))
AFFINE = np.array([[0, -0.8, 0, 12], [0.7, 0, 0, -20], [0, 0, 3, 10], [0, 0, 0, 1.0]])


def _sitk():
    image = sitk.GetImageFromArray(ARRAY.transpose(2, 1, 0))
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "mhd", "nhdr"])
def test_files_of_every_format(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(_sitk(), str(path))
    volume = open_volume(path)
    assert np.array_equal(volume.voxels, ARRAY)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(volume.spacing, (0.7, 0.8, 3), atol=1e-6)
    assert volume.files == (path,)
    header = check_volume(path)
    assert (header.shape, header.dtype) == (ARRAY.shape, np.int16)
    check_pair(path, save_nifti(tmp_path / "label.nii", (ARRAY > 0).astype(np.uint8), AFFINE))


@pytest.mark.parametrize(
    ("source", "affine"),
    [
        (ARRAY, AFFINE),
        (ARRAY[::-1].copy()[::-1], AFFINE),
        (ARRAY.astype(">i2"), AFFINE),
        (torch.from_numpy(ARRAY), AFFINE.tolist()),
        (torch.from_numpy(ARRAY)[None], torch.from_numpy(AFFINE)),
        (MetaTensor(torch.from_numpy(ARRAY)[None], affine=torch.from_numpy(AFFINE)), None),
        (_sitk(), None),
        (nib.Nifti1Image(ARRAY, AFFINE), None),
        (nib.Nifti1Image(ARRAY[..., None], AFFINE), None),
        (nib.MGHImage(ARRAY.astype(np.float32), AFFINE), None),
    ],
)
def test_things_in_memory(source, affine):
    volume = open_volume(source, affine, modality="ct", body_part="liver")
    assert np.array_equal(volume.voxels, ARRAY)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert (volume.modality, volume.body_part, volume.files) == ("CT", "liver", ())
    assert open_volume(volume).modality == "CT"


@pytest.mark.parametrize(
    ("source", "affine", "message"),
    [
        (ARRAY, np.eye(3), r"shape \(3, 3\)"),
        (ARRAY, np.diag([1, 0, 1, 1]), "not invertible"),
        (ARRAY, np.full((4, 4), np.nan), "not invertible"),
        (ARRAY, "RAS", "no matrix of numbers"),
        (np.zeros((0, 4, 4)), AFFINE, "is empty"),
        (np.zeros((4, 4)), AFFINE, "3 dimensions"),
        (np.zeros((4, 4, 4), complex), AFFINE, "type complex128"),
        (np.zeros((4, 4, 4), object), AFFINE, "type object"),
        (torch.full((4, 4, 4), torch.inf), AFFINE, "NaN or infinite"),
        (_sitk(), AFFINE, "has an affine of its own"),
        ("scan.nii.gz", AFFINE, "scan.nii.gz: has an affine of its own"),
        (sitk.Image([4, 4, 4], sitk.sitkVectorFloat32), None, "several values for each voxel"),
        (sitk.Image([4, 4], sitk.sitkInt16), None, "expected 3 dimensions"),
        (None, None, "a NoneType is no volume"),
        (7, None, "a int is no volume"),
    ],
)
def test_what_cannot_be_used_is_one_error(source, affine, message):
    with pytest.raises(InputError, match=message):
        open_volume(source, affine)


@pytest.mark.parametrize(
    ("qform", "sform", "said"),
    [
        (0, 0, "no orientation .* taken as running left, anterior, superior"),
        (1, 1, "different orientations"),
        (0, 1, ""),
        (1, 0, ""),
    ],
)
def test_sides_that_a_header_leaves_open_or_says_in_two_ways_are_told(tmp_path, caplog, qform, sform, said):
    image = nib.Nifti1Image(ARRAY, np.eye(4))
    image.set_qform(np.diag([-1.0, 1.0, 1.0, 1.0]), qform)
    image.set_sform(np.diag([1.0, 1.0, 1.0, 1.0]), sform)
    nib.save(image, tmp_path / "a.nii.gz")
    for source in (tmp_path / "a.nii.gz", nib.load(tmp_path / "a.nii.gz")):
        caplog.clear()
        open_volume(source)
        assert len(caplog.records) == bool(said)
        assert re.search(said, caplog.text)


def test_a_qform_that_nothing_uses_may_hold_anything(tmp_path, caplog):
    save_nifti(tmp_path / "a.nii", ARRAY, AFFINE)
    block = bytearray((tmp_path / "a.nii").read_bytes())
    block[252:254] = (1).to_bytes(2, "little")
    block[256:268] = np.array([np.nan, 3, 5], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(block)
    assert np.allclose(open_volume(tmp_path / "a.nii").affine, AFFINE)
    assert not caplog.records


def test_a_format_of_nibabel_is_scaled_as_it_says():
    file = Path(nib.__file__).parent / "tests" / "data" / "scaled+tlrc.HEAD"
    expected = nib.load(file).get_fdata()[..., 0]
    assert expected.max() < 1  # stored as whole numbers
    np.testing.assert_allclose(open_volume(file).voxels, expected)


def test_an_array_without_affine_says_so(caplog):
    assert np.array_equal(open_volume(ARRAY).affine, np.eye(4))
    assert "an array without affine" in caplog.text


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_units_of_the_header(tmp_path, unit, factor):
    image = nib.Nifti1Image(ARRAY, AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine[:3], AFFINE[:3] * factor, rtol=1e-6)
    np.testing.assert_allclose(check_volume(tmp_path / "a.nii").spacing, np.array([0.7, 0.8, 3]) * factor, rtol=1e-6)


def test_a_slice_of_a_dicom_series_is_told_to_be_one(tmp_path):
    (file,) = write_small_series(tmp_path / "s", straight(1))
    with pytest.raises(InputError, match="I000: is a DICOM file; give the folder"):
        open_volume(file)


@pytest.mark.parametrize("name", ["a" * 300, "ß" * 200, "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_one_error(tmp_path, name):
    from boltzformer.data.cases import load_cases

    items = [{"image": f"{name}.nii", "label": "l.nii"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"1": "a"}, "training": items}))
    with pytest.raises(InputError, match="`image` is no file name"):
        load_cases(tmp_path, validation_share=0)


def test_a_unit_that_nifti_does_not_know_is_taken_as_mm(tmp_path):
    path = _with_bytes(tmp_path / "a.nii", ARRAY, 123, bytes([7]))
    assert open_volume(path).spacing == (1, 1, 1)


def _with_bytes(path, array, start, content):
    save_nifti(path, array, np.eye(4), qform=0, sform=0)
    data = bytearray(path.read_bytes())
    data[start : start + len(content)] = content
    path.write_bytes(data)
    return path


def test_headers_that_nibabel_takes_without_a_word(tmp_path):
    with pytest.raises(InputError, match="voxels begin at byte 0"):
        read_volume(_with_bytes(tmp_path / "a.nii", ARRAY, 108, np.float32(0).tobytes()))
    with pytest.raises(InputError, match="voxel sizes of"):
        read_volume(_with_bytes(tmp_path / "b.nii", ARRAY, 80, np.float32(0).tobytes()))
    with pytest.raises(InputError, match=r"c.nii: cannot be read as a volume \(cannot convert float infinity"):
        read_volume(_with_bytes(tmp_path / "c.nii", ARRAY, 108, np.float32(np.inf).tobytes()))


def test_intercept_without_slope_in_nifti(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ARRAY, AFFINE)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([1, -1024], "<f4").tobytes()
    path.write_bytes(data)
    assert np.array_equal(read_volume(path)[0], ARRAY.astype(np.float32) - 1024)


@pytest.mark.parametrize("name", ["a.nii.gz", "A.NII.GZ"])
def test_a_wrong_checksum_is_found_whatever_the_case_of_the_name(tmp_path, name):
    data = bytearray(save_nifti(tmp_path / "x.nii.gz", ARRAY, AFFINE).read_bytes())
    data[-8] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_volume(tmp_path / name)


def test_damaged_gzip_says_how_far_it_could_be_read(tmp_path):
    raw = save_nifti(tmp_path / "raw.nii", ARRAY, AFFINE).read_bytes()
    second = bytearray(gzip.compress(raw[1200:]))
    second[10] = 0xFF  # no such kind of block
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(raw[:1200]) + second)
    with pytest.raises(InputError, match=rf"compressed data is truncated or damaged after 1200 of {len(raw)} bytes"):
        check_volume(path)


def test_cut_nrrd_and_dangling_link(tmp_path):
    sitk.WriteImage(_sitk(), str(tmp_path / "a.nrrd"))
    data = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"a\.nrrd: the data is truncated"):
        read_volume(tmp_path / "a.nrrd")
    (tmp_path / "b.nii.gz").symlink_to("annex/objects/x")
    with pytest.raises(InputError, match="is a link to annex/objects/x, which is not there"):
        read_volume(tmp_path / "b.nii.gz")


META = "ObjectType = Image\nNDims = {}\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: {}\nsizes: 2 2 2\nencoding: raw\n\n"


@pytest.mark.parametrize(("name", "header"), [("a.mha", META), ("a.nrrd", NRRD)])
@pytest.mark.parametrize("stated", ["32767", "-1", "1e30", "", "3 3"])
def test_a_header_that_itk_would_not_survive_is_one_error(tmp_path, name, header, stated):
    path = tmp_path / name
    path.write_bytes(header.format(3).encode() + bytes(8))
    assert open_volume(path).voxels.shape == (2, 2, 2)
    path.write_bytes(header.format(stated).encode() + bytes(8))
    with pytest.raises(InputError, match=rf"{name}: the header states"):  # MetaIO ended the process with SIGSEGV
        open_volume(path)


def test_a_meta_image_with_a_line_beyond_its_reader(tmp_path):
    (tmp_path / "a.mha").write_text(META.format(3).replace("Image", "I" * 100_000))
    with pytest.raises(InputError, match="a header line of over"):
        open_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_a_pipe_or_a_device_is_no_volume_and_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is no plain file"):
        open_volume(tmp_path / name)
    (tmp_path / f"zero{name}").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is no plain file"):
        open_volume(tmp_path / f"zero{name}")


def test_an_nrrd_with_a_word_beyond_its_reader(tmp_path):
    content = NRRD.format(3).replace("encoding", f"kinds: {'x' * 2000}\nencoding").encode() + bytes(8)
    (tmp_path / "a.nrrd").write_bytes(content)  # ended the process with SIGSEGV
    with pytest.raises(InputError, match="a header entry of over"):
        open_volume(tmp_path / "a.nrrd")
    long = NRRD.format(3).replace("encoding", f"Segment0_Tags:={'y' * 9000}\nencoding").encode() + bytes(8)
    (tmp_path / "a.nrrd").write_bytes(long)
    assert open_volume(tmp_path / "a.nrrd").voxels.shape == (2, 2, 2)
