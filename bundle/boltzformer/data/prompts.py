"""From an object's name, modality and body part to the sentences that ask for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from boltzformer.errors import InputError

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
MAX_PROMPT_LENGTH = 1000
_FIELDS = frozenset({"object", "modality", "body_part"})


def check_prompt(text: Any, source: str = "prompt") -> str:
    """Check one prompt and tidy its white space.

    Args:
        text: what a user gave as a prompt.
        source: where it came from, to name in the error.

    Returns:
        the prompt with single spaces and none at its ends.

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


class PromptBook:
    """The wordings of each object.

    A prompt file is a JSON object from an object's name (upper and lower case do not matter; "*" is every
    object) to one wording or a list of them, each with optional placeholders:

        {"cancer": ["neoplasm in {body_part} {modality}", "lung tumor"], "*": ["segment the {object}"]}

    Args:
        templates: wordings of an object without an entry in the file; each holds `{object}` and may hold
            `{modality}` and `{body_part}`. One that needs a body part or modality that is not known is left
            out.
        file: a prompt file, or None.
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
        self.entries = read_prompt_book(file) if file else {}

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
        own = self.entries.get(_key(object_name), []) + self.entries.get(ANY_OBJECT, [])
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


def read_prompt_book(path: str | Path) -> dict[str, list[str]]:
    """Read a prompt file (see `PromptBook`).

    Args:
        path: JSON file.

    Returns:
        object name in lower case to its wordings.

    Raises:
        InputError: the file is missing or malformed.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt file.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: expected a JSON object such as {{"lung nodule": ["nodule in lung CT"]}}.')
    entries: dict[str, list[str]] = {}
    for name, wordings in content.items():
        source = f"{path}, '{name}'"
        listed = [wordings] if isinstance(wordings, str) else wordings
        if not isinstance(listed, list) or not listed:
            raise InputError(f"{source}: expected a wording or a list of wordings, found {wordings!r}.")
        entries[_key(name)] = [_check_template(check_prompt(wording, source), source) for wording in listed]
    return entries


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(template) if field is not None}


def _check_template(template: str, source: str) -> str:
    check_prompt(template, source)
    try:
        unknown = _fields(template) - _FIELDS
    except ValueError as error:
        raise InputError(f"{source}: {template!r} has unpaired braces ({error}).") from None
    if unknown:
        allowed = ", ".join(f"{{{field}}}" for field in sorted(_FIELDS))
        raise InputError(f"{source}: {template!r} has an unknown placeholder; use {allowed}.")
    return template
