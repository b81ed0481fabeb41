"""The bundle's configs as the commands read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from boltzformer.errors import InputError


def file_list(files: Iterable[str | Path]) -> str:
    """Config files as `--config_file` of MONAI's command line takes several."""
    return "[" + ",".join(f"'{file}'" for file in files) + "]"


def read_bundle(bundle: Path, overlays: list[str], overrides: dict[str, Any], config: str = "evaluate") -> ConfigParser:
    """A config of a bundle, with overlays (relative to the bundle) and values on top."""
    parser = ConfigParser()
    files = [bundle / "configs" / f"{config}.json", *(bundle / overlay for overlay in overlays)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{missing[0]} not found; overlays are named relative to {bundle}.")
    parser.read_config([str(file) for file in files])
    parser.update({"bundle_root": str(bundle), **overrides})
    return parser
