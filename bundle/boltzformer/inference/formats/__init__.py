"""The files that masks can be written as: one module of this package for each, found by itself.

A module holds `FORMAT`, an `OutputFormat`. A new format is one new module and no edit elsewhere.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

from boltzformer.errors import InputError
from boltzformer.inference.formats.output_format import OutputFormat
from boltzformer.volumes.segmented import SegmentedVolume
from boltzformer.volumes.volume import Volume

__all__ = ["OutputFormat", "check_fits", "format_of", "output_formats", "save_as"]


@cache
def output_formats() -> dict[str, OutputFormat]:
    """Name -> format, in alphabetical order."""
    modules = [import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    found = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {known.name: known for known in sorted(found, key=lambda known: known.name)}


def format_of(name: str) -> OutputFormat:
    """The format of a name.

    Raises:
        InputError: an unknown format.
    """
    if name not in output_formats():
        raise InputError(f"format {name!r} is not known; choose among {', '.join(output_formats())}.")
    return output_formats()[name]


def check_fits(volume: Volume, names: Iterable[str]) -> None:
    """Make sure that a volume's masks can be written in some formats, before it is segmented.

    Args:
        volume: as it was read.
        names: keys of `output_formats()`.

    Raises:
        InputError: an unknown format, or one that does not fit the volume.
    """
    for name in names:
        format_of(name).check(volume)


def save_as(volume: SegmentedVolume, name: str, folder: Path) -> list[Path]:
    """Write a result in one format.

    Args:
        volume: what was segmented.
        name: a key of `output_formats()`.
        folder: where the files go; made if needed.

    Returns:
        the files that were written.

    Raises:
        InputError: an unknown format, one that does not fit the volume, or a file that cannot be written.
    """
    return format_of(name).write(volume, Path(folder))
