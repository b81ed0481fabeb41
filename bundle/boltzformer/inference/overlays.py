"""The contact sheet of each volume, written by inference without being asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Events
from monai.engines import Workflow

from boltzformer.data.prompts import Prompt
from boltzformer.data.windows import IntensityWindow, limits_of
from boltzformer.inference.contact_sheet import contact_sheet, write_contact_sheet
from boltzformer.inference.masks import MASKS_KEY
from boltzformer.volumes.grids import is_same_grid, turn_to_ras
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.spacing import has_spacing
from boltzformer.volumes.write import Grid


class SaveOverlays:
    """Ignite handler: writes `<output_dir>/<case>.png`, see `boltzformer.inference.contact_sheet`.

    Args:
        output_dir: where to write; made if needed.
        prompts: what was segmented, in the order of the channels.

    Raises:
        InputError: on a call, if the file is an input or not ours, or cannot be written.
    """

    def __init__(self, output_dir: str | os.PathLike[str], prompts: Sequence[Prompt]) -> None:
        self.output_dir = Path(output_dir)
        self.prompts = list(prompts)

    def attach(self, engine: Workflow) -> None:
        """Save after each volume of `engine`, a MONAI evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Draw the volume that was just segmented."""
        for source, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.save(source, output)

    def planned_files(self, case: str) -> list[Path]:
        """Every file that is written for a volume."""
        return [self.output_dir / f"{case}.png"]

    def save(self, source: Mapping[Any, Any], output: Mapping[Any, Any]) -> None:
        """Draw one volume.

        Args:
            source: with `image` (1, X, Y, Z) as it was preprocessed, `case` and perhaps `series_uid`.
            output: with `masks` (P, X, Y, Z) on the volume's own grid.
        """
        path, uid = str(source["image"].meta["filename_or_obj"]), str(source.get("series_uid", ""))
        masks, affine = output[MASKS_KEY], np.asarray(output[MASKS_KEY].affine, dtype=np.float64)
        pairs = [turn_to_ras(mask.cpu().numpy(), affine) for mask in masks.as_tensor()]
        turned, grid = [mask for mask, _ in pairs], pairs[0][1]
        image, image_grid = turn_to_ras(
            source["image"].as_tensor()[0].cpu().numpy(), np.asarray(source["image"].affine, dtype=np.float64)
        )
        limits = limits_of(source["image"]) or (0.0, 1.0)
        if image.shape != turned[0].shape or not is_same_grid(image.shape, image_grid, grid):
            # a preprocessing of one's own that resamples: the slices of the file itself
            image = turn_to_ras(open_volume(path, uneven_spacing="warn", series_uid=uid).voxels, affine)[0]
            limits = limits_of(source["image"]) or IntensityWindow("percentiles").limits(volume=image)
        spacing = [float(size) for size in nib.affines.voxel_sizes(grid)]
        case = str(source["case"])
        own = replace(Grid.of_path(path, uid), spacing_known=has_spacing(source["image"].meta))
        texts = [prompt.text for prompt in self.prompts]
        figure = contact_sheet(image, turned, spacing, limits, texts, case, own.millilitres)
        write_contact_sheet(figure, self.planned_files(case)[0], own.files)
