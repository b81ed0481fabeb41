"""PNG overlays: for each prompt the slice that shows most of it, with its outline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from boltzformer.data.windows import IntensityWindow
from boltzformer.inference.formats.output_format import OutputFormat
from boltzformer.output_files import write_file
from boltzformer.volumes.segmented import SegmentedVolume, color_of

SIZE_INCHES = 6.0
DPI = 110
TITLE_LENGTH = 80


def _write(volume: SegmentedVolume, folder: Path) -> list[Path]:
    source = volume.volume
    known = source.modality.upper() in ("CT", "MR")
    window = IntensityWindow("auto" if known else "percentiles")
    limits = window.limits(source.modality, source.body_part, source.voxels)
    turn = nib.orientations.io_orientation(source.affine)  # axes to right, anterior, superior
    image = nib.orientations.apply_orientation(source.voxels, turn)
    spacing = tuple(source.spacing[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    return [
        write_file(
            folder / volume.case / f"{segment.name}.png",
            partial(
                _draw,
                image=image,
                mask=nib.orientations.apply_orientation(volume.masks[index], turn),
                limits=limits,
                spacing=spacing,
                title=segment.text,
                color=color_of(index),
            ),
            volume.files,
        )
        for index, segment in enumerate(volume.segments)
    ]


def _draw(
    file: BinaryIO,
    image: np.ndarray,
    mask: np.ndarray,
    limits: tuple[float, float],
    spacing: tuple[float, ...],
    title: str,
    color: tuple[int, int, int],
) -> None:
    areas = mask.sum(axis=(0, 1), dtype=np.int64)
    found = bool(areas.any())
    index = int(areas.argmax()) if found else image.shape[2] // 2
    # as radiologists look: the patient's right on the left, anterior up
    plane, outline = image[::-1, :, index].T, mask[::-1, :, index].T
    extent = (0.0, image.shape[0] * spacing[0], 0.0, image.shape[1] * spacing[1])
    figure = Figure(figsize=(SIZE_INCHES, SIZE_INCHES), layout="constrained", facecolor="black")
    axes = figure.subplots()
    axes.imshow(
        plane,
        cmap="gray",
        vmin=limits[0],
        vmax=max(limits[1], limits[0] + 1e-6),
        origin="lower",
        extent=extent,
        interpolation="nearest",
    )
    if found:
        # each pixel four times, so that the outline runs along its border; zeros around close it
        fine = np.pad(np.kron(outline, np.ones((4, 4), np.uint8)), 1)
        x = (np.arange(fine.shape[1]) - 0.5) * spacing[0] / 4
        y = (np.arange(fine.shape[0]) - 0.5) * spacing[1] / 4
        axes.contour(x, y, fine, levels=[0.5], colors=[tuple(part / 255 for part in color)], linewidths=1.2)
    short = title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"
    told = f"slice {index + 1} of {image.shape[2]}" if found else "not found"
    # a prompt is text: `$` starts no formula
    axes.set_title(f"{short}\n{told}", color="white", fontsize=9, parse_math=False)
    for x_place, side in ((0.02, "R"), (0.95, "L")):
        axes.text(x_place, 0.5, side, color="white", transform=axes.transAxes, fontsize=9)
    axes.set_axis_off()
    figure.savefig(file, format="png", dpi=DPI)


FORMAT = OutputFormat("png", "a picture for each prompt: the slice that shows most of it, with its outline", _write)
