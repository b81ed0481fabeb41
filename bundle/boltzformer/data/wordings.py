"""Wording books: from an object's name, modality and body part to the sentences that training asks for it with.

A wording book is not a prompt list (`boltzformer.data.prompts`), which says what to segment now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from boltzformer.data.prompts import check_prompt, check_text
from boltzformer.errors import InputError
from boltzformer.json_file import read_json

# The first is the paper's style ("neoplasm in lung CT") and the one that evaluation uses.
DEFAULT_TEMPLATES = (
    "{object} in {body_part} {modality}",
    "{object} on a {body_part} {modality} scan",
    "{body_part} {modality}, {object}",
    "{object} in {modality}",
    "{object}",
)
MODALITY_WORDS = {"MR": "MRI"}
ANY_OBJECT = "*"
_FIELDS = frozenset({"object", "modality", "body_part"})


class WordingBook:
    """The wordings of each object.

    A wording book is a JSON file: an object from an object's name (upper and lower case do not matter; "*" is every
    object) to one wording or a list of them, each with optional placeholders:

        {"cancer": ["neoplasm in {body_part} {modality}", "lung tumor"], "*": ["segment the {object}"]}

    Args:
        templates: wordings of an object without an entry in the file; each holds `{object}` and may hold
            `{modality}` and `{body_part}`. One that needs a body part or modality that is not known is left
            out.
        file: a wording book, or None.
        file_mode: "extend": the file's wordings come first, then the templates'; "replace": the file's alone.

    Raises:
        InputError: the file is missing or malformed, or a template has an unknown placeholder.
    """

    def __init__(
        self,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        file: str | Path | None = None,
        file_mode: str = "extend",
    ) -> None:
        if file_mode not in {"extend", "replace"}:
            raise InputError(f"file_mode: expected 'extend' or 'replace', found {file_mode!r}.")
        if isinstance(templates, str) or not templates:
            raise InputError("templates: expected a list of at least one wording with {object} in it.")
        self.templates = tuple(_check_template(template, "templates") for template in templates)
        if missing := [template for template in self.templates if "object" not in _fields(template)]:
            raise InputError(f"templates: {missing[0]!r} has no {{object}}, so every object would get the same prompt.")
        self.file_mode = file_mode
        self.entries = read_wording_book(file) if file else {}

    def wordings(self, object_name: str, modality: str = "", body_part: str = "") -> list[str]:
        """List the prompts of an object; training draws one of them, evaluation takes the first.

        Args:
            object_name: as in the dataset's labels, for example "right parotid gland".
            modality: "CT", "MR" (worded as "MRI"), another, or empty.
            body_part: for example "head and neck" or "abdominal", or empty.

        Returns:
            at least one prompt, each once.

        Raises:
            InputError: no wording can be made, because all of them need a modality or body part that is not
                known.
        """
        words = {
            "object": " ".join(object_name.replace("_", " ").split()),
            "modality": MODALITY_WORDS.get(modality.upper(), modality),
            "body_part": body_part,
        }
        own = self.entries.get(object_key(object_name), []) + self.entries.get(ANY_OBJECT, [])
        templates = own if own and self.file_mode == "replace" else [*own, *self.templates]
        usable = [template for template in templates if all(words[field] for field in _fields(template))]
        prompts = [check_prompt(template.format(**words), f"prompt of '{object_name}'") for template in usable]
        if not prompts:
            raise InputError(
                f"object '{object_name}': every wording needs a modality or body part that is not known; "
                "add `modality` and `body_part` to the dataset, or a wording without them."
            )
        return list(dict.fromkeys(prompts))

    def for_case(self, case: Mapping[str, Any], value: int) -> list[str]:
        """List the prompts of a label value in a case: the case's own where the datalist gives some.

        Args:
            case: a case from `load_cases`.
            value: a label value among the case's objects.

        Returns:
            at least one prompt.

        Raises:
            InputError: see `wordings`.
        """
        own = (case.get("prompts") or {}).get(value)
        if own:
            return list(own)
        return self.wordings(case["objects"][value], case.get("modality", ""), case.get("body_part", ""))


def read_wording_book(path: str | Path) -> dict[str, list[str]]:
    """Read a wording book (see `WordingBook`).

    Args:
        path: JSON file.

    Returns:
        object name in lower case to its wordings.

    Raises:
        InputError: the file is missing or malformed.
    """
    content = read_json(path, "wording book")
    if isinstance(content, list) or (isinstance(content, dict) and isinstance(content.get("prompts"), list)):
        raise InputError(
            f"{path}: this is a prompt list (what to segment now), not a wording book; give it to inference as "
            '`prompt_list`, or write an object such as {"lung nodule": ["nodule in {body_part} {modality}"]}.'
        )
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: expected a JSON object such as {{"lung nodule": ["nodule in lung CT"]}}.')
    return check_entries(content, path)


def check_entries(content: Mapping[str, Any], origin: str | Path) -> dict[str, list[str]]:
    """Check the entries of a wording book, wherever they come from.

    Args:
        content: object name to a wording or a list of them.
        origin: where they come from, to name in errors.

    Returns:
        object name in lower case to its wordings.

    Raises:
        InputError: an entry is malformed.
    """
    entries: dict[str, list[str]] = {}
    for name, wordings in content.items():
        source = f"{origin}, '{name}'"
        listed = [wordings] if isinstance(wordings, str) else wordings
        if not isinstance(listed, list) or not listed:
            raise InputError(f"{source}: expected a wording or a list of wordings, found {wordings!r}.")
        if object_key(name) in entries:
            raise InputError(f"{source}: another entry names the same object; join the two.")
        entries[object_key(name)] = [_check_template(wording, source) for wording in listed]
    return entries


def object_key(name: str) -> str:
    """What is equal for two spellings of an object's name: upper and lower case, underscores and spaces."""
    return " ".join(name.replace("_", " ").lower().split())


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(template) if field is not None}


def _check_template(template: Any, source: str) -> str:
    template = check_text(template, source)
    try:
        unknown = _fields(template) - _FIELDS
        plain = not any(spec or conversion for _, _, spec, conversion in Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{source}: {template!r} has unpaired braces ({error}).") from None
    if unknown or not plain:
        allowed = ", ".join(f"{{{field}}}" for field in sorted(_FIELDS))
        raise InputError(f"{source}: {template!r} has an unknown placeholder; use {allowed}.")
    return template
