"""Which volumes a path means: a file, a folder of files, a dataset, a DICOM series or a folder of series."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.misc import is_dicom

from boltzformer.data.cases import list_images
from boltzformer.errors import InputError
from boltzformer.volumes.dicom import survey_tree
from boltzformer.volumes.dicom_headers import DICOM_ENDINGS, FolderContents
from boltzformer.volumes.modality import normal_modality
from boltzformer.volumes.names import case_name, check_names, volume_suffix
from boltzformer.volumes.spacing import SPACING_KNOWN


@dataclass
class FoundVolumes:
    """What a path holds.

    Attributes:
        cases: see `find_volumes`.
        skipped: why each file that looks like a volume is none of them, by file.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def find_volumes(path: str | Path, modality: str = "", body_part: str = "", section: str = "") -> list[dict[str, Any]]:
    """List the volumes to segment.

    Args:
        path: a NIfTI, NRRD or MetaImage file; a folder of such files; a folder in Decathlon layout or a datalist JSON
            (its test images, or its validation images where it lists no test images); or a folder with DICOM files,
            itself or in folders below it, which are grouped by series.
        modality: "CT", "MR" or another of all of them; empty where the dataset or the DICOM files say it.
        body_part: of all of them, for a window by body part; may be empty.
        section: of a dataset, in place of the above.

    Returns:
        for each volume `image` (path), `case` (unique name for the results), `modality`, `body_part`, for DICOM
        `series_uid`, and where a dataset says so `window` and `spacing_known` (see `load_cases`). A file that was asked
        for and cannot be used is among them: it fails when it is read.

    Raises:
        InputError: nothing there, or two volumes of one name.
    """
    return survey_volumes(path, modality, body_part, section).cases


def survey_volumes(path: str | Path, modality: str = "", body_part: str = "", section: str = "") -> FoundVolumes:
    """As `find_volumes`, with the files that were left out."""
    path = Path(path).expanduser()
    wanted = normal_modality(modality)
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file or folder; give a NIfTI file, a folder of them, or a DICOM folder.")
    if (path / "dataset.json").is_file() or path.suffix.lower() == ".json":
        items = list_images(path, section)
        found = FoundVolumes([_listed_case(item) for item in items])
    else:
        found = _volumes_at(path)
    check_names((case["case"], case["image"]) for case in found.cases)
    for case in found.cases:
        case["modality"] = wanted or case["modality"]
        case["body_part"] = body_part or case["body_part"]
    return found


def _volumes_at(path: Path) -> FoundVolumes:
    if not path.is_dir():
        return FoundVolumes([_case(path)])
    # also links to what is not there: they fail when they are read, and are named then
    entries = [entry for entry in sorted(path.iterdir()) if volume_suffix(entry.name) and not entry.is_dir()]
    files = [entry for entry in entries if not entry.name.startswith(".")]
    hidden = {str(entry): "is hidden (its name begins with a dot)" for entry in entries if entry not in files}
    if files:
        return FoundVolumes([_case(file) for file in files], hidden | _passed_over(path))
    contents = survey_tree(path)
    cases = _series_cases(contents, path)
    left = hidden | {str(file): reason for file, reason in contents.others.items()}
    if not cases:
        first = next((f" Left out: {len(left)}, first {file}: {reason}." for file, reason in left.items()), "")
        raise InputError(
            f"{path}: holds no NIfTI file (.nii, .nii.gz) and no DICOM series; name another folder.{first}"
        )
    return FoundVolumes(cases, left)


def _passed_over(path: Path) -> dict[str, str]:
    """Folders and DICOM files beside volume files: they may be results, or what the files were made from."""
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    left = {}
    for entry in entries:
        if entry.is_dir() and _has_volume(entry):
            left[str(entry)] = "is a folder beside volume files, which alone are taken; name it to segment those in it"
        elif not entry.is_dir() and _is_dicom(entry):
            left[str(entry)] = "is a DICOM file beside volume files, which alone are taken; give each a folder"
    return left


def _has_volume(folder: Path) -> bool:
    """Whether a volume's file or a DICOM file lies anywhere in a folder; ends at the first."""
    return any(
        volume_suffix(name) or _is_dicom(Path(place, name)) for place, _, names in os.walk(folder) for name in names
    )


def _is_dicom(file: Path) -> bool:
    """By the first bytes, and only where the name can be a DICOM file's: without an ending, of digits, or its own."""
    ending = file.suffix.lower()
    if ending[1:].isdigit() or ending in ("", *DICOM_ENDINGS):
        with suppress(OSError):
            return file.is_file() and is_dicom(file)
    return False


def _series_cases(contents: FolderContents, root: Path) -> list[dict[str, Any]]:
    """One case for each series, and one for each folder whose every slice is damaged."""
    groups: dict[str, list[Path]] = {}
    for file, header in contents.images.items():
        groups.setdefault(str(header.get("SeriesInstanceUID", "") or ""), []).append(file)
    whole = {file.parent for files in groups.values() for file in files}
    lost = sorted({file.parent for file in contents.damaged} - whole)
    places = [(Path(os.path.commonpath([file.parent for file in files])), uid) for uid, files in groups.items()]
    places += [(folder, "") for folder in lost]
    cases = []
    for (place, uid), name in zip(places, _series_names([place for place, _ in places], root), strict=True):
        cases.append({**_case(place), "case": name, "series_uid": uid})
    return sorted(cases, key=lambda case: str(case["case"]))


def _series_names(places: list[Path], root: Path) -> list[str]:
    """The folder's name; with the folders above it where several have one name; numbered where one holds several."""
    distinct = [case_name(place).casefold() for place in set(places)]
    names = [
        case_name(place)
        if distinct.count(case_name(place).casefold()) == 1
        else "_".join([case_name(root), *place.relative_to(root).parts])
        for place in places
    ]
    counts: dict[str, int] = {}
    numbered = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        numbered.append(f"{name}_{counts[name]}" if names.count(name) > 1 else name)
    return numbered


def _case(file: str | Path, modality: str = "", body_part: str = "") -> dict[str, Any]:
    return {"image": str(file), "case": case_name(file), "modality": modality, "body_part": body_part}


def _listed_case(item: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {key: item[key] for key in ("window", SPACING_KNOWN) if key in item}
    return {**_case(item["image"], item["modality"], item["body_part"]), **own}
