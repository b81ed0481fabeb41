"""Rows and summaries out to CSV, JSON and the terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boltzformer.errors import InputError


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
    """Write ``data`` as JSON; NaN and infinity become null.

    Raises:
        InputError: where the file cannot be written.
    """
    return write_text(path, json.dumps(plain(data), indent=4, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV with a header; None and NaN are empty cells. Columns default to the first row's keys.

    Raises:
        InputError: where the file cannot be written.
    """
    rows = list(rows)
    names = list(columns) if columns is not None else list(rows[0]) if rows else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (plain(row.get(name)) for name in names)
        writer.writerow(["" if cell is None else cell for cell in cells])
    return write_text(path, buffer.getvalue())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV that :func:`write_csv` wrote, as text.

    Raises:
        InputError: where the file is missing, not text, or has no header.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as CSV: {error}") from error
    if not reader.fieldnames:
        raise InputError(f"{path} is empty: it should start with a header line of column names")
    return rows


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in one move, so that no half-written file is ever read.

    Raises:
        InputError: where the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def p_value(value: float | None) -> str:
    """A p-value to four places; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """``"<dataset> / <object>"`` to the object alone, where no two datasets share an object."""
    listed = list(names)
    last = [name.split(" / ")[-1] for name in listed]
    return dict(zip(listed, last if len(set(last)) == len(last) else listed, strict=True))


def dice_table(title: str, first_column: str, entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """A rich table of ``describe_dice`` entries: one line each, with n beside every mean.

    Of a name with a newline only what follows it is shown: it stands under a line of its own.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first_column)
    for heading in ("n", "mean Dice", "median Dice", "missed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, entry in entries.items():
        table.add_row(
            escape(name.split("\n")[-1]),
            str(entry["n"]),
            number(entry["mean_dice"]),
            number(entry["median_dice"]),
            percent(entry["missed_share"]),
        )
    return table


def print_slice_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a summary of ``summarise_slices``: datasets and objects, buckets, negatives."""
    console = console or Console()
    by_object: dict[str, Mapping[str, Any]] = {}
    for dataset, entry in summary["datasets"].items():
        by_object[dataset] = entry
        by_object.update({f"{dataset}\n  {name}": part for name, part in entry["objects"].items()})
    if len(summary["datasets"]) > 1:
        by_object["all datasets, every row"] = summary["overall"]
    console.print(dice_table("Dice per (slice, prompt), object present", "dataset / object", by_object))
    border = summary["settings"]["small_below_percent"]
    sizes = {
        f"small (< {border:g} %)": summary["overall"]["small"],
        f"large (>= {border:g} %)": summary["overall"]["large"],
        **summary["buckets_percent"],
    }
    console.print(dice_table("By share of the slice", "size of the object", sizes))
    if any(entry["n"] for entry in summary["buckets_mm"].values()):
        console.print(dice_table("By equivalent diameter", "diameter", summary["buckets_mm"]))
    mean = summary["mean_over_datasets"]
    console.print(f"Unweighted mean over {mean['datasets']} dataset(s): Dice {number(mean['mean_dice'])}")
    negatives = summary["overall"]["negatives"]
    if negatives["n"]:
        console.print(
            f"Negatives (object absent): n = {negatives['n']}, "
            f"left empty {percent(negatives['specificity'])}, "
            f"mean false-positive area {number(negatives['mean_false_positive_percent'], 4)} % of the slice"
        )
    else:
        console.print("Negatives (object absent): n = 0")
