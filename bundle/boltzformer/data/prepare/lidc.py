"""LIDC-IDRI: chest CT with four readers' outlines of lung nodules.

Layout (The Cancer Imaging Archive, collection LIDC-IDRI; Armato et al., Med Phys 38:915, 2011): `LIDC-IDRI-0001/STUDY/
SERIES/1-001.dcm`, a folder for each series, 1018 CT series of 1010 patients, besides radiographs (modality CR or DX),
which are left out. The readers' XML lies in the series' folder or, in newer downloads, in an archive of its own
(`LIDC-XML-only.zip`). Which XML belongs to which series is told by the SeriesInstanceUID alone, and which outline to
which slice by the SOPInstanceUID; neither file names nor order count. Eight patients have two series.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import pydicom
from pydicom.errors import InvalidDicomError

from boltzformer.data.prepare.lidc_consensus import consensus
from boltzformer.data.prepare.lidc_xml import Reading, parse_reading
from boltzformer.data.prepare.plan import DatasetPlan, PlannedCase, Structure, Writer
from boltzformer.data.prepare.source import FolderSource, Source
from boltzformer.errors import InputError
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.dicom_pixels import read_series

_TAGS = ["Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
STRUCTURES = {1: Structure("nodule", ("lung nodule", "pulmonary nodule", "solitary nodule", "lung lesion"))}


@dataclass(frozen=True)
class _Series:
    folder: str
    patient: str
    study_uid: str
    series_uid: str
    files: tuple[str, ...]


def plan_lidc(
    source: Source, annotations: Source | None = None, min_readers: int = 2, uneven_spacing: str = "refuse"
) -> list[DatasetPlan]:
    """Plan the CT series of LIDC-IDRI, with a mask of the voxels that at least `min_readers` readers drew.

    Args:
        source: the download's folder (or an archive of it); part of the patients is enough.
        annotations: the readers' XML, where it is not beside the images.
        min_readers: of the four readers, 1 to 4.
        uneven_spacing: "refuse" or "warn", see `boltzformer.volumes.dicom.find_series`.

    Returns:
        a list of one plan.

    Raises:
        InputError: no CT series, series without a reading, XML of another schema, or two readings of one series.
    """
    if not 1 <= min_readers <= 4:
        raise InputError(f"min_readers: expected 1 to 4, found {min_readers}.")
    series = _find_ct_series(source)
    readings = _readings(annotations or source)
    without = [one.folder for one in series if one.series_uid not in readings]
    if without:
        raise InputError(
            f"{source.path}: {len(without)} of {len(series)} CT series have no readers' XML, the first {without[0]}; "
            "give the collection's XML archive as --annotations, or complete it."
        )
    per_patient = Counter(one.patient for one in series)
    cases = []
    for one in series:
        name = one.patient if per_patient[one.patient] == 1 else f"{one.patient}_{one.series_uid[-6:]}"
        write = _writer(source, one, readings[one.series_uid], min_readers, uneven_spacing)
        cases.append(PlannedCase(name, one.patient, write, sum(source.sizes[file] for file in one.files)))
    spare = len(set(readings) - {one.series_uid for one in series})
    return [
        DatasetPlan(
            name="LIDC_IDRI",
            description=f"LIDC-IDRI: nodules of 3 mm or more, voxels drawn by at least {min_readers} of 4 readers",
            reference="Armato et al., Medical Physics 38, 2011",
            licence="CC BY 3.0",
            modality="CT",
            body_part="lung",
            structures=STRUCTURES,
            cases=cases,
            parameters={"family": "lidc", "min_readers": min_readers, "uneven_spacing": uneven_spacing},
            notes=(
                "nodules below 3 mm have no outline and are background",
                f"{spare} readings belong to series that are not in the download",
            ),
        )
    ]


def _find_ct_series(source: Source) -> list[_Series]:
    """Folders of DICOM files whose first file is CT, by patient and series."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in source.sizes:
        if name.lower().endswith(".dcm"):
            folders[str(PurePosixPath(name).parent)].append(name)
    found = []
    for folder, files in folders.items():
        with source.opened(files[0]) as stream:
            try:
                header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
            except (InvalidDicomError, ValueError, AttributeError) as error:
                raise InputError(f"{source.path}: {files[0]} is no DICOM file ({error}); download it again.") from error
        if str(header.get("Modality", "")) != "CT":
            continue
        patient, study, uid = (str(header.get(tag, "") or "") for tag in _TAGS[1:])
        if not patient or not uid:
            raise InputError(f"{source.path}: {files[0]} has no PatientID or no SeriesInstanceUID.")
        found.append(_Series(folder, patient, study, uid, tuple(files)))
    if not found:
        raise InputError(f"{source.path}: holds no CT series (folders of .dcm files); give the LIDC-IDRI download.")
    repeated = [uid for uid, count in Counter(one.series_uid for one in found).items() if count > 1]
    if repeated:
        raise InputError(f"{source.path}: series {repeated[0]} lies in several folders; keep one.")
    return sorted(found, key=lambda one: (one.patient, one.series_uid))


def _readings(source: Source) -> dict[str, Reading]:
    found: dict[str, tuple[str, bytes, Reading]] = {}
    for name in source.sizes:
        if not name.lower().endswith(".xml"):
            continue
        with source.opened(name) as stream:
            text = stream.read()
        reading = parse_reading(text, f"{source.path}/{name}")
        if reading is None:
            continue
        if reading.series_uid in found and found[reading.series_uid][1] != text:
            other = found[reading.series_uid][0]
            raise InputError(f"{source.path}: {name} and {other} are different readings of one series; keep one.")
        found[reading.series_uid] = (name, text, reading)
    return {uid: reading for uid, (_, _, reading) in found.items()}


def _writer(source: Source, one: _Series, reading: Reading, min_readers: int, uneven_spacing: str) -> Writer:
    def write(to_image: Path, to_label: Path) -> dict[str, Any]:
        if reading.readers < min_readers:
            raise InputError(f"{one.folder}: its XML has {reading.readers} readers; {min_readers} must agree.")
        with _on_disk(source, one, to_image.parent.parent) as folder:
            series = find_series(folder, uneven_spacing)
            if len(series.files) != len(one.files):
                raise InputError(f"{one.folder}: {len(one.files) - len(series.files)} DICOM files cannot be read.")
            array = read_series(series)
            slices = {_sop_uid(file): k for k, file in enumerate(series.files)}
        try:
            shape = (array.shape[0], array.shape[1], array.shape[2])
            mask, nodules = consensus(reading, slices, shape, min_readers)
        except InputError as error:
            raise InputError(f"{one.folder}: {error}") from error
        nib.save(nib.Nifti1Image(array, series.affine), to_image)
        nib.save(nib.Nifti1Image(mask, series.affine), to_label)
        return {
            "folder": one.folder,
            "patient_id": one.patient,
            "study_uid": one.study_uid,
            "series_uid": one.series_uid,
            "readers": reading.readers,
            "nodules": [asdict(nodule) for nodule in nodules],
            "nodules_below_3_mm": reading.points,
        }

    return write


@contextmanager
def _on_disk(source: Source, one: _Series, near: Path) -> Iterator[Path]:
    """The series' folder; out of an archive its files are copied for as long as they are needed."""
    if isinstance(source, FolderSource):
        yield source.path / one.folder
        return
    with tempfile.TemporaryDirectory(dir=near) as folder:
        for name in one.files:
            source.copy(name, Path(folder) / PurePosixPath(name).name)
        yield Path(folder)


def _sop_uid(file: Path) -> str:
    return str(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
