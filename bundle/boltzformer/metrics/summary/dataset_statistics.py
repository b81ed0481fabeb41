"""How large the objects of a dataset are: the paper's table 9."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boltzformer.errors import InputError
from boltzformer.metrics.grids import Reader
from boltzformer.metrics.measures.cases import LabelledCase, read_label
from boltzformer.metrics.measures.size_buckets import PERCENT_EDGES, Buckets
from boltzformer.metrics.measures.slices import count_volume

COLUMNS = (
    *("dataset", "object", "slices", "volumes", "patients"),
    *("mean_percent", "median_percent", "min_percent", "max_percent"),
    *("median_diameter_mm", "median_volume_mm3"),
)


def dataset_statistics(
    cases: Iterable[LabelledCase],
    read: Reader,
    axis: int = 2,
    percent_edges: Sequence[float] = PERCENT_EDGES,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Area of every object on the slices where it is present, and how many there are.

    Args:
        cases: label maps and their objects.
        read: reads a file.
        axis: slices are taken along this axis in RAS orientation (2: axial).
        percent_edges: of the counts per size bucket.
        progress: called with each case's name.

    Returns:
        `objects`: a row for each (dataset, object): `slices` that hold it (the table's support), `volumes`,
        `patients`; mean, median, least and largest area in % of the slice; median equivalent diameter on a slice in
        mm and volume in mm3, of cases whose voxel size is known; `buckets`: slices per size bucket.
        `axis`; `without_object`: cases whose label map is empty; and `failures`: label maps that cannot be read,
        with the reason.
    """
    buckets = Buckets(tuple(percent_edges), " %")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    failures, empty = [], []
    for case in cases:
        if progress is not None:
            progress(case.name)
        for name in case.objects.values():
            found.setdefault((case.dataset, name), _empty())
        try:
            label = read_label(case, read)
        except InputError as error:
            failures.append({"case": case.name, "object": "", "error": str(error)})
            continue
        if not label.array.any():
            empty.append(case.name)
        for value, name in case.objects.items():
            mask = label.array == value
            if not mask.any():
                continue
            entry = found[case.dataset, name]
            spacing = label.spacing if case.spacing_known else None
            for counts in count_volume(mask, mask, spacing, axis):
                if counts.present:
                    entry["areas"].append(counts.area_percent)
                    entry["diameters"].append(counts.diameter_mm)
            entry["volumes"].append(None if spacing is None else int(mask.sum()) * math.prod(spacing))
            entry["patients"].add(case.patient)
    objects = [
        {"dataset": dataset, "object": name, **_describe(entry, buckets)}
        for (dataset, name), entry in sorted(found.items())
    ]
    return {"axis": axis, "objects": objects, "without_object": empty, "failures": failures}


def _empty() -> dict[str, Any]:
    return {"areas": [], "diameters": [], "volumes": [], "patients": set()}


def _describe(entry: Mapping[str, Any], buckets: Buckets) -> dict[str, Any]:
    areas = np.asarray(entry["areas"], dtype=np.float64)
    counts = dict.fromkeys(buckets.names, 0)
    for area in areas:
        counts[buckets.names[buckets.index(float(area)) or 0]] += 1

    def of(values: Sequence[float | None] | np.ndarray, statistic: Callable[[Any], Any]) -> float | None:
        known = [value for value in values if value is not None]
        return float(statistic(known)) if known else None

    return {
        "slices": len(areas),
        "volumes": len(entry["volumes"]),
        "patients": len(entry["patients"]),
        "mean_percent": of(areas, np.mean),
        "median_percent": of(areas, np.median),
        "min_percent": of(areas, np.min),
        "max_percent": of(areas, np.max),
        "median_diameter_mm": of(entry["diameters"], np.median),
        "median_volume_mm3": of(entry["volumes"], np.median),
        "buckets": counts,
    }
