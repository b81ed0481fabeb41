"""One patient or one image under two names, within and across datasets.

LIDC-IDRI and LUNA16 are the same scans, and collections are built out of each other: a patient who trains one dataset
must not test another.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer.data.cases import SECTIONS, load_cases
from boltzformer.data.prepare.build import MANIFEST
from boltzformer.data.prepare.verify import image_fingerprint
from boltzformer.errors import InputError
from boltzformer.volumes.checks import read_volume

_UID = re.compile(r"\d+(\.\d+){5,}")


@dataclass(frozen=True)
class Entry:
    """One case, and what could give it away as another's."""

    dataset: str
    section: str
    case: str
    patient: str
    fingerprint: str
    uids: frozenset[str]


@dataclass(frozen=True)
class Leak:
    """Two cases that share something; prints as one line."""

    what: str
    first: Entry
    second: Entry

    def __str__(self) -> str:
        places = " and ".join(f"{e.dataset}/{e.case} ({e.section})" for e in (self.first, self.second))
        return f"same {self.what}: {places}"


def find_leaks(folders: Sequence[str | Path]) -> list[Leak]:
    """Compare all cases of datasets.

    Two cases are reported where they have one image (voxels in RAS order, rounded: storage order and file format do not
    matter), one series or study by its DICOM UID (also as the case's name, as LUNA16 names its files), or one patient
    in two datasets or in two lists of one dataset.

    Args:
        folders: datasets with a `dataset.json`, or folders that hold some. Prepared ones are compared by their
            manifest; the images of others are read, which takes a while.

    Returns:
        one leak for each pair and the first thing that it shares (image, then series or study, then patient).

    Raises:
        InputError: no dataset there, or one that cannot be read.
    """
    entries = [entry for folder in _datasets(folders) for entry in _entries(folder)]
    leaks: dict[tuple[Entry, Entry], Leak] = {}
    for what, key in (
        ("image", lambda e: [e.fingerprint]),
        ("series or study", lambda e: list(e.uids)),
        ("patient", lambda e: [e.patient]),
    ):
        groups: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            for value in key(entry):
                groups[value].append(entry)
        for pair in itertools.chain.from_iterable(itertools.combinations(group, 2) for group in groups.values()):
            apart = (pair[0].dataset, pair[0].section) != (pair[1].dataset, pair[1].section)
            if what == "image" or apart:
                leaks.setdefault(pair, Leak(what, *pair))
    return list(leaks.values())


def _datasets(folders: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for folder in map(Path, folders):
        below = (
            [folder] if (folder / "dataset.json").is_file() else sorted(f.parent for f in folder.glob("*/dataset.json"))
        )
        if not below:
            raise InputError(f"{folder}: holds no dataset (a folder with dataset.json).")
        found += [one for one in below if not one.name.startswith(".")]
    return found


def _entries(folder: Path) -> list[Entry]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return _entries_of_images(folder)
    try:
        cases = json.loads(manifest.read_text(encoding="utf-8"))["cases"]
        return [_entry(folder, name, record) for name, record in cases.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: cannot be read as a manifest ({error}); prepare the dataset again.") from error


def _entry(folder: Path, name: str, record: dict[str, Any]) -> Entry:
    uids = {record["origin"].get(key, "") for key in ("series_uid", "study_uid")} | set(_named_uid(name))
    return Entry(folder.name, record["section"], name, record["patient"], record["fingerprint"], frozenset(uids - {""}))


def _entries_of_images(folder: Path) -> list[Entry]:
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    entries = []
    for section in SECTIONS:
        if not content.get(section):
            continue
        for case in load_cases(folder, section, validation_share=0):
            array, header = read_volume(case["image"])
            name = Path(case["image"]).name.removesuffix(".gz").removesuffix(".nii")
            print_ = image_fingerprint(array, header.affine)
            entries.append(Entry(folder.name, section, name, case["patient"], print_, frozenset(_named_uid(name))))
    return entries


def _named_uid(name: str) -> list[str]:
    return [name] if _UID.fullmatch(name) else []
