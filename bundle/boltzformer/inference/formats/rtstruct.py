"""RTSTRUCT as an output format."""

from __future__ import annotations

from pathlib import Path

from boltzformer.inference.formats.output_format import OutputFormat, check_source, needed_for_dicom
from boltzformer.output_files import write_file
from boltzformer.volumes.segmented import SegmentedVolume


def _write(volume: SegmentedVolume, folder: Path) -> list[Path]:
    with needed_for_dicom():
        from boltzformer.volumes.rtstruct import make_rtstruct
    made = make_rtstruct(volume)
    path = folder / f"{volume.case}.rtstruct.dcm"
    return [write_file(path, lambda file: made.save_as(file, enforce_file_format=True), volume.files)]


FORMAT = OutputFormat("rtstruct", "one RTSTRUCT, a region for each prompt", _write, check=check_source)
