"""Reading the volume to segment: checked first, kept in its own type, with the geometry it came with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from boltzformer.inference.slice_inferer import PROMPT_KEY
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.spacing import PLACES, SPACING_KNOWN, has_spacing
from boltzformer.volumes.volume import Volume


class LoadVolumed(MapTransform):
    """Dictionary transform: whatever `open_volume` takes -> checked volume (1, X, Y, Z).

    In place of MONAI's `LoadImaged`, which neither checks nor names what is wrong, turns int16 with a slope into
    float64, and may drop slices of an irregular DICOM series without a word. The voxels keep the file's type.
    `modality` and `body_part` are added where the item has none and the files (DICOM) say them. Of an array the item's
    `affine` is taken, of a folder with several DICOM series the item's `series_uid`. An item's `prompt`, what a request
    asks for, goes into the volume's metadata, where `PromptedSliceInferer` reads it: as data, past the config's parser.

    Args:
        keys: items that hold a path, an array or an image.
        uneven_spacing: see `boltzformer.volumes.dicom.find_series`.
        allow_missing_keys: see `monai.transforms.MapTransform`.

    Raises:
        InputError: on a call, as `open_volume`.
    """

    def __init__(self, keys: KeysCollection, uneven_spacing: str = "refuse", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.uneven_spacing = uneven_spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes of one item."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = open_volume(
                item[key],
                item.get("affine"),
                item.get("modality"),
                str(item.get("body_part") or ""),
                self.uneven_spacing,
                str(item.get("series_uid") or ""),
            )
            item["modality"], item["body_part"] = volume.modality, volume.body_part
            item[key] = as_metatensor(volume)
            if item.get("prompt"):
                item[key].meta[PROMPT_KEY] = item["prompt"]
            item[key].meta[SPACING_KNOWN] = has_spacing(item)
        return item


def as_metatensor(volume: Volume) -> MetaTensor:
    """Wrap a volume for MONAI's transforms.

    Args:
        volume: as read.

    Returns:
        (1, X, Y, Z), sharing memory with the voxels where their byte order and layout allow.
    """
    native = volume.voxels.dtype.newbyteorder("=")
    if native.kind == "u" and native.itemsize > 1:  # torch cannot compute with wide unsigned integers
        native = np.dtype(np.int32 if native.itemsize == 2 else np.int64)
    if native.kind == "f" and native.itemsize > 8:
        native = np.dtype(np.float64)
    array = np.asarray(volume.voxels, dtype=native)
    if any(stride < 0 for stride in array.strides):  # torch has no negative strides
        array = np.ascontiguousarray(array)
    affine = torch.from_numpy(volume.affine.copy())
    meta = {
        MetaKeys.ORIGINAL_AFFINE: volume.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        "filename_or_obj": volume.name,
        "modality": volume.modality,
        "body_part": volume.body_part,
    }
    if volume.series is not None and volume.series.uneven:
        meta[PLACES] = torch.from_numpy(volume.series.positions * [-1.0, -1.0, 1.0])
    return MetaTensor(torch.from_numpy(array)[None], affine=affine, meta=meta)
