"""What a table's rows are said to show, held against what was measured: claims of the paper as lines under a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer.apps.experiment_definition import Table
from boltzformer.apps.experiment_plan import Run
from boltzformer.apps.experiment_runs import ROWS, is_finished
from boltzformer.metrics.files import read_csv
from boltzformer.metrics.summary.protocol import difference_values, found_nothing


def claim_lines(table: Table, planned: Mapping[str, Sequence[Run]], runs_dir: Path) -> list[str]:
    """A line for each claim both of whose rows have runs with the same seed: difference, interval, and what it says.

    Args:
        table: with `claims`.
        planned: row label to its runs.
        runs_dir: folder of the runs.
    """
    lines = []
    for better, worse in table.claims:
        pairs = zip(planned[better], planned[worse], strict=False)
        done = [pair for pair in pairs if all(is_finished(run, runs_dir) for run in pair)]
        if not done:
            continue
        first, second = ([read_csv(runs_dir / run.key / ROWS) for run in side] for side in zip(*done, strict=True))
        idle = [label for label, rows in ((better, first), (worse, second)) if found_nothing(rows)]
        if idle:
            nothing = f"{' and '.join(idle)} found no object with this budget"
            lines.append(f"Claim: {better} above {worse}. **Not compared: {nothing}.**")
            continue
        cells = difference_values(first, second)
        if "mean" in cells:
            small = f"; small objects {_gain(cells['small'])}" if "small" in cells else ""
            lines.append(
                f"Claim: {better} above {worse}. Here: {_gain(cells['mean'])}{small}. **{verdict(cells['mean'])}**"
            )
    return lines


def verdict(cell: Mapping[str, Any]) -> str:
    """What a difference says of the claim that it is above 0."""
    if cell["low"] is None:
        return "One patient: nothing follows."
    if cell["low"] > 0:
        return "It holds here."
    return "It does not hold here: the reverse does." if cell["high"] < 0 else "It is not shown here."


def _gain(cell: Mapping[str, Any]) -> str:
    text = f"{100 * cell['value']:+.1f}"
    return text if cell["low"] is None else f"{text} [{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}]"
