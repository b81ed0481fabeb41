"""One slice and one prompt: what is counted, and the row that is made of it, for volumes and for evaluators alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from boltzformer.metrics.measures.measure import Measure, columns
from boltzformer.metrics.measures.rows import Place, SliceRow
from boltzformer.metrics.measures.size_buckets import DIAMETER_EDGES_MM, PERCENT_EDGES, Buckets


@dataclass(frozen=True)
class SliceCounts:
    """Everything that a measure of a slice may be computed from.

    Attributes:
        label, predicted, overlap: pixels of the label, of the prediction, and of both.
        pixels: of the slice.
        pixel_mm2: area of a pixel, None where the spacing is not known.
        existence: predicted probability in [0, 1] that the object is in the slice, None where there is none.
    """

    label: int
    predicted: int
    overlap: int
    pixels: int
    pixel_mm2: float | None = None
    existence: float | None = None

    def __post_init__(self) -> None:
        if self.existence is not None and not 0 <= self.existence <= 1:
            raise ValueError(f"existence must be a probability in [0, 1], got {self.existence}")

    @property
    def present(self) -> bool:
        """Whether the label holds the object."""
        return self.label > 0

    @property
    def area_percent(self) -> float | None:
        """The object's share of the slice in %; None where it is absent."""
        # One division, so that a share that equals an edge falls on its upper side whatever the slice size.
        return 100 * self.label / self.pixels if self.present else None

    @property
    def diameter_mm(self) -> float | None:
        """Diameter of the disc of the object's area; None where it is absent or the spacing is not known."""
        if not self.present or self.pixel_mm2 is None:
            return None
        return 2 * math.sqrt(self.label * self.pixel_mm2 / math.pi)


@dataclass(frozen=True)
class SliceRule:
    """What the producer of slice rows needs to know: the measures, and the buckets that a row names."""

    measures: tuple[Measure, ...]
    percent: Buckets = field(default_factory=lambda: Buckets(PERCENT_EDGES, " %"))
    diameter: Buckets = field(default_factory=lambda: Buckets(DIAMETER_EDGES_MM, " mm"))


def slice_row(place: Place, index: int, text: str, counts: SliceCounts, rule: SliceRule) -> SliceRow:
    """The row of one slice and prompt; the only producer of slice rows."""
    values = columns(rule.measures, counts)
    row = {
        **place,
        "slice": index,
        "text": text,
        **values,
        "area_percent": counts.area_percent,
        "diameter_mm": counts.diameter_mm,
        "bucket_percent": rule.percent.name(counts.area_percent),
        "bucket_mm": rule.diameter.name(counts.diameter_mm),
        "existence": counts.existence,
        "label_pixels": counts.label,
        "predicted_pixels": counts.predicted,
        "overlap_pixels": counts.overlap,
    }
    return cast(SliceRow, row)


def count_volume(
    pred: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float] | None,
    axis: int = 2,
    existence: Sequence[float] | None = None,
) -> Iterator[SliceCounts]:
    """Counts of every slice of a volume.

    Args:
        pred: boolean, 3D.
        label: likewise, of the same shape.
        spacing: voxel size in mm, one for each axis; None where it is not known.
        axis: slices are taken along this axis.
        existence: probability that the object is in the slice, one for each; None where there is none.

    Raises:
        ValueError: `existence` has another length than the volume has slices.
    """
    others = tuple(a for a in range(3) if a != axis)
    pixels = math.prod(label.shape[a] for a in others)
    pixel_mm2 = None if spacing is None else math.prod(float(spacing[a]) for a in others)
    sums = [mask.sum(axis=others).tolist() for mask in (label, pred, label & pred)]
    known: list[float | None] = [None] * label.shape[axis] if existence is None else [float(p) for p in existence]
    if len(known) != label.shape[axis]:
        raise ValueError(f"{len(known)} existence scores for {label.shape[axis]} slices")
    for t, p, both, score in zip(*sums, known, strict=True):
        yield SliceCounts(t, p, both, pixels, pixel_mm2, score)


def count_item(
    pred: torch.Tensor, label: torch.Tensor, spacing: Any = None, existence: float | None = None
) -> SliceCounts:
    """Counts of one slice of an evaluator, with one transfer from the device.

    Args:
        pred: mask of 0 and 1, (1, H, W).
        label: likewise.
        spacing: pixel size in mm, (2,); None where it is not known.
        existence: probability that the object is in the slice.

    Raises:
        ValueError: another shape, values other than 0 and 1, or a spacing that is not positive.
    """
    if pred.ndim != 3 or pred.shape != label.shape or label.shape[0] != 1:
        raise ValueError(f"prediction and label must be (1, H, W), got {tuple(pred.shape)} and {tuple(label.shape)}")
    p, t = pred != 0, label != 0
    wrong = [((mask != 0) & (mask != 1)).sum() for mask in (pred, label)]
    found = torch.stack([t.sum(), p.sum(), (p & t).sum(), *wrong]).tolist()
    for what, count in zip(("prediction", "label"), found[3:], strict=True):
        if count:
            raise ValueError(f"the {what} has values other than 0 and 1: threshold it first (AsDiscreted)")
    pixel_mm2 = None
    if spacing is not None:
        sides = [float(s) for s in spacing]
        if len(sides) != 2 or not all(math.isfinite(s) and s > 0 for s in sides):
            raise ValueError(f"spacing must be two positive numbers in mm, got {sides}")
        pixel_mm2 = math.prod(sides)
    return SliceCounts(found[0], found[1], found[2], label.numel(), pixel_mm2, existence)
