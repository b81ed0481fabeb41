"""Whatever holds a volume -> `Volume`: a path, an array, a tensor, or an image of nibabel or SimpleITK."""

from __future__ import annotations

import logging
import os
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from boltzformer.errors import InputError
from boltzformer.volumes.grids import check_affine
from boltzformer.volumes.itk_files import image_geometry, is_itk_image
from boltzformer.volumes.itk_files import image_voxels as itk_voxels
from boltzformer.volumes.modality import normal_modality
from boltzformer.volumes.nifti_files import image_affine, image_voxels, tell_of_sides
from boltzformer.volumes.paths import checked, open_path
from boltzformer.volumes.volume import Volume

logger = logging.getLogger(__name__)


def open_volume(
    source: Any,
    affine: Any = None,
    modality: object = "",
    body_part: str = "",
    uneven_spacing: str = "refuse",
    series_uid: str = "",
) -> Volume:
    """Read and check a volume.

    Args:
        source: path of a NIfTI, NRRD or MetaImage file, or of a folder with a DICOM series; an array or tensor
            (X, Y, Z), a tensor may have a channel axis of length 1 in front; a MetaTensor; an image of nibabel or
            SimpleITK; or a `Volume`.
        affine: of an array or plain tensor, (4, 4), voxel index to RAS+ in mm; the others have their own.
        modality: goes before what the source says, see `normal_modality`.
        body_part: goes before what the source says.
        uneven_spacing: see `boltzformer.volumes.dicom.find_series`.
        series_uid: of the wanted DICOM series, where the folder holds several.

    Returns:
        the volume, every voxel finite.

    Raises:
        InputError: it cannot be read or used; the message names it and the cure.
    """
    if affine is not None and not _needs_affine(source):
        raise InputError(f"{_name(source)}: has an affine of its own; give `affine` only with an array or tensor.")
    volume = _open(source, affine, uneven_spacing, series_uid)
    return checked(volume, modality, body_part)


def has_affine(source: Any) -> bool:
    """Whether a source states its own geometry; a plain array or tensor does not."""
    return not _needs_affine(source)


def _needs_affine(source: Any) -> bool:
    return isinstance(source, np.ndarray | torch.Tensor) and not isinstance(source, MetaTensor)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__}"


def _open(source: Any, affine: Any, uneven_spacing: str, series_uid: str) -> Volume:
    if isinstance(source, Volume):
        return source
    if isinstance(source, str | os.PathLike):
        return open_path(source, uneven_spacing, series_uid)
    if isinstance(source, MetaTensor):
        return _open_metatensor(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        if affine is None:
            logger.warning("an array without affine: its axes are taken as right, anterior, superior, voxels as 1 mm")
        matrix = check_affine(np.eye(4) if affine is None else affine, "the array")
        return Volume(source if isinstance(source, np.ndarray) else _numpy(source), matrix, "the array")
    if is_itk_image(source):
        _, matrix = image_geometry(source, "the SimpleITK image")
        return Volume(itk_voxels(source), matrix, "the SimpleITK image")
    if isinstance(source, SpatialImage):
        voxels = image_voxels(source)
        while voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        header = source.header if isinstance(source, nib.Nifti1Image) else None
        matrix = image_affine(source, "the nibabel image")
        tell_of_sides(source, "the nibabel image")
        return Volume(voxels, matrix, "the nibabel image", header=header)
    raise InputError(
        f"a {type(source).__name__} is no volume; give a path, an array with an affine, a MetaTensor, or an image of "
        "nibabel or SimpleITK."
    )


def _open_metatensor(source: MetaTensor) -> Volume:
    matrix = check_affine(source.affine.cpu().numpy(), "the MetaTensor")
    if str(source.meta.get("space", "RAS")) == "LPS":
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    # MONAI Deploy names what it reads from DICOM by DICOM's keywords
    modality = str(source.meta.get("modality") or source.meta.get("Modality") or "")
    part = str(source.meta.get("body_part") or source.meta.get("BodyPartExamined") or "")
    name = str(source.meta.get("filename_or_obj", "") or "the MetaTensor")
    return Volume(_numpy(source.as_tensor()), matrix, name, modality=normal_modality(modality, name), body_part=part)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dim() == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
