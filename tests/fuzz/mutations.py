"""Damage: of bytes, JSON, tables, text headers, NIfTI fields and DICOM attributes. A seed decides all."""

from __future__ import annotations

import copy
import json
from typing import Any

import nibabel as nib
import numpy as np

Draw = np.random.Generator

NUMBERS: list[Any] = [0, -1, 1, 2, 3, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**40, 1e30, -1e30, 1e-30]
NUMBERS += [float("nan"), float("inf"), float("-inf"), 0.1, -0.0]
TEXTS = ["", " ", "a", "\0", "a\0b", "../../../up", "/etc/passwd", "$import os", "@seed", "%run", "#", "{object}", "{"]
TEXTS += [
    "=1+1",
    "'",
    '"',
    ",",
    "\n",
    "\r\n",
    "\u202eabc",
    "😀 tumour",
    "ß" * 300,
    "x" * 2000,
    "a/b",
    "CON",
    "nan",
    "1e999",
]
TEXTS += ["\ud800", "MR\\CT", "liver", "LIVER", "CT", "T2w", "-", ".", "..", "~", "C:\\x", "null", "0", "-5", "[1,2]"]


def pick(draw: Draw, options: Any) -> Any:
    """One of the options."""
    options = list(options)
    return options[int(draw.integers(len(options)))]


