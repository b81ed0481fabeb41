"""Prompt files for inference: JSON or CSV.

A prompt is data. It is read from a file, and never put into a configuration string, where `$`, `@`, `%` and
`#` have a meaning.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer.data.prompts import check_prompt
from boltzformer.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Prompt:
    """One thing to segment.

    Attributes:
        text: the sentence that the network reads.
        name: short name for output files and label maps: letters, digits, `_`, `.` and `-`, at most 64.
    """

    text: str
    name: str


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a prompt file.

    JSON: a list of sentences, a list of `{"prompt": ..., "name": ...}` (name optional), an object with such a list
    under "prompts", or an object from names to sentences. CSV: a header with a column `prompt` and optionally
    `name`.

    Args:
        path: file ending in .json or .csv, UTF-8.

    Returns:
        the prompts in the file's order, names unique (a missing name is made from the sentence).

    Raises:
        InputError: the file is missing, of another format or malformed, holds no prompt, or has a bad or
            repeated prompt or name.
    """
    path = Path(path)
    if path.suffix.lower() not in {".json", ".csv"}:
        raise InputError(f"{path}: expected a prompt file ending in .json or .csv.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    rows = _json_rows(text, path) if path.suffix.lower() == ".json" else _csv_rows(text, path)
    return make_prompts(rows, str(path))


def make_prompts(rows: list[tuple[Any, Any]], source: str = "prompts") -> list[Prompt]:
    """Check sentences and names and give a name to each that has none.

    Args:
        rows: pairs of a sentence and a name, the name None or empty where there is none.
        source: where they came from, to name in errors.

    Returns:
        one prompt for each row.

    Raises:
        InputError: no row, a bad sentence, a bad name, or a sentence or name that occurs twice.
    """
    if not rows:
        raise InputError(f"{source}: holds no prompt; give at least one.")
    texts: list[str] = []
    names: list[str] = []
    for number, (text, name) in enumerate(rows, start=1):
        where = f"{source}, prompt {number}"
        texts.append(check_prompt(text, where))
        if name is None or (isinstance(name, str) and not name.strip()):
            names.append("")
        elif isinstance(name, str) and _NAME.fullmatch(name.strip()):
            names.append(name.strip())
        else:
            raise InputError(f"{where}: the name {name!r} cannot be part of a file name; use letters, digits, _ . -")
    for listed, what in ((texts, "prompt"), ([name for name in names if name], "name")):
        seen: set[str] = set()
        for entry in listed:
            # names that differ in case only are one file on some file systems
            if entry.lower() in seen:
                raise InputError(f"{source}: the {what} '{entry}' occurs twice; remove or rename one.")
            seen.add(entry.lower())
    return [Prompt(text, name) for text, name in zip(texts, _fill_names(texts, names), strict=True)]


def _fill_names(texts: list[str], names: list[str]) -> list[str]:
    """Make a name from each sentence without one; a number behind it keeps it unique."""
    taken = {name.lower() for name in names if name}
    filled = []
    for text, name in zip(texts, names, strict=True):
        if not name:
            stem = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:48].strip("_") or "prompt"
            name, count = stem, 2
            while name in taken:
                name, count = f"{stem}_{count}", count + 1
            taken.add(name)
        filled.append(name)
    return filled


def _json_rows(text: str, path: Path) -> list[tuple[Any, Any]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if isinstance(content, dict) and isinstance(content.get("prompts"), list):
        content = content["prompts"]
    if isinstance(content, dict):
        return [(sentence, name) for name, sentence in content.items()]
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of prompts or an object from names to prompts.")
    rows: list[tuple[Any, Any]] = []
    for number, entry in enumerate(content, start=1):
        if isinstance(entry, dict):
            if "prompt" not in entry or set(entry) - {"prompt", "name"}:
                raise InputError(f"{path}, prompt {number}: expected the keys `prompt` and optionally `name`.")
            rows.append((entry["prompt"], entry.get("name")))
        else:
            rows.append((entry, None))
    return rows


def _csv_rows(text: str, path: Path) -> list[tuple[Any, Any]]:
    reader = csv.DictReader(text.splitlines(), restkey="", skipinitialspace=True)
    columns = [column.strip().lower() for column in reader.fieldnames or []]
    if "prompt" not in columns or set(columns) - {"prompt", "name"}:
        raise InputError(f"{path}: the first line must name the columns `prompt` and optionally `name`.")
    reader.fieldnames = columns
    rows: list[tuple[Any, Any]] = []
    for row in reader:
        if row.get(""):
            raise InputError(f"{path}, line {reader.line_num}: too many columns; put a prompt with commas in quotes.")
        rows.append((row["prompt"] or "", row.get("name")))
    return rows
