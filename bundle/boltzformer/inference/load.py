"""Reading the volume to segment: checked first, kept in its own type, with the geometry it came with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_voxels, read_volume
from boltzformer.volumes.dicom import find_series, read_series


class LoadVolumed(MapTransform):
    """Dictionary transform: path of a NIfTI file or of a DICOM series' folder -> checked volume (1, X, Y, Z).

    In place of MONAI's `LoadImaged`, which neither checks nor names what is wrong, turns int16 with a slope into
    float64, and may drop slices of an irregular DICOM series without a word. The voxels keep the file's type.
    `modality` is added where the item has none and the files (DICOM) say it. An array (X, Y, Z) in place of a path is
    taken as it is, with the item's `affine`.

    Args:
        keys: items that hold a path.
        uneven_spacing: see `boltzformer.volumes.dicom.find_series`.
        allow_missing_keys: see `monai.transforms.MapTransform`.

    Raises:
        InputError: on a call, as `read_volume` and `find_series`.
    """

    def __init__(self, keys: KeysCollection, uneven_spacing: str = "refuse", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.uneven_spacing = uneven_spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes of one item."""
        item = dict(data)
        for key in self.key_iterator(item):
            if isinstance(item[key], np.ndarray):
                if item[key].ndim != 3:
                    raise InputError(f"the array: expected 3 dimensions (X, Y, Z), found {item[key].shape}.")
                check_voxels(item[key], "the array")
                item[key] = as_volume(item[key], item.get("affine", np.eye(4)))
                continue
            path = Path(str(item[key])).expanduser()
            modality = ""
            if path.is_dir():
                series = find_series(path, self.uneven_spacing)
                array, affine, modality = read_series(series), series.affine, series.modality
            else:
                array, header = read_volume(path)
                affine = header.affine
            if modality and not item.get("modality"):
                item["modality"] = modality
            item[key] = as_volume(array, affine, str(path))
        return item


def as_volume(array: np.ndarray, affine: np.ndarray, name: str = "") -> MetaTensor:
    """Wrap voxels for MONAI's transforms.

    Args:
        array: (X, Y, Z) voxels of any number type.
        affine: (4, 4), voxel index to RAS+ in mm.
        name: file or folder it came from.

    Returns:
        (1, X, Y, Z), sharing memory with `array` where its byte order and layout allow.
    """
    native = array.dtype.newbyteorder("=")
    if native.kind == "u" and native.itemsize > 1:  # torch cannot compute with wide unsigned integers
        native = np.dtype(np.int32 if native.itemsize == 2 else np.int64)
    tensor = torch.from_numpy(np.array(array, dtype=native, copy=None))[None]
    meta = {
        MetaKeys.ORIGINAL_AFFINE: np.array(affine, dtype=np.float64),
        MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        "filename_or_obj": name,
    }
    return MetaTensor(tensor, affine=torch.from_numpy(np.array(affine, dtype=np.float64)), meta=meta)
