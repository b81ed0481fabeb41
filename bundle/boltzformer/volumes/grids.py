"""Grids: turned to RAS, compared, and made orthogonal."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from boltzformer.errors import InputError

GRID_TOLERANCE = 0.1
"""Two grids are the same when no corner of the volume is farther apart than this share of the smallest voxel size."""
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def check_affine(affine: object, where: str) -> np.ndarray:
    """Check that an affine can be inverted.

    Args:
        affine: (4, 4), voxel index to RAS+ in mm.
        where: what to name in the error.

    Returns:
        (4, 4) float64, a copy.

    Raises:
        InputError: another shape, no finite numbers, singular, or a last row other than 0 0 0 1.
    """
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: the affine is no matrix of numbers; give 4 x 4 of them.") from None
    if matrix.shape != (4, 4):
        raise InputError(f"{where}: the affine has the shape {matrix.shape}; give 4 x 4, voxel index to RAS+ in mm.")
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise InputError(f"{where}: the affine is not invertible (it holds NaN, infinity or a wrong last row).")
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    if sizes.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / sizes)) < 1e-6:
        raise InputError(f"{where}: the affine is not invertible; write the file with a valid geometry.")
    return matrix


def turn_to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and swap axes so that they run right, anterior, superior as nearly as the grid allows.

    Args:
        array: (X, Y, Z).
        affine: (4, 4), voxel index to RAS+ in mm.

    Returns:
        a view of the array, and the affine that belongs to it.
    """
    orientation = nib.io_orientation(affine)
    turned = affine @ nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.apply_orientation(array, orientation), turned


def stored_axis(affine: np.ndarray, axis: int) -> tuple[int, bool]:
    """Which axis of an array runs along one of RAS, and whether it runs the other way.

    Args:
        affine: (4, 4), voxel index to RAS+ in mm.
        axis: 0 left to right, 1 back to front, 2 bottom to top.
    """
    turn = nib.orientations.io_orientation(affine)
    stored = int(np.flatnonzero(turn[:, 0] == axis)[0])
    return stored, bool(turn[stored, 1] < 0)


def corner_distance(shape: Sequence[int], first: np.ndarray, second: np.ndarray) -> float:
    """The largest distance in mm between the corners of a volume under two affines.

    Args:
        shape: (X, Y, Z).
        first: (4, 4).
        second: (4, 4).
    """
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    apart = nib.affines.apply_affine(first, corners) - nib.affines.apply_affine(second, corners)
    return float(np.linalg.norm(apart, axis=1).max())


def is_same_grid(shape: Sequence[int], first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two affines put every corner of a volume at the same place, to `GRID_TOLERANCE`."""
    return corner_distance(shape, first, second) <= GRID_TOLERANCE * float(nib.affines.voxel_sizes(first).min())


def without_shear(affine: np.ndarray) -> np.ndarray:
    """The nearest affine with perpendicular axes, as NIfTI's qform can hold it: same origin and voxel sizes."""
    image = nib.Nifti1Header()
    image.set_qform(affine, 1, strip_shears=True)
    return np.asarray(image.get_qform(), dtype=np.float64)


def is_sheared(shape: Sequence[int], affine: np.ndarray) -> bool:
    """Whether no grid with perpendicular axes stands for this one (a tilted gantry), which ITK cannot read."""
    return not is_same_grid(shape, affine, without_shear(affine))


def lps_affine(direction: Sequence[float], spacing: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """The RAS+ affine (4, 4) of ITK's direction (9 numbers, by rows), spacing and origin, which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
    affine[:3, 3] = origin
    return _LPS @ affine
