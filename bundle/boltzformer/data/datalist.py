"""One entry of a dataset.json or datalist, read with care: names, values, prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer.data.prompts import check_prompt
from boltzformer.errors import InputError
from boltzformer.volumes.modality import normal_modality
from boltzformer.volumes.spacing import SPACING_KNOWN

# Words in a dataset's name or description that tell the body part, as prompts word it. The first match wins.
_BODY_PARTS = (
    ("head and neck", "head and neck"),
    ("head-and-neck", "head and neck"),
    ("abdom", "abdominal"),
    ("pelvi", "pelvic"),
    ("lung", "lung"),
    ("thora", "chest"),
    ("chest", "chest"),
    ("pancrea", "pancreas"),
    ("hepatic", "liver"),
    ("liver", "liver"),
    ("colon", "colon"),
    ("kidney", "kidney"),
    ("spleen", "abdominal"),
    ("prostate", "prostate"),
    ("heart", "cardiac"),
    ("cardiac", "cardiac"),
    ("brain", "brain"),
    ("hippocamp", "brain"),
    ("spine", "spine"),
    ("vertebra", "spine"),
    ("knee", "knee"),
)

UNKNOWN = "unknown"
Case = dict[str, Any]
_LONGEST_NAME = 255


def read_item(
    item: Any, content: Mapping[str, Any], path: Path, where: str, needs_label: bool, pattern: str | None
) -> Case:
    """Read one item of a datalist.

    Args:
        item: the entry: an object, or an image's file name alone (as Decathlon lists its test images).
        content: the whole JSON, for what the item itself lacks.
        path: the JSON file; relative file names start at its folder.
        where: what to name in errors.
        needs_label: whether an item without a label is an error.
        pattern: regular expression that finds the patient in the image's file name, or None.

    Returns:
        the case; its keys are listed in `boltzformer.data.cases.load_cases`.

    Raises:
        InputError: a key is missing or of the wrong kind.
    """
    item = {"image": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: expected an object with `image` and `label`, found {item!r}.")
    case: Case = {}
    for key in ("image", "label"):
        name = item.get(key)
        name = name[0] if isinstance(name, list) and len(name) == 1 else name
        if name is None and key == "label" and not needs_label:
            continue
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: `{key}` must be one file name, found {name!r}.")
        if not _is_file_name(name):
            raise InputError(f"{where}: `{key}` is no file name: {name[:40]!r} ({len(name)} characters).")
        file = path.parent / name
        # a link keeps its name: stores of large files (git-annex, DVC) link to one that says nothing
        case[key] = str(file.parent.resolve() / file.name)
    dataset = content.get("name") or (path.parent.name if path.name == "dataset.json" else path.stem)
    case["patient"] = _patient(item, case["image"], pattern, where)
    case["dataset"] = str(dataset)
    case["modality"] = normal_modality(_modality(item, content), where)
    part = item.get("body_part", content.get("body_part"))
    case["body_part"] = str(part) if part is not None else _guess_body_part(str(dataset), content)
    prompts = item.get("prompts", content.get("prompts"))
    named = any("objects" in entry or "labels" in entry for entry in (item, content))
    case["objects"] = _objects(item, content, where) if needs_label or named or prompts else {}
    if prompts:
        case["prompts"] = _prompts(prompts, case["objects"], where)
    annotated = item.get("annotated", content.get("annotated"))
    if annotated is not None:
        case["annotated"] = _annotated(annotated, case["objects"], where)
    if window := item.get("window", content.get("window")):
        case["window"] = window
    spacing = item.get("spacing", content.get("spacing"))
    if spacing not in (None, UNKNOWN):
        raise InputError(f'{where}: `spacing` may only be "unknown", found {spacing!r}; the files say what it is.')
    if spacing == UNKNOWN:
        case[SPACING_KNOWN] = False
    return case


def _is_file_name(name: str) -> bool:
    """Whether the system could hold a file of this name: it raises errors of its own where not."""
    try:
        parts = [os.fsencode(part) for part in Path(name).parts]
    except UnicodeEncodeError:
        return False
    return all(len(part) <= _LONGEST_NAME and b"\0" not in part for part in parts)


def _guess_body_part(dataset: str, content: Mapping[str, Any]) -> str:
    return body_part_of(dataset) or body_part_of(str(content.get("description", "")))


def _patient(item: Mapping[str, Any], image: str, pattern: str | None, where: str) -> str:
    if item.get("patient") not in (None, ""):
        return str(item["patient"])
    name = Path(image).name
    if pattern is None:
        return patient_of_name(image)
    match = re.search(pattern, name)
    if match is None:
        raise InputError(f"{where}: patient_pattern {pattern!r} does not match '{name}'.")
    return match.group(1) if match.groups() else match.group(0)


def patient_of_name(image: str) -> str:
    """Who stands in for the patient where nothing says it: the image's file name without its ending."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(image).name)


