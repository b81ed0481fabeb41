"""What a table's rows are said to show, held against what was measured: claims of the paper as lines under a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boltzformer.apps.experiment_definition import Table
from boltzformer.metrics.measures.rows import Row
from boltzformer.metrics.summary.protocol import count_slices, difference_values, found_nothing


def claim_lines(table: Table, scored: Mapping[str, Mapping[int | None, list[Row]]]) -> list[str]:
    """A line for each claim whose rows can be held against each other: difference, interval, and what it says.

    Two rows of runs are compared by the seeds that both have; another program's scores stand against each seed.

    Args:
        table: with `claims`.
        scored: slices by row and seed, from `rows_by_seed`.
    """
    lines = []
    for better, worse in table.claims:
        first, second = _paired(scored[better], scored[worse])
        if not first:
            continue
        idle = [label for label, rows in ((better, first), (worse, second)) if found_nothing(rows)]
        if idle:
            nothing = f"{' and '.join(idle)} found no object with this budget"
            lines.append(f"Claim: {better} above {worse}. **Not compared: {nothing}.**")
            continue
        cells = difference_values(first, second)
        if "mean" not in cells:
            lines.append(f"Claim: {better} above {worse}. **Not compared: no slice is named alike in both.**")
            continue
        small = f"; small objects {_gain(cells['small'])}" if "small" in cells else ""
        shared, most = cells["mean"]["n"], max(count_slices(first), count_slices(second))
        part = "" if shared == most else f", on the {shared} of {most} slices that both have"
        lines.append(
            f"Claim: {better} above {worse}. Here: {_gain(cells['mean'])}{_by_seed(cells['mean'])}{small}{part}. "
            f"**{verdict(cells['mean'])}**"
        )
    return lines


def _paired(
    first: Mapping[int | None, list[Row]], second: Mapping[int | None, list[Row]]
) -> tuple[list[list[Row]], list[list[Row]]]:
    """Both sides once for each seed that they share."""
    if None in first and None not in second:
        return [first[None]] * len(second), list(second.values())
    if None in second and None not in first:
        return list(first.values()), [second[None]] * len(first)
    shared = [seed for seed in first if seed in second]
    return [first[seed] for seed in shared], [second[seed] for seed in shared]


def verdict(cell: Mapping[str, Any]) -> str:
    """What a difference says of the claim that it is above 0.

    The interval is over patients: it says what other patients would do to these very weights, and nothing of other
    seeds, which may move a short training by more than any choice. So the seeds must agree too, and one is not enough.

    Args:
        cell: of `difference_values`.
    """
    if cell["low"] is None:
        return "One patient: nothing follows."
    if cell["low"] <= 0 <= cell["high"]:
        return "It is not shown here."
    said = "It holds here" if cell["low"] > 0 else "It does not hold here: the reverse does"
    if len(cell["seeds"]) < 2:
        return f"{said}, with one seed: another may say the opposite."
    if min(cell["seeds"]) <= 0 <= max(cell["seeds"]):
        return "It is not shown here: seeds disagree."
    return f"{said}."


def _gain(cell: Mapping[str, Any]) -> str:
    text = f"{100 * cell['value']:+.1f}"
    return text if cell["low"] is None else f"{text} [{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}]"


def _by_seed(cell: Mapping[str, Any]) -> str:
    gains = [f"{100 * gain:+.1f}" for gain in cell["seeds"]]
    return f" (by seed {', '.join(gains)})" if len(gains) > 1 else ""
