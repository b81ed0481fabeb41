"""DICOM series: every slice counted, geometry checked, results on the series' grid."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from boltzformer.errors import InputError
from boltzformer.inference.load import LoadVolumed
from boltzformer.volumes.dicom import find_series, has_dicom, series_of, survey_tree
from boltzformer.volumes.dicom_headers import survey_folder
from boltzformer.volumes.dicom_pixels import read_series
from boltzformer.volumes.spacing import uneven_places
from monai.data import DataLoader, Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from tests.support import body
from tests.volumes.small_series import straight, write_small_series

IDENTITY = np.eye(3)


def write_series(
    folder: Path,
    array: np.ndarray,
    rotation: np.ndarray = IDENTITY,
    spacing: tuple[float, float, float] = (0.8, 0.9, 3.0),
    offsets: dict[int, float] | None = None,
    **tags: object,
) -> None:
    """One file a slice, named so that neither names nor instance numbers tell the order. `array` is (x, y, z) LPS."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = tags.pop("SeriesInstanceUID", generate_uid())
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.Modality, slice_.InstanceNumber = uid, "CT", array.shape[2] - k
        slice_.Rows, slice_.Columns = array.shape[1], array.shape[0]
        slice_.PixelSpacing = [spacing[1], spacing[0]]
        slice_.ImageOrientationPatient = [*rotation[:, 0], *rotation[:, 1]]
        height = k * spacing[2] + (offsets or {}).get(k, 0.0)
        slice_.ImagePositionPatient = list(np.array([-30.0, -20.0, 10.0]) + height * rotation[:, 2])
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = (array[:, :, k].T.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        for name, value in tags.items():
            setattr(slice_, name, value)
        slice_.save_as(folder / f"I{(k * 7) % array.shape[2]:03d}", enforce_file_format=True)


@pytest.fixture
def array():
    return body((20, 24, 5))


def test_equals_simpleitk_on_an_oblique_series(tmp_path, array):
    rotation = Rotation.from_euler("xyz", [20, -10, 30], degrees=True).as_matrix()
    write_series(tmp_path, array, rotation)
    (tmp_path / "DIRFILE").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no DICOM")
    series = find_series(tmp_path)
    assert len(series.files) == 5
    assert series.modality == "CT"
    assert np.array_equal(read_series(series), array)
    assert {pydicom.dcmread(file).SeriesInstanceUID for file in series.files} == {series.uid}
    for file, position, k in zip(series.files, series.positions, range(5), strict=True):
        assert np.allclose(pydicom.dcmread(file).ImagePositionPatient, position)
        assert np.allclose((series.affine @ [0, 0, k, 1])[:3], position * [-1, -1, 1], atol=1e-3)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    for index in [(0, 0, 0), (19, 0, 0), (0, 23, 0), (3, 5, 4)]:
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.allclose((series.affine @ [*index, 1])[:3], lps * [-1, -1, 1], atol=1e-3)


def test_results_lie_on_the_series_grid(segmenter, tmp_path, array):
    write_series(tmp_path / "series", array)
    result = segmenter.segment(tmp_path / "series", "nodule")
    assert np.allclose(result.affine, find_series(tmp_path / "series").affine)
    plain = segmenter.segment(array, "nodule", affine=result.affine)
    assert np.array_equal(result.label_map, plain.label_map)
    result.save(tmp_path / "out")
    saved = nib.load(tmp_path / "out" / "series.nii.gz")
    assert saved.shape == array.shape
    assert np.allclose(saved.affine, result.affine)


def test_real_series(real_data_dir, segmenter, tmp_path):
    folder = real_data_dir / "dicom_ct"
    series = find_series(folder)  # DIRFILE is skipped
    assert len(series.files) == 28
    voxels = read_series(series)
    assert voxels.shape == (512, 512, 28)
    assert voxels.min() == -1024
    assert nib.aff2axcodes(series.affine) == ("L", "P", "S")
    result = segmenter.segment(folder, "skull")
    assert result.label_map.shape == (512, 512, 28)
    assert result.case == "dicom_ct"


def test_missing_slice_is_refused_or_said(tmp_path, array, caplog):
    write_series(tmp_path, array)
    victim = next(f for f in find_series(tmp_path).files if pydicom.dcmread(f).InstanceNumber == 3)
    victim.unlink()
    with pytest.raises(InputError, match=r"4 slices are not evenly spaced \(gaps of 3.00 to 6.00 mm.*uneven_spacing"):
        find_series(tmp_path)
    series = find_series(tmp_path, uneven_spacing="warn")
    assert len(series.files) == 4
    assert not caplog.records, "nothing is read, and perhaps nothing will be written"
    assert read_series(series).shape[2] == 4
    assert "gaps of 3.00 to 6.00 mm" in caplog.text
    assert "mean spacing" in caplog.text
    with pytest.raises(InputError, match="'refuse' or 'warn'"):
        find_series(tmp_path, uneven_spacing="maybe")


@pytest.mark.parametrize(("off", "accepted"), [(0.07, True), (0.5, False)])
def test_tolerance(tmp_path, array, off, accepted):
    write_series(tmp_path, array, offsets={2: off})
    if accepted:
        assert len(find_series(tmp_path).files) == 5
    else:
        with pytest.raises(InputError, match="not evenly spaced"):
            find_series(tmp_path)


@pytest.mark.parametrize(("stated", "thick"), [("5", 5.0), ("0", 1.0), (None, 1.0)])
def test_a_single_slice_is_as_thick_as_it_says(tmp_path, stated, thick):
    turned = Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix()
    write_series(tmp_path, body((20, 24, 1)), turned, **({} if stated is None else {"SliceThickness": stated}))
    affine = find_series(tmp_path).affine
    np.testing.assert_allclose(affine[:3, 2], np.diag([-1, -1, 1]) @ turned[:, 2] * thick, atol=1e-6)


def test_two_slices_at_one_place(tmp_path, array):
    write_series(tmp_path, array, offsets={2: -3.0})
    with pytest.raises(InputError, match="at the same position"):
        find_series(tmp_path)


def test_one_slice_that_was_copied_twice(tmp_path, array):
    write_series(tmp_path / "series", array)
    shutil.copytree(tmp_path / "series", tmp_path / "series" / "copy")
    with pytest.raises(InputError, match=r"I000 and copy/I000 are the same image"):
        series_of(survey_tree(tmp_path / "series"), tmp_path / "series")


def test_two_series(tmp_path, array):
    write_series(tmp_path, array)
    write_series(tmp_path / "other", array, SeriesDescription="lung")
    for file in (tmp_path / "other").iterdir():
        shutil.move(file, tmp_path / f"other_{file.name}")
    with pytest.raises(InputError, match=r"holds 2 series: .*\(lung\)"):
        find_series(tmp_path)


def test_an_export_of_many_series_is_read_once_while_nothing_changes(tmp_path, monkeypatch):
    uids = []
    for number in range(3):
        files = write_small_series(tmp_path / "apart" / str(number), straight(4))
        uids.append(str(pydicom.dcmread(files[0]).SeriesInstanceUID))
        for file in files:
            (tmp_path / "export").mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / "export" / f"{number}_{file.name}")
    read: list[Path] = []
    original = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda file, **given: read.append(file) or original(file, **given))
    for uid in (*uids, *uids):
        assert len(find_series(tmp_path / "export", uid=uid).files) == 4
    assert len(read) == 12
    for _ in range(2):
        assert len(find_series(tmp_path / "apart" / "0").files) == 4
    assert len(read) == 16
    gone, cut, *_ = sorted(file for file in (tmp_path / "export").iterdir() if file.name.startswith("2_"))
    gone.unlink()
    assert len(find_series(tmp_path / "export", uid=uids[2]).files) == 3
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        find_series(tmp_path / "export", uid=uids[2])


