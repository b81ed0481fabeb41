"""The rows that everything after measuring reads, and the keys that name them.

A row is a plain dict: it travels between processes, into CSV and back. The columns of measures come from
`boltzformer.metrics.measures.catalogue`; those that other code reads by name are typed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

Row = Mapping[str, Any]

VOLUME_KEY = ("dataset", "case", "object")
SLICE_KEY = (*VOLUME_KEY, "slice")
"""What names a slice row. The wording is no part of it: two models, or two wordings, are compared on the same slice."""


class Place(TypedDict):
    """Where a number was measured. `case` is the image's file name without extension (the label's without image)."""

    dataset: str
    case: str
    patient: str
    object: str


class SliceRow(Place):
    """One (slice, prompt); None where a number is not defined or not known."""

    slice: int
    text: str
    dice: float | None
    missed: int | None
    area_percent: float | None
    diameter_mm: float | None
    bucket_percent: str | None
    bucket_mm: str | None
    false_positive_percent: float | None
    false_positive_mm2: float | None
    pixel_specificity: float | None
    existence: float | None
    label_pixels: int
    predicted_pixels: int
    overlap_pixels: int


class VolumeRow(Place):
    """One object in one volume; also a `surface_dice_<t>mm` for each tolerance.

    Sizes in mm3 are None where the voxel size is not known, but for 0.
    """

    positive: int
    label_mm3: float | None
    predicted_mm3: float | None
    dice: float | None
    hd95_mm: float | None
    false_positive_mm3: float | None
    wrong_side_percent: float | None


class LesionRow(Place):
    """One lesion of the label, or one false positive of the prediction."""

    kind: str
    iou: float | None
    dice: float | None
    label_mm3: float | None
    label_diameter_mm: float | None
    predicted_mm3: float | None
    predicted_diameter_mm: float | None
    score: float | None
    i: float
    j: float
    k: float


def object_name(row: Row) -> str:
    """`"<dataset> / <object>"`, by which rows are grouped."""
    return f"{row['dataset']} / {row['object']}"


def patient_name(row: Row) -> str:
    """`"<dataset> / <patient>"`, by which rows are clustered."""
    return f"{row['dataset']} / {row['patient']}"


def by_object(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each `object_name`, sorted by it."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(object_name(row), []).append(row)
    return dict(sorted(groups.items()))


def key_of(row: Row, columns: Sequence[str] = SLICE_KEY) -> tuple[str, ...]:
    """A row's key as text, the same for a row as computed and as read from a CSV."""
    return tuple(str(row[column]) for column in columns)
