"""Rows of one (slice, prompt) each -> the summary of the paper's tables 1 and 2, as plain data for JSON.

Positive slices (the label holds the object) are judged by Dice, negatives (empty label) by what is predicted
where nothing is. The two never mix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.measure import describe
from boltzformer.metrics.measures.rows import Row
from boltzformer.metrics.measures.size_buckets import (
    DIAMETER_EDGES_MM,
    PERCENT_EDGES,
    SMALL_BELOW_PERCENT,
    TINY_BELOW_PERCENT,
    Buckets,
)
from boltzformer.metrics.summary.existence import describe_existence, volume_dice


def summarise_slices(
    rows: Iterable[Row],
    percent_edges: Sequence[float] = PERCENT_EDGES,
    diameter_edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
    small_below_percent: float = SMALL_BELOW_PERCENT,
    catalogue: Catalogue | None = None,
    tiny_below_percent: float = TINY_BELOW_PERCENT,
) -> dict[str, Any]:
    """The whole summary of rows of (slice, prompt): overall, per bucket, per dataset and object, negatives.

    `mean_over_datasets` is the paper's headline: the unweighted mean of the datasets' mean Dice (table 1). Each
    entry has every measure of the catalogue's slices, those of its small, large and tiny objects, and where an
    existence score is known how far it can be trusted.
    """
    rows = list(rows)
    catalogue = catalogue or Catalogue()
    border, tiny = Buckets((small_below_percent,), " %"), Buckets((tiny_below_percent,), " %")

    def describe_part(part: Sequence[Row]) -> dict[str, Any]:
        small, large = (describe(group, catalogue.slices) for group in border.split(part, "area_percent").values())
        below, _ = tiny.split(part, "area_percent").values()
        return {
            **describe(part, catalogue.slices),
            "small": small,
            "large": large,
            "tiny": describe(below, catalogue.slices),
            "volume_dice": volume_dice(part, catalogue.existence_threshold),
            "existence": describe_existence(part),
        }

    def describe_buckets(column: str, buckets: Buckets) -> dict[str, dict[str, Any]]:
        return {name: describe(part, catalogue.slices) for name, part in buckets.split(rows, column).items()}

    datasets = {}
    for dataset, part in _group(rows, "dataset").items():
        objects = {name: describe_part(group) for name, group in _group(part, "object").items()}
        datasets[dataset] = {**describe_part(part), "objects": objects}
    means = [entry["mean_dice"] for entry in datasets.values() if entry["mean_dice"] is not None]
    return {
        "settings": {
            "percent_edges": list(percent_edges),
            "diameter_edges_mm": list(diameter_edges_mm),
            "small_below_percent": small_below_percent,
            "tiny_below_percent": tiny_below_percent,
            "missed_below_dice": catalogue.missed_below,
            "existence_threshold": catalogue.existence_threshold,
        },
        "overall": describe_part(rows),
        "mean_over_datasets": {"datasets": len(means), "mean_dice": math.fsum(means) / len(means) if means else None},
        "buckets_percent": describe_buckets("area_percent", Buckets(tuple(percent_edges), " %")),
        "buckets_mm": describe_buckets("diameter_mm", Buckets(tuple(diameter_edges_mm), " mm")),
        "datasets": datasets,
    }


def _group(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row[column]), []).append(row)
    return dict(sorted(groups.items()))
