"""Prompts: sentences that say what to segment now, and the prompt lists that hold them (JSON or CSV).

A prompt list is not a wording book (`boltzformer.data.wordings`), whose templates training turns into sentences.

A prompt is data. It is read from a file, and never put into a configuration string, where `$`, `@`, `%` and `#` have
a meaning.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer.bundle_folder import found_in_bundle
from boltzformer.errors import InputError
from boltzformer.json_file import read_json, read_text
from boltzformer.volumes.names import free_name

MAX_PROMPT_LENGTH = 1000
SEPARATOR = ";"
"""Between the prompts of one text field."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_WORDING_BOOK_CURE = (
    "a prompt list holds finished sentences, such as 'lung nodule in chest CT'; a wording book, which holds templates "
    "with {object}, is given to training as `wording_book`."
)


@dataclass(frozen=True)
class Prompt:
    """One thing to segment.

    Attributes:
        text: the sentence that the network reads.
        name: short name for output files and label maps: letters, digits, `_`, `.` and `-`, at most 64.
    """

    text: str
    name: str


def check_text(text: Any, source: str = "prompt") -> str:
    """Check a prompt or a template of one, and tidy its white space.

    Args:
        text: what a user gave.
        source: where it came from, to name in the error.

    Returns:
        the text with single spaces and none at its ends.

    Raises:
        InputError: not a string, without any letter, with control characters, or over 1000 characters.
    """
    if not isinstance(text, str):
        raise InputError(f"{source}: a prompt must be text, found {type(text).__name__} {text!r}.")
    tidy = " ".join(text.split())
    if not tidy:
        raise InputError(f"{source}: the prompt is empty; name the object, for example 'liver tumor in abdominal CT'.")
    if not tidy.isprintable() or not any(character.isalpha() for character in tidy):
        raise InputError(f"{source}: {text!r} is no text prompt; name the object in words.")
    if len(tidy) > MAX_PROMPT_LENGTH:
        raise InputError(f"{source}: the prompt has {len(tidy)} characters; {MAX_PROMPT_LENGTH} are allowed.")
    return tidy


def check_prompt(text: Any, source: str = "prompt") -> str:
    """Check one prompt and tidy its white space: as `check_text`, and without braces.

    Args:
        text: what a user gave as a prompt.
        source: where it came from, to name in the error.

    Returns:
        the prompt with single spaces and none at its ends.

    Raises:
        InputError: see `check_text`; or a brace, which only a wording book's templates hold.
    """
    tidy = check_text(text, source)
    if "{" in tidy or "}" in tidy:
        raise InputError(f"{source}: {tidy!r} holds a brace; {_WORDING_BOOK_CURE}")
    return tidy


def read_prompt_list(path: str | Path) -> list[Prompt]:
    """Read a prompt list.

    JSON: a list of sentences, a list of `{"prompt": ..., "name": ...}` (name optional), an object with such a list
    under "prompts", or an object from names to sentences. CSV: a header with a column `prompt` and optionally
    `name`, parted by commas, semicolons or tabs.

    Args:
        path: file ending in .json or .csv, UTF-8; see also `found_in_bundle`.

    Returns:
        the prompts in the file's order, names unique (a missing name is made from the sentence).

    Raises:
        InputError: the file is missing, of another format or malformed, is a wording book, holds no prompt, or has
            a bad or repeated prompt, name, key or column.
    """
    path = found_in_bundle(path)
    if path.suffix.lower() == ".json":
        rows = _json_rows(read_json(path, "prompt list"), path)
    elif path.suffix.lower() == ".csv":
        rows = _csv_rows(read_text(path, "prompt list"), path)
    else:
        raise InputError(f"{path}: expected a prompt list ending in .json or .csv.")
    return make_prompts(rows, str(path))


def parse_prompts(typed: Any, source: str = "prompt") -> list[Prompt]:
    """Read what a person typed into one field of a viewer: a prompt, or several with `;` between them.

    Args:
        typed: the text, or a list of sentences; None and blank text are no prompt.
        source: what to name in errors.

    Returns:
        the prompts in order, perhaps none.

    Raises:
        InputError: no text, or a bad or repeated prompt, see `make_prompts`.
    """
    if typed is None:
        return []
    listed = typed.split(SEPARATOR) if isinstance(typed, str) else typed
    if not isinstance(listed, list | tuple):
        raise InputError(f"{source}: expected text, several prompts with {SEPARATOR} between them, found {typed!r}.")
    rows = [(entry, None) for entry in listed if not (isinstance(entry, str) and not entry.strip())]
    return make_prompts(rows, source) if rows else []


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
            name = free_name(stem, taken)
            taken.add(name)
        filled.append(name)
    return filled


def _json_rows(content: Any, path: Path) -> list[tuple[Any, Any]]:
    if isinstance(content, dict) and isinstance(content.get("prompts"), list):
        content = content["prompts"]
    if isinstance(content, dict):
        if several := [name for name, sentences in content.items() if name == "*" or isinstance(sentences, list)]:
            raise InputError(f"{path}: {several[0]!r} has wordings, as in a wording book; {_WORDING_BOOK_CURE}")
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
    first = text.split("\n", 1)[0]
    # the names of the columns hold neither; a spreadsheet of a country with decimal commas writes semicolons
    separator = next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", skipinitialspace=True, delimiter=separator)
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or []]
        while columns and not columns[-1]:  # empty columns and rows at the end of a sheet
            columns.pop()
        if "prompt" not in columns or set(columns) - {"prompt", "name"}:
            raise InputError(f"{path}: the first line must name the columns `prompt` and optionally `name`.")
        if len(set(columns)) < len(columns):
            raise InputError(f"{path}: a column stands twice in the first line; remove one.")
        reader.fieldnames = columns
        rows = [
            _csv_row(row, f"{path}, line {reader.line_num}") for row in reader if any(map(_is_filled, row.values()))
        ]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: cannot be read as CSV ({error}).") from error
    return rows


def _is_filled(cell: str | list[str] | None) -> bool:
    return any(text.strip() for text in ([cell] if isinstance(cell, str) else cell or []))


def _csv_row(row: dict[str, Any], where: str) -> tuple[Any, Any]:
    if _is_filled(row.get("")):
        raise InputError(f"{where}: too many columns; put a prompt with commas in quotes.")
    cells = (row["prompt"] or "", row.get("name"))
    # a quote that is never closed swallows the lines below it
    if any("\n" in cell or "\r" in cell for cell in cells if cell):
        raise InputError(f"{where}: a quoted cell goes over several lines; close the quote, or write it on one line.")
    return cells
