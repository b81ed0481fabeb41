"""A DICOM series as a volume: every slice counted, the geometry checked before it is believed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from boltzformer.errors import InputError
from boltzformer.volumes.dicom_headers import LOCALIZER, FolderContents, merge, read_numbers, survey_folder

SPACING_TOLERANCE_MM = 0.1
"""Slices whose position is off the regular grid by more than this are refused (real series are off by 0.07 mm)."""
_MAX_LISTED = 5


@dataclass(frozen=True, eq=False)
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
        shape: (columns, rows, slices).
        scaling: (slope, intercept) of each file.
        inverted: for each file the M of a MONOCHROME1 image, which decoders turn into M - stored; None for others.
        stored: bits and sign of each file's pixels, as text; slices of one series may differ in them.
        uneven: how far the slices are off a regular grid, where the affine holds the mean spacing; else empty.
    """

    folder: Path
    files: tuple[Path, ...]
    affine: np.ndarray
    modality: str
    uid: str
    positions: np.ndarray
    body_part: str
    shape: tuple[int, int, int]
    scaling: tuple[tuple[float, float], ...]
    inverted: tuple[int | None, ...]
    stored: tuple[str, ...]
    uneven: str = ""


class UnevenSlices(InputError):
    """Slices that are not evenly spaced were refused.

    Args:
        found: the folder, and how far they are off.
    """

    def __init__(self, found: str) -> None:
        self.without_choice = f"{found}: a slice may be missing. Complete or resample the series."
        super().__init__(f"{self.without_choice[:-1]}, or set `uneven_spacing` to 'warn' to take the mean spacing.")


_LINK = "is a link to a folder, which is not followed; name the folder itself"


def has_dicom(folder: str | Path) -> bool:
    """Whether a folder directly holds a DICOM image, or what seems to be a damaged one."""
    contents = survey_folder(Path(folder))
    return bool(contents.images or contents.damaged)


def survey_tree(folder: str | Path) -> FolderContents:
    """Look at every file in a folder and its folders, not in hidden ones; a link to a folder is told, not followed."""
    parts = []
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
        parts += [survey_folder(Path(place)), FolderContents(others=dict.fromkeys(links, _LINK))]
    return merge(parts)


def find_series(folder: str | Path, uneven_spacing: str = "refuse", uid: str = "") -> DicomSeries:
    """Read the headers of a series and check that its slices form a regular grid.

    Files that are no DICOM image (`DIRFILE`, `DICOMDIR`, reports, segmentations) and localizers are skipped. A file
    that seems to be a damaged slice is not.

    Args:
        folder: folder of the slices; searched deeper where it holds none itself, or where `uid` is given.
        uneven_spacing: "refuse" slices that are missing or not evenly spaced, or take the mean spacing and "warn" when
            the voxels are read; masks are right slice by slice then, but lie up to the stated distance away from the
            true positions.
        uid: SeriesInstanceUID of the wanted series, where the folder holds several.

    Returns:
        the series.

    Raises:
        InputError: no DICOM image, a damaged slice, more than one series, a multi-frame or colour file, slices of
            different size or orientation, two slices at one position, or uneven spacing.
    """
    folder = Path(folder)
    if uneven_spacing not in {"refuse", "warn"}:
        raise InputError(f"uneven_spacing: expected 'refuse' or 'warn', found {uneven_spacing!r}.")
    contents = FolderContents() if uid else survey_folder(folder)
    if not contents.images and not contents.damaged:
        contents = survey_tree(folder)
    return series_of(contents, folder, uneven_spacing, uid)


