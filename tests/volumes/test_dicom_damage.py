"""DICOM folders as they come: damaged slices, other files, odd values, nested series."""

from __future__ import annotations

import os

import numpy as np
import pydicom
import pytest
from boltzformer.errors import InputError
from boltzformer.inference.inputs import find_volumes, survey_volumes
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.dicom_pixels import read_series
from boltzformer.volumes.sources import open_volume

from tests.support import body
from tests.volumes.small_series import straight, write_small_series
from tests.volumes.test_dicom import write_series


@pytest.fixture
def array():
    return body((20, 24, 5))


@pytest.fixture
def series(tmp_path, array):
    write_series(tmp_path / "s", array)
    return find_series(tmp_path / "s")


def _change(file, **tags):
    data = pydicom.dcmread(file)
    for name, value in tags.items():
        setattr(data, name, value) if value is not None else delattr(data, name)
    data.save_as(file)


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("kind", ["empty", "zeros", "cut", "half header", "no rows", "dangling"])
def test_a_damaged_slice_at_the_end_is_not_dropped(series, kind, end):
    file = series.files[end]
    content = file.read_bytes()
    if kind == "no rows":
        _change(file, Rows=None)
    elif kind == "dangling":
        file.unlink()
        file.symlink_to("annex")
    else:
        file.write_bytes(
            {"empty": b"", "zeros": bytes(len(content)), "cut": content[:140], "half header": content[:300]}[kind]
        )
    with pytest.raises(InputError, match="1 of 5 slices are damaged") as caught:
        find_series(series.folder)
    assert str(file) in str(caught.value)


def test_a_series_with_every_file_damaged_is_in_the_list(tmp_path, array):
    write_series(tmp_path / "good", array)
    write_series(tmp_path / "bad", array)
    for file in (tmp_path / "bad").iterdir():
        file.rename(file.with_suffix(".dcm"))
        file.with_suffix(".dcm").write_bytes(b"")
    cases = {case["case"]: case for case in find_volumes(tmp_path)}
    assert sorted(cases) == ["bad", "good"]
    with pytest.raises(InputError, match="5 of 5 slices are damaged"):
        open_volume(cases["bad"]["image"], series_uid=cases["bad"]["series_uid"])


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"BitsStored": 12, "HighBit": 11},
        {"PixelRepresentation": 1},
        {"RescaleSlope": 2},
        {"RescaleSlope": 0.5},
    ],
)
def test_monochrome1_means_the_same_values(tmp_path, array, tags):
    array = np.clip(array, -1024, 800)
    write_series(tmp_path / "1", array, PhotometricInterpretation="MONOCHROME1", **tags)
    write_series(tmp_path / "2", array, PhotometricInterpretation="MONOCHROME2", **tags)
    first, second = (read_series(find_series(tmp_path / name)) for name in "12")
    assert first.dtype == second.dtype
    assert np.array_equal(first, second)
    if not tags:
        assert np.array_equal(first, array)


def test_each_slice_has_its_own_slope(series, array):
    slopes = [1, 40, 1.5, 1, 100]
    for file, slope in zip(series.files, slopes, strict=True):
        _change(file, RescaleSlope=slope)
    voxels = read_series(find_series(series.folder))
    expected = (array.astype(np.float64) + 1024) * slopes - 1024
    assert voxels.max() > 2**15
    np.testing.assert_allclose(voxels, expected)


@pytest.mark.parametrize("first", [0, 1])
def test_slices_of_several_number_types_keep_their_values(tmp_path, first):
    files = write_small_series(tmp_path / "s", straight(4), RescaleIntercept=0)
    kinds = [("<i2", -500, 16), ("<u2", 40000, 16), ("<u2", 3000, 12), ("u1", 200, 8)]
    kinds = kinds[first:] + kinds[:first]
    for file, (kind, value, bits) in zip(files, kinds, strict=True):
        data = pydicom.dcmread(file)
        data.PixelRepresentation = int(kind == "<i2")
        data.BitsAllocated, data.BitsStored, data.HighBit = 8 * np.dtype(kind).itemsize, bits, bits - 1
        data.PixelData = np.full((data.Rows, data.Columns), value, kind).tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(file)
    voxels = read_series(find_series(tmp_path / "s"))
    assert voxels[3, 4].tolist() == [value for _, value, _ in kinds]


