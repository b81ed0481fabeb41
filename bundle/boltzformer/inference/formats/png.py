"""PNG: the contact sheet of a volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib

from boltzformer.data.windows import IntensityWindow
from boltzformer.inference.contact_sheet import contact_sheet, write_contact_sheet
from boltzformer.inference.formats.output_format import OutputFormat
from boltzformer.volumes.grids import turn_to_ras
from boltzformer.volumes.segmented import SegmentedVolume
from boltzformer.volumes.write import Grid


def _write(volume: SegmentedVolume, folder: Path) -> list[Path]:
    source = volume.volume
    limits = volume.window
    if limits is None:
        known = source.modality.upper() in ("CT", "MR")
        window = IntensityWindow("auto" if known else "percentiles")
        limits = window.limits(source.modality, source.body_part, source.voxels)
    image, affine = turn_to_ras(source.voxels, source.affine)
    masks = [turn_to_ras(mask, source.affine)[0] for mask in volume.masks]
    prompts = [segment.text for segment in volume.segments]
    spacing = [float(size) for size in nib.affines.voxel_sizes(affine)]
    millilitres = Grid.of_volume(source).millilitres
    figure = contact_sheet(image, masks, spacing, limits, prompts, volume.case, millilitres)
    return [write_contact_sheet(figure, folder / f"{volume.case}.png", volume.files)]


FORMAT = OutputFormat("png", "one picture: for each prompt the slice that shows most of it, with its outline", _write)
