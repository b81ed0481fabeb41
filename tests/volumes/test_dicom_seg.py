"""DICOM SEG: the same voxels back at the true positions, complete and with nothing private in it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from boltzformer.errors import InputError
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.dicom_seg import make_dicom_seg
from boltzformer.volumes.rtstruct import make_rtstruct
from boltzformer.volumes.segment_codes import _table, find_code
from boltzformer.volumes.segmented import SegmentedVolume
from pydicom.sr import _concepts_dict
from scipy.spatial.transform import Rotation

from tests.volumes.small_series import random_masks, segmented, straight, write_small_series

PROMPTS = ["left parotid gland in head and neck CT", "something never seen", "lung nodule in chest CT"]


def written(volume: SegmentedVolume, folder: Path) -> Path:
    make_dicom_seg(volume).save_as(folder / "seg.dcm", enforce_file_format=True)
    return folder / "seg.dcm"


def read_back(path: Path, files: tuple[Path, ...], count: int) -> np.ndarray:
    """(P, X, Y, Z): each frame put where the source image that it names belongs."""
    seg = hd.seg.segread(path)
    uids = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in files]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    assert pixels.shape[3] == count
    return pixels.transpose(3, 2, 1, 0)


def frames_of(seg: hd.seg.Segmentation) -> set[tuple[int, tuple[float, ...]]]:
    return {
        (
            frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            tuple(np.round([float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient], 3)),
        )
        for frame in seg.PerFrameFunctionalGroupsSequence
    }


def shear(count: int) -> np.ndarray:
    return straight(count) + np.arange(count)[:, None] * [0.0, 1.1, 0.0]


def uneven(count: int) -> np.ndarray:
    positions = straight(count)
    positions[3:, 2] += 4.5
    return positions


@pytest.mark.parametrize("place", [straight, shear, uneven])
@pytest.mark.parametrize("turned", [False, True])
def test_same_voxels_at_the_true_positions(tmp_path, place, turned):
    rotation = Rotation.from_euler("xyz", [20, -10, 30], degrees=True).as_matrix() if turned else np.eye(3)
    positions = place(6) @ rotation.T
    files = write_small_series(tmp_path / "series", positions, rotation)
    masks = random_masks((3, 20, 24, 6))
    written(segmented(files, masks, PROMPTS), tmp_path)
    assert np.array_equal(read_back(tmp_path / "seg.dcm", files, 3), masks)
    expected = {
        (p + 1, tuple(np.round(positions[k], 3))) for p in range(3) for k in range(6) if masks[p, :, :, k].any()
    }
    assert frames_of(hd.seg.segread(tmp_path / "seg.dcm")) == expected


def test_codes_label_algorithm_and_references(tmp_path):
    files = write_small_series(tmp_path / "series", straight(4))
    seg = make_dicom_seg(segmented(files, random_masks((3, 20, 24, 4)), PROMPTS))
    first, second, third = seg.SegmentSequence
    assert first.SegmentLabel == PROMPTS[0]
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("45289007", "Left")
    assert second.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Tissue"
    assert third.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Nodule"
    assert third.AnatomicRegionSequence[0].CodeMeaning == "Lung"
    drawn_by = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (drawn_by.AlgorithmName, drawn_by.AlgorithmVersion) == ("BoltzFormer", "0.1.0")
    assert "ab" * 32 in drawn_by.AlgorithmParameters
    source = [pydicom.dcmread(file) for file in files]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source[0].SeriesInstanceUID
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (
        source[0].StudyInstanceUID,
        source[0].FrameOfReferenceUID,
    )
    assert seg.SeriesInstanceUID != source[0].SeriesInstanceUID
    named = [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert named == [image.SOPInstanceUID for image in source]


@pytest.mark.parametrize("empty", [[0], [0, 1, 2]])
def test_a_prompt_that_was_not_found_is_an_empty_segment(tmp_path, empty):
    files = write_small_series(tmp_path / "series", straight(4))
    masks = random_masks((3, 20, 24, 4))
    masks[empty] = 0
    written(segmented(files, masks, PROMPTS), tmp_path)
    assert len(hd.seg.segread(tmp_path / "seg.dcm").SegmentSequence) == 3
    assert np.array_equal(read_back(tmp_path / "seg.dcm", files, 3), masks)


def test_repairs_what_is_written_and_leaves_the_source_alone(tmp_path):
    gone = ["PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyTime", "FrameOfReferenceUID"]
    files = write_small_series(tmp_path / "series", straight(3), without=gone, SpecificCharacterSet="")
    before = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    seg = make_dicom_seg(segmented(files, random_masks((1, 20, 24, 3)), ["Läsion in Kopf CT"]))
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == before
    assert all(seg.get(name) in ("", None) for name in gone[:5])
    assert all(name in seg for name in gone)
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert seg.SegmentSequence[0].SegmentLabel == "Läsion in Kopf CT"


@pytest.mark.parametrize(
    ("stated", "count", "expected"), [(None, 4, 3.0), ("", 4, 3.0), (0, 4, 3.0), (None, 1, 1.0), (2.5, 4, 2.5)]
)
def test_slices_that_state_no_thickness_are_taken_to_touch(tmp_path, stated, count, expected):
    tags = {"without": ["SliceThickness"]} if stated is None else {"SliceThickness": stated}
    files = write_small_series(tmp_path / "series", straight(count), **tags)
    masks = np.ones((1, 20, 24, count), np.uint8)
    seg = make_dicom_seg(segmented(files, masks, PROMPTS[:1]))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == expected


def test_slices_not_quite_even_without_thickness_get_their_mean_distance(tmp_path):
    positions = straight(4)
    positions[3, 2] += 0.06
    files = write_small_series(tmp_path / "series", positions, without=["SliceThickness"])
    seg = make_dicom_seg(segmented(files, np.ones((1, 20, 24, 4), np.uint8), PROMPTS[:1]))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == pytest.approx(3.02)
    assert "SpacingBetweenSlices" not in measures


@pytest.mark.parametrize("ratio", [8.5, None])
def test_the_loss_of_a_compressed_source_is_told(tmp_path, ratio):
    """Of any slice: highdicom asks the first alone."""
    files = write_small_series(tmp_path / "series", straight(3), LossyImageCompression="00")
    image = pydicom.dcmread(files[1])
    image.LossyImageCompression, image.LossyImageCompressionMethod = "01", "ISO_10918_1"
    if ratio:
        image.LossyImageCompressionRatio = ratio
    else:
        image["LossyImageCompressionRatio"] = pydicom.DataElement("LossyImageCompressionRatio", "LO", "10:1")
    image.save_as(files[1])
    masks = random_masks((1, 20, 24, 3))
    seg = make_dicom_seg(segmented(files, masks, PROMPTS[:1]))
    assert (seg.LossyImageCompression, seg.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert seg.get("LossyImageCompressionRatio") == ratio
    plain = write_small_series(tmp_path / "plain", straight(3))
    assert make_dicom_seg(segmented(plain, masks, PROMPTS[:1])).LossyImageCompression == "00"


@pytest.mark.parametrize("make", [make_dicom_seg, make_rtstruct])
def test_numbers_that_are_none_are_left_out(tmp_path, make):
    files = write_small_series(tmp_path / "series", straight(3))
    for file in files:
        image = pydicom.dcmread(file)
        for name in ("SliceThickness", "SeriesNumber"):
            image[name] = pydicom.DataElement(name, "LO", "thin")
        image.save_as(file)
    assert make(segmented(files, random_masks((1, 20, 24, 3)), PROMPTS[:1])).SeriesNumber in (1000, 1001)


@pytest.mark.parametrize("make", [make_dicom_seg, make_rtstruct])
def test_a_patient_id_with_a_backslash_stays_as_it_is(tmp_path, make):
    tags = {"PatientID": "17\\B", "ReferringPhysicianName": "Roe^Jim\\Poe^Ann"}
    files = write_small_series(tmp_path / "series", straight(3), **tags)
    make(segmented(files, random_masks((1, 20, 24, 3)), PROMPTS[:1])).save_as(tmp_path / "made.dcm")
    made = pydicom.dcmread(tmp_path / "made.dcm")
    assert {name: "\\".join(map(str, made[name].value)) for name in tags} == tags


def test_nothing_private_in_the_object_or_in_a_warning(tmp_path):
    files = write_small_series(tmp_path / "series", straight(3), PatientName="Doe")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make_dicom_seg(segmented(files, random_masks((1, 20, 24, 3)), PROMPTS[:1])).save_as(
            tmp_path / "seg.dcm", enforce_file_format=True
        )
    assert b"SECRET" not in (tmp_path / "seg.dcm").read_bytes()
    assert not [entry for entry in said if "Doe" in str(entry.message)]
    assert not [element for element in pydicom.dcmread(tmp_path / "seg.dcm").iterall() if element.tag.is_private]


def test_a_prompt_with_a_backslash_or_of_great_length_stays_one_value(tmp_path):
    files = write_small_series(tmp_path / "series", straight(3))
    prompts = ["mass\\nodule", "a very long wording " * 10]
    seg = make_dicom_seg(segmented(files, random_masks((2, 20, 24, 3)), prompts))
    assert seg.SegmentSequence[0].SegmentLabel == "mass/nodule"
    assert len(seg.SegmentSequence[1].SegmentLabel) == 64
    assert seg.SegmentSequence[1].SegmentDescription == prompts[1].strip()


def test_what_cannot_be_referred_to_is_refused(tmp_path):
    files = write_small_series(tmp_path / "series", straight(3))
    other = write_small_series(tmp_path / "other", straight(3))
    masks = random_masks((1, 20, 24, 3))
    with pytest.raises(InputError, match=r"SeriesInstanceUID|StudyInstanceUID"):
        make_dicom_seg(segmented([*files[:2], other[2]], masks, ["nodule"]))
    wide = write_small_series(tmp_path / "wide", straight(3), shape=(24, 20))
    made = segmented(files, masks, ["nodule"])
    object.__setattr__(made.volume.series, "files", wide)
    with pytest.raises(InputError, match="24 columns"):
        make_dicom_seg(made)
    lacking = write_small_series(tmp_path / "lacking", straight(3), without=["StudyInstanceUID"])
    with pytest.raises(InputError, match="has no StudyInstanceUID"):
        make_dicom_seg(segmented(lacking, masks, ["nodule"]))
    twice = write_small_series(tmp_path / "twice", straight(3), SOPInstanceUID="1.2.3")
    with pytest.raises(InputError, match=r"I001: has the SOPInstanceUID of .*I000"):
        make_dicom_seg(segmented(twice, masks, ["nodule"]))
    moved = write_small_series(tmp_path / "moved", straight(3))
    image = pydicom.dcmread(moved[2])
    image.FrameOfReferenceUID = "1.2.3"
    image.save_as(moved[2])
    for make in (make_dicom_seg, make_rtstruct):  # a structure set had named the first frame for all
        with pytest.raises(InputError, match="differs in FrameOfReferenceUID"):
            make(segmented(moved, masks, ["nodule"]))
    private = write_small_series(tmp_path / "private", straight(3), SOPClassUID="1.2.840.99.1")
    made = segmented(files, masks, ["nodule"])
    object.__setattr__(made.volume.series, "files", private)
    with pytest.raises(InputError, match="no DICOM SEG can refer to this series"):
        make_dicom_seg(made)


def test_every_code_of_the_table_is_in_dicoms_dictionary():
    known = {
        (value, meaning)
        for entries in _concepts_dict.concepts["SCT"].values()
        for value, (meaning, _) in entries.items()
    }
    table = _table()
    used = [entry[key] for entry in table["objects"] for key in ("type", "region") if key in entry]
    used += [*table["categories"].values(), *table["laterality"].values(), *table["generic"].values()]
    assert [code for code in used if tuple(code) not in known] == []
    names = [name for entry in table["objects"] for name in entry["names"]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Lung nodule in chest CT", "Nodule"),
        ("lung_nodule", "Nodule"),
        ("the liver on an abdominal MRI scan", "Liver"),
        ("Right kidney", "Kidney"),
        ("left liver", "Tissue"),
        ("no liver tumor", "Tissue"),
        ("vessel near the liver", "Tissue"),
        ("MS lesion in brain MRI", "Lesion"),
    ],
)
def test_only_whole_terms_are_coded(prompt, expected):
    assert find_code(prompt).type.meaning == expected


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize("place", [straight, shear, uneven])
def test_dciodvfy_finds_no_error(tmp_path, place):
    without = ["PatientBirthDate", "AccessionNumber"]
    files = write_small_series(tmp_path / "series", place(5), without=without, SpecificCharacterSet="")
    masks = random_masks((3, 20, 24, 5))
    masks[1] = 0
    written(segmented(files, masks, PROMPTS), tmp_path)
    told = subprocess.run(["dciodvfy", tmp_path / "seg.dcm"], capture_output=True, text=True, check=False)
    assert "Segmentation" in told.stderr + told.stdout
    assert "Error" not in told.stderr + told.stdout, told.stderr


def _segimage2itkimage() -> str | None:
    return shutil.which("segimage2itkimage") or shutil.which(str(Path(sys.executable).with_name("segimage2itkimage")))


@pytest.mark.skipif(not _segimage2itkimage(), reason="dcmqi is not installed (pip install dcmqi)")
def test_dcmqi_reads_the_same_voxels_of_a_real_series(tmp_path, real_data_dir):
    series = find_series(real_data_dir / "dicom_ct")
    masks = np.zeros((2, 512, 512, 28), np.uint8)
    masks[0, 100:130, 200:260, 5:9] = 1
    masks[1, 120:140, 210:230, 6:12] = 1
    masks[1, 300, 301, 20] = 1
    written(segmented(series.files, masks, PROMPTS[:2]), tmp_path)
    assert np.array_equal(read_back(tmp_path / "seg.dcm", series.files, 2), masks)
    command = [_segimage2itkimage(), "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "-t", "nifti"]
    subprocess.run(command, capture_output=True, check=True)
    images = sorted(tmp_path.glob("*.nii.gz"))
    assert len(images) == 2
    for mask, file in zip(masks, images, strict=True):
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        origin = np.array(image.GetOrigin()) * [-1, -1, 1]
        start = np.rint(np.linalg.inv(series.affine) @ [*origin, 1])[:3].astype(int)  # dcmqi crops empty slices
        found = np.zeros_like(mask)
        found[tuple(slice(a, a + n) for a, n in zip(start, array.shape, strict=True))] = array > 0
        assert np.array_equal(found, mask)
