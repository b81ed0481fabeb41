"""NRRD and MetaImage files, read by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from boltzformer.errors import InputError
from boltzformer.volumes.grids import check_affine, lps_affine


def image_geometry(image: sitk.Image | sitk.ImageFileReader, where: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and RAS+ affine of a SimpleITK image, or of a reader that has read its header.

    Args:
        image: image or reader.
        where: what to name in the error.

    Returns:
        (X, Y, Z) and the (4, 4) affine in mm.

    Raises:
        InputError: no 3D image of one value a voxel.
    """
    shape = tuple(int(n) for n in image.GetSize())
    dimension = len(shape)
    if any(n != 1 for n in shape[3:]) or dimension < 3:
        raise InputError(f"{where}: expected 3 dimensions but found {dimension} {shape}; save one volume by itself.")
    if isinstance(image, sitk.ImageFileReader):
        components = image.GetNumberOfComponents()
    else:
        components = image.GetNumberOfComponentsPerPixel()
    if components != 1:
        raise InputError(f"{where}: holds several values for each voxel; expected one, as a CT or MR volume has.")
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3].ravel().tolist()
    affine = lps_affine(direction, image.GetSpacing()[:3], image.GetOrigin()[:3])
    return shape[:3], check_affine(affine, where)


def open_itk(path: Path) -> sitk.ImageFileReader:
    """Read a file's header.

    Raises:
        InputError: it is no such file or is damaged.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as a volume ({last_line(error)}); export it again.") from error
    return reader


def image_voxels(image: sitk.Image) -> np.ndarray:
    """The voxels of a SimpleITK image, (X, Y, Z)."""
    array = sitk.GetArrayFromImage(image)
    return array.reshape(array.shape[-3:]).transpose(2, 1, 0)


def read_itk(path: Path) -> np.ndarray:
    """Read a file's voxels, (X, Y, Z).

    Raises:
        InputError: the data is cut or damaged.
    """
    try:
        return image_voxels(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise InputError(
            f"{path}: the data is truncated or damaged ({last_line(error)}); copy or export the file again."
        ) from error


def last_line(error: Exception) -> str:
    """What ITK's long messages end with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
