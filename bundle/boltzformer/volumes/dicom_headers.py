"""What a file in a DICOM folder is: an image, a damaged image, or something else. Headers only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from boltzformer.errors import InputError

_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "Modality"),
    *("BodyPartExamined", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "BitsAllocated", "SliceThickness", "ImageType"),
)
_ONLY_TOLD = {"SeriesDescription", "SeriesNumber", "BodyPartExamined", "SliceThickness", "ImageType"}
_LONGEST = 200  # of what pydicom says, which quotes all bytes
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")


@dataclass
class FolderContents:
    """The files of one folder.

    Attributes:
        images: headers of the DICOM images, by file.
        damaged: what is wrong with each file that seems to be a slice but cannot be one, by file.
        series_of_damaged: SeriesInstanceUID of a damaged file where it can still be read.
        others: why each remaining file is no image, by file.
    """

    images: dict[Path, Dataset] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    series_of_damaged: dict[Path, str] = field(default_factory=dict)
    others: dict[Path, str] = field(default_factory=dict)


def survey_folder(folder: Path) -> FolderContents:
    """Look at every file directly in a folder.

    A file that is no readable DICOM counts as a damaged slice where it is named like the folder's images (numbers
    apart) or ends in `.dcm`, and where it is empty or nothing but zeros beside images of the same ending. An object of
    a maker's own class without Rows and Columns (Siemens' PhoenixZIPReport) is no slice, except beside images of that
    class. A localizer is none either, whatever series it is in.

    A folder is asked for several times with each series in it: while no file changes, it is read once.

    Args:
        folder: not searched any deeper; hidden files are left out.

    Returns:
        every file in one of three groups.
    """
    files = tuple(
        file for file in sorted(Path(folder).iterdir()) if not file.name.startswith(".") and not file.is_dir()
    )
    return merge([_survey(files, tuple(map(_state_of, files)))])


def _state_of(file: Path) -> tuple[int, ...]:
    """Inode, size and time of the last change."""
    try:
        found = file.stat()
    except OSError:  # a link to what is not there
        return ()
    return (found.st_ino, found.st_size, found.st_ctime_ns)


@lru_cache(maxsize=1)
def _survey(files: tuple[Path, ...], state: tuple[tuple[int, ...], ...]) -> FolderContents:
    """The files of a folder, sorted; of one state, which is not looked at."""
    contents = FolderContents()
    doubtful: dict[Path, str] = {}
    private: dict[Path, Dataset] = {}
    for file in files:
        _sort_in(file, contents, doubtful, private)
    _sort_in_private(private, contents)
    patterns = {_pattern(file) for file in contents.images}
    endings = {_ending(file) for file in contents.images}
    for file, reason in doubtful.items():
        blank = reason != _NO_DICOM and _ending(file) in endings
        if blank or _pattern(file) in patterns or _ending(file) in DICOM_ENDINGS:
            contents.damaged[file] = reason
        else:
            contents.others[file] = reason
    return contents


def merge(parts: Iterable[FolderContents]) -> FolderContents:
    """The contents of several folders as one."""
    whole = FolderContents()
    for part in parts:
        whole.images.update(part.images)
        whole.damaged.update(part.damaged)
        whole.series_of_damaged.update(part.series_of_damaged)
        whole.others.update(part.others)
    return whole


LOCALIZER = "is a localizer (a scout), no slice of a volume"
_NO_DICOM = "is no DICOM file"
_NO_SIZE = "has no Rows and Columns, so it is cut or damaged"


def _sort_in(file: Path, contents: FolderContents, doubtful: dict[Path, str], private: dict[Path, Dataset]) -> None:
    if not file.exists():
        doubtful[file] = "is a link to a file that is not there"
        return
    if not file.is_file():  # reading a pipe or a device would not end
        doubtful[file] = "is no plain file"
        return
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        kind = _classes(header)[0]
        uid = str(header.get("SeriesInstanceUID", "") or "")
        has_size = "Rows" in header and "Columns" in header
    except (InvalidDicomError, EOFError):
        doubtful[file] = _why_no_dicom(file)
        return
    except Exception as error:  # pydicom raises many kinds on damaged bytes
        contents.damaged[file] = f"has a header that cannot be read ({error or type(error).__name__})"
        return
    name = UID(kind).name
    short = _unreadable(header) or (_missing_pixels(file, header) if has_size else "")
    if short:
        contents.damaged[file] = short
        if uid:
            contents.series_of_damaged[file] = uid
    elif has_size and (name == kind or "Image Storage" in name):  # a class without a name is a private one
        if _is_localizer(header):
            contents.others[file] = LOCALIZER
        else:
            contents.images[file] = header
    elif kind and name != kind and "Image Storage" not in name:
        contents.others[file] = f"is no image ({name})"
    elif _is_private(header):
        private[file] = header
    else:
        contents.damaged[file] = _NO_SIZE
        if uid:
            contents.series_of_damaged[file] = uid


def _is_localizer(header: Dataset) -> bool:
    """Whether a scanner says so of an image (DICOM PS3.3, C.8.2.1.1.1); most studies of CT and MR hold some."""
    said = header.get("ImageType") or ()
    return "LOCALIZER" in ([said] if isinstance(said, str) else [str(value).upper() for value in said])


def _classes(header: Dataset) -> tuple[str, ...]:
    """The SOP class as the object and as the file's own header say it, where they do; "" if neither does."""
    said = (header.get("SOPClassUID"), header.file_meta.get("MediaStorageSOPClassUID"))
    return tuple(str(uid) for uid in said if uid) or ("",)


