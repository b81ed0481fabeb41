"""Scores that someone else measured, slice by slice, as rows for this package's tables.

Read are `slices.csv` as written here, and any CSV with a line for each (slice, prompt), once it is said which of its
columns is what. BiomedParse's published scores are of the second kind: a file name, the mask's area in pixels of a
1024 x 1024 slice, and one Dice a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer.errors import InputError
from boltzformer.metrics.files import read_csv

KNOWN = ("dataset", "case", "patient", "object", "slice", "text", "dice", "area_percent", "area_pixels")
NEEDED = ("dataset", "case", "dice")


def read_slice_scores(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    datasets: Mapping[str, str] | None = None,
    slice_pixels: float | None = None,
) -> list[dict[str, Any]]:
    """Rows as `boltzformer.metrics.summary.protocol.table_values` reads them.

    Args:
        path: the CSV.
        columns: name here to name in the file; a name that is not given is looked for as it is. `dataset`, `case` and
            `dice` (0 to 1, empty on a slice without the object) are needed, and `area_percent`, or `area_pixels`
            with `slice_pixels`.
        datasets: the file's name of a dataset to the name wanted; lines of others are left out. None keeps all.
        slice_pixels: pixels of a whole slice.

    Returns:
        a row for each line. Where the file names no patient, a dataset's slices count as one patient's, so that no
        interval is computed from slices that are not independent.

    Raises:
        InputError: a column is missing, or a line holds no number from 0 to 1 as its Dice, or no area.
    """
    lines = read_csv(path)
    names = {name: (columns or {}).get(name, name) for name in KNOWN}
    if unknown := sorted(set(columns or {}) - set(KNOWN)):
        raise InputError(f"{path}: `columns` names {unknown[0]!r}; known are {', '.join(KNOWN)}.")
    there = set(lines[0]) if lines else set()
    asked = [*NEEDED, *(name for name in columns or {} if name not in NEEDED)]
    lacking = [names[name] for name in asked if names[name] not in there]
    if names["area_percent"] not in there and names["area_pixels"] not in there:
        lacking.append(names["area_percent"])
    if lacking:
        raise InputError(f"{path}: has no column {lacking[0]!r}; it has {', '.join(sorted(there)) or 'no line'}.")
    rows = []
    for number, line in enumerate(lines, start=2):
        dataset = line[names["dataset"]]
        if datasets is not None:
            if dataset not in datasets:
                continue
            dataset = datasets[dataset]
        rows.append(_row(line, names, dataset, slice_pixels, number, f"{path}, line {number}"))
    if not rows:
        raise InputError(f"{path}: has no line of {', '.join(datasets or {}) or 'any dataset'}.")
    return rows


def _row(
    line: Mapping[str, str], names: Mapping[str, str], dataset: str, slice_pixels: float | None, number: int, where: str
) -> dict[str, Any]:
    text = line[names["dice"]]
    dice = _number(text, where, "Dice") if text.strip() else None
    if dice is not None and not 0 <= dice <= 1:
        raise InputError(f"{where}: a Dice of {dice:g}; expected 0 to 1.")
    return {
        "dataset": dataset,
        "case": line[names["case"]],
        "patient": line.get(names["patient"]) or "unknown",
        "object": line.get(names["object"], ""),
        "slice": line.get(names["slice"]) or number,
        "text": line.get(names["text"], ""),
        "dice": dice,
        "area_percent": None if dice is None else _area_percent(line, names, slice_pixels, where),
    }


def _area_percent(line: Mapping[str, str], names: Mapping[str, str], slice_pixels: float | None, where: str) -> float:
    if names["area_percent"] in line:
        return _number(line[names["area_percent"]], where, "area in %")
    if not slice_pixels:
        raise InputError(f"{where}: gives the area in pixels; say with `slice_pixels` how many a slice has.")
    return 100 * _number(line[names["area_pixels"]], where, "area in pixels") / slice_pixels


def _number(text: str, where: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {text!r} is no {what}.")
    return number
