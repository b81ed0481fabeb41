"""What may be asked of each case: wordings of its objects, and sentences that are foreign to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer.data.prompts import Prompt
from boltzformer.data.wordings import WordingBook, object_key
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.volumes.names import case_name as name_of_file

NO_VALUE = -1
"""In place of a label value: what is foreign has none."""


class CasePrompts:
    """The sentences of a list of cases.

    Args:
        cases: complete ones, see `complete_case`.
        book: the wording book.
        foreign: sentences for what is in none of the images: a list, or a JSON file with one. Another dataset's objects
            are foreign to a case too, but for those that its own dataset names, in whatever words, or that another
            dataset labels in the same images. None where nothing foreign is asked for.

    Raises:
        InputError: two objects of a case share a wording; no list of sentences; nothing is foreign.
    """

    def __init__(
        self, cases: Sequence[Mapping[str, Any]], book: WordingBook, foreign: Sequence[str] | str | Path | None = None
    ) -> None:
        self._datasets = [case["dataset"] for case in cases]
        self._wordings = [_wordings(case, book) for case in cases]
        self._foreign = {} if foreign is None else _foreign(cases, self._wordings, foreign)

    def first(self, number: int, value: int) -> str:
        """The first wording of an object: a case's number and a label value."""
        return self._wordings[number][value][0]

    def draw(self, number: int, values: Sequence[int], rng: np.random.Generator) -> list[str]:
        """A wording for each label value of a case, another one where a value comes again; `NO_VALUE` is foreign."""
        texts: list[str] = []
        for place, value in enumerate(values):
            if value == NO_VALUE:
                texts.append(self.draw_foreign(number, rng))
                continue
            wordings = self._wordings[number][value]
            unused = [wording for wording in wordings if wording not in texts[:place]] or wordings
            texts.append(unused[int(rng.integers(len(unused)))])
        return texts

    def draw_foreign(self, number: int, rng: np.random.Generator) -> str:
        """A sentence for something that is not in a case."""
        foreign = self._foreign[self._datasets[number]]
        return foreign[int(rng.integers(len(foreign)))]


def complete_case(case: Mapping[str, Any], unnamed: Sequence[Prompt], modality: str) -> dict[str, Any]:
    """A case with every entry that examples need.

    Args:
        case: from `boltzformer.data.cases.load_cases`.
        unnamed: what the label values are where the case names no `objects`.
        modality: where the case says none.

    Raises:
        InputError: the case names no objects, and neither does `unnamed`.
    """
    if not case.get("objects") and unnamed:
        numbered = list(enumerate(unnamed, start=1))
        case = {
            **case,
            "objects": {value: prompt.name.replace("_", " ") for value, prompt in numbered},
            "prompts": {value: [prompt.text] for value, prompt in numbered},
        }
    if not case.get("objects"):
        raise InputError(
            f"{case.get('image', case)}: the case names no `objects`; read the datalist with `load_cases`, or add a "
            "map from label values to names."
        )
    defaults = {"dataset": "", "patient": case_name(case), "body_part": ""}
    objects = {int(value): name for value, name in case["objects"].items()}
    return {**defaults, **case, "objects": objects, "modality": case.get("modality") or modality}


def case_name(case: Mapping[str, Any]) -> str:
    """Give the image's file name without its ending, as items and result files name a case."""
    return name_of_file(case["image"])


def _wordings(case: Mapping[str, Any], book: WordingBook) -> dict[int, list[str]]:
    listed = {value: book.for_case(case, value) for value in case["objects"]}
    owner: dict[str, int] = {}
    for value, wordings in listed.items():
        for wording in wordings:
            if owner.setdefault(wording.lower(), value) != value:
                names = f"'{case['objects'][owner[wording.lower()]]}' and '{case['objects'][value]}'"
                raise InputError(f"{case['image']}: the prompt '{wording}' stands for both {names}; reword one.")
    return listed


def _foreign(
    cases: Sequence[Mapping[str, Any]],
    wordings: Sequence[Mapping[int, list[str]]],
    prompts: Sequence[str] | str | Path,
) -> dict[str, list[str]]:
    """For each dataset what is foreign to it: the given sentences, and the wordings of other datasets' objects."""
    listed = read_json(prompts, "list of foreign prompts") if isinstance(prompts, str | Path) else list(prompts)
    if not isinstance(listed, list) or not all(isinstance(text, str) and text.strip() for text in listed):
        raise InputError(f"foreign_prompts: expected a list of sentences, found {prompts!r}.")
    texts: dict[str, set[str]] = {}  # of each object; its body part, and so its wordings, differ between datasets
    in_image: dict[str, set[str]] = {}
    images: dict[str, set[str]] = {}
    for case, of_case in zip(cases, wordings, strict=True):
        image = os.path.realpath(case["image"])
        images.setdefault(case["dataset"], set()).add(image)
        for value, own in of_case.items():
            name = object_key(case["objects"][value])
            texts.setdefault(name, set()).update(own)
            in_image.setdefault(image, set()).add(name)
    found = {}
    for dataset, some in images.items():
        there = set().union(*(in_image[image] for image in some))
        named = {text.casefold() for name in there for text in texts[name]}
        known = {text for name, all_of_it in texts.items() if name not in there for text in all_of_it}
        found[dataset] = sorted(text for text in known.union(listed) if text.casefold() not in named)
    if not all(found.values()):
        raise InputError("foreign_share is above 0, but nothing is foreign: give foreign_prompts, or a second dataset.")
    return found
