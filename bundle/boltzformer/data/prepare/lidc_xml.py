"""The readers' XML of LIDC-IDRI.

Layout (LIDC XML documentation of The Cancer Imaging Archive; McNitt-Gray et al., Acad Radiol 14:1464, 2007): one file a
CT series, root `LidcReadMessage` in the namespace `http://www.nih.gov`. `ResponseHeader/SeriesInstanceUid` names the
series. Each `readingSession` is one of four readers and holds `unblindedReadNodule` elements. One that was judged 3 mm
or larger has an outline on each slice: `roi` with `imageZposition`, `imageSOP_UID`, `inclusion` (TRUE, or FALSE for a
hole) and an `edgeMap` of `xCoord` (column) and `yCoord` (row) a point, counted from the upper left pixel 0, 0. A
smaller one is a single point. `nonNodule` elements are no nodules. The outline runs just outside: its own pixels are
not part of the nodule. Chest radiographs come with `IdriReadMessage` instead, which is no CT reading.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from boltzformer.errors import InputError

_ROOT = "LidcReadMessage"
_RADIOGRAPH_ROOT = "IdriReadMessage"
_NAMESPACES = ("{http://www.nih.gov}", "{https://www.nih.gov}", "")


@dataclass(frozen=True)
class Outline:
    """One closed line on one slice.

    Attributes:
        sop_uid: SOPInstanceUID of the slice.
        points: (n, 2) int64, column and row of each pixel of the line.
        inclusion: False for a hole.
    """

    sop_uid: str
    points: np.ndarray
    inclusion: bool


@dataclass(frozen=True)
class Mark:
    """One nodule of 3 mm or more, as one reader drew it.

    Attributes:
        reader: number of the reading session, from 0.
        nodule_id: the reader's own name for it; no name is shared between readers.
        outlines: one or several a slice.
    """

    reader: int
    nodule_id: str
    outlines: tuple[Outline, ...]


@dataclass(frozen=True)
class Reading:
    """What all readers said of one CT series.

    Attributes:
        series_uid: SeriesInstanceUID.
        readers: number of reading sessions.
        marks: the nodules that were outlined.
        points: nodules below 3 mm, which have no outline.
    """

    series_uid: str
    readers: int
    marks: tuple[Mark, ...]
    points: int


def parse_reading(text: bytes, where: str) -> Reading | None:
    """Read one XML file.

    Args:
        text: its content.
        where: its name, for errors.

    Returns:
        the reading; None for the reading of a radiograph.

    Raises:
        InputError: no XML, another schema, or an element that is missing or malformed.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{where}: is no complete XML ({error}); download it again.") from error
    if root.tag.endswith(_RADIOGRAPH_ROOT):
        return None
    space = next((space for space in _NAMESPACES if root.tag == f"{space}{_ROOT}"), None)
    if space is None:
        raise InputError(f"{where}: its root is {root.tag}, not {_ROOT}; this is XML of another schema.")
    series_uid = _text(root, f"{space}ResponseHeader/{space}SeriesInstanceUid", where)
    sessions = root.findall(f"{space}readingSession")
    marks, points = [], 0
    for reader, session in enumerate(sessions):
        for nodule in session.findall(f"{space}unblindedReadNodule"):
            outlines = tuple(_outline(roi, space, where) for roi in nodule.findall(f"{space}roi"))
            if all(len(outline.points) < 2 for outline in outlines):
                points += 1
            else:
                marks.append(Mark(reader, _text(nodule, f"{space}noduleID", where), outlines))
    return Reading(series_uid, len(sessions), tuple(marks), points)


def _outline(roi: ElementTree.Element, space: str, where: str) -> Outline:
    inclusion = _text(roi, f"{space}inclusion", where).upper()
    if inclusion not in {"TRUE", "FALSE"}:
        raise InputError(f"{where}: `inclusion` is {inclusion!r}; expected TRUE or FALSE.")
    points = []
    for edge in roi.findall(f"{space}edgeMap"):
        pair = [_text(edge, f"{space}{axis}", where) for axis in ("xCoord", "yCoord")]
        if not all(value.isdigit() for value in pair):
            raise InputError(f"{where}: an outline has the point {pair}; expected two pixel numbers.")
        points.append([int(value) for value in pair])
    array = np.array(points, dtype=np.int64).reshape(-1, 2)
    return Outline(_text(roi, f"{space}imageSOP_UID", where), array, inclusion == "TRUE")


def _text(element: ElementTree.Element, path: str, where: str) -> str:
    found = element.findtext(path)
    if found is None or not found.strip():
        name = path.replace("{http://www.nih.gov}", "").replace("{https://www.nih.gov}", "")
        raise InputError(f"{where}: has no {name}; this is XML of another schema, or damaged.")
    return found.strip()
