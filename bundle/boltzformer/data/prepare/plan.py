"""What a preparation is going to write: its objects, its cases, and how each case comes out of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltzformer.data.wordings import DEFAULT_TEMPLATES, WordingBook

Writer = Callable[[Path, Path], dict[str, Any]]
"""Writes the image and the label map of a case to two `.nii.gz` paths; returns what is known of its origin."""


@dataclass(frozen=True)
class Structure:
    """One object of a dataset.

    Attributes:
        name: its name in `labels`.
        synonyms: other names in use; each becomes wordings.
        body_part: for the wordings, where the dataset's own does not fit ("pancreas in abdominal CT").
    """

    name: str
    synonyms: tuple[str, ...] = ()
    body_part: str = ""

    def wordings(self, body_part: str, modality: str) -> list[str]:
        """The sentences that ask for it: the name in every template, each synonym in the first and the last two.

        Args:
            body_part: of the dataset.
            modality: "CT" or "MR".

        Returns:
            each wording once; the first is what evaluation uses ("neoplasm in lung CT").
        """
        part = self.body_part or body_part
        found = WordingBook().wordings(self.name, modality, part)
        short = WordingBook((DEFAULT_TEMPLATES[0], *DEFAULT_TEMPLATES[-2:]))
        for synonym in self.synonyms:
            found.extend(short.wordings(synonym, modality, part))
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class PlannedCase:
    """One volume to come.

    Attributes:
        name: file name without extension.
        patient: whose it is; a patient is never split.
        write: see `Writer`.
        num_bytes: disk it is going to take, at most.
        section: "test" where the archive itself sets it apart; empty: the split decides.
    """

    name: str
    patient: str
    write: Writer
    num_bytes: int
    section: str = ""


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset to come.

    Attributes:
        name: folder's and dataset's name.
        description, reference, licence: for `dataset.json`.
        modality: "CT" or "MR".
        body_part: as prompts word it.
        structures: label value to object.
        cases: in order.
        parameters: what else decides the result; a draft that was begun with others is not continued.
        notes: lines for the reader of `dataset.json` (what was left out, and by which rule).
    """

    name: str
    description: str
    reference: str
    licence: str
    modality: str
    body_part: str
    structures: Mapping[int, Structure]
    cases: Sequence[PlannedCase]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
