"""An evaluation against an earlier one of the same cases: does the difference hold, and where does it come from?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzformer.errors import InputError
from boltzformer.metrics.files import read_csv
from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.evaluation import FILES, Evaluation
from boltzformer.metrics.measures.measure import Measure
from boltzformer.metrics.measures.rows import SLICE_KEY, VOLUME_KEY, Row
from boltzformer.metrics.measures.size_buckets import as_number
from boltzformer.metrics.summary.statistics import add_holm, compare, compare_line, paired_rows

PATIENT = "patient"


def compare_with(evaluation: Evaluation, folder: str | Path) -> dict[str, Any]:
    """Compare an evaluation (the second model) with the output folder of an earlier one (the first).

    Args:
        evaluation: the second model's.
        folder: with the first model's `slices.csv` and, unless it is of a run that scored slices only (training,
            `evaluate.json`), `volumes.csv`.

    Returns:
        What `boltzformer.metrics.summary.statistics.compare` says of Dice on slices; under `slices` and `volumes`
        a line for each column of the list of measures that both have (of HD95 over volumes where both are finite),
        with Holm's correction over each table; `only_first` and `only_second`: slices with a Dice that the other lacks,
        which are in no line.

    Raises:
        InputError: where a file is missing or damaged, or the two share no rows.
    """
    folder, catalogue = Path(folder), evaluation.settings.catalogue
    slices, volumes = read_earlier(folder, catalogue)
    joined = paired_rows(slices, evaluation.slices)
    known = [sum(as_number(row["dice"]) is not None for row in rows) for rows in (slices, evaluation.slices)]
    alone = {"only_first": known[0] - len(joined), "only_second": known[1] - len(joined)}
    result: dict[str, Any] = {"first": str(folder), **alone, **compare(joined)}
    others = [measure for measure in catalogue.slices if measure.column != "dice"]
    result["slices"] = _lines(others, slices, evaluation.slices, SLICE_KEY, "area_percent")
    result["volumes"] = {}
    if volumes is not None:
        result["volumes"] = _lines(catalogue.volumes, volumes, evaluation.volumes, VOLUME_KEY, "label_mm3")
    return result


def read_earlier(folder: Path, catalogue: Catalogue) -> tuple[list[dict[str, str]], list[dict[str, str]] | None]:
    """Slice and volume rows of an earlier evaluation; None for volumes where it scored slices only.

    Raises:
        InputError: where a file is missing or damaged.
    """
    slices = _read_rows(folder / FILES["slices"], SLICE_KEY, "area_percent", catalogue.slices)
    file = folder / FILES["volumes"]
    return slices, _read_rows(file, VOLUME_KEY, "label_mm3", catalogue.volumes) if file.exists() else None


def _lines(
    measures: Sequence[Measure], first: Sequence[Row], second: Sequence[Row], keys: Sequence[str], label_size: str
) -> dict[str, Any]:
    """A line for each compared column that any row of both has."""
    lines: dict[str, Any] = {}
    for measure in measures:
        if not (measure.column and measure.compared):
            continue
        known = [any(as_number(row.get(measure.column)) is not None for row in rows) for rows in (first, second)]
        if not all(known):
            continue  # other tolerances, or nothing predicted at all
        try:
            lines[measure.column] = compare_line(paired_rows(first, second, measure.column, keys, label_size))
        except InputError:
            if measure.column == "dice":
                raise
            continue  # no row in which both have, say, a finite distance
    add_holm(lines)
    return lines


def _read_rows(path: Path, keys: Sequence[str], size: str, measures: Sequence[Measure]) -> list[dict[str, str]]:
    """Rows of an earlier evaluation's CSV, checked before anything is computed from them."""
    rows = read_csv(path)
    if not rows:
        return rows
    needed = [*keys, PATIENT, size, "dice"]
    missing = [column for column in needed if column not in rows[0]]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}: give the output folder of an earlier evaluation")
    numbers = [size, *(m.column for m in measures if m.column and m.column in rows[0])]
    for line, row in enumerate(rows, start=2):
        for column in numbers:
            _check_number(row[column], f"{path}, line {line}, column {column}")
    return rows


def _check_number(text: str, where: str) -> None:
    try:
        as_number(text)
    except ValueError:
        raise InputError(f"{where}: expected a number or nothing, found '{text[:40]}'") from None
