"""Rows of one (slice, prompt) each -> the summary of the paper's tables 1 and 2, as plain data for JSON.

Positive slices (the label holds the object) are judged by Dice, negatives (empty label) by what is predicted
where nothing is. The two never mix.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boltzformer.metrics.size_buckets import (
    DIAMETER_EDGES_MM,
    MISSED_BELOW_DICE,
    PERCENT_EDGES,
    SMALL_BELOW_PERCENT,
    Buckets,
    describe_dice,
)

Row = Mapping[str, Any]
KEY_COLUMNS = ("dataset", "case", "object", "slice", "text")


def is_positive(row: Row) -> bool:
    """Whether the slice holds the object, that is, whether it has a Dice."""
    return _number(row.get("dice")) is not None


def bucket_table(
    rows: Sequence[Row], column: str, buckets: Buckets, missed_below: float = MISSED_BELOW_DICE
) -> dict[str, dict[str, Any]]:
    """``describe_dice`` per bucket of ``column``, every bucket listed, also those with no row."""
    groups: list[list[float]] = [[] for _ in buckets.names]
    for row in rows:
        size = _number(row.get(column))
        index = None if size is None else buckets.index(size)
        if index is not None and is_positive(row):
            groups[index].append(float(row["dice"]))
    return {name: describe_dice(dice, missed_below) for name, dice in zip(buckets.names, groups, strict=True)}


def describe_negatives(rows: Iterable[Row]) -> dict[str, Any]:
    """What is predicted on slices without the object.

    Returns:
        ``n`` negatives; ``specificity``: share of them where nothing is predicted; ``pixel_specificity``:
        mean share of their pixels that are rightly left empty; ``with_false_positives``: how many have a
        predicted pixel; ``mean_false_positive_percent`` of the slice and ``mean_false_positive_mm2`` (over
        those with a spacing), both over all negatives. None where n = 0.
    """
    negatives = [row for row in rows if not is_positive(row)]
    areas = [float(row["false_positive_percent"]) for row in negatives]
    millimetres = [a for a in (_number(row.get("false_positive_mm2")) for row in negatives) if a is not None]
    wrong = sum(area > 0 for area in areas)
    return {
        "n": len(negatives),
        "with_false_positives": wrong,
        "specificity": 1 - wrong / len(negatives) if negatives else None,
        "pixel_specificity": _mean([1 - area / 100 for area in areas]),
        "mean_false_positive_percent": _mean(areas),
        "mean_false_positive_mm2": _mean(millimetres),
    }


def summarise_slices(
    rows: Iterable[Row],
    percent_edges: Sequence[float] = PERCENT_EDGES,
    diameter_edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
    small_below_percent: float = SMALL_BELOW_PERCENT,
    missed_below: float = MISSED_BELOW_DICE,
) -> dict[str, Any]:
    """The whole summary of rows of (slice, prompt): overall, per bucket, per dataset and object, negatives.

    ``mean_over_datasets`` is the paper's headline: the unweighted mean of the datasets' mean Dice (table 1).
    """
    rows = list(rows)
    border = Buckets((small_below_percent,), " %")

    def describe(part: Sequence[Row]) -> dict[str, Any]:
        small, large = bucket_table(part, "area_percent", border, missed_below).values()
        values = [float(row["dice"]) for row in part if is_positive(row)]
        return {
            **describe_dice(values, missed_below),
            "small": small,
            "large": large,
            "negatives": describe_negatives(part),
        }

    datasets = {}
    for dataset, part in _group(rows, "dataset").items():
        objects = {name: describe(group) for name, group in _group(part, "object").items()}
        datasets[dataset] = {**describe(part), "objects": objects}
    means = [entry["mean_dice"] for entry in datasets.values() if entry["mean_dice"] is not None]
    return {
        "settings": {
            "percent_edges": list(percent_edges),
            "diameter_edges_mm": list(diameter_edges_mm),
            "small_below_percent": small_below_percent,
            "missed_below_dice": missed_below,
        },
        "overall": describe(rows),
        "mean_over_datasets": {"datasets": len(means), "mean_dice": _mean(means)},
        "buckets_percent": bucket_table(rows, "area_percent", Buckets(tuple(percent_edges), " %"), missed_below),
        "buckets_mm": bucket_table(rows, "diameter_mm", Buckets(tuple(diameter_edges_mm), " mm"), missed_below),
        "datasets": datasets,
    }


def _group(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row[column])].append(row)
    return dict(sorted(groups.items()))


def _number(value: Any) -> float | None:
    """A float, or None for None, NaN and the empty cell of a CSV."""
    if value is None or value == "":
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(np.asarray(values, dtype=np.float64)) / len(values) if values else None
