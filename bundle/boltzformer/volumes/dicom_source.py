"""Headers of a DICOM series as objects derived from it need them: complete, and nothing more than that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import UID, generate_uid

from boltzformer.errors import InputError
from boltzformer.volumes.dicom_headers import read_numbers
from boltzformer.volumes.volume import Volume

IDENTIFYING = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")
GEOMETRY = ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Type 2 in PS3.3: every derived object must hold them, empty where the source has none."""
MANUFACTURER = "BoltzFormer MONAI bundle"
SERIES_NUMBER_OFFSET = 1000
"""Series number of what is written: this much above the source's."""
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
"""What a derived image has to say too, once any of its sources has lost something (PS3.3, C.7.6.1.1.5)."""
_OPTIONAL = ("FrameOfReferenceUID", "SliceThickness", "SeriesNumber", *LOSSY)
_FORMS = {
    "DA": re.compile(r"\d{8}"),
    "TM": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"),
    "PatientSex": re.compile(r"[MFO]"),
}


def read_source_headers(files: Sequence[Path]) -> list[Dataset]:
    """Read what a SEG or RTSTRUCT takes over from its source, and repair it.

    Kept are the identifiers, the place in space, whether pixels were compressed with loss, and the attributes of
    patient and study that the standard wants in every object (type 1 and 2). Nothing else is: no private element, no
    name of an institution, no comment. A missing or malformed type 2 value becomes empty, a thickness or series number
    that is no number is left out, and text is kept as Unicode; the files themselves are only read.

    Args:
        files: the series' files, one image each.

    Returns:
        one header for each file, in the same order.

    Raises:
        InputError: a file cannot be read or lacks an identifier or its place in space; the files are of several series,
            frames of reference or sizes, or two of them are one image by their identifier.
    """
    headers = [_read_header(Path(file)) for file in files]
    if not headers:
        raise InputError("no DICOM file was given as the source of the segmentation.")
    first = headers[0]
    seen: dict[str, Path] = {}
    for file, header in zip(files, headers, strict=True):
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
            if header[name].value != first[name].value:
                raise InputError(f"{file}: differs in {name} from {files[0]}; give the files of one series.")
        other = seen.setdefault(str(header.SOPInstanceUID), file)
        if other != file:  # a viewer would draw the masks of both on one of them
            raise InputError(
                f"{file}: has the SOPInstanceUID of {other}, by which a segmentation refers to its image; export the "
                "series again."
            )
    return headers


def source_headers(volume: Volume) -> list[Dataset]:
    """The repaired headers of the series that a volume was read from, checked against its voxels.

    Args:
        volume: with `series`.

    Returns:
        one header for each slice, in the order of Z.

    Raises:
        InputError: the volume comes from no DICOM series, or as `read_source_headers`.
    """
    if volume.series is None:
        raise InputError(
            f"{volume.name}: is no DICOM series, which DICOM SEG and RTSTRUCT refer to; give the DICOM folder, or "
            "choose another output format."
        )
    files = volume.series.files
    headers = read_source_headers(files)
    if volume.voxels.shape[:2] != (headers[0].Columns, headers[0].Rows):
        raise InputError(
            f"{files[0]}: has {headers[0].Columns} columns and {headers[0].Rows} rows, the volume "
            f"{volume.voxels.shape[:2]}."
        )
    return headers


def slice_positions(headers: Sequence[Dataset]) -> np.ndarray:
    """Centres of the slices' first pixels, (n, 3) in mm, DICOM's LPS axes."""
    return np.array([header.ImagePositionPatient for header in headers], dtype=np.float64)


def even_spacing(headers: Sequence[Dataset], tolerance: float = 0.01) -> float | None:
    """Distance between neighbouring slices in mm; None where it differs by over `tolerance` mm, or of one slice."""
    row, column = np.array(headers[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    gaps = np.abs(np.diff(slice_positions(headers) @ np.cross(row, column)))
    if len(gaps) == 0 or gaps.max() - gaps.min() > tolerance:
        return None
    return float(gaps.mean())


def one_line(text: str, length: int) -> str:
    """Text that fits one DICOM value: no backslash, which would part it in two, no line break, at most `length`."""
    tidy = " ".join("".join(c if c.isprintable() else " " for c in text.replace("\\", "/")).split())
    return tidy if len(tidy) <= length else tidy[: length - 1].rstrip() + "…"


def _read_header(file: Path) -> Dataset:
    wanted = [*IDENTIFYING, *GEOMETRY, *MAY_BE_EMPTY, *_OPTIONAL]
    try:
        read = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*wanted, "SpecificCharacterSet"])
    except (InvalidDicomError, OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as DICOM ({error}).") from error
    kept = Dataset()
    for name in (*IDENTIFYING, *GEOMETRY):
        if read.get(name) in (None, ""):
            raise InputError(f"{file}: has no {name}, which a segmentation has to refer to; export the series again.")
        setattr(kept, name, read[name].value)
    for name in MAY_BE_EMPTY:
        setattr(kept, name, _repaired(read, name))
    kept.SpecificCharacterSet = "ISO_IR 192"
    # one for the whole series, also where the files have none
    kept.FrameOfReferenceUID = read.get("FrameOfReferenceUID") or generate_uid(
        entropy_srcs=["frame of reference", str(UID(read.SeriesInstanceUID))]
    )
    for name in ("SliceThickness", "SeriesNumber"):
        with suppress(InputError):  # absent, or no number: an object can do without
            number = read_numbers(read, name, 1, file)[0]
            setattr(kept, name, int(number) if name == "SeriesNumber" else number)
    if read.get("LossyImageCompression") == "01":
        for name in LOSSY:
            with suppress(KeyError, TypeError, ValueError):  # absent, or no number
                setattr(kept, name, read[name].value)
    return kept


def _repaired(header: Dataset, name: str) -> str:
    value = header.get(name)
    parts = value if isinstance(value, MultiValue) else [value]  # a backslash in the source, also where none may be
    text = "" if value is None else "\\".join(map(str, parts)).strip()
    form = _FORMS.get(name) or (_FORMS.get(header[name].VR) if name in header else None)
    return "" if form is not None and not form.fullmatch(text) else text
