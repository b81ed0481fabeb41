"""Where the bundle lies: its `configs/`, `docs/` and `models/`."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bundle_folder() -> Path:
    """Find the folder with the bundle's `configs/`, `docs/` and `models/`.

    It is the folder around the package in a checkout, an unzipped bundle and an editable installation, and
    `boltzformer/bundle` inside the package where it was installed as a copy.

    Returns:
        the folder's absolute path.
    """
    around = _PACKAGE.parent
    return around if (around / "configs" / "inference.json").is_file() else _PACKAGE / "bundle"


def found_in_bundle(path: str | os.PathLike[str]) -> Path:
    """Look for a relative path in the bundle, where the working directory does not have it.

    So the configs, whose `bundle_root` is ".", run from any directory and inside programs that leave it at that.

    Args:
        path: of a file or folder.

    Returns:
        the path as it is where it is absolute, is there, or is not in the bundle either; else the bundle's.
    """
    path = Path(path)
    inside = bundle_folder() / path
    return inside if not path.is_absolute() and not path.exists() and inside.exists() else path