def test_an_intercept_without_a_slope(series, array):
    for file in series.files:
        _change(file, RescaleSlope=None)
    assert np.array_equal(read_series(find_series(series.folder)), array)


@pytest.mark.parametrize("shown_as", ["MONOCHROME1", "MONOCHROME2"])
def test_a_slope_without_an_intercept(series, array, shown_as):
    for file in series.files:
        _change(file, RescaleIntercept=None, PhotometricInterpretation=shown_as)
    assert np.array_equal(read_series(find_series(series.folder)), array + 1024)  # as stored


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is a colour image"),
        ({"PixelSpacing": [0, 0]}, "PixelSpacing is .*two positive numbers"),
        ({"PixelSpacing": [-0.8, 0.8]}, "PixelSpacing is .*two positive numbers"),
        ({"PixelSpacing": [0.8]}, "PixelSpacing is .*expected 2 finite numbers"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two perpendicular directions"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "expected 6 finite numbers"),
        ({"ImagePositionPatient": [1, 2]}, "expected 3 finite numbers"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"NumberOfFrames": [2, 0, 0]}, "NumberOfFrames is .*expected 1 finite number"),
        ({"Rows": 65535}, "fewer than its 20 x 65535 pixels need"),
    ],
)
def test_odd_headers_name_the_file_and_the_cause(tmp_path, array, tags, message):
    write_series(tmp_path, array, **tags)
    with pytest.raises(InputError, match=message) as caught:
        find_series(tmp_path)
    assert f"{tmp_path}/I0" in str(caught.value)


def test_patient_study_series(tmp_path, array, caplog):
    for place in ("p1/study/ct", "p1/study/mr", "p2/study/ct"):
        write_series(tmp_path / place, array, Modality=place[-2:].upper())
    (tmp_path / "p1" / "DICOMDIR").write_bytes(b"index")
    found = survey_volumes(tmp_path)
    root = tmp_path.name
    assert [case["case"] for case in found.cases] == ["mr", f"{root}_p1_study_ct", f"{root}_p2_study_ct"]
    assert found.skipped == {str(tmp_path / "p1" / "DICOMDIR"): "is no DICOM file"}
    volume = open_volume(found.cases[0]["image"], series_uid=found.cases[0]["series_uid"])
    assert volume.modality == "MR"
    assert np.array_equal(volume.voxels, array)
    assert len(find_series(tmp_path / "p2").files) == 5  # the one series below a folder


def test_two_series_in_one_folder_and_one_series_in_two(tmp_path, array):
    write_series(tmp_path / "mixed", array)
    write_series(tmp_path / "other", array + 1)
    for file in list((tmp_path / "other").iterdir()):
        file.rename(tmp_path / "mixed" / f"x{file.name}")
    (tmp_path / "other").rmdir()
    write_series(tmp_path / "split" / "a", array)
    (tmp_path / "split" / "b").mkdir()
    for file in sorted((tmp_path / "split" / "a").iterdir())[:2]:
        file.rename(tmp_path / "split" / "b" / file.name)
    cases = find_volumes(tmp_path)
    assert [case["case"] for case in cases] == ["mixed_1", "mixed_2", "split"]
    volumes = [open_volume(case["image"], series_uid=case["series_uid"]) for case in cases]
    assert sorted(int(volume.voxels.max()) for volume in volumes) == sorted([array.max(), array.max() + 1, array.max()])
    assert {len(volume.files) for volume in volumes} == {5}


def test_a_pipe_among_the_slices_is_not_waited_for(series, tmp_path):
    os.mkfifo(series.folder / "notes.txt")
    assert len(find_series(series.folder).files) == len(series.files)
    os.mkfifo(series.folder / "I999.dcm")
    with pytest.raises(InputError, match="is no plain file"):
        find_series(series.folder)


