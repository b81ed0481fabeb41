"""Which volumes a path means: a file, a folder of files, a dataset, a DICOM series or a folder of series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boltzformer.data.cases import load_cases
from boltzformer.errors import InputError
from boltzformer.volumes.dicom import has_dicom

_SUFFIXES = (".nii", ".nii.gz")


def find_volumes(path: str | Path, modality: str = "", body_part: str = "") -> list[dict[str, Any]]:
    """List the volumes to segment.

    Args:
        path: a NIfTI file; a folder of NIfTI files; a folder in Decathlon layout (its test images, or its validation
            images where it has none); a folder with the slices of one DICOM series; or a folder of such folders.
        modality: "CT" or "MR" of all of them; empty where the dataset or the DICOM files say it.
        body_part: of all of them, for a window by body part; may be empty.

    Returns:
        for each volume `image` (path), `case` (unique name for the results), `modality`, `body_part`.

    Raises:
        InputError: nothing there, or two volumes of one name.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a NIfTI file, a folder of them, or a DICOM folder.")
    if (path / "dataset.json").is_file():
        cases = [_case(item["image"], item["modality"], item["body_part"]) for item in _dataset_items(path)]
    else:
        cases = [_case(file, "", "") for file in _volumes_at(path)]
    _check_names(cases)
    for case in cases:
        case["modality"] = modality or case["modality"]
        case["body_part"] = body_part or case["body_part"]
    return cases


def _dataset_items(folder: Path) -> list[dict[str, Any]]:
    try:
        return load_cases(folder, "test")
    except InputError:  # no test list: the held-out images are what a user can compare with
        return load_cases(folder, "validation")


def _volumes_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    visible = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    files = [entry for entry in visible if entry.is_file() and entry.name.lower().endswith(_SUFFIXES)]
    if files:
        return files
    if has_dicom(path):
        return [path]
    series = [entry for entry in visible if entry.is_dir() and has_dicom(entry)]
    if not series:
        raise InputError(f"{path}: holds no NIfTI file (.nii, .nii.gz) and no DICOM series; name another folder.")
    return series


def _case(file: str | Path, modality: str, body_part: str) -> dict[str, Any]:
    return {"image": str(file), "case": case_name(file), "modality": modality, "body_part": body_part}


def case_name(path: str | Path) -> str:
    """Name of a volume's results: the file's or folder's own, without `.nii.gz`."""
    path = Path(path)
    name = path.name or path.resolve().name  # "." has no name of its own
    if path.is_dir():
        return name
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def _check_names(cases: list[dict[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for case in cases:
        # names that differ in case only are one file on some file systems
        other = seen.setdefault(case["case"].lower(), case["image"])
        if other != case["image"]:
            raise InputError(f"{other} and {case['image']} would be written to one file; rename one of them.")
