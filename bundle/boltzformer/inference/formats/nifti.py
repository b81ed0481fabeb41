"""NIfTI as an output format: the label map, and a mask for each prompt."""

from __future__ import annotations

from pathlib import Path

from boltzformer.inference.formats.output_format import OutputFormat
from boltzformer.volumes.segmented import SegmentedVolume
from boltzformer.volumes.write import Grid


def _write(volume: SegmentedVolume, folder: Path) -> list[Path]:
    grid = Grid.of_volume(volume.volume)
    masks = zip(volume.segments, volume.masks, strict=True)
    written = [grid.write(mask, folder / volume.case / f"{segment.name}.nii.gz") for segment, mask in masks]
    if volume.label_map is not None:
        written.append(grid.write(volume.label_map, folder / f"{volume.case}.nii.gz"))
    return written


FORMAT = OutputFormat("nifti", "a label map and a mask for each prompt, on the input's grid", _write)
