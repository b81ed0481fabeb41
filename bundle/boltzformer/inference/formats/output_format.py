"""What a format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from boltzformer.errors import InputError
from boltzformer.volumes.segmented import SegmentedVolume
from boltzformer.volumes.volume import Volume


@dataclass(frozen=True)
class OutputFormat:
    """One way to write masks.

    Attributes:
        name: as a user types it.
        about: what is written, in a few words.
        write: writes a result below a folder and gives the paths; by `boltzformer.output_files.write_file`, which
            writes whole files only and none over an input.
        check: raises an `InputError` where a volume's masks cannot be written so, before it is segmented.
    """

    name: str
    about: str
    write: Callable[[SegmentedVolume, Path], list[Path]]
    check: Callable[[Volume], None] = lambda volume: None


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


def check_source(volume: Volume) -> None:
    """The `check` of a format whose objects refer to a DICOM series.

    Raises:
        InputError: highdicom is not installed, the volume comes from no DICOM series, or a header lacks what such an
            object repeats.
    """
    with needed_for_dicom():
        import highdicom  # noqa: F401

        from boltzformer.volumes.dicom_source import source_headers
    source_headers(volume)
