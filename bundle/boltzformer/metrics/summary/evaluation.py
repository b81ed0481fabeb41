"""All rows of an evaluation -> the JSON summary, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from boltzformer.metrics.measures.calibration import Calibration
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.lesions import MISSED
from boltzformer.metrics.measures.rows import Row, by_object, object_name, patient_name
from boltzformer.metrics.measures.size_buckets import (
    DIAMETER_EDGES_MM,
    PERCENT_EDGES,
    SMALL_BELOW_PERCENT,
    TINY_BELOW_PERCENT,
    Buckets,
)
from boltzformer.metrics.summary.calibration import summarise_calibration
from boltzformer.metrics.summary.froc import froc, lesion_auroc
from boltzformer.metrics.summary.lesions import scan_rows, summarise_lesions
from boltzformer.metrics.summary.slices import summarise_slices
from boltzformer.metrics.summary.statistics import intervals
from boltzformer.metrics.summary.volumes import summarise_volumes


def summarise(
    evaluation: Evaluation,
    percent_edges: Sequence[float] = PERCENT_EDGES,
    diameter_edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
    small_below_percent: float = SMALL_BELOW_PERCENT,
) -> dict[str, Any]:
    """The JSON summary of an evaluation; edges are those of the slices' tables, see `summarise_slices`."""
    settings, catalogue = evaluation.settings, evaluation.settings.catalogue
    scans = Counter(object_name(row) for row in evaluation.volumes)
    lesions = summarise_lesions(evaluation.lesions, scans, settings.lesions, measures=catalogue.lesions)
    lesions["froc"] = _scored_froc(evaluation.lesions, scans)
    lesions["score_auroc"] = lesion_auroc(evaluation.lesions)
    whole = Calibration()
    for collected in evaluation.calibration.values():
        whole.merge(collected)
    return {
        "cases": evaluation.cases,
        "patients": len({patient_name(row) for row in evaluation.slices}),
        "axis": settings.axis,
        "absent_is_negative": settings.absent_is_negative,
        "slices": summarise_slices(evaluation.slices, percent_edges, diameter_edges_mm, small_below_percent, catalogue),
        "volumes": summarise_volumes(evaluation.volumes, catalogue),
        "lesions": lesions,
        "calibration": {
            "overall": summarise_calibration(whole),
            "objects": {name: summarise_calibration(c) for name, c in sorted(evaluation.calibration.items())},
        }
        if evaluation.calibration
        else None,
        "intervals": all_intervals(evaluation, percent_edges, small_below_percent),
        "without_rows": sorted(evaluation.without_rows),
        "left_out": dict(sorted(evaluation.left_out.items())),
        "failures": evaluation.failures,
    }


def all_intervals(evaluation: Evaluation, percent_edges: Sequence[float], small_below_percent: float) -> dict[str, Any]:
    """95 % bootstrap intervals clustered by patient: of every measure, and of the slices' by object and size."""
    catalogue, slices, volumes = evaluation.settings.catalogue, evaluation.slices, evaluation.volumes

    def of_slices(groups: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Any]]:
        return {name: intervals(catalogue.slices, part) for name, part in groups.items()}

    def by_size(*edges: float) -> dict[str, dict[str, Any]]:
        return of_slices(Buckets(edges, " %").split(slices, "area_percent"))

    return {
        "overall": {
            **intervals(catalogue.slices, slices),
            **intervals(catalogue.volumes, volumes),
            **intervals(catalogue.lesions, [*evaluation.lesions, *scan_rows(volumes)]),
        },
        "objects": of_slices(by_object(slices)),
        "buckets_percent": by_size(*percent_edges),
        "sizes": by_size(small_below_percent),
        "tiny": by_size(TINY_BELOW_PERCENT),
    }


def _scored_froc(rows: Sequence[Row], scans: Mapping[str, int]) -> dict[str, Any] | None:
    """FROC over the objects whose predicted lesions all have a score; None where no lesion has one.

    An object of which nothing was predicted belongs to them: its lesions are missed whatever the threshold.
    """
    groups: dict[str, list[Row]] = {name: [] for name in scans}
    for row in rows:
        groups[object_name(row)].append(row)
    scored = [name for name, part in groups.items() if all(r["score"] is not None or r["kind"] == MISSED for r in part)]
    pooled = [row for name in scored for row in groups[name]]
    if not any(row["score"] is not None for row in pooled):
        return None
    return {"objects": sorted(scored), **froc(pooled, sum(scans[name] for name in scored))}
