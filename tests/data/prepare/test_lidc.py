"""LIDC-IDRI: DICOM series and readers' XML as The Cancer Imaging Archive hands them out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.apps.prepare import app
from boltzformer.data.cases import load_cases
from boltzformer.data.prepare.lidc_consensus import Nodule, consensus, outline_pixels
from boltzformer.data.prepare.lidc_xml import Mark, Outline, Reading, parse_reading
from boltzformer.errors import InputError
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

ROOT_UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001"
SHAPE = (24, 20, 6)  # columns, rows, slices
SPACING = (0.7, 0.7, 2.5)


def ring(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    """The outline of a rectangle; what it encloses is x0 < x < x1, y0 < y < y1."""
    top = [(x, y0) for x in range(x0, x1)] + [(x1, y) for y in range(y0, y1)]
    return top + [(x, y1) for x in range(x1, x0, -1)] + [(x0, y) for y in range(y1, y0, -1)]


def roi(sop_uid: str, points: Iterable[tuple[int, int]], inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>-125.000000 </imageZposition><imageSOP_UID>{sop_uid}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def nodule(name: str, *rois: str) -> str:
    return (
        f"<unblindedReadNodule><noduleID>{name}</noduleID><characteristics><subtlety>5</subtlety></characteristics>"
        f"{''.join(rois)}</unblindedReadNodule>"
    )


def message(
    series_uid: str, sessions: list[str], root: str = "LidcReadMessage", space: str = "http://www.nih.gov"
) -> str:
    readers = "".join(
        f"<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>{i}"
        f"</servicingRadiologistID>{marks}</readingSession>"
        for i, marks in enumerate(sessions)
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} uid="1.3.6" xmlns="{space}">'
        f"<ResponseHeader><Version>1.8.1</Version><SeriesInstanceUid>{series_uid}</SeriesInstanceUid>"
        f"</ResponseHeader>{readers}</{root}>"
    )


def write_series(folder: Path, patient: str, uid: str, seed: int, modality: str = "CT") -> np.ndarray:
    """A series whose file names run against its heights; gives the (x, y, z) voxels in HU."""
    folder.mkdir(parents=True)
    array = np.random.default_rng(seed).integers(-1000, 400, SHAPE).astype(np.int16)
    for k in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        one.PatientID, one.Modality, one.InstanceNumber = patient, modality, SHAPE[2] - k
        one.StudyInstanceUID, one.SeriesInstanceUID = f"{uid}.900", uid
        one.Columns, one.Rows = SHAPE[:2]
        one.PixelSpacing = [SPACING[1], SPACING[0]]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [-160.0, -150.0, -130.0 + k * SPACING[2]]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = (array[:, :, k].T + 1024).astype("<i2").tobytes()
        one.save_as(folder / f"1-{SHAPE[2] - k:03d}.dcm", enforce_file_format=True)
    return array


def standard_reading(uid: str) -> str:
    """Readers 0 and 1 agree on columns 6 to 9; 2 drew another nodule alone; 3 a small point; 0 cut a hole."""
    first = nodule("Nodule 001", roi(f"{uid}.3", ring(3, 4, 10, 9)), roi(f"{uid}.3", ring(7, 5, 9, 7), "FALSE"))
    second = nodule("17", roi(f"{uid}.3", ring(5, 4, 12, 9)), roi(f"{uid}.4", ring(5, 4, 9, 8)))
    alone = nodule("IL1", roi(f"{uid}.6", ring(14, 10, 18, 14)))
    point = nodule("p", roi(f"{uid}.2", [(3, 3)]))
    none = f"<nonNodule><nonNoduleID>1</nonNoduleID><imageSOP_UID>{uid}.2</imageSOP_UID></nonNodule>"
    return message(uid, [first, second, alone + none, point])


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Five patients, one with two series, one with a radiograph, XML beside the images."""
    root = tmp_path / "LIDC-IDRI"
    for number, patient in enumerate([1, 2, 3, 4, 5, 5]):
        name, uid = f"LIDC-IDRI-{patient:04d}", f"{ROOT_UID}.{1000 + number}"
        folder = root / name / f"01-01-2000-NA-NA-3017{number}" / f"3000566.000000-NA-0319{number}"
        write_series(folder, name, uid, number)
        (folder / f"06{number}.xml").write_text(standard_reading(uid))
    x_ray = root / "LIDC-IDRI-0001" / "01-01-2000-NA-NA-35511" / "3000923.000000-NA-62357"
    write_series(x_ray, "LIDC-IDRI-0001", f"{ROOT_UID}.2000", 9, modality="DX")
    cxr = message(f"{ROOT_UID}.2000", [], "IdriReadMessage", "http://www.nih.gov/idri")
    (x_ray / "068.xml").write_text(cxr)
    return root


