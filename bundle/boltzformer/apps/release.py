"""Which release of the bundle this is, and which weights lie in it."""

from __future__ import annotations

import json
from pathlib import Path

from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.manifest import sha256_of

NAME = "BoltzFormer"


def bundle_version() -> str:
    """The version that `configs/metadata.json` states."""
    return str(json.loads((bundle_folder() / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"])


def shipped_weights() -> Path:
    """Where the bundle's weights lie, or would."""
    return bundle_folder() / "models" / "model.pt"


def weights_checksum(path: Path) -> str:
    """SHA-256 of a weights file, 64 hexadecimal digits.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(
            f"no weights at {path}: put the shipped model.pt there, name another file with --weights, or train a "
            "network first (boltzformer train)."
        )
    return sha256_of(path)