def damage_bytes(content: bytes, draw: Draw) -> bytes:
    """One of the ways in which copying, storing or editing spoils a file."""
    if not content:
        return b"\0" * int(draw.integers(0, 64))
    size, at = len(content), int(draw.integers(len(content)))
    length = int(draw.integers(1, max(2, size // 4)))
    way = int(draw.integers(9))
    if way == 0:
        return content[:at]
    if way == 1:
        return content[at:]
    if way == 2:
        return content[:at] + b"\0" * len(content[at : at + length]) + content[at + length :]
    if way == 3:
        return content[:at] + content[at + length :]
    if way == 4:
        return content[:at] + content[at : at + length] + content[at:]
    if way == 5:
        return content[:at] + draw.bytes(length) + content[at:]
    if way == 6:
        return content + draw.bytes(length)
    if way == 7:
        return b"" if draw.random() < 0.2 else content[: int(draw.integers(1, min(400, size) + 1))]
    array = np.frombuffer(content, np.uint8).copy()
    # half of the flips hit the header, where they mean most
    where = draw.integers(0, min(size, 400) if draw.random() < 0.5 else size, int(draw.integers(1, 9)))
    array[where] ^= (1 << draw.integers(0, 8, len(where))).astype(np.uint8)
    return array.tobytes()


def hostile(draw: Draw, depth: int = 0) -> Any:
    """A JSON value that nobody expects."""
    way = int(draw.integers(8 if depth < 2 else 4))
    if way == 0:
        return pick(draw, NUMBERS)
    if way in (1, 2):
        return pick(draw, TEXTS)
    if way == 3:
        return pick(draw, [None, True, False])
    if way == 4:
        return [hostile(draw, depth + 1) for _ in range(int(draw.integers(4)))]
    if way == 5:
        return {str(pick(draw, TEXTS)): hostile(draw, depth + 1) for _ in range(int(draw.integers(4)))}
    nested: Any = 1
    for _ in range(int(draw.integers(1, 60))):
        nested = [nested] if way == 6 else {"a": nested}
    return nested


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    listed = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        listed += _places(entry, (*path, key))
    return listed


def damage_json(content: Any, draw: Draw) -> Any:
    """The content with one to three values replaced, keys lost, renamed or added, entries repeated."""
    changed = copy.deepcopy(content)
    for _ in range(int(draw.integers(1, 4))):
        path = pick(draw, _places(changed))
        if not path:
            if draw.random() < 0.1:
                changed = hostile(draw)
            continue
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        key, way = path[-1], int(draw.integers(6))
        if way < 3:
            parent[key] = hostile(draw)
        elif way == 3:
            del parent[key]
        elif isinstance(parent, dict):
            parent[str(pick(draw, TEXTS))] = parent.pop(key) if way == 4 else hostile(draw)
        else:
            parent.append(copy.deepcopy(parent[key]))
    return changed


def json_bytes(content: Any, draw: Draw) -> bytes:
    """JSON with damage to its values, its text or its encoding."""
    way = draw.random()
    if way < 0.6:
        return json.dumps(damage_json(content, draw), ensure_ascii=bool(draw.random() < 0.7)).encode("utf-8", "replace")
    text = json.dumps(content)
    if way < 0.8:
        return damage_bytes(text.encode(), draw)
    if way < 0.85:
        return text.encode(pick(draw, ["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    if way < 0.9:
        return b"[" * int(pick(draw, [100, 2000, 200_000])) + text.encode()
    # a key that stands twice
    return text.replace("{", "{" + text[text.find("{") + 1 : text.find(":")] + ': "again", ', 1).encode()


def table_bytes(rows: list[list[str]], draw: Draw) -> bytes:
    """A CSV table with damage to cells, columns, quotes, line ends or bytes."""
    rows = [list(row) for row in rows]
    for _ in range(int(draw.integers(0, 4))):
        row = pick(draw, rows)
        way = int(draw.integers(5))
        if way < 2 and row:
            row[int(draw.integers(len(row)))] = str(pick(draw, [*TEXTS, *map(str, NUMBERS), "y" * 200_000]))
        elif way == 2:
            row.append(str(pick(draw, TEXTS)))
        elif way == 3 and row:
            row.pop()
        else:
            rows.insert(int(draw.integers(len(rows))), list(row))
    mark, end = pick(draw, [",", ",", ",", ";", "\t"]), pick(draw, ["\n", "\n", "\r\n", "\r"])
    content = end.join(mark.join(row) for row in rows).encode("utf-8", "replace")
    return damage_bytes(content, draw) if draw.random() < 0.4 else content


def damage_header_text(content: bytes, draw: Draw) -> bytes:
    """A text header (NRRD, MetaImage) with lines lost, repeated or of another value; what follows stays."""
    lines = content.split(b"\n")
    header = (
        next((k for k, line in enumerate(lines) if not line or line.startswith(b"ElementDataFile")), len(lines)) + 1
    )
    for _ in range(int(draw.integers(1, 4))):
        k = int(draw.integers(max(1, min(header, len(lines)))))
        way = int(draw.integers(5))
        if way == 0:
            del lines[k]
        elif way == 1:
            lines.insert(k, lines[k])
        else:
            mark = b"=" if b"=" in lines[k] else b":"
            words = lines[k].split(mark)[-1].split(b" ")
            words[int(draw.integers(len(words)))] = _token(draw)
            lines[k] = lines[k].split(mark)[0] + mark + b" ".join(words)
        if not lines:
            return b""
    return b"\n".join(lines)


def _token(draw: Draw) -> bytes:
    return str(pick(draw, [*NUMBERS, *TEXTS, "LOCAL", "MET_FLOAT", "raw", "gzip", "none"])).encode("utf-8", "replace")


_KEPT = ("data_type", "db_name", "extents", "session_error", "regular", "descrip", "aux_file", "glmax", "glmin")


def damage_nifti_header(content: bytes, draw: Draw) -> bytes:
    """An uncompressed NIfTI with one to three header fields of another value."""
    kind = nib.Nifti2Header if content[:2] == b"\x1c\x02" else nib.Nifti1Header
    size = kind.template_dtype.itemsize
    header = np.frombuffer(content[:size], kind.template_dtype).copy()
    fields = [name for name in header.dtype.names if name not in _KEPT]
    for _ in range(int(draw.integers(1, 4))):
        name = pick(draw, fields)
        values = header[name].reshape(-1)  # a view
        if values.dtype.kind == "S":
            continue
        k = int(draw.integers(len(values)))
        value = pick(draw, [*NUMBERS, *range(-3, 20)])
        if values.dtype.kind == "f":
            values[k] = value
        else:
            limits = np.iinfo(values.dtype)
            whole = int(value) if np.isfinite(value) else limits.max
            values[k] = min(max(whole, int(limits.min)), int(limits.max))
    return header.tobytes() + content[size:]


DICOM_VALUES: list[Any] = ["", " ", "0", "-1", "1e9", "nan", "inf", "CT", "abc", [1, 2], [0, 0], [1, 0, 0, 0, 1, 0]]
DICOM_VALUES += [
    ["1", "2", "3"],
    ["0", "0", "nan"],
    [1e30, 0, 0],
    0,
    1,
    2,
    8,
    17,
    65535,
    "MONOCHROME1",
    "RGB",
    "x" * 100,
]
DICOM_TAGS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
DICOM_TAGS += ("PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
DICOM_TAGS += ("RescaleSlope", "RescaleIntercept", "Modality", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
DICOM_TAGS += ("NumberOfFrames", "BodyPartExamined", "SpecificCharacterSet", "SliceThickness", "SpacingBetweenSlices")
DICOM_TAGS += ("StudyInstanceUID", "FrameOfReferenceUID", "PatientBirthDate", "PatientName", "SmallestImagePixelValue")


def damage_dicom(header: Any, draw: Draw) -> None:
    """One to three attributes of a data set removed or given another value; what pydicom refuses to hold is left."""
    for _ in range(int(draw.integers(1, 4))):
        name = pick(draw, DICOM_TAGS)
        try:
            if draw.random() < 0.3:
                delattr(header, name)
            elif draw.random() < 0.1:
                header.PixelData = damage_bytes(header.PixelData, draw)
            else:
                setattr(header, name, pick(draw, DICOM_VALUES))
        except Exception:
            continue
