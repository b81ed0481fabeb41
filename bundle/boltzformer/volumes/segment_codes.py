"""What a prompt means in coded terms: SNOMED CT as DICOM's segmentation objects use it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_SETTING = re.compile(r"\s+(?:in|on)\s+(?:an?\s+|the\s+)?(?:[\w-]+\s+){0,6}(?:ct|mr|mri|cta|mra|scan|image)s?$")
_SIDES = ("left", "right")


@dataclass(frozen=True)
class Code:
    """A coded concept.

    Attributes:
        value: SNOMED CT identifier.
        meaning: in words, as DICOM PS3.16 writes it.
    """

    value: str
    meaning: str


@dataclass(frozen=True)
class SegmentCode:
    """How a segment is coded.

    Attributes:
        category: segmented property category (CID 7150).
        type: segmented property type (CID 7151).
        laterality: modifier of the type (CID 244), or None.
        region: anatomic region of an abnormality, or None.
        known: whether the prompt stands in the table; a generic code is used where it does not.
    """

    category: Code
    type: Code
    laterality: Code | None = None
    region: Code | None = None
    known: bool = True


def find_code(prompt: str) -> SegmentCode:
    """Look a prompt up in the bundle's table `segment_codes.json`.

    Only whole terms count: "lung nodule", "Lung nodule in chest CT" and "left parotid gland" are found, "vessel near
    the liver" is not. A wrong code does more harm than a generic one.

    Args:
        prompt: as it was given to the network.

    Returns:
        the code; a generic one ("Tissue") for a prompt that is in no list.
    """
    term = " ".join(re.sub(r"[\s_]+", " ", prompt.lower()).split()).strip(" .")
    term = _SETTING.sub("", term).removeprefix("the ").removeprefix("a ").removeprefix("an ")
    table = _table()
    side = next((side for side in _SIDES if term.startswith(f"{side} ")), None)
    entry = table["by_name"].get(term if side is None else term.removeprefix(f"{side} "))
    if entry is None or (side is not None and not entry.get("paired")):
        generic = table["generic"]
        return SegmentCode(Code(*generic["category"]), Code(*generic["type"]), known=False)
    return SegmentCode(
        category=Code(*table["categories"][entry["category"]]),
        type=Code(*entry["type"]),
        laterality=Code(*table["laterality"][side]) if side else None,
        region=Code(*entry["region"]) if "region" in entry else None,
    )


def coded_terms() -> list[str]:
    """The first name of each object that has a code."""
    return [entry["names"][0] for entry in _table()["objects"]]


@cache
def _table() -> dict[str, Any]:
    content = json.loads(files(__package__).joinpath("segment_codes.json").read_text(encoding="utf-8"))
    content["by_name"] = {name: entry for entry in content["objects"] for name in entry["names"]}
    return content
