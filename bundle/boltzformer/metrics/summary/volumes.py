"""Volume rows -> summary: overall and for each object, negatives apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.measure import describe
from boltzformer.metrics.measures.rows import Row, by_object


def summarise_volumes(rows: Iterable[Row], catalogue: Catalogue | None = None) -> dict[str, Any]:
    """Every volume measure, overall and for each object.

    `hd95_mm` has its own `n`: volumes with a finite distance; `undefined` counts the positive volumes
    in which nothing was predicted. Its median takes these as infinitely far (None where the median is
    infinite), so that missing an object never improves it.
    """
    rows = list(rows)
    catalogue = catalogue or Catalogue()
    return {
        "tolerances_mm": list(catalogue.tolerances_mm),
        "overall": describe(rows, catalogue.volumes),
        "objects": {name: describe(part, catalogue.volumes) for name, part in by_object(rows).items()},
    }
