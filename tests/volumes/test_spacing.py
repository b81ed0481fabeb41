"""Voxel sizes, and whether they mean anything."""

from __future__ import annotations

import math

import pytest
import torch
from boltzformer.volumes.spacing import SPACING_KNOWN, has_spacing, is_known, spacing_of
from monai.data import MetaTensor

# turned by a quarter about Z, and sheared not at all: columns of 2, 3 and 4 mm
AFFINE = torch.tensor([[0.0, -3.0, 0.0, 9.0], [2.0, 0.0, 0.0, -9.0], [0.0, 0.0, 4.0, 5.0], [0.0, 0.0, 0.0, 1.0]])


def test_sizes_are_along_the_voxels_own_axes():
    volume = MetaTensor(torch.zeros(1, 2, 2, 2), affine=AFFINE)
    assert spacing_of(volume) == (2.0, 3.0, 4.0)
    assert spacing_of(volume[None]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("said", [False, torch.tensor([True, False])])
def test_what_means_nothing_is_not_a_number(said):
    volume = MetaTensor(torch.zeros(1, 2, 2, 2), affine=AFFINE, meta={SPACING_KNOWN: said})
    for unknown in (volume, torch.zeros(1, 2, 2, 2)):
        assert all(math.isnan(mm) for mm in spacing_of(unknown))
    assert not has_spacing({SPACING_KNOWN: said})
    assert has_spacing({})
    assert has_spacing({SPACING_KNOWN: torch.tensor([True])})


def test_one_unknown_size_makes_all_useless():
    assert is_known(1.0)
    assert is_known(1.0, 2.5)
    for sizes in ([math.nan], [1.0, math.nan], [0.0]):
        assert not is_known(*sizes)
