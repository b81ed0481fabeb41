"""One object in one volume: volumetric Dice, surface Dice and HD95 in mm, with the true voxel spacing.

The conventions for empty masks are those of ``docs/evaluation.md``. An object that the label does not hold is
a
negative: it has a false-positive volume and no Dice. An object that the prediction misses has Dice 0 and
surface Dice 0, and no Hausdorff distance: none is finite, so it is counted, not averaged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boltzformer.metrics.size_buckets import MISSED_BELOW_DICE, describe_dice
from boltzformer.metrics.surfaces import bounding_box, hausdorff95, surface_dice

TOLERANCES_MM = (1.0, 2.0, 3.0)


def overlap_dice(pred: np.ndarray, label: np.ndarray) -> float:
    """2 |P n L| / (|P| + |L|) of two boolean arrays; NaN where both are empty."""
    total = int(pred.sum()) + int(label.sum())
    return 2 * int((pred & label).sum()) / total if total else math.nan


def volume_row(
    pred: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
) -> dict[str, Any]:
    """All numbers of one object in one volume.

    Args:
        pred, label: boolean masks, the same 3D shape.
        spacing: voxel size in mm, one for each axis.
        tolerances_mm: of the surface Dice, a column for each.

    Returns:
        ``positive``, ``label_mm3``, ``predicted_mm3``, ``dice``, ``surface_dice_<t>mm``, ``hd95_mm``,
        ``false_positive_mm3``; None where a number is not defined.

    Raises:
        ValueError: for shapes that differ or a spacing that is not three positive numbers.
    """
    if pred.shape != label.shape or pred.ndim != 3:
        raise ValueError(f"masks must be 3D and of one shape, got {pred.shape} and {label.shape}")
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be three positive numbers in mm, got {list(spacing)}")
    voxel_mm3 = math.prod(float(s) for s in spacing)
    names = [surface_column(limit) for limit in tolerances_mm]
    box = bounding_box(pred, label, margin=1)
    if box is not None:
        pred, label = pred[box], label[box]
    positive, predicted = bool(label.any()), bool(pred.any())
    row: dict[str, Any] = {
        "positive": int(positive),
        "label_mm3": int(label.sum()) * voxel_mm3,
        "predicted_mm3": int(pred.sum()) * voxel_mm3,
        "dice": overlap_dice(pred, label) if positive else None,
        **dict.fromkeys(names),
        "hd95_mm": None,
        "false_positive_mm3": None if positive else int(pred.sum()) * voxel_mm3,
    }
    if positive and predicted:
        row.update(zip(names, surface_dice(pred, label, spacing, tolerances_mm), strict=True))
        row["hd95_mm"] = hausdorff95(pred, label, spacing)
    elif positive:
        row.update(dict.fromkeys(names, 0.0))
    return row


def surface_column(tolerance_mm: float) -> str:
    """Name of the column of a tolerance, such as ``surface_dice_2mm``."""
    return f"surface_dice_{tolerance_mm:g}mm"


def summarise_volumes(
    rows: Iterable[Mapping[str, Any]],
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    missed_below: float = MISSED_BELOW_DICE,
) -> dict[str, Any]:
    """Summary of volume rows: overall and for each object, negatives apart.

    ``hd95_mm`` has its own ``n``: volumes with a finite distance; ``undefined`` counts the positive volumes
    in which nothing was predicted. Its median takes these as infinitely far (None where the median is
    infinite), so that missing an object never improves it.
    """
    rows = list(rows)
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[f"{row['dataset']} / {row['object']}"].append(row)
    return {
        "tolerances_mm": list(tolerances_mm),
        "overall": _describe(rows, tolerances_mm, missed_below),
        "objects": {name: _describe(part, tolerances_mm, missed_below) for name, part in sorted(groups.items())},
    }


def _describe(rows: Sequence[Mapping[str, Any]], tolerances: Sequence[float], missed: float) -> dict[str, Any]:
    positive = [row for row in rows if row["positive"]]
    negative = [row["false_positive_mm3"] for row in rows if not row["positive"]]
    distances = [row["hd95_mm"] for row in positive]
    finite = [d for d in distances if d is not None]
    median = float(np.median([math.inf if d is None else d for d in distances])) if distances else math.inf
    wrong = sum(volume > 0 for volume in negative)
    described = describe_dice([row["dice"] for row in positive], missed)
    for limit in tolerances:
        name = surface_column(limit)
        values = [row[name] for row in positive]
        described[name] = math.fsum(values) / len(values) if values else None
    described["hd95_mm"] = {
        "n": len(finite),
        "undefined": len(distances) - len(finite),
        "mean": math.fsum(finite) / len(finite) if finite else None,
        "median": median if math.isfinite(median) else None,
    }
    described["negatives"] = {
        "n": len(negative),
        "with_false_positives": wrong,
        "specificity": 1 - wrong / len(negative) if negative else None,
        "mean_false_positive_mm3": math.fsum(negative) / len(negative) if negative else None,
    }
    return described
