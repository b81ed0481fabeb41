"""Voxel sizes that may not be known: NaN stands in place of mm.

A dataset may say that the voxel size in its files means nothing (`"spacing": "unknown"`); an array without an affine
has none. Whatever counts in mm asks here first, and then leaves every slice as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from boltzformer.errors import InputError

SPACING_KNOWN = "spacing_known"
"""Key of a case, of an item and of a volume's metadata; False where the voxel size in the file means nothing."""


PLACES = "slice_places"
"""Key of a volume's metadata where its slices are not evenly spaced: (slices, 3), where each lies in mm, RAS+."""


def has_spacing(said: Mapping[Any, Any]) -> bool:
    """Whether the voxel size in a file means something.

    Args:
        said: a case, an item, or the metadata of a volume or of a batch of volumes, which holds one answer for each.
    """
    return bool(torch.as_tensor(said.get(SPACING_KNOWN, True)).all())


def is_known(*sizes: float) -> bool:
    """Whether sizes in mm are all known."""
    return all(mm > 0 for mm in sizes)


def cannot_be(found: str) -> InputError:
    """The error for a voxel size that no scanner makes.

    Args:
        found: what it was found in, with the size.
    """
    return InputError(
        f"{found}: the voxel size in the file cannot be true; correct it, or say that it means nothing "
        '(`"spacing": "unknown"` in a datalist, `spacing_known=False` in Python).'
    )


def spacing_of(volume: Any) -> tuple[float, float, float]:
    """Voxel size in mm along X, Y and Z; NaN where it is not known.

    Args:
        volume: a `MetaTensor`, one volume or a batch of which the first counts; a plain tensor has no size.
    """
    affine = getattr(volume, "affine", None)
    if affine is None or not has_spacing(getattr(volume, "meta", {})):
        return math.nan, math.nan, math.nan
    x, y, z = _columns(affine).norm(dim=0).tolist()
    return x, y, z


def uneven_places(volume: Any, axis: int) -> torch.Tensor | None:
    """Where slices lie along an axis, if they are not evenly spaced there: the affine holds their mean distance.

    Args:
        volume: as of `spacing_of`, (..., X, Y, Z).
        axis: of the slices, 0, 1 or 2.

    Returns:
        mm, (slices,) float64 in rising order; None where they are evenly spaced, or their spacing is not known.
    """
    said = getattr(volume, "meta", {})
    if said.get(PLACES) is None or not has_spacing(said):
        return None
    places = torch.as_tensor(said[PLACES], dtype=torch.float64).reshape(-1, 3)
    along = _columns(volume.affine)[:, axis]
    along = along / along.norm()
    whole = places[-1] - places[0]
    if len(places) != volume.shape[axis - 3] or abs(whole @ along) < 0.99 * whole.norm():  # cut along another axis
        return None
    return (places @ along).sort().values


def _columns(affine: Any) -> torch.Tensor:
    return torch.as_tensor(affine, dtype=torch.float64).reshape(-1, 4, 4)[0, :3, :3]
