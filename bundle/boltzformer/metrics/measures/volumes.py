"""One object in one volume: the masks that its measures are computed from, in mm with the true voxel spacing.

The conventions for empty masks are those of `docs/evaluation.md`. An object that the label does not hold is a
negative: it has a false-positive volume and no Dice. An object that the prediction misses has Dice 0 and surface
Dice 0, and no Hausdorff distance: none is finite, so it is counted, not averaged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np

from boltzformer.metrics.measures.measure import Measure, columns
from boltzformer.metrics.measures.rows import Place, VolumeRow
from boltzformer.metrics.measures.surfaces import SurfaceDistances, bounding_box, hausdorff95

_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


class VolumeMasks:
    """Label and prediction of one object; what several measures share is computed once.

    Args:
        pred, label: boolean masks, the same 3D shape, in RAS orientation.
        spacing: voxel size in mm, one for each axis; None where it is not known, and nothing is measured in mm.
        other_side: the label of the same organ on the body's other side; None for an organ without one.

    Raises:
        ValueError: for shapes that differ or a spacing that is not three positive numbers.
    """

    def __init__(
        self, pred: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None, other_side: np.ndarray | None = None
    ) -> None:
        if pred.shape != label.shape or pred.ndim != 3:
            raise ValueError(f"masks must be 3D and of one shape, got {pred.shape} and {label.shape}")
        if spacing is not None and (len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing)):
            raise ValueError(f"spacing must be three positive numbers in mm, got {list(spacing)}")
        self.wrong_side_percent = wrong_side_percent(pred, label, other_side)
        box = bounding_box(pred, label, margin=1)
        self.pred, self.label = (pred, label) if box is None else (pred[box], label[box])
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.label_voxels, self.predicted_voxels = int(self.label.sum()), int(self.pred.sum())

    @property
    def positive(self) -> bool:
        """Whether the label holds the object."""
        return self.label_voxels > 0

    @property
    def label_mm3(self) -> float | None:
        """Volume of the label; None where the voxel size is not known."""
        return self._mm3(self.label_voxels)

    @property
    def predicted_mm3(self) -> float | None:
        """Volume of the prediction; None where the voxel size is not known."""
        return self._mm3(self.predicted_voxels)

    def _mm3(self, voxels: int) -> float | None:
        if self.spacing is None:
            return None if voxels else 0.0  # nothing is nothing, however large a voxel is
        return voxels * math.prod(self.spacing)

    @property
    def dice(self) -> float | None:
        """2 |P n L| / (|P| + |L|) of a positive volume."""
        return overlap_dice(self.pred, self.label) if self.positive else None

    def surface_dice(self, tolerance_mm: float) -> float | None:
        """Share of both surfaces within a tolerance; 0 where nothing was predicted, None for a negative."""
        if not self.positive or self.spacing is None:
            return None
        return self._distances.share_within(tolerance_mm) if self.predicted_voxels else 0.0

    @property
    def hd95_mm(self) -> float | None:
        """95 % Hausdorff distance; None unless both masks have a voxel."""
        if not (self.positive and self.predicted_voxels) or self.spacing is None:
            return None
        return hausdorff95(self.pred, self.label, self.spacing)

    @cached_property
    def _distances(self) -> SurfaceDistances:
        assert self.spacing is not None
        return SurfaceDistances(self.pred, self.label, self.spacing)


def volume_row(place: Place, masks: VolumeMasks, measures: Sequence[Measure]) -> VolumeRow:
    """The row of one object in one volume; the only producer of volume rows."""
    row = {
        **place,
        "positive": int(masks.positive),
        "label_mm3": masks.label_mm3,
        "predicted_mm3": masks.predicted_mm3,
        **columns(measures, masks),
    }
    return cast(VolumeRow, row)


def overlap_dice(pred: np.ndarray, label: np.ndarray) -> float:
    """2 |P n L| / (|P| + |L|) of two boolean arrays; NaN where both are empty."""
    total = int(pred.sum()) + int(label.sum())
    return 2 * int((pred & label).sum()) / total if total else math.nan


def other_side_of(name: str, objects: Mapping[int, str]) -> int | None:
    """Label value of the same organ on the other side ("left kidney": "right kidney"); None where there is none."""
    sides = _SIDE.findall(name)
    if len(sides) != 1:
        return None
    wanted = _SIDE.sub("right" if sides[0].lower() == "left" else "left", name).casefold()
    return next((value for value, other in objects.items() if other.casefold() == wanted), None)


def wrong_side_percent(pred: np.ndarray, label: np.ndarray, other_side: np.ndarray | None) -> float | None:
    """Share of predicted voxels, in %, beyond the plane halfway between an organ and its twin.

    The plane is perpendicular to the left-right axis and lies midway between the labels' centres of mass. None
    where either label or the prediction is empty, or where both centres have the same place on that axis.

    Args:
        pred: boolean, 3D, axis 0 running from left to right or back.
        label: likewise, of the same shape.
        other_side: label of the twin, likewise; None where there is none.
    """
    if other_side is None:
        return None
    lines = [mask.sum(axis=(1, 2)) for mask in (pred, label, other_side)]
    predicted, own, other = lines
    if not all(line.any() for line in lines):
        return None
    places = np.arange(len(own))
    own_centre, other_centre = (float((places * line).sum() / line.sum()) for line in (own, other))
    if own_centre == other_centre:
        return None
    beyond = (places - (own_centre + other_centre) / 2) * (other_centre - own_centre) > 0
    return float(100 * predicted[beyond].sum() / predicted.sum())
