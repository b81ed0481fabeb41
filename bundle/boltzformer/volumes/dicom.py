"""A DICOM series as a volume: every slice counted, the geometry checked before it is believed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from boltzformer.errors import InputError

logger = logging.getLogger(__name__)

SPACING_TOLERANCE_MM = 0.1
"""Slices whose position is off the regular grid by more than this are refused (real series are off by 0.07 mm)."""
_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "BodyPartExamined"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
)


@dataclass(frozen=True)
class DicomSeries:
    """One series of a folder.

    Attributes:
        folder: where it lies.
        files: its slices, in the order of the volume's third axis.
        affine: (4, 4) float64, voxel index (column, row, slice) to RAS+ world coordinates in mm.
        modality: as the files say, for example "CT" or "MR".
        uid: SeriesInstanceUID.
        positions: (slices, 3) float64, ImagePositionPatient of each file in mm (LPS), in the order of `files`: the true
            place of each slice, also where the affine holds the mean spacing.
        body_part: BodyPartExamined; empty where the files do not say.
    """

    folder: Path
    files: tuple[Path, ...]
    affine: np.ndarray
    modality: str
    uid: str
    positions: np.ndarray
    body_part: str = ""


def has_dicom(folder: str | Path) -> bool:
    """Whether a folder directly holds a DICOM image."""
    return any(_image_header(file) is not None for file in sorted(Path(folder).iterdir()))


def find_series(folder: str | Path, uneven_spacing: str = "refuse") -> DicomSeries:
    """Read the headers of the one series in a folder and check that its slices form a regular grid.

    Files that are no DICOM image (`DIRFILE`, `DICOMDIR`, reports) are skipped.

    Args:
        folder: folder of the slices, not searched any deeper.
        uneven_spacing: "refuse" slices that are missing or not evenly spaced, or "warn" and take the mean spacing;
            masks are right slice by slice then, but lie up to the stated distance away from the true positions.

    Returns:
        the series.

    Raises:
        InputError: no DICOM image, more than one series, a multi-frame file, slices of different size or orientation,
            two slices at one position, or uneven spacing.
    """
    folder = Path(folder)
    if uneven_spacing not in {"refuse", "warn"}:
        raise InputError(f"uneven_spacing: expected 'refuse' or 'warn', found {uneven_spacing!r}.")
    headers = {file: header for file in sorted(folder.iterdir()) if (header := _image_header(file)) is not None}
    if not headers:
        raise InputError(f"{folder}: holds no DICOM image; name the folder that directly holds a series' slices.")
    _check_one_series(headers.values(), folder)
    files, positions = _in_order(headers, folder)
    affine = _affine(headers[files[0]], positions, folder, uneven_spacing)
    first = headers[files[0]]
    modality, uid, part = (
        str(first.get(tag, "") or "") for tag in ("Modality", "SeriesInstanceUID", "BodyPartExamined")
    )
    return DicomSeries(folder, files, affine, modality, uid, positions, part)


def read_series(series: DicomSeries) -> np.ndarray:
    """Decode a series, with the files' rescale slope and intercept applied (Hounsfield units for CT).

    Args:
        series: from `find_series`.

    Returns:
        (columns, rows, slices) array, int16 (int32 where that is too narrow) where the rescaling gives whole numbers,
        else float32.

    Raises:
        InputError: a slice cannot be decoded, or fewer slices come than there are files.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series.files])
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{series.folder}: a slice cannot be decoded ({reason}); export the series again.") from error
    if array.shape[0] != len(series.files):
        raise InputError(f"{series.folder}: {array.shape[0]} slices came of {len(series.files)} files.")
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif np.iinfo(np.int16).min <= array.min() and array.max() <= np.iinfo(np.int16).max:
        array = array.astype(np.int16, copy=False)  # half the memory of the decoder's int32
    return array.transpose(2, 1, 0)


def _image_header(file: Path) -> Dataset | None:
    """The header of a DICOM image; None for anything else."""
    if not file.is_file():
        return None
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError, ValueError, AttributeError, KeyError):
        return None
    return header if "Rows" in header and "Columns" in header else None


def _check_one_series(headers: Iterable[Dataset], folder: Path) -> None:
    described: dict[str, str] = {}
    for header in headers:
        if int(header.get("NumberOfFrames", 1) or 1) > 1:
            raise InputError(
                f"{folder}: holds a multi-frame DICOM file; convert it to NIfTI first (dcm2niix does) and give that."
            )
        described[str(header.get("SeriesInstanceUID", ""))] = str(header.get("SeriesDescription", "no description"))
    if len(described) > 1:
        listed = "; ".join(f"{uid} ({text})" for uid, text in list(described.items())[:5])
        raise InputError(f"{folder}: holds {len(described)} series: {listed}. Give each a folder of its own.")


def _in_order(headers: dict[Path, Dataset], folder: Path) -> tuple[tuple[Path, ...], np.ndarray]:
    """The files along the slice axis, and their positions (n, 3) in mm (LPS)."""
    first = next(iter(headers.values()))
    for file, header in headers.items():
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if header.get(tag) is None:
                raise InputError(f"{file}: has no {tag}, so its place in space is not known; export the series again.")
        same = all(
            np.allclose(np.array(header[tag].value, float), np.array(first[tag].value, float), atol=1e-3)
            for tag in ("ImageOrientationPatient", "PixelSpacing")
        )
        if not same or (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise InputError(
                f"{file}: differs in size, pixel spacing or orientation from {next(iter(headers))}; "
                "move scouts and other series to folders of their own."
            )
    normal = np.cross(*np.array(first.ImageOrientationPatient, float).reshape(2, 3))
    positions = np.array([np.array(header.ImagePositionPatient, float) for header in headers.values()])
    order = np.argsort(positions @ normal, kind="stable")
    files = list(headers)
    heights = (positions @ normal)[order]
    for k in range(1, len(order)):
        if heights[k] - heights[k - 1] < 1e-3:
            raise InputError(
                f"{folder}: {files[order[k - 1]].name} and {files[order[k]].name} lie at the same position; keep one "
                "phase or echo in the folder."
            )
    return tuple(files[k] for k in order), positions[order]


def _affine(header: Dataset, positions: np.ndarray, folder: Path, uneven_spacing: str) -> np.ndarray:
    """Voxel index (column, row, slice) to RAS+; a tilted gantry gives a sheared one, as it is."""
    along_row, along_column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    row_spacing, column_spacing = (float(value) for value in header.PixelSpacing)
    count = len(positions)
    if count > 1:
        step = (positions[-1] - positions[0]) / (count - 1)
        off = np.linalg.norm(positions - (positions[0] + np.arange(count)[:, None] * step), axis=1).max()
        _check_even(off, np.linalg.norm(np.diff(positions, axis=0), axis=1), folder, uneven_spacing)
    else:
        step = np.cross(along_row, along_column)
    lps = np.eye(4)
    lps[:3, 0] = along_row * column_spacing
    lps[:3, 1] = along_column * row_spacing
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _check_even(off: float, gaps: np.ndarray, folder: Path, uneven_spacing: str) -> None:
    if off <= SPACING_TOLERANCE_MM:
        return
    found = (
        f"{folder}: the {len(gaps) + 1} slices are not evenly spaced (gaps of {gaps.min():.2f} to {gaps.max():.2f} mm, "
        f"up to {off:.2f} mm off a regular grid)"
    )
    if uneven_spacing == "refuse":
        raise InputError(
            f"{found}: a slice may be missing. Complete or resample the series, or set `uneven_spacing` to 'warn' to "
            "take the mean spacing."
        )
    logger.warning("%s: masks are written on the mean spacing", found)
