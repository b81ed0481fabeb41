"""From logits to masks, and the files they are kept in."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from monai.config import KeysCollection
from monai.engines import Workflow
from monai.transforms import MapTransform
from torch import Tensor

from boltzformer.data.prompts import Prompt
from boltzformer.errors import InputError

logger = logging.getLogger(__name__)

LOGITS_KEY = "logits"
LARGEST_LABEL = 255
SLAB = 16
GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


class MasksFromLogitsd(MapTransform):
    """Dictionary transform: logits (P, ...) -> uint8 masks of 0 and 1, the logits kept under `logits`.

    Args:
        keys: items with logits.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Threshold at probability 0.5, which is logit 0."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[LOGITS_KEY] = item[key]
            item[key] = (item[key] >= 0).to(torch.uint8)
        return item


def combine_masks(logits: Tensor) -> Tensor:
    """One label map of P objects: each voxel goes to the prompt that is surest of it.

    Args:
        logits: (P, X, Y, Z).

    Returns:
        (X, Y, Z) uint8: 0 where no logit reaches 0, else 1 + the index of the largest (the first of equals).

    Raises:
        InputError: more than 255 prompts.
    """
    if len(logits) > LARGEST_LABEL:
        raise InputError(f"{len(logits)} prompts do not fit one label map of 8 bits; give at most {LARGEST_LABEL}.")
    label = torch.empty(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    for start in range(0, label.shape[0], SLAB):  # in slabs: a large volume needs no temporaries of its own size
        surest, index = logits[:, start : start + SLAB].max(dim=0)
        label[start : start + SLAB] = torch.where(surest >= 0, index + 1, 0)
    return label


class SaveMasks:
    """Ignite handler: writes the results of each volume on the volume's own grid.

    For a volume `<case>`:
        `<output_dir>/<case>.nii.gz`: the combined label map, uint8, value i for prompt i;
        `<output_dir>/<case>.json`: which value is which prompt, its voxels and millilitres, and how it was made;
        `<output_dir>/<case>/<name>.nii.gz`: a mask of 0 and 1 for each prompt, uint8;
        `<output_dir>/<case>/<name>_probability.nii.gz`: where asked for, float32 in [0, 1].
    The label maps of a folder of volumes thus lie side by side, ready to be compared with its labels.

    Args:
        output_dir: where to write; made if needed.
        prompts: what was segmented, in the order of the channels.
        probability: also write probability maps.
        about: written to the JSON as it is, for example the weights and the seed.

    Raises:
        InputError: on a call, if a file cannot be written or a result is not on its volume's grid.
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

    def attach(self, engine: Workflow) -> None:
        """Save after each volume of `engine`, a MONAI evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Save the volume that was just segmented."""
        for source, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.save(source, output)

    def save(self, source: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Write one volume's results.

        Args:
            source: with `image` (path in its metadata) and `case`.
            output: with `pred`, masks (P, X, Y, Z), and `logits` of the same shape.
        """
        masks, logits = output["pred"], output[LOGITS_KEY]
        affine = np.asarray(masks.affine, dtype=np.float64)
        case, path = str(source["case"]), str(source["image"].meta["filename_or_obj"])
        grid = Grid.of_file(path, masks.shape[1:], affine)
        folder = self.output_dir / case
        folder.mkdir(parents=True, exist_ok=True)
        listed = []
        for index, prompt in enumerate(self.prompts):
            mask = np.asarray(masks[index].cpu(), dtype=np.uint8)
            grid.write(mask, folder / f"{prompt.name}.nii.gz")
            if self.probability:
                probability = torch.sigmoid(_plain(logits[index]).float()).cpu().numpy()
                grid.write(probability, folder / f"{prompt.name}_probability.nii.gz")
            voxels = int(np.count_nonzero(mask))
            listed.append({"label": index + 1, "name": prompt.name, "prompt": prompt.text, **grid.volume_of(voxels)})
        combined = combine_masks(_plain(logits)).cpu().numpy()
        grid.write(combined, self.output_dir / f"{case}.nii.gz")
        _write_json({"image": path, "labels": listed, **self.about}, self.output_dir / f"{case}.json")
        found = ", ".join(f"{entry['name']} {entry['millilitres']:.2f} ml" for entry in listed)
        logger.info("%s: %s -> %s", case, found, self.output_dir / f"{case}.nii.gz")


class Grid:
    """A volume's grid: where its voxels are, and the header that says so.

    Args:
        affine: (4, 4), voxel index to RAS+ in mm.
        source: the NIfTI image whose qform, sform and units are kept bit by bit; None writes the affine alone.
    """

    def __init__(self, affine: np.ndarray, source: nib.Nifti1Image | None = None) -> None:
        self.affine = affine
        self.source = source

    @staticmethod
    def of_file(path: str, shape: Sequence[int], affine: np.ndarray) -> Grid:
        """The grid of an input, checked against the result that is to be written on it.

        Args:
            path: the input; its header is copied where it is a NIfTI file.
            shape: of the result.
            affine: of the result, (4, 4).

        Raises:
            InputError: the result lies on another grid, which would be a fault of the preprocessing.
        """
        if not path.lower().endswith((".nii", ".nii.gz")):
            return Grid(affine)
        image = cast(nib.Nifti1Image, nib.load(path))
        if tuple(image.shape[:3]) != tuple(shape) or not np.allclose(image.affine, affine, atol=1e-3):
            raise InputError(
                f"{path}: the result's grid {tuple(shape)} is not the input's {tuple(image.shape)}; the preprocessing "
                "holds a transform that `Invertd` cannot undo."
            )
        return Grid(np.asarray(image.affine), image if isinstance(image, nib.Nifti1Image) else None)

    def write(self, array: np.ndarray, path: Path) -> None:
        """Write an array on this grid; the file appears whole or not at all.

        Args:
            array: (X, Y, Z), uint8 or float32, the type that is written.
            path: ends in .nii.gz.

        Raises:
            InputError: the file cannot be written.
        """
        if self.source is None:
            image = nib.Nifti1Image(array, self.affine, dtype=array.dtype)
        else:
            header = self.source.header.__class__()  # NIfTI-2 stays NIfTI-2
            header.set_data_shape(array.shape)
            header.set_data_dtype(array.dtype)
            for field in GRID_FIELDS:
                header[field] = self.source.header[field]
            image = self.source.__class__(array, None, header)
        draft = path.with_name(f".{path.name.removesuffix('.nii.gz')}.{os.getpid()}.nii.gz")
        try:
            nib.save(image, draft)
            os.replace(draft, path)
        except OSError as error:
            raise InputError(f"cannot write {path} ({error}); free some space or name another output_dir.") from error
        finally:
            draft.unlink(missing_ok=True)

    def volume_of(self, voxels: int) -> dict[str, float | int]:
        """Size of an object: `voxels` and `millilitres`."""
        voxel_mm3 = abs(float(np.linalg.det(self.affine[:3, :3])))
        return {"voxels": voxels, "millilitres": round(voxels * voxel_mm3 / 1000, 4)}


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}); free some space or name another output_dir.") from error


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
