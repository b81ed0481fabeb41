"""Volumes in one orientation, and whether two of them lie on one grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np

from boltzformer.errors import InputError

GRID_TOLERANCE = 0.1  # of the smallest voxel size, at any corner of the volume


class Header(Protocol):
    """What a reader tells of a volume."""

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxel to RAS+ mm."""


Reader = Callable[[Path], tuple[np.ndarray, Header]]


@dataclass(frozen=True)
class Volume:
    """A volume turned to RAS orientation; `affine` is that of the turned array."""

    array: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the three axes."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))  # type: ignore[return-value]


def to_ras(array: np.ndarray, header: Header) -> Volume:
    """Flip and swap axes so that they run right, anterior, superior as nearly as the grid allows."""
    orientation = nib.io_orientation(header.affine)
    turned = nib.apply_orientation(array, orientation)
    affine = np.asarray(header.affine) @ nib.orientations.inv_ornt_aff(orientation, array.shape)
    return Volume(turned, affine)


def check_grid(volume: Volume, path: Path, label: Volume, label_path: Path) -> None:
    """Raise an InputError that names both files unless the grids agree to a tenth of a voxel at every corner."""
    found, expected = volume.array.shape, label.array.shape
    if found != expected:
        raise InputError(f"{path} has another grid than {label_path}: {found} voxels against {expected} (in RAS)")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in expected])).reshape(3, -1).T
    moved = nib.affines.apply_affine(volume.affine, corners) - nib.affines.apply_affine(label.affine, corners)
    distance = float(np.linalg.norm(moved, axis=1).max())
    if distance > GRID_TOLERANCE * min(label.spacing):
        raise InputError(
            f"{path} has another grid than {label_path}: up to {distance:.2f} mm apart. Resample the prediction to the "
            "label's grid (nearest neighbour) first"
        )


def whole_values(array: np.ndarray, path: Path) -> list[int]:
    """The values of a label map or mask, sorted.

    Raises:
        InputError: where one is no whole number.
    """
    # Slab by slab: sorting a large volume at once would double its memory.
    values = np.unique(np.concatenate([np.unique(slab) for slab in array]))
    fractions = values[values != np.round(values)]
    if fractions.size:
        raise InputError(
            f"{path}: a mask has whole numbers, but this has values such as {fractions[0]!s}: threshold probabilities "
            "first"
        )
    return [int(v) for v in values]
