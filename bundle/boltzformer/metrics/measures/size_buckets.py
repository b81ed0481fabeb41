"""Sizes of objects, set out in buckets.

The paper's table 2 parts objects at 1 % of the slice area. Below 1 % there is more to tell, so finer edges
come beside it, and the same by equivalent diameter in mm, which does not change with the field of view.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from boltzformer.metrics.measures.rows import Row

PERCENT_EDGES = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
DIAMETER_EDGES_MM = (3.0, 6.0, 10.0, 20.0, 30.0)
SMALL_BELOW_PERCENT = 1.0
TINY_BELOW_PERCENT = 0.05
MISSED_BELOW_DICE = 0.01


@dataclass(frozen=True)
class Buckets:
    """Half-open intervals [edge, next edge) over a size, open at both ends.

    Args:
        edges: strictly increasing, positive; n edges give n + 1 buckets.
        unit: appended to the names, such as " %" or " mm".
        label: prefix of the names, for where names of several rulers meet in one table.
    """

    edges: tuple[float, ...]
    unit: str = " %"
    label: str = ""

    def __post_init__(self) -> None:
        edges = tuple(float(edge) for edge in self.edges)
        rising = all(low < high for low, high in itertools.pairwise(edges))
        if not edges or edges[0] <= 0 or not rising or not all(map(math.isfinite, edges)):
            raise ValueError(f"bucket edges must be positive and strictly increasing, got {list(self.edges)}")
        object.__setattr__(self, "edges", edges)

    @property
    def names(self) -> list[str]:
        """One name for each bucket, smallest first."""
        low, *_, high = (self.edges[0], self.edges[-1])
        inner = [f"{a:g}-{b:g}{self.unit}" for a, b in zip(self.edges, self.edges[1:], strict=False)]
        return [self.label + name for name in (f"< {low:g}{self.unit}", *inner, f">= {high:g}{self.unit}")]

    def index(self, size: float | None) -> int | None:
        """Bucket of a size; None where the size is not known (NaN or None)."""
        if size is None or math.isnan(size):
            return None
        return int(np.searchsorted(np.asarray(self.edges), size, side="right"))

    def name(self, size: float | None) -> str | None:
        """Name of a size's bucket; None where the size is not known."""
        index = self.index(size)
        return None if index is None else self.names[index]

    def split(self, rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
        """Rows by the bucket of a column, every bucket listed; rows without the column are left out."""
        groups: dict[str, list[Row]] = {name: [] for name in self.names}
        for row in rows:
            name = self.name(as_number(row.get(column)))
            if name is not None:
                groups[name].append(row)
        return groups


def as_number(value: object) -> float | None:
    """A float; None for None, NaN and the empty cell of a CSV."""
    if value is None or value == "":
        return None
    number = float(value)  # type: ignore[arg-type]
    return None if math.isnan(number) else number
