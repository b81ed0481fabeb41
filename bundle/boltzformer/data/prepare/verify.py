"""A written case is read once in full before it counts: geometry, voxels, label values, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_label_values, check_pair, read_volume


def verify_pair(image: Path, label: Path, values: Iterable[int]) -> dict[str, Any]:
    """Read an image and its label map in full.

    Args:
        image: NIfTI file.
        label: NIfTI file on the same grid.
        values: label values that have a name.

    Returns:
        `fingerprint` of the image (see `image_fingerprint`), `shape`, `spacing` in mm and `values`: the label values
        present.

    Raises:
        InputError: a file is damaged, the grids differ, a voxel is not finite, a label is no whole number or has no
            name.
    """
    header, _ = check_pair(image, label)
    array, _ = read_volume(label)
    found = np.unique(array)
    whole = np.rint(found).astype(np.int64)
    if not np.array_equal(whole, found):
        odd = found[whole != found][0]
        raise InputError(f"{label}: holds values that are no whole numbers, such as {odd!s}; it is no label map.")
    present = [int(value) for value in whole if value]
    check_label_values(present, values, label)
    array, _ = read_volume(image)
    return {
        "fingerprint": image_fingerprint(array, header.affine),
        "shape": list(header.shape),
        "spacing": [round(spacing, 4) for spacing in header.spacing],
        "values": present,
    }


def image_fingerprint(array: np.ndarray, affine: np.ndarray) -> str:
    """A hash that two files of one image share, however each stores its axes and numbers.

    Args:
        array: (X, Y, Z) voxels in real units (HU), any number type.
        affine: (4, 4) voxel index to RAS+ world; only the directions of the axes are used.

    Returns:
        SHA-256 in hexadecimal of the volume in RAS order, rounded to whole numbers.
    """
    turned = nib.apply_orientation(array, nib.io_orientation(affine))
    digest = hashlib.sha256(repr(turned.shape).encode())
    for k in range(turned.shape[2]):  # slice by slice: no second copy of the volume
        digest.update(np.rint(turned[:, :, k]).astype("<i4").tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