def _run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["lidc", *(str(a) for a in arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_masks_are_what_two_readers_drew(download, tmp_path):
    _run(download, tmp_path / "out")
    folder = tmp_path / "out" / "LIDC_IDRI"
    cases = [case for section in ("training", "validation", "test") for case in load_cases(folder, section)]
    names = sorted(Path(case["image"]).name for case in cases)
    assert names[:2] == ["LIDC-IDRI-0001.nii.gz", "LIDC-IDRI-0002.nii.gz"]
    assert names[4:] == ["LIDC-IDRI-0005_1.1004.nii.gz", "LIDC-IDRI-0005_1.1005.nii.gz"]
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[6:10, 5:9, 2] = 1  # columns 6 to 9 are inside both rings, rows 5 to 8
    expected[8, 6, 2] = 0  # reader 0's hole: inside its ring
    for case in cases:
        label = nib.load(case["label"])
        assert np.array_equal(np.asarray(label.dataobj), expected)
        assert np.array_equal(label.affine, nib.load(case["image"]).affine)
    first = next(case for case in cases if case["patient"] == "LIDC-IDRI-0002")
    image = nib.load(first["image"])
    random = np.random.default_rng(1).integers(-1000, 400, SHAPE)
    assert np.array_equal(np.asarray(image.dataobj), random)
    assert np.allclose(image.affine @ [0, 0, 0, 1], [160, 150, -130, 1])
    assert np.allclose(image.affine @ [1, 1, 1, 0], [-0.7, -0.7, 2.5, 0])
    assert first["prompts"][1][0] == "nodule in lung CT"
    origin = json.loads((folder / "manifest.json").read_text())["cases"]["LIDC-IDRI-0002"]["origin"]
    assert origin["series_uid"] == f"{ROOT_UID}.1001"
    assert origin["nodules"] == [
        {"readers": 2, "marks": 2, "voxels": 15},
        {"readers": 1, "marks": 1, "voxels": 0},
    ]
    assert origin["nodules_below_3_mm"] == 1


def test_both_series_of_a_patient_stay_in_one_list(download, tmp_path):
    for seed in range(2):
        _run(download, tmp_path / f"out{seed}", "--seed", seed)
        content = json.loads((tmp_path / f"out{seed}" / "LIDC_IDRI" / "dataset.json").read_text())
        where = [s for s in ("training", "validation", "test") for i in content[s] if i["patient"] == "LIDC-IDRI-0005"]
        assert len(where) == 2
        assert len(set(where)) == 1


def test_readings_may_come_in_an_archive_of_their_own(download, tmp_path):
    _run(download, tmp_path / "beside")
    archive = tmp_path / "LIDC-XML-only.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number, file in enumerate(sorted(download.rglob("*.xml"))):
            packed.write(file, f"tcia-lidc-xml/157/{number}.xml")
            file.unlink()
        packed.writestr("tcia-lidc-xml/157/999.xml", message("1.2.3", []))
    assert "6 of 6 CT series have no readers' XML" in _run(download, tmp_path / "out", code=2)
    _run(download, tmp_path / "out", "--annotations", archive)
    folder = tmp_path / "out" / "LIDC_IDRI"
    assert "1 readings belong to series" in " ".join(json.loads((folder / "dataset.json").read_text())["notes"])
    sums = [(f / "SHA256SUMS").read_text().splitlines()[:12] for f in (folder, tmp_path / "beside" / "LIDC_IDRI")]
    assert sums[0] == sums[1]


def test_a_packed_download_gives_the_same(download, tmp_path):
    archive = tmp_path / "lidc.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(download.rglob("*.*")):
            if file.is_file():
                packed.write(file, file.relative_to(download.parent))
    _run(download, tmp_path / "folder")
    _run(archive, tmp_path / "zip")
    sums = [(tmp_path / way / "LIDC_IDRI" / "SHA256SUMS").read_text().splitlines()[:12] for way in ("folder", "zip")]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(("readers", "voxels"), [(1, 6 * 4 + 2 * 4 + 3 * 3 + 3 * 3), (2, 15), (3, 0)])
def test_the_number_of_readers_that_must_agree(download, tmp_path, readers, voxels):
    _run(download, tmp_path / "out", "--min-readers", readers)
    label = nib.load(tmp_path / "out" / "LIDC_IDRI" / "labelsTr" / "LIDC-IDRI-0001.nii.gz")
    assert int(np.asarray(label.dataobj).sum()) == voxels


def _first_xml(download: Path) -> Path:
    return sorted(download.rglob("06*.xml"))[0]


@pytest.mark.parametrize(
    ("change", "message_", "code"),
    [
        (lambda x: x.write_text(x.read_text()[:-40]), "is no complete XML", 2),
        (lambda x: x.write_text("<annotation><object/></annotation>"), "XML of another schema", 2),
        (lambda x: x.write_text(x.read_text().replace("SeriesInstanceUid", "Series")), "no ResponseHeader/Series", 2),
        (
            lambda x: x.write_text(x.read_text().replace("<inclusion>TRUE", "<inclusion>YES")),
            "expected TRUE or FALSE",
            2,
        ),
        (lambda x: x.write_text(x.read_text().replace(">14<", ">1.5<", 1)), "expected two pixel numbers", 2),
        (lambda x: (x.parent / "copy.xml").write_text(x.read_text() + " "), "different readings of one series", 2),
        (lambda x: x.unlink(), "1 of 6 CT series have no readers' XML", 2),
        (lambda x: (x.parent / "1-003.dcm").unlink(), "not evenly spaced", 1),
        (lambda x: (x.parent / "1-001.dcm").unlink(), "which the series lacks", 1),
        (lambda x: (x.parent / "1-004.dcm").write_bytes(b"x" * 500), "LIDC-IDRI-0001: ", 1),
        (lambda x: x.write_text(x.read_text().replace("<xCoord>18<", "<xCoord>99<")), "outside 24 x 20", 1),
    ],
    ids=[
        "cut",
        "schema",
        "header",
        "inclusion",
        "point",
        "twice",
        "none",
        "hole",
        "drawn",
        "damaged",
        "outside",
    ],
)
def test_mistakes_are_one_line_and_leave_no_dataset(download, tmp_path, change, message_, code):
    change(_first_xml(download))
    said = _run(download, tmp_path / "out", code=code)
    assert message_ in said
    assert not (tmp_path / "out" / "LIDC_IDRI").exists()


def test_a_folder_without_ct_is_refused(tmp_path):
    write_series(tmp_path / "in" / "a", "P", "1.2.3", 0, modality="DX")
    assert "holds no CT series" in _run(tmp_path / "in", tmp_path / "out", code=2)


def test_an_outline_does_not_belong_to_the_nodule():
    inside, line = outline_pixels(np.array(ring(2, 3, 6, 8)), (10, 12))
    expected = np.zeros((10, 12), dtype=bool)
    expected[3:6, 4:8] = True
    assert np.array_equal(inside, expected)
    assert line.sum() == len(ring(2, 3, 6, 8))
    inside, _ = outline_pixels(np.array([(4, 4), (5, 4), (5, 5), (4, 5)]), (10, 12))
    assert not inside.any()


def _mark(reader: int, x0: int, k: int = 0) -> Mark:
    return Mark(reader, f"{reader}-{x0}", (Outline(f"s{k}", np.array(ring(x0, 2, x0 + 4, 7)), True),))


def test_drawings_are_one_nodule_by_transitive_contact():
    slices = {"s0": 0, "s1": 1}
    # 0 touches 1, 1 touches 2, 0 and 2 are apart; reader 3 drew elsewhere; reader 0 drew a second one alone
    marks = (_mark(0, 1), _mark(1, 5), _mark(2, 9), _mark(3, 1, k=1), _mark(0, 20))
    reading = Reading("1", 4, marks, 0)
    mask, nodules = consensus(reading, slices, (30, 10, 2), min_readers=1)
    assert nodules == [Nodule(3, 3, 3 * 12), Nodule(1, 1, 12), Nodule(1, 1, 12)]
    assert mask.sum() == 5 * 12
    # drawings of one reader alone do not join, and do not vote twice
    twice = Reading("1", 4, (_mark(0, 1), _mark(0, 2)), 0)
    mask, nodules = consensus(twice, slices, (30, 10, 2))
    assert not mask.any()
    assert [nodule_.readers for nodule_ in nodules] == [1, 1]


def test_no_nodule_at_all_is_an_empty_mask():
    mask, nodules = consensus(Reading("1", 4, (), 2), {}, (5, 5, 2))
    assert (int(mask.sum()), nodules) == (0, [])


def test_parse_reading_of_namespaces():
    for space in ("http://www.nih.gov", "https://www.nih.gov"):
        reading = parse_reading(message("1.2", ["", ""], space=space).encode(), "x.xml")
        assert reading == Reading("1.2", 2, (), 0)
    with pytest.raises(InputError, match="another schema"):
        parse_reading(message("1.2", [], space="urn:other").encode(), "x.xml")
