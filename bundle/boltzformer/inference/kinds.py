"""Masks as the same kind of image as the one they were drawn on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from boltzformer.volumes.itk_files import is_itk_image


def like_source(mask: np.ndarray, source: Any) -> Any:
    """Give a mask the kind, shape and geometry of its source.

    Args:
        mask: (X, Y, Z) uint8.
        source: what was segmented, as `boltzformer.volumes.sources.open_volume` takes it.

    Returns:
        a MetaTensor, tensor, SimpleITK image or nibabel image for a source of that kind, on the source's device and
        grid; for a path, an array or a `Volume` the mask itself.
    """
    if isinstance(source, MetaTensor):
        return MetaTensor(_tensor(mask, source), affine=source.affine, meta=dict(source.meta))
    if isinstance(source, torch.Tensor):
        return _tensor(mask, source)
    if is_itk_image(source):
        import SimpleITK as sitk

        voxels = np.ascontiguousarray(mask.transpose(2, 1, 0)).reshape(source.GetSize()[::-1])  # perhaps a fourth axis
        image = sitk.GetImageFromArray(voxels, isVector=False)
        image.CopyInformation(source)
        return image
    if isinstance(source, SpatialImage):
        header = source.header.copy()
        header.set_data_dtype(np.uint8)
        return source.__class__(mask.reshape(source.shape), source.affine, header)
    return mask


def _tensor(mask: np.ndarray, source: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask)).reshape(source.shape).to(source.device)
