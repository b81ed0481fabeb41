"""What the Python API gives back for one volume."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzformer.data.prompts import Prompt
from boltzformer.data.windows import limits_of
from boltzformer.errors import InputError
from boltzformer.inference.existence import EXISTENCE_AXIS_KEY, EXISTENCE_KEY
from boltzformer.inference.kinds import like_source
from boltzformer.inference.masks import LOGITS_KEY, MASKS_KEY, SaveMasks
from boltzformer.output_files import check_folder, check_target
from boltzformer.volumes.grids import stored_axis
from boltzformer.volumes.volume import Volume
from boltzformer.volumes.write import Grid, is_ours


@dataclass(frozen=True)
class Segmentation:
    """What was found in one volume, on the volume's own grid.

    Attributes:
        prompts: what was asked for, in order.
        item: the postprocessed item: `masks` (P, X, Y, Z) uint8, `pred`, the label map (1, X, Y, Z) uint8, and
            `logits` (P, X, Y, Z) float16 where the segmenter keeps them.
        case: name for files.
        source: the volume as it was read, with its DICOM series where it came from one.
        given: what was given to segment; the masks come back as the same kind of image.
        nearest_known: prompt's name -> the nearest `term` that the network was trained on, its nearest `wording`, the
            `distance`, and whether that is `far`; None where the checkpoint does not say.
        computation: how the masks were computed, see `boltzformer.inference.precision`.
        made_with: the weights' file and checksum, the seed, the window and more, for the notes beside the masks.
    """

    prompts: list[Prompt]
    item: Mapping[str, Any]
    case: str
    source: Volume
    given: Any = None
    nearest_known: Mapping[str, Mapping[str, Any]] | None = None
    computation: str = ""
    made_with: Mapping[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> dict[str, Any]:
        """Prompt's name -> mask of 0 and 1, uint8.

        An array (X, Y, Z) for a path, an array or a `Volume`; for a tensor, a MetaTensor, or an image of nibabel or
        SimpleITK one of the same kind, shape and geometry.
        """
        masks = zip(self.prompts, self.mask_array, strict=True)
        return {prompt.name: like_source(mask, self.given) for prompt, mask in masks}

    @property
    def mask_array(self) -> np.ndarray:
        """All masks, (P, X, Y, Z) uint8 of 0 and 1."""
        return self.item[MASKS_KEY].as_tensor().cpu().numpy()

    @property
    def existence(self) -> np.ndarray | None:
        """Probability in [0, 1] that each object is in a slice, (P, slices); None where the network gives none.

        In the order of the image's own slices: the k-th belongs to `mask_array.take(k, 1 + slice_axis)`.
        """
        scores = self.item.get(EXISTENCE_KEY)
        if scores is None:
            return None
        upwards = torch.as_tensor(scores).float().cpu().numpy()  # in RAS, as the network went through them
        turned = stored_axis(self.affine, self.item[EXISTENCE_AXIS_KEY])[1]
        return upwards[:, ::-1].copy() if turned else upwards

    @property
    def slice_axis(self) -> int | None:
        """The image's own axis (0, 1, 2) that the slices of `existence` lie along; None where there is no score."""
        axis = self.item.get(EXISTENCE_AXIS_KEY)
        return None if axis is None else stored_axis(self.affine, axis)[0]

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Prompt's name -> probability in [0, 1], (X, Y, Z) float32.

        Raises:
            InputError: the segmenter was told not to keep the logits.
        """
        if LOGITS_KEY not in self.item:
            raise InputError("probabilities: this segmenter was loaded with keep_logits=False.")
        logits = self.item[LOGITS_KEY]
        return {
            prompt.name: torch.sigmoid(logits[i].as_tensor().float()).cpu().numpy()
            for i, prompt in enumerate(self.prompts)
        }

    @property
    def label_map(self) -> np.ndarray:
        """One map of all prompts, (X, Y, Z) uint8: i + 1 where prompt i is the surest, else 0."""
        return self.item["pred"].as_tensor()[0].cpu().numpy()

    @property
    def window(self) -> tuple[float, float] | None:
        """The two intensities between which the network saw the volume; None where the preprocessing does not say."""
        return limits_of(self.item["image"])

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS+ coordinates in mm, (4, 4)."""
        return np.asarray(self.item["pred"].affine, dtype=np.float64)

    def save(self, output_dir: str | os.PathLike[str], probability: bool = False, case: str = "") -> None:
        """Write masks, label map and JSON as `SaveMasks` does.

        Args:
            output_dir: where to write; made if needed.
            probability: also write probability maps.
            case: name of the results in place of the input's; a volume that came from memory has no name of its own.

        Raises:
            InputError: if a file is an input or not ours, or cannot be written; or if the volume came from memory, has
                been given no name, and the name "volume" is taken.
        """
        about = dict(self.made_with) | ({"computation": self.computation} if self.computation else {})
        about |= {} if self.nearest_known is None else {"nearest_known": self.nearest_known}
        saver = SaveMasks(output_dir, self.prompts, probability, about)
        name = case or self.case
        taken = Path(output_dir) / f"{name}.nii.gz"
        if not case and self.source.path is None and taken.exists():
            raise InputError(f"{taken}: is there already, perhaps of another array; name this one: save(..., case=...)")
        check_folder(output_dir)
        for path in saver.planned_files(name):
            check_target(path, self.source.files, is_ours)
        saver.save(self.item, Grid.of_volume(self.source), name)
