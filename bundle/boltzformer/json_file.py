"""JSON files that users write, read with care; and files for them to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzformer.errors import InputError
from boltzformer.output_files import write_bytes


def read_text(path: str | Path, what: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        what: what it should be, to name in errors, for example "prompt list".

    Returns:
        its text.

    Raises:
        InputError: the file is missing or is no UTF-8 text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file; a key that stands twice in one object is refused, where Python keeps the last.

    Args:
        path: the file.
        what: what it should be, to name in errors.

    Returns:
        its content.

    Raises:
        InputError: the file is missing, is not JSON, repeats a key or is nested too deeply.
    """
    text = read_text(path, what)
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    except RecursionError:
        raise InputError(f"{path}: cannot be read as JSON (nested too deeply).") from None


def write_json(path: str | Path, content: Any) -> Path:
    """Write a JSON file for people to read, whole or not at all; letters of all languages stay as they are.

    Raises:
        InputError: it cannot be written.
    """
    return write_bytes(path, (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode())


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise InputError(f"the key {key!r} stands twice in one object; remove or rename one.")
        content[key] = value
    return content
