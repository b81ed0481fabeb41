"""What a volume's file is called, and what its results are called after it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from boltzformer.errors import InputError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)


def volume_suffix(name: str) -> str:
    """The ending that tells a volume's format, in lower case; empty for any other file."""
    return next((suffix for suffix in VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")


def case_name(path: str | Path) -> str:
    """Name of a volume's results: the file's or folder's own, without an ending such as `.nii.gz`."""
    path = Path(path)
    name = path.name or path.resolve().name  # "." has no name of its own
    if path.is_dir():
        return name
    suffix = volume_suffix(name)
    return name[: -len(suffix)] if suffix else path.stem


def free_name(stem: str, taken: Container[str]) -> str:
    """A name that is not taken yet: the stem, or with the first number from 2 on behind it that makes it one."""
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name


def is_utf8(name: str) -> bool:
    """Whether a name can be written into text; file systems of old hold names in other encodings."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_names(named: Iterable[tuple[str, str]]) -> None:
    """Check that no two inputs would be written to one file.

    Args:
        named: for each input the name of what is written, and the input.

    Raises:
        InputError: two have one name; both inputs are told.
    """
    seen: dict[str, str] = {}
    for name, source in named:
        # names that differ in case only are one file on some file systems
        key = name.casefold()
        if key in seen:
            raise InputError(f"{seen[key]} and {source} would be written to one file; rename one of them.")
        seen[key] = source
