"""What a format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from boltzformer.errors import InputError
from boltzformer.volumes.segmented import SegmentedVolume


@dataclass(frozen=True)
class OutputFormat:
    """One way to write masks.

    Attributes:
        name: as a user types it.
        about: what is written, in a few words.
        write: writes a result below a folder and gives the paths; by `boltzformer.output_files.write_file`, which
            writes whole files only and none over an input.
        needs_dicom: whether the volume must come from a DICOM series.
    """

    name: str
    about: str
    write: Callable[[SegmentedVolume, Path], list[Path]]
    needs_dicom: bool = False


@contextmanager
def needed_for_dicom() -> Iterator[None]:
    """Around the import of a writer of DICOM objects, whose library is an extra.

    Raises:
        InputError: highdicom is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"writing DICOM objects needs {error.name}, which is not installed: pip install 'boltzformer[dicom]'."
        ) from error
