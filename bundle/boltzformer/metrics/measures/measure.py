"""What one measure is: an entry of the list in `catalogue.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from boltzformer.metrics.measures.rows import Row

Part = Callable[[Row], tuple[float, float] | None]
Style = Literal["number", "percent", "brief", "count", "mm"]


@dataclass(frozen=True)
class Measure:
    """One number: how it is computed, averaged and printed, and which way it gets better.

    Attributes:
        name: where it stands in a summary's entry; "negatives.specificity" is `specificity` inside `negatives`.
        title: for table heads.
        column: of the row (and of the CSV) that holds it; empty where it follows from other columns.
        compute: facts (`SliceCounts` or `VolumeMasks`) -> the column's value, None where it is not defined. Needed
            with `column`, unless the row's producer fills the column itself.
        part: row -> (numerator, denominator), None where the row does not count. The average over rows is the
            sum of numerators over the sum of denominators, and so can be resampled by patient for its interval.
        total: rows -> number, for what is no such ratio (a count, a median); it has no interval.
        key: name of its interval in `intervals`; empty gives none.
        style: how it is printed: "number" and "mm" with three and one digits, "percent" a share as percentage,
            "brief" three significant digits, "count" a whole number.
        unit: of the column, such as "mm".
        better: "higher", "lower" or "neither".
        headline: sentence for the head of the page; empty keeps it off.
        in_tables: whether tables have a column for it; it is left out where no line has a value.
        compared: whether a comparison of two evaluations has a line for its column.
    """

    name: str
    title: str
    column: str = ""
    compute: Callable[[Any], float | None] | None = None
    part: Part | None = None
    total: Callable[[Sequence[Row]], float | None] | None = None
    key: str = ""
    style: Style = "number"
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "higher"
    headline: str = ""
    in_tables: bool = True
    compared: bool = True

    def __post_init__(self) -> None:
        if (self.part is None) == (self.total is None):
            raise ValueError(f"measure '{self.name}' needs either `part` or `total`")
        if self.key and self.part is None:
            raise ValueError(f"measure '{self.name}' has no `part` to give its interval '{self.key}' from")

    def parts(self, rows: Iterable[Row]) -> list[tuple[Row, float, float]]:
        """(row, numerator, denominator) of the rows that count."""
        if self.part is None:
            return []
        found = ((row, self.part(row)) for row in rows)
        return [(row, *part) for row, part in found if part is not None]

    def average(self, rows: Sequence[Row]) -> float | None:
        """The measure over rows; None where there is nothing to divide by."""
        if self.total is not None:
            return self.total(rows)
        parts = self.parts(rows)
        bottom = math.fsum(part[2] for part in parts)
        return math.fsum(part[1] for part in parts) / bottom if bottom else None

    def of(self, entry: Mapping[str, Any]) -> float | None:
        """Its value in a summary's entry."""
        value: Any = entry
        for step in self.name.split("."):
            value = value[step]
        return None if value is None else float(value)


def mean_of(column: str) -> Part:
    """Part of the mean of a column over the rows that have it."""

    def part(row: Row) -> tuple[float, float] | None:
        value = row.get(column)
        return None if value is None else (float(value), 1.0)

    return part


def share_where(column: str, condition: Callable[[float], bool]) -> Part:
    """Part of the share of rows, among those with a column, whose value meets a condition."""

    def part(row: Row) -> tuple[float, float] | None:
        value = row.get(column)
        return None if value is None else (float(condition(value)), 1.0)

    return part


def describe(rows: Sequence[Row], measures: Iterable[Measure]) -> dict[str, Any]:
    """The average of every measure over rows, nested by the dots of their names."""
    entry: dict[str, Any] = {}
    for measure in measures:
        inside = entry
        *steps, last = measure.name.split(".")
        for step in steps:
            inside = inside.setdefault(step, {})
        inside[last] = measure.average(rows)
    return entry


def columns(measures: Iterable[Measure], facts: Any) -> dict[str, Any]:
    """The columns of a row that the measures compute from facts."""
    return {m.column: m.compute(facts) for m in measures if m.column and m.compute is not None}
