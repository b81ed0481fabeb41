"""What a volume's file is called, and what its results are called after it."""

from __future__ import annotations

from pathlib import Path

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
