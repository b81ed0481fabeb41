"""An evaluation against an earlier one of the same cases: does the difference hold, and where does it come from?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boltzformer.errors import InputError
from boltzformer.metrics.folder_evaluation import FILES, Evaluation
from boltzformer.metrics.statistics import compare, compare_line, holm, paired_rows
from boltzformer.metrics.tables import read_csv
from boltzformer.metrics.volume_metrics import surface_column

VOLUME_KEY = ("dataset", "case", "object")


def compare_with(evaluation: Evaluation, folder: str | Path) -> dict[str, Any]:
    """Compare an evaluation (the second model) with the output folder of an earlier one (the first).

    Args:
        evaluation: the second model's.
        folder: with the first model's ``slices.csv`` and ``volumes.csv``.

    Returns:
        :func:`boltzformer.metrics.statistics.compare` of the slices, and under ``volumes`` a line each for volumetric
        Dice, surface Dice and HD95 (over volumes where both are finite), with Holm's correction over these.

    Raises:
        InputError: where the folder has no such files, or the two share no rows.
    """
    folder = Path(folder)
    earlier = {name: read_csv(folder / FILES[name]) for name in ("slices", "volumes")}
    result: dict[str, Any] = {"first": str(folder), **compare(paired_rows(earlier["slices"], evaluation.slices))}
    lines = {}
    surfaces = [surface_column(limit) for limit in evaluation.settings.tolerances_mm]
    for column in ("dice", *surfaces, "hd95_mm"):
        if earlier["volumes"] and column not in earlier["volumes"][0]:
            continue  # the earlier run used other tolerances
        try:
            pairs = paired_rows(earlier["volumes"], evaluation.volumes, column, VOLUME_KEY, "label_mm3")
        except InputError:
            if column == "dice":
                raise
            continue  # no volume in which both have, say, a finite distance
        lines[column] = compare_line(pairs)
    tested = [line for line in lines.values() if line["p"] is not None]
    for line, p in zip(tested, holm([line["p"] for line in tested]), strict=True):
        line["p_holm"] = p
    result["volumes"] = lines
    return result