def _modality(item: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
    modality = item.get("modality", content.get("modality", content.get("channel_names", "")))
    if isinstance(modality, Mapping):
        modality = next(iter(modality.values()), "")
    return modality


def _objects(item: Mapping[str, Any], content: Mapping[str, Any], where: str) -> dict[int, str]:
    """Label values and names; both {"1": "liver"} and {"liver": 1} are in use."""
    labels = item.get("objects", item.get("labels", content.get("objects", content.get("labels"))))
    if labels is None and isinstance(item.get("prompts"), (str, list)) and item["prompts"]:
        prompts = item["prompts"]
        labels = {"1": prompts if isinstance(prompts, str) else prompts[0]}
    if not isinstance(labels, Mapping) or not labels:
        raise InputError(f'{where}: names no labels; add `labels`, for example {{"1": "lung nodule"}}.')
    objects: dict[int, str] = {}
    for key, entry in labels.items():
        value, name = (entry, key) if isinstance(entry, int) and not isinstance(entry, bool) else (key, entry)
        if not re.fullmatch(r"\d+", str(value).strip()) or not isinstance(name, str):
            raise InputError(f"{where}: `labels` maps {key!r} to {entry!r}; expected a label value and a name.")
        if int(value):
            objects[int(value)] = " ".join(check_prompt(name, where).replace("_", " ").split())
    if len({name.lower() for name in objects.values()}) < len(objects):
        raise InputError(f"{where}: two labels have the same name, so no prompt can tell them apart; rename one.")
    if not objects:
        raise InputError(f"{where}: `labels` names nothing but background (0).")
    return objects


def _value_of(key: Any, objects: Mapping[int, str], where: str) -> int:
    """Find a label value from the value itself or its object's name."""
    by_name = {name.lower(): value for value, name in objects.items()}
    text = " ".join(str(key).replace("_", " ").lower().split())
    if text.isdigit() and int(text) in objects:
        return int(text)
    if text in by_name:
        return by_name[text]
    raise InputError(f"{where}: {key!r} is no label; known are {', '.join(objects.values())}.")


def _prompts(prompts: Any, objects: Mapping[int, str], where: str) -> dict[int, list[str]]:
    if isinstance(prompts, (str, list)):
        if len(objects) != 1:
            raise InputError(
                f"{where}: `prompts` is a list but there are {len(objects)} labels; give an object from "
                "label to prompts."
            )
        prompts = {next(iter(objects)): prompts}
    if not isinstance(prompts, Mapping):
        raise InputError(f"{where}: `prompts` must be text, a list, or an object from label to prompts.")
    listed: dict[int, list[str]] = {}
    for key, wordings in prompts.items():
        if not isinstance(wordings, (str, list)):
            raise InputError(f"{where}: the prompts of {key!r} must be text or a list of texts, found {wordings!r}.")
        wordings = [wordings] if isinstance(wordings, str) else wordings
        listed[_value_of(key, objects, where)] = [check_prompt(wording, where) for wording in wordings]
    return listed


def _annotated(annotated: Any, objects: Mapping[int, str], where: str) -> list[int]:
    if annotated == "all":
        return sorted(objects)
    if not isinstance(annotated, list):
        raise InputError(f'{where}: `annotated` must be "all" or a list of labels, found {annotated!r}.')
    return sorted({_value_of(key, objects, where) for key in annotated})


def body_part_of(name: str) -> str:
    """Guess the body part from a dataset's name or description ("Task06_Lung" is "lung"); empty if unknown."""
    lowered = name.lower().replace("_", " ")
    return next((part for word, part in _BODY_PARTS if word in lowered), "")
