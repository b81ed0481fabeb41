"""From logits to masks, and the results of a volume as files."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.config import KeysCollection
from monai.engines import Workflow
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch import Tensor

from boltzformer.data.prompts import Prompt
from boltzformer.errors import InputError
from boltzformer.inference.existence import (
    AGREEMENT_KEY,
    COARSE_KEY,
    EXISTENCE_ALONE_KEY,
    EXISTENCE_AXIS_KEY,
    EXISTENCE_KEY,
)
from boltzformer.output_files import relative_to
from boltzformer.volumes.spacing import has_spacing
from boltzformer.volumes.write import Grid, size_text, write_notes

logger = logging.getLogger(__name__)

LOGITS_KEY = "logits"
MASKS_KEY = "masks"
LARGEST_LABEL = 255
SLAB = 16
VIEWER_MAP = "orthogonal-grid.nii.gz"
SLICE_ORDERS = ("left to right", "posterior to anterior", "inferior to superior")
"""How the sidecar's slices follow each other, by `slice_axis`, whichever way the file's own slices run."""


class MasksFromLogitsd(MapTransform):
    """Dictionary transform: logits (P, ...) -> one uint8 label map (1, ...), see `combine_masks`.

    What stays under the key is what MONAI Label, MONAI Deploy and any other program that runs the config writes: one
    channel, whatever the number of prompts. Beside it, `masks` holds a uint8 mask of 0 and 1 for each prompt (P, ...),
    and `logits` the logits, where they are kept.

    It stands before `Invertd`, which turns all three back: turning makes a copy, and masks take half the memory
    of logits.

    Args:
        keys: items with logits.
        keep_logits: leave them in the item, for probability maps; 2 bytes a voxel and prompt. Without, the inferer's
            ranks of them (`boltzformer.inference.slices.ranks_of`) do as well.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(self, keys: KeysCollection, keep_logits: bool = True, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.keep_logits = keep_logits

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Threshold at probability 0.5, which is logit 0."""
        item = dict(data)
        for key in self.key_iterator(item):
            logits = item[key]
            if logits.dtype == torch.uint8:
                if self.keep_logits:
                    raise InputError("keep_logits: the inferer kept none; set its `keep_logits` too.")
                label, item[MASKS_KEY] = label_of_ranks(_plain(logits)), logits
            else:
                label = combine_masks(_plain(logits))
                item[MASKS_KEY] = (logits >= 0).view(torch.uint8)  # a truth value is one byte, 0 or 1
                if self.keep_logits:
                    item[LOGITS_KEY] = logits
            item[key] = convert_to_dst_type(label[None], logits, dtype=torch.uint8)[0]
        return item


def label_of_ranks(ranks: Tensor) -> Tensor:
    """The label map of `boltzformer.inference.slices.ranks_of`, which become masks in place.

    Most slices are empty for a prompt; they are left as they are.

    Args:
        ranks: (P, X, Y, Z) uint8, 0, 1 or 2; on return 0 or 1.

    Returns:
        (X, Y, Z) uint8, as `combine_masks` of the logits.

    Raises:
        InputError: more than 255 prompts.
    """
    check_prompt_count(len(ranks))
    axis = max(range(1, ranks.dim()), key=ranks.stride)  # of the slices, each of which lies in one piece of memory
    slices = ranks.movedim(axis, 0)
    label = slices.new_zeros(slices.shape[:1] + slices.shape[2:])
    for d, p in slices.flatten(2).amax(2).nonzero().tolist():
        label[d].masked_fill_(slices[d, p] == 2, p + 1)
        slices[d, p].clamp_(max=1)
    return label.movedim(0, axis - 1)


def combine_masks(logits: Tensor) -> Tensor:
    """One label map of P objects: each voxel goes to the prompt that is surest of it.

    Args:
        logits: (P, X, Y, Z).

    Returns:
        (X, Y, Z) uint8: 0 where no logit reaches 0, else 1 + the index of the largest (the first of equals).

    Raises:
        InputError: more than 255 prompts.
    """
    check_prompt_count(len(logits))
    label = torch.empty_like(logits[0], dtype=torch.uint8)
    longest = max(range(label.dim()), key=label.stride)  # slabs that are each in one piece of memory
    # in slabs: a large volume needs no temporaries of its own size
    for part, made in zip(logits.split(SLAB, longest + 1), label.split(SLAB, longest), strict=True):
        surest = part[0]
        made.copy_(surest >= 0)
        for p in range(1, len(part)):
            surer = part[p] > surest
            made.masked_fill_(surer & (part[p] >= 0), p + 1)
            surest = torch.maximum(surest, part[p])
    return label


class SaveMasks:
    """Ignite handler: writes the results of each volume on the volume's own grid.

    For a volume `<case>`:
        `<output_dir>/<case>.nii.gz`: the combined label map, uint8, value i for prompt i;
        `<output_dir>/<case>.json`: which value is which prompt, its voxels and millilitres (null where the voxel size
            is not known), where the network scores it the probability that the object is in each slice (`slice_axis`,
            `slice_order`), and how it was made, for each prompt the first looks' distance and the sigma of the means
            over slices (`coarse_mm`, `agreement_mm`; 0 where there were none);
        `<output_dir>/<case>/<name>.nii.gz`: a mask of 0 and 1 for each prompt, uint8;
        `<output_dir>/<case>/<name>_probability.nii.gz`: where asked for, float32 in [0, 1];
        `<output_dir>/<case>/orthogonal-grid.nii.gz`: only for a sheared grid (a tilted gantry), which ITK's viewers
            refuse to read: the label map by nearest neighbour on a grid with perpendicular axes.
    The label maps of a folder of volumes thus lie side by side, ready to be compared with its labels.

    Args:
        output_dir: where to write; made if needed.
        prompts: what was segmented, in the order of the channels.
        probability: also write probability maps.
        about: written to the JSON as it is, for example the weights and the seed; paths become relative to its folder.

    Raises:
        InputError: more than 255 prompts, or names whose files would be the same; on a call, if a file is an input or
            not ours, cannot be written, or a result is not on its volume's grid.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        prompts: Sequence[Prompt],
        probability: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.prompts = list(prompts)
        self.probability = probability
        self.about = dict(about or {})
        check_prompt_count(len(self.prompts))
        check_distinct(self.planned_files("case"))

    def attach(self, engine: Workflow) -> None:
        """Save after each volume of `engine`, a MONAI evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Save the volume that was just segmented."""
        for source, output in zip(engine.state.batch, engine.state.output, strict=True):
            path = str(source["image"].meta["filename_or_obj"])
            grid = Grid.of_path(path, str(source.get("series_uid", "")))
            known = has_spacing(source["image"].meta)
            self.save(output, replace(grid, spacing_known=known), str(source["case"]))

    def planned_files(self, case: str) -> list[Path]:
        """Every file that may be written for a volume, before it is segmented."""
        names = [f"{prompt.name}.nii.gz" for prompt in self.prompts]
        if self.probability:
            names += [f"{prompt.name}_probability.nii.gz" for prompt in self.prompts]
        folder = self.output_dir / case
        maps = [self.output_dir / f"{case}.nii.gz", self.output_dir / f"{case}.json", folder / VIEWER_MAP]
        return [*maps, *(folder / name for name in names)]

    def save(self, output: Mapping[Any, Any], grid: Grid, case: str) -> None:
        """Write one volume's results.

        Args:
            output: with `masks` (P, X, Y, Z), and `pred`, the label map (1, X, Y, Z); for probability maps with
                `logits` (P, X, Y, Z); perhaps `existence` and `existence_alone`, (P, slices).
            grid: of the volume.
            case: name of the results.
        """
        masks = output[MASKS_KEY]
        grid.check(masks.shape[1:], np.asarray(masks.affine, dtype=np.float64))
        folder = self.output_dir / case
        if folder.is_symlink():
            raise InputError(f"{folder}: is a link where a folder is to be written; name another output_dir.")
        listed: list[dict[str, Any]] = []
        for index, prompt in enumerate(self.prompts):
            mask = np.asarray(masks[index].cpu(), dtype=np.uint8)
            grid.write(mask, folder / f"{prompt.name}.nii.gz")
            if self.probability:
                probability = torch.sigmoid(_plain(output[LOGITS_KEY][index]).float()).cpu().numpy()
                grid.write(probability, folder / f"{prompt.name}_probability.nii.gz")
            voxels = int(np.count_nonzero(mask))
            listed.append({"label": index + 1, "name": prompt.name, "prompt": prompt.text})
            listed[-1] |= {"voxels": voxels, "millilitres": grid.millilitres(voxels)}
            if EXISTENCE_KEY in output:
                listed[-1] |= existence_notes(output[EXISTENCE_KEY][index])
            if EXISTENCE_ALONE_KEY in output:
                alone = existence_notes(output[EXISTENCE_ALONE_KEY][index])
                listed[-1]["slice_probability_alone"] = alone["slice_probability"]
            for key in (COARSE_KEY, AGREEMENT_KEY):
                if key in output:
                    listed[-1][key] = round(float(output[key][index]), 6)
        combined = _plain(output["pred"])[0].cpu().numpy()
        notes: dict[str, Any] = {"image": relative_to(grid.name, self.output_dir), "labels": listed}
        if EXISTENCE_KEY in output:
            axis = output[EXISTENCE_AXIS_KEY]
            # not the file's own order: evaluation reads volumes in RAS, and files of all orientations are alike in it
            notes |= {"slice_axis": axis, "slice_order": SLICE_ORDERS[axis]}
        if grid.sheared:
            grid.write_orthogonal(combined, folder / VIEWER_MAP)
            notes["orthogonal_grid"] = f"{case}/{VIEWER_MAP}"
            logger.warning(
                "%s: its grid is sheared, which many viewers refuse; %s is for them", case, folder / VIEWER_MAP
            )
        grid.write(combined, self.output_dir / f"{case}.nii.gz")
        notes |= {
            key: relative_to(value, self.output_dir) if key == "checkpoint" else value
            for key, value in self.about.items()
        }
        write_notes(notes, self.output_dir / f"{case}.json", grid.files)
        found = ", ".join(f"{one['name']} {size_text(one['voxels'], one['millilitres'])}" for one in listed)
        logger.info("%s: %s -> %s", case, found, self.output_dir / f"{case}.nii.gz")


def existence_notes(probability: Any) -> dict[str, Any]:
    """What the sidecar says of one object's existence scores, given in the order of the RAS volume's slices."""
    slices = [round(float(p), 6) for p in probability]
    return {"probability": max(slices), "slice_probability": slices}


def check_prompt_count(count: int) -> None:
    """Raise an InputError where a label map of 8 bits cannot hold so many prompts."""
    if count > LARGEST_LABEL:
        raise InputError(f"{count} prompts do not fit one label map of 8 bits; give at most {LARGEST_LABEL}.")


def check_distinct(paths: Sequence[Path]) -> None:
    """Raise an InputError where two results would be one file (on some file systems also where cases differ)."""
    seen: set[str] = set()
    for path in paths:
        name = str(path).casefold()
        if name in seen:
            raise InputError(f"two results would be written to {path.name}; rename one of the prompts.")
        seen.add(name)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
