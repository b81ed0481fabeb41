"""Rows and summaries out to CSV and JSON, and back."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzformer.errors import InputError
from boltzformer.output_files import write_bytes

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def plain(value: Any) -> Any:
    """Python's own types for JSON and CSV: arrays to lists, numpy and torch to numbers, NaN to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, data: Any) -> Path:
    """Write `data` as JSON; NaN and infinity become null.

    Raises:
        InputError: where the file cannot be written.
    """
    return write_text(path, json.dumps(plain(data), indent=4, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV with a header; None and NaN are empty cells. Columns default to the first row's keys.

    Text that a spreadsheet would take for a formula gets an apostrophe before it; `read_csv` takes it off again.

    Raises:
        InputError: where the file cannot be written.
    """
    rows = list(rows)
    names = list(columns) if columns is not None else list(rows[0]) if rows else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(plain(row.get(name))) for name in names])
    return write_text(path, buffer.getvalue())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV, as text: one that `write_csv` wrote, or a spreadsheet saved as UTF-8.

    Raises:
        InputError: where the file is missing, not text, has no header, or a line has fewer or more cells than it.
    """
    path = Path(path)
    rows: list[dict[str, str]] = []
    try:
        # -sig: Excel begins UTF-8 with a byte order mark, which would become part of the first column's name
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames  # read before the rows: an empty file has none
            for row in reader:
                _check_cells(row, f"{path}, line {reader.line_num}")
                rows.append({name: _uncell(text) for name, text in row.items()})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as CSV: {error}") from error
    if not header:
        raise InputError(f"{path} is empty: it should start with a header line of column names")
    return rows


def _check_cells(row: Mapping[str | None, Any], where: str) -> None:
    if None in row:  # csv's key of what is beyond the header
        raise InputError(f"{where}: the line has more cells than the header; text with a comma needs quotes")
    ended = next((name for name, text in row.items() if text is None), None)
    if ended is not None:
        raise InputError(f"{where}: the line ends before its column {ended}; write the file again")


def _cell(value: Any) -> Any:
    """A cell; text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return "" if value is None else value


def _uncell(text: str) -> str:
    return text[1:] if text[:1] == "'" and _FORMULA.match(text[1:]) else text


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in one move, so that no half-written file is ever read.

    Raises:
        InputError: where the file cannot be written.
    """
    return write_bytes(path, text.encode("utf-8"))