def series_of(contents: FolderContents, folder: Path, uneven_spacing: str = "refuse", uid: str = "") -> DicomSeries:
    """The one series of surveyed files; arguments, result and errors as of `find_series`."""
    headers = {file: header for file, header in contents.images.items() if not uid or _uid(header) == uid}
    others = {_uid(header) for header in contents.images.values()} - {uid}
    folders = {file.parent for file in headers}
    damaged = {}
    for file, reason in contents.damaged.items():
        stated = contents.series_of_damaged.get(file, uid)
        # damage may have reached the UID itself: what lies among the slices and names no other series is one of them
        if not uid or stated == uid or (stated not in others and file.parent in folders):
            damaged[file] = reason
    if damaged:
        listed = "; ".join(f"{file} {reason}" for file, reason in list(damaged.items())[:_MAX_LISTED])
        raise InputError(
            f"{folder}: {len(damaged)} of {len(damaged) + len(headers)} slices are damaged: {listed}. Export the "
            "series again, or take away what is no part of it."
        )
    if not headers:
        scouts = sum(reason == LOCALIZER for reason in contents.others.values())
        beside = f" but {scouts} localizer{'s' if scouts > 1 else ''} (scouts)" if scouts else ""
        raise InputError(f"{folder}: holds no DICOM image{beside}; name the folder that holds a series' slices.")
    _check_one_series(headers, folder)
    files, positions = _in_order(headers, folder)
    first = headers[files[0]]
    affine, uneven = _affine(first, files[0], positions)
    if uneven and uneven_spacing == "refuse":
        raise UnevenSlices(f"{folder}: {uneven}")
    modality, part = (str(first.get(tag, "") or "") for tag in ("Modality", "BodyPartExamined"))
    shape = (int(first.Columns), int(first.Rows), len(files))
    scaling = tuple(_scaling(headers[file], file) for file in files)
    inverted = tuple(_inverted(headers[file], file) for file in files)
    stored = tuple(_stored(headers[file]) for file in files)
    return DicomSeries(
        *(folder, files, affine, modality, _uid(first), positions, part, shape, scaling, inverted, stored, uneven)
    )


def _uid(header: Dataset) -> str:
    return str(header.get("SeriesInstanceUID", "") or "")


def _check_one_series(headers: dict[Path, Dataset], folder: Path) -> None:
    described: dict[str, str] = {}
    for file, header in headers.items():
        # an enhanced image states its place by frames, also where it has one alone
        enhanced = "Enhanced" in UID(str(header.get("SOPClassUID", "") or "")).name
        if enhanced or _count(header, "NumberOfFrames", file) > 1:
            raise InputError(
                f"{file}: holds a multi-frame DICOM image; convert it to NIfTI first (dcm2niix does) and give that."
            )
        if _count(header, "SamplesPerPixel", file) != 1:
            raise InputError(f"{file}: is a colour image; give the grey values of a CT or MR series.")
        described[_uid(header)] = str(header.get("SeriesDescription", "") or "no description")
    if len(described) > 1:
        listed = "; ".join(f"{uid} ({text})" for uid, text in list(described.items())[:_MAX_LISTED])
        raise InputError(f"{folder}: holds {len(described)} series: {listed}. Name the folder of one of them.")


def _count(header: Dataset, tag: str, file: Path) -> float:
    """A number of frames or samples; 1 where the file does not say."""
    return 1 if header.get(tag) in (None, "") else read_numbers(header, tag, 1, file)[0]