def _is_private(header: Dataset) -> bool:
    """Whether an object is of a maker's own class: said twice, as one that is cut or damaged may hold any text."""
    kinds = _classes(header)
    return len(kinds) == 2 and kinds[0] == kinds[1] and UID(kinds[0]).is_valid and UID(kinds[0]).is_private


def _sort_in_private(private: dict[Path, Dataset], contents: FolderContents) -> None:
    of_images = {_classes(header)[0] for header in contents.images.values()}
    for file, header in private.items():
        kind = _classes(header)[0]
        if kind not in of_images:
            contents.others[file] = f"is no image (an object of the private class {kind})"
            continue
        contents.damaged[file] = _NO_SIZE
        if uid := str(header.get("SeriesInstanceUID", "") or ""):
            contents.series_of_damaged[file] = uid


def _unreadable(header: Dataset) -> str:
    """Says which attribute cannot be decoded, which pydicom does at the first look; one that is only told goes."""
    for tag in _TAGS:
        try:
            header.get(tag)
        except Exception as error:  # of many kinds
            if tag not in _ONLY_TOLD:
                return f"has a header that cannot be read ({tag}: {str(error)[:_LONGEST] or type(error).__name__})"
            del header[tag]
    return ""


def _missing_pixels(file: Path, header: Dataset) -> str:
    """Says so where an uncompressed file is shorter than its pixels: a decoder would make up the rest."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        if syntax is None or UID(syntax).is_compressed or UID(syntax).is_deflated:
            return ""
        needed = int(header.Rows) * int(header.Columns) * int(header.get("BitsAllocated") or 16) // 8
    except (TypeError, ValueError) as error:
        return f"has a header that cannot be read ({error})"
    found = file.stat().st_size
    return f"has {found} bytes, fewer than its {header.Columns} x {header.Rows} pixels need" if found < needed else ""


def _why_no_dicom(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            start = stream.read(4096)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not start:
        return "is empty"
    return _NO_DICOM if start.strip(b"\0") else "is cut or overwritten with zeros"


def _pattern(file: Path) -> str:
    return re.sub(r"\d+", "#", file.name.lower())


def _ending(file: Path) -> str:
    ending = file.suffix.lower()
    return "" if ending[1:].isdigit() else ending


def read_numbers(header: Dataset, tag: str, count: int, file: Path) -> list[float]:
    """Read finite numbers from a header: the one place that does.

    Args:
        header: of the file.
        tag: keyword of the attribute.
        count: how many numbers it must hold.
        file: to name in errors.

    Returns:
        the numbers.

    Raises:
        InputError: the attribute is missing, no numbers, or of another count.
    """
    try:
        value = header.get(tag)
        if value is None or value == "":
            raise InputError(f"{file}: has no {tag}, so its place in space is not known; export the series again.")
        listed = [value] if isinstance(value, int | float | str) else list(value)
        numbers = [float(entry) for entry in listed]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}: {tag} cannot be read ({error}); export the series again.") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise InputError(
            f"{file}: {tag} is {listed}, expected {count} finite number{'s' if count > 1 else ''}; export the series "
            "again."
        )
    return numbers
