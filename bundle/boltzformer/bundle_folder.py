"""Where the bundle lies: its `configs/`, `docs/` and `models/`."""

from __future__ import annotations

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