def test_scout_of_another_size(tmp_path, array):
    uid = generate_uid()
    write_series(tmp_path, array, SeriesInstanceUID=uid)
    write_series(tmp_path / "x", body((30, 24, 1)), SeriesInstanceUID=uid)
    shutil.move(tmp_path / "x" / "I000", tmp_path / "scout")
    with pytest.raises(InputError, match=r"scout: differs in size"):
        find_series(tmp_path)


@pytest.mark.parametrize("kind", ["LOCALIZER", ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]])
def test_a_localizer_is_no_slice(tmp_path, array, kind):
    uid = generate_uid()
    write_series(tmp_path, array, SeriesInstanceUID=uid, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    write_series(tmp_path / "x", body((30, 24, 1)), SeriesInstanceUID=uid, ImageType=kind)
    shutil.move(tmp_path / "x" / "I000", tmp_path / "scout")
    assert len(find_series(tmp_path).files) == array.shape[2]
    assert survey_folder(tmp_path).others[tmp_path / "scout"].startswith("is a localizer")
    shutil.move(tmp_path / "scout", tmp_path / "x" / "scout")
    with pytest.raises(InputError, match=r"no DICOM image but 1 localizer \(scouts\)"):
        find_series(tmp_path / "x")


def test_multi_frame(tmp_path, array):
    write_series(tmp_path, array, NumberOfFrames=4)
    with pytest.raises(InputError, match="multi-frame"):
        find_series(tmp_path)


@pytest.mark.parametrize("turned", [IDENTITY, Rotation.from_euler("x", 180, degrees=True).as_matrix()])
def test_the_true_places_of_uneven_slices_reach_the_network(segmenter, tmp_path, array, turned):
    write_series(tmp_path, array, turned, offsets={3: 20.0, 4: 20.0})
    load = LoadVolumed("image", uneven_spacing="warn")
    image = segmenter.preprocessing.transforms[1](load({"image": str(tmp_path)}))["image"]
    places = uneven_places(image, 2)
    gaps = [3.0, 3.0, 23.0, 3.0]
    assert places.diff().tolist() == pytest.approx(gaps if turned is IDENTITY else gaps[::-1])
    (batch,) = DataLoader(Dataset([{"image": image}]), batch_size=1)
    assert torch.equal(uneven_places(batch["image"], 2), places)
    write_series(tmp_path / "even", array)
    assert uneven_places(load({"image": str(tmp_path / "even")})["image"], 2) is None


@pytest.mark.parametrize(
    "kind", [EnhancedCTImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedCTImageStorage]
)
def test_an_enhanced_image_of_one_frame_is_told_as_one(tmp_path, array, kind):
    write_series(tmp_path, array, SOPClassUID=kind, NumberOfFrames=1, ImagePositionPatient=None)
    with pytest.raises(InputError, match="convert it to NIfTI"):
        find_series(tmp_path)


def test_no_position(tmp_path, array):
    write_series(tmp_path, array, ImagePositionPatient=None)
    with pytest.raises(InputError, match="has no ImagePositionPatient"):
        find_series(tmp_path)


def test_truncated_slice(tmp_path, array):
    write_series(tmp_path, array)
    file = tmp_path / "I000"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(InputError, match="cannot be decoded"):
        read_series(find_series(tmp_path))


def test_no_dicom(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert not has_dicom(tmp_path)
    with pytest.raises(InputError, match="holds no DICOM image"):
        find_series(tmp_path)