def _in_order(headers: dict[Path, Dataset], folder: Path) -> tuple[tuple[Path, ...], np.ndarray]:
    """The files along the slice axis, and their positions (n, 3) in mm (LPS)."""
    files = list(headers)
    first_axes = _axes(headers[files[0]], files[0])
    first = headers[files[0]]
    for file, header in headers.items():
        same = np.allclose(_axes(header, file), first_axes, atol=1e-3)
        if not same or (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise InputError(
                f"{file}: differs in size, pixel spacing or orientation from {files[0]}; "
                "move scouts and other series to folders of their own."
            )
    normal = np.cross(first_axes[:3], first_axes[3:6])
    positions = np.array([read_numbers(header, "ImagePositionPatient", 3, file) for file, header in headers.items()])
    order = np.argsort(positions @ normal, kind="stable")
    heights = (positions @ normal)[order]
    for k in range(1, len(order)):
        if heights[k] - heights[k - 1] < 1e-3:
            raise _two_at_one_place(files[order[k - 1]], files[order[k]], headers, folder)
    return tuple(files[k] for k in order), positions[order]


def _two_at_one_place(one: Path, other: Path, headers: dict[Path, Dataset], folder: Path) -> InputError:
    first, second = (str(headers[file].get("SOPInstanceUID", "") or "") for file in (one, other))
    names = " and ".join(str(file.relative_to(folder)) for file in (one, other))  # copies may lie in two folders
    if first and first == second:
        return InputError(f"{folder}: {names} are the same image (SOPInstanceUID); keep one copy of each.")
    return InputError(f"{folder}: {names} lie at the same position; keep one phase or echo in the folder.")


def _axes(header: Dataset, file: Path) -> np.ndarray:
    """Directions of a row and of a column, and the pixel spacing: (8,), checked."""
    directions = np.array(read_numbers(header, "ImageOrientationPatient", 6, file)).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-2):
        raise InputError(
            f"{file}: ImageOrientationPatient {directions.ravel().tolist()} is not two perpendicular directions of "
            "length 1; export the series again."
        )
    spacing = read_numbers(header, "PixelSpacing", 2, file)
    if min(spacing) <= 0:
        raise InputError(f"{file}: PixelSpacing is {spacing}, expected two positive numbers; export the series again.")
    return np.array([*directions.ravel(), *spacing])


def _affine(header: Dataset, file: Path, positions: np.ndarray) -> tuple[np.ndarray, str]:
    """Voxel index (column, row, slice) to RAS+, and what is uneven; a tilted gantry gives a sheared one, as it is."""
    uneven = ""
    axes = _axes(header, file)
    along_row, along_column, (row_spacing, column_spacing) = axes[:3], axes[3:6], axes[6:]
    count = len(positions)
    if count > 1:
        step = (positions[-1] - positions[0]) / (count - 1)
        off = np.linalg.norm(positions - (positions[0] + np.arange(count)[:, None] * step), axis=1).max()
        if off > SPACING_TOLERANCE_MM:
            gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
            uneven = (
                f"the {count} slices are not evenly spaced (gaps of {gaps.min():.2f} to {gaps.max():.2f} mm, up to "
                f"{off:.2f} mm off a regular grid)"
            )
    else:
        step = np.cross(along_row, along_column) * _thickness(header, file)
    lps = np.eye(4)
    lps[:3, 0] = along_row * column_spacing
    lps[:3, 1] = along_column * row_spacing
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, uneven


def _thickness(header: Dataset, file: Path) -> float:
    """Of a slice by itself in mm, which has no neighbour to measure a distance to: as stated, else 1."""
    if header.get("SliceThickness") in (None, ""):
        return 1.0
    stated = read_numbers(header, "SliceThickness", 1, file)[0]
    return stated if stated > 0 else 1.0


def _scaling(header: Dataset, file: Path) -> tuple[float, float]:
    """Rescale slope and intercept of one file; 1 and 0 where it has none."""
    slope, intercept = (
        read_numbers(header, tag, 1, file)[0] if header.get(tag) not in (None, "") else default
        for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise InputError(f"{file}: RescaleSlope is 0, which makes every voxel the same; export the series again.")
    return slope, intercept


def _inverted(header: Dataset, file: Path) -> int | None:
    if str(header.get("PhotometricInterpretation", "")).strip() != "MONOCHROME1":
        return None
    signed = header.get("PixelRepresentation", 0) == 1
    return -1 if signed else 2 ** int(read_numbers(header, "BitsStored", 1, file)[0]) - 1


def _stored(header: Dataset) -> str:
    return " ".join(str(header.get(tag, "")) for tag in ("BitsAllocated", "BitsStored", "PixelRepresentation"))
