"""Distances between the surfaces of two masks, in mm with the true voxel spacing.

A surface is kept as a list of points, and the nearest point of the other surface is looked up in a tree. The distance
maps that MONAI and others compute give the same numbers, but fill the whole box around both masks: a stray voxel in
two corners of a 512 x 512 x 300 volume made that 12 GB.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

HAUSDORFF_PERCENTILE = 95
SLAB = 24


def bounding_box(*masks: np.ndarray, margin: int = 0) -> tuple[slice, ...] | None:
    """Smallest box that holds every set voxel of all masks, grown by `margin`; None where nothing is set."""
    union = masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)
    box = []
    for axis in range(union.ndim):
        line = union.any(axis=tuple(other for other in range(union.ndim) if other != axis))
        found = np.flatnonzero(line)
        if found.size == 0:
            return None
        box.append(slice(max(found[0] - margin, 0), int(found[-1]) + 1 + margin))
    return tuple(box)


class SurfaceDistances:
    """Surface elements of two masks with their distance to the other surface, computed once for all tolerances.

    Args:
        pred: boolean, 3D, not empty.
        label: likewise, of the same shape.
        spacing: voxel size in mm, one for each axis.
    """

    def __init__(self, pred: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> None:
        (pred_points, self.pred_area), (label_points, self.label_area) = surface_elements(pred, label, spacing)
        self.to_label, self.to_pred = nearest_distances(pred_points, label_points)

    def share_within(self, tolerance_mm: float) -> float:
        """Share of both surfaces' area within a tolerance of the other surface (Nikolov et al. 2018).

        Equal to MONAI's `compute_surface_dice(use_subvoxels=True)`.
        """
        # A distance that equals the tolerance up to rounding counts as within it.
        limit = tolerance_mm * (1 + 1e-9)
        right = self.pred_area[self.to_label <= limit].sum() + self.label_area[self.to_pred <= limit].sum()
        return float(right / (self.pred_area.sum() + self.label_area.sum()))


def hausdorff95(pred: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles over surface voxels.

    Equal to MONAI's `compute_hausdorff_distance(percentile=95)` with the spacing given.

    Args:
        pred: boolean, 3D, not empty.
        label: likewise, of the same shape.
        spacing: voxel size in mm, one for each axis.
    """
    points = (surface_voxels(mask) * np.asarray(spacing, dtype=np.float64) for mask in (pred, label))
    return max(float(np.percentile(distances, HAUSDORFF_PERCENTILE)) for distances in nearest_distances(*points))


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """(n, 3) indices of the voxels that have a face on the outside; beyond the volume is outside."""
    return np.argwhere(mask & ~binary_erosion(mask))


def surface_elements(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Surface elements of two masks: their places in mm, (n, 3), and areas in mm2, (n,).

    An element lies where eight voxels meet and not all are alike; its area is that of the marching-cubes surface
    through it, by MONAI's table. The volume is worked through in slabs, to hold no map of its size.
    """
    padded = [np.pad(mask, 1) for mask in (pred, label)]
    places: list[list[np.ndarray]] = [[], []]
    areas: list[list[np.ndarray]] = [[], []]
    for start in range(0, padded[0].shape[0] - 1, SLAB):
        slabs = [mask[start : start + SLAB + 1] for mask in padded]  # one plane of overlap: elements lie between
        if not any(slab.any() for slab in slabs):
            continue
        tensors = [torch.from_numpy(np.ascontiguousarray(slab)).to(torch.float16) for slab in slabs]
        with warnings.catch_warnings():
            # MONAI warns about an argument of its own that is to go, once for each call.
            warnings.simplefilter("ignore")
            found = get_mask_edges(tensors[0], tensors[1], crop=False, spacing=list(spacing))
        for i in (0, 1):
            edges, area = found[i].numpy(), found[i + 2].numpy()
            places[i].append(np.argwhere(edges) + np.array([start, 0, 0]))
            areas[i].append(area[edges].astype(np.float64))
    return [
        (np.concatenate(places[i]) * np.asarray(spacing, dtype=np.float64), np.concatenate(areas[i])) for i in (0, 1)
    ]


def nearest_distances(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each point of either list the distance to the nearest point of the other; lists are (n, 3), not empty."""
    return cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]
