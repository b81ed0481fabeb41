"""What a volume file must satisfy before any work is spent on it.

The header checks (`check_volume`, `check_pair`) read a few hundred bytes and are cheap enough for a whole
dataset; the voxel checks (`check_voxels`, `check_label_values`, `read_volume`) need the decompressed array.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from boltzformer.errors import InputError

# Two grids are the same when no corner of the volume is farther apart than this share of a voxel.
GRID_TOLERANCE = 0.1


@dataclass(frozen=True)
class VolumeHeader:
    """Geometry of a volume file.

    Attributes:
        path: the file.
        shape: voxels along the three axes of the file.
        affine: (4, 4) float64, voxel index to RAS+ world coordinates in mm.
        spacing: voxel size in mm along the three axes of the file.
        dtype: data type on disk, before the header's slope and intercept.
    """

    path: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    spacing: tuple[float, float, float]
    dtype: np.dtype


def check_volume(path: str | Path) -> VolumeHeader:
    """Check a NIfTI file (or another format that nibabel reads) without decompressing it.

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
    image = _open(Path(path))
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        what = "holds several volumes; save the one to use as a file of its own" if len(shape) > 3 else "is no volume"
        raise InputError(f"{path}: expected 3 dimensions but found {len(shape)} {shape}: it {what}.")
    if min(shape) < 1:
        raise InputError(f"{path}: the volume is empty (shape {shape}); export it again.")
    affine = np.asarray(image.affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path}: the affine in the header is not invertible; write the file with a valid geometry.")
    dtype = np.dtype(image.get_data_dtype())
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {dtype} are not supported; save them as integers or floats.")
    _check_length(Path(path), image, int(np.prod(image.shape, dtype=np.int64)) * dtype.itemsize)
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(affine))
    return VolumeHeader(str(path), (shape[0], shape[1], shape[2]), affine, (spacing[0], spacing[1], spacing[2]), dtype)


def check_pair(image: str | Path, label: str | Path) -> tuple[VolumeHeader, VolumeHeader]:
    """Check two volume files and that they lie on the same grid.

    Args:
        image: file of the image.
        label: file of its label map, or of a predicted mask.

    Returns:
        the headers of both.

    Raises:
        InputError: either file fails `check_volume`, the shapes differ, or a corner of the label's grid is
            more than a tenth of a voxel away from the image's.
    """
    first, second = check_volume(image), check_volume(label)
    if first.shape != second.shape:
        raise InputError(
            f"{label}: its shape {second.shape} differs from {first.shape} of {image}; "
            "resample the label to the image's grid (nearest neighbour)."
        )
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in first.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    apart = nib.affines.apply_affine(first.affine, corners) - nib.affines.apply_affine(second.affine, corners)
    distance = float(np.linalg.norm(apart, axis=1).max())
    if distance > GRID_TOLERANCE * min(first.spacing):
        raise InputError(
            f"{label}: its grid is up to {distance:.3g} mm away from that of {image} (origin, spacing or "
            "orientation "
            "differ); resample the label to the image's grid, or copy the image's affine if only the header "
            "is wrong."
        )
    return first, second


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
    """Read a volume in its own orientation, with the header's slope and intercept applied.

    Args:
        path: file of a 3D volume.

    Returns:
        the (X, Y, Z) array, in the file's own type where the header does not scale and float32 where it does,
        and the header.

    Raises:
        InputError: as `check_volume`; also damaged data, or a voxel that is not finite.
    """
    header = check_volume(path)
    image = _open(Path(path))
    try:
        if str(path).endswith(".gz") and isinstance(image, nib.Nifti1Image):
            with gzip.open(path, "rb") as file:
                array = _array(type(image).from_stream(file))
                # the checksum stands behind the last voxel and is tested only by reading on
                while file.read(1 << 20):
                    pass
        else:
            array = _array(image)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(
            f"{path}: the data is truncated or damaged ({error}); copy or export the file again."
        ) from error
    array = array.reshape(header.shape)
    check_voxels(array, path)
    return array, header


def _open(path: Path) -> Any:
    """Open a volume lazily, turning every way to fail into one sentence."""
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path in the datalist or on the command line.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder where a volume file was expected.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy or export it again.")
    try:
        image = nib.load(path)
    except (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a volume ({error}); it may be truncated, or is no NIfTI file (.nii, .nii.gz)."
        ) from error
    if not isinstance(image, SpatialImage):
        raise InputError(f"{path}: is a {type(image).__name__}, not a volume; expected NIfTI (.nii, .nii.gz).")
    return image


def _array(image: Any) -> np.ndarray:
    """Read all voxels, scaled in float32 (not float64) where the header asks for scaling."""
    proxy = image.dataobj
    if getattr(proxy, "slope", 1.0) == 1.0 and getattr(proxy, "inter", 0.0) == 0.0:
        return np.asanyarray(proxy.get_unscaled() if hasattr(proxy, "get_unscaled") else proxy)
    return np.asarray(proxy, dtype=np.float32)


def _check_length(path: Path, image: Any, num_bytes: int) -> None:
    """Compare the file's length with what its header announces (single-file NIfTI only)."""
    if not isinstance(image, nib.Nifti1Image) or path.suffix not in {".nii", ".gz"}:
        return
    proxy: Any = image.dataobj
    expected = int(proxy.offset) + num_bytes
    if path.suffix == ".nii":
        found = path.stat().st_size
    else:
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            trailer = int.from_bytes(file.read(4), "little")
        if trailer == expected % 2**32:
            return
        found = _decompressed_length(path)
    if found < expected:
        raise InputError(f"{path}: the file is truncated ({found} of {expected} bytes); copy or export it again.")


def _decompressed_length(path: Path) -> int:
    """Count the bytes of a gzip file up to its end or first damage (a trailer may be of its last member
    only)."""
    total = 0
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 20):
                total += len(block)
    except (OSError, EOFError, zlib.error):
        pass
    return total
