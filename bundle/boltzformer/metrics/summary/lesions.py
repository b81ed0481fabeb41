"""Lesion rows -> detection and panoptic numbers: overall, by object and by size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from boltzformer.metrics.measures.catalogue import lesion_measures
from boltzformer.metrics.measures.lesions import FALSE_POSITIVE, MATCHED, PANOPTIC_IOU, SCAN, LesionRule
from boltzformer.metrics.measures.measure import Measure, describe
from boltzformer.metrics.measures.rows import Row, by_object
from boltzformer.metrics.measures.size_buckets import DIAMETER_EDGES_MM, Buckets


def scan_rows(volumes: Iterable[Row]) -> list[Row]:
    """A row of kind `SCAN` for each volume row: each is a searched pair of volume and object."""
    return [{**{key: row[key] for key in ("dataset", "case", "patient", "object")}, "kind": SCAN} for row in volumes]


def count_lesions(rows: Iterable[Row], scans: int, measures: Sequence[Measure] | None = None) -> dict[str, Any]:
    """Every lesion measure of the rows of `scans` scans; None where nothing is to be divided by.

    `segmentation_quality` (mean IoU of its matches), `recognition_quality` (F1) and `panoptic_quality` (their
    product) are taken at IoU > 0.5.
    """
    searched: list[Row] = [{"kind": SCAN}] * scans
    return describe([*rows, *searched], measures or lesion_measures())


def bucket_lesions(rows: Iterable[Row], edges_mm: Sequence[float] = DIAMETER_EDGES_MM) -> dict[str, dict[str, Any]]:
    """Per bucket of equivalent diameter: label lesions with sensitivity and mean Dice, and false positives.

    Label lesions are sorted by their own diameter, false positives by theirs; a missed lesion has Dice 0. Those without
    a diameter, because the voxel size is not known, are in no bucket.
    """
    buckets = Buckets(tuple(edges_mm), " mm")
    groups: list[list[Row]] = [[] for _ in buckets.names]
    for row in rows:
        size = row["predicted_diameter_mm" if row["kind"] == FALSE_POSITIVE else "label_diameter_mm"]
        index = buckets.index(size)
        if index is not None:
            groups[index].append(row)
    table = {}
    for name, group in zip(buckets.names, groups, strict=True):
        matched = [row["dice"] for row in group if row["kind"] == MATCHED]
        lesions = sum(row["kind"] != FALSE_POSITIVE for row in group)
        table[name] = {
            "lesions": lesions,
            "sensitivity": _ratio(len(matched), lesions),
            "mean_dice": _ratio(math.fsum(matched), lesions),
            "false_positives": len(group) - lesions,
        }
    return table


def summarise_lesions(
    rows: Iterable[Row],
    scans: Mapping[str, int],
    rule: LesionRule,
    edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
    measures: Sequence[Measure] | None = None,
) -> dict[str, Any]:
    """Summary of lesion rows: overall, per object and per diameter.

    Args:
        rows: rows of `lesion_rows` with `dataset` and `object` added.
        scans: how many (scan, object) pairs were searched, keyed by `"<dataset> / <object>"`; also those
            without any lesion, for false positives per scan.
        rule: the matching rule, repeated in the summary.
        edges_mm: bucket edges of the equivalent diameter.
        measures: those of the catalogue by default.
    """
    rows = list(rows)
    groups = by_object(rows)
    return {
        "rule": {
            "connectivity": rule.connectivity,
            "min_iou": rule.min_iou,
            "panoptic_iou": PANOPTIC_IOU,
            "score": rule.score,
        },
        "overall": count_lesions(rows, sum(scans.values()), measures),
        "objects": {
            name: count_lesions(groups.get(name, []), count, measures) for name, count in sorted(scans.items())
        },
        "buckets_mm": bucket_lesions(rows, edges_mm),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
