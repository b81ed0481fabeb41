"""Numbers and names as text, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from boltzformer.metrics.measures.measure import Measure


def written(measure: Measure, value: float | None) -> str:
    """A measure's value in its own style; a dash where there is none."""
    if value is None:
        return "-"
    match measure.style:
        case "percent":
            return percent(value)
        case "count":
            return f"{value:.0f}"
        case "brief":
            return brief(value)
        case "mm":
            return number(value, 1)
    return number(value)


def shown(measures: Iterable[Measure], entries: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """The measures that a table of these entries has a column for: those with a value in any line."""
    return [m for m in measures if m.in_tables and any(m.of(entry) is not None for entry in entries)]


def better(measure: Measure) -> str:
    """Which way a measure gets better, for table heads."""
    return {"higher": "higher is better", "lower": "lower is better", "neither": ""}[measure.better]


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def p_value(value: float | None) -> str:
    """A p-value to four places; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def unpaired(comparison: Mapping[str, Any]) -> str:
    """How many slices a comparison leaves out because one side lacks them; empty where there are none."""
    first, second = comparison["only_first"], comparison["only_second"]
    if not first and not second:
        return ""
    return (
        f"Left out of the comparison: {first} slices scored in the earlier evaluation alone, {second} in this one alone"
    )


def short_names(names: Iterable[str]) -> dict[str, str]:
    """`"<dataset> / <object>"` to the object alone, where no two datasets share an object."""
    listed = list(names)
    last = [name.split(" / ")[-1] for name in listed]
    return dict(zip(listed, last if len(set(last)) == len(last) else listed, strict=True))


def brief(value: float | None) -> str:
    """Three significant digits, for numbers of any size; whole numbers from 1000 on."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
