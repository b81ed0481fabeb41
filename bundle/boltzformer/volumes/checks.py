"""What a volume file must satisfy before any work is spent on it.

The header checks (`check_volume`, `check_pair`) read a few hundred bytes and are cheap enough for a whole
dataset; the voxel checks (`check_voxels`, `check_label_values`, `read_volume`) need the decompressed array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from boltzformer.errors import InputError
from boltzformer.volumes.grids import GRID_TOLERANCE, corner_distance, is_same_grid
from boltzformer.volumes.itk_files import image_geometry, open_itk, pixel_type, read_itk
from boltzformer.volumes.names import ITK_SUFFIXES, volume_suffix
from boltzformer.volumes.nifti_files import check_length, check_present, image_affine, open_nibabel, read_nibabel


@dataclass(frozen=True)
class VolumeHeader:
    """Geometry of a volume file.

    Attributes:
        path: the file.
        shape: voxels along the three axes of the file.
        affine: (4, 4) float64, voxel index to RAS+ world coordinates in mm, whatever unit the file is in.
        spacing: voxel size in mm along the three axes of the file.
        dtype: data type on disk, before the header's slope and intercept.
    """

    path: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    spacing: tuple[float, float, float]
    dtype: np.dtype


def check_volume(path: str | Path) -> VolumeHeader:
    """Check a NIfTI, NRRD or MetaImage file (or another format that nibabel reads) without decompressing it.

    A gzip file's trailer states the length of its content, so a truncated .nii.gz is found without reading
    it.

    Args:
        path: file of a 3D volume; trailing axes of length 1 are accepted.

    Returns:
        the volume's header.

    Raises:
        InputError: the file is missing, empty, truncated, of an unknown format, not 3D, or has an unusable
            affine.
    """
    path = Path(path)
    if volume_suffix(path.name) in ITK_SUFFIXES:
        check_present(path)
        reader = open_itk(path)
        size, affine = image_geometry(reader, str(path))
        return _header(path, size, affine, pixel_type(reader))
    image = open_nibabel(path)
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        several = "holds several volumes; save the one to use as a file of its own"
        flat = "is one slice; save it with a third axis of length 1" if len(shape) == 2 else "is no volume"
        what = several if len(shape) > 3 else flat
        raise InputError(f"{path}: expected 3 dimensions but found {len(shape)} {shape}: it {what}.")
    dtype = np.dtype(image.get_data_dtype())
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {dtype} are not supported; save them as integers or floats.")
    header = _header(path, shape, image_affine(image, str(path)), dtype)
    check_length(path, image, int(np.prod(image.shape, dtype=np.int64)) * dtype.itemsize)
    return header


def _header(path: Path, shape: Sequence[int], affine: np.ndarray, dtype: np.dtype) -> VolumeHeader:
    if min(shape) < 1:
        raise InputError(f"{path}: the volume is empty (shape {tuple(shape)}); export it again.")
    x, y, z = (float(size) for size in nib.affines.voxel_sizes(affine))
    return VolumeHeader(str(path), (shape[0], shape[1], shape[2]), affine, (x, y, z), dtype)


def check_pair(image: str | Path, label: str | Path) -> tuple[VolumeHeader, VolumeHeader]:
    """Check two volume files and that they lie on the same grid.

    Args:
        image: file of the image.
        label: file of its label map, or of a predicted mask.

    Returns:
        the headers of both.

    Raises:
        InputError: either file fails `check_volume`, the shapes or the order of the axes differ, or a corner of the
            label's grid is more than a tenth of a voxel away from the image's.
    """
    first, second = check_volume(image), check_volume(label)
    same_shape = first.shape == second.shape
    distance = corner_distance(first.shape, first.affine, second.affine) if same_shape else np.inf
    if distance <= GRID_TOLERANCE * min(first.spacing):
        return first, second
    if _is_turned(first, second):
        raise InputError(
            f"{label}: lies where {image} does, but its axes are stored in another order or direction; reorient it to "
            "the image's axes (a copied affine would mirror it)."
        )
    if not same_shape:
        raise InputError(
            f"{label}: its shape {second.shape} differs from {first.shape} of {image}; "
            "resample the label to the image's grid (nearest neighbour)."
        )
    raise InputError(
        f"{label}: its grid is up to {distance:.3g} mm away from that of {image} (origin, spacing or orientation "
        "differ); resample the label to the image's grid, or copy the image's affine if only the header is wrong."
    )


def _is_turned(first: VolumeHeader, second: VolumeHeader) -> bool:
    """Whether two volumes are on one grid only once their axes are brought into one order and direction."""
    (shape, affine), (other, its_affine) = (_turned(one) for one in (first, second))
    return shape == other and is_same_grid(shape, affine, its_affine)


def _turned(header: VolumeHeader) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a volume that is turned to RAS."""
    orientation = nib.io_orientation(header.affine)
    shape = np.empty(3, dtype=int)
    shape[orientation[:, 0].astype(int)] = header.shape
    return tuple(shape.tolist()), header.affine @ nib.orientations.inv_ornt_aff(orientation, header.shape)


def check_voxels(array: np.ndarray, path: str | Path) -> None:
    """Check that every voxel of a loaded array is finite.

    Args:
        array: voxels, any shape and number type.
        path: the file to name in the error.

    Raises:
        InputError: an infinite or NaN voxel.
    """
    if array.dtype.kind != "f":
        return
    # slab by slab, so that a large volume needs no boolean copy of its own size
    slabs = (array[i : i + 32] for i in range(0, len(array), 32)) if array.ndim else iter([array])
    bad = sum(int(slab.size - np.count_nonzero(np.isfinite(slab))) for slab in slabs)
    if bad:
        raise InputError(
            f"{path}: {bad} of {array.size} voxels are NaN or infinite; replace them (air is -1000 in CT, 0 in MR)."
        )


def check_label_values(values: Iterable[int], objects: Iterable[int], path: str | Path) -> None:
    """Check that a label map uses no value that is without a name.

    Args:
        values: values present in the label map; 0 is background.
        objects: values that have a name.
        path: the label file to name in the error.

    Raises:
        InputError: a value has no name.
    """
    unknown = sorted(set(values) - set(objects) - {0})
    if unknown:
        raise InputError(
            f"{path}: label value{'s' if len(unknown) > 1 else ''} {', '.join(map(str, unknown))} not listed "
            "in the "
            "dataset's `labels`; name each value there, or remove it from the label map."
        )


def read_volume(path: str | Path) -> tuple[np.ndarray, VolumeHeader]:
    """Read a volume file in its own orientation, with the header's slope and intercept applied.

    Args:
        path: file of a 3D volume.

    Returns:
        the (X, Y, Z) array, in the file's own type where the header does not scale and float32 where it does,
        and the header.

    Raises:
        InputError: as `check_volume`; also damaged data, or a voxel that is not finite.
    """
    path = Path(path)
    header = check_volume(path)
    if volume_suffix(path.name) in ITK_SUFFIXES:
        array = read_itk(path)
    else:
        array = read_nibabel(path)
    array = array.reshape(header.shape)
    check_voxels(array, path)
    return array, header