def test_a_damaged_slice_with_a_damaged_series_uid_is_not_dropped(series):
    """Two of three slices left are evenly spaced, whichever is lost."""
    uid = series.uid
    for file in series.files[3:]:
        file.unlink()
    assert len(find_series(series.folder, uid=uid).files) == 3
    _change(series.files[1], Rows=None, SeriesInstanceUID="0")
    with pytest.raises(InputError, match="1 of 3 slices are damaged"):
        find_series(series.folder, uid=uid)


@pytest.mark.parametrize(("tag", "refused"), [("Columns", True), ("SamplesPerPixel", True), ("SeriesNumber", False)])
def test_an_attribute_that_cannot_be_decoded_is_one_error_where_it_matters(series, tag, refused):
    file = series.files[1]
    data = pydicom.dcmread(file)
    data.SeriesNumber = 7
    place = pydicom.tag.Tag(tag)
    kind, length = ("IS", b"x.y ") if tag == "SeriesNumber" else ("US", b"abc")  # three bytes are no number of two
    data[place] = pydicom.dataelem.RawDataElement(place, kind, len(length), length, 0, False, True)
    data.save_as(file)
    if refused:
        with pytest.raises(InputError, match=tag) as caught:
            find_series(series.folder)
        assert str(file) in str(caught.value)
        assert survey_volumes(series.folder).cases
    else:
        assert len(find_series(series.folder).files) == len(series.files)


_PHOENIX = "1.3.12.2.1107.5.9.1"  # Siemens' class of objects that are no image, such as PhoenixZIPReport


def _as_report(file):
    data = pydicom.dcmread(file)
    data.file_meta.MediaStorageSOPClassUID = _PHOENIX
    data.save_as(file)
    gone = dict.fromkeys(["Rows", "Columns", "PixelData", "ImagePositionPatient", "BitsAllocated"])
    _change(file, SOPClassUID=_PHOENIX, SeriesInstanceUID=pydicom.uid.generate_uid(), **gone)


@pytest.mark.parametrize("beside", [True, False])
def test_a_makers_own_object_that_is_no_image_damages_no_series(series, beside):
    """Exports of Siemens' MR scanners hold one, in one folder with the slices or in its own."""
    folder = series.folder if beside else series.folder / "report"
    folder.mkdir(exist_ok=True)
    file = folder / "I998"
    file.write_bytes(series.files[0].read_bytes())
    _as_report(file)
    found = survey_volumes(series.folder)
    assert found.skipped == {str(file): f"is no image (an object of the private class {_PHOENIX})"}
    assert [case["series_uid"] for case in found.cases] == [series.uid]
    assert find_series(series.folder, uid=series.uid).files == series.files


def test_a_damaged_slice_of_a_makers_own_class_is_not_dropped(series):
    for file in series.files:
        data = pydicom.dcmread(file)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.3.46.670589.11.0.0.12.9"
        data.save_as(file)
    _change(series.files[-1], Rows=None)
    with pytest.raises(InputError, match="1 of 5 slices are damaged"):
        find_series(series.folder)
    # a class that the object and its file say in two ways is damage itself
    _change(series.files[-1], SOPClassUID="1.2.8")
    with pytest.raises(InputError, match="1 of 5 slices are damaged"):
        find_series(series.folder)


def test_a_deflated_series_is_smaller_than_its_pixels_and_whole(tmp_path):
    files = write_small_series(tmp_path / "s", straight(3), shape=(64, 64))
    plain = read_series(find_series(tmp_path / "s"))
    for file in files:
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.save_as(file)
    assert files[0].stat().st_size < 64 * 64 * 2
    assert np.array_equal(read_series(find_series(tmp_path / "s")), plain)
    files[-1].write_bytes(files[-1].read_bytes()[:-20])
    with pytest.raises(InputError, match="1 of 3 slices are damaged"):
        find_series(tmp_path / "s")
