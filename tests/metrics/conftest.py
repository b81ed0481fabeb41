"""A small labelled data set on disk, with predictions in each layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-2.0, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 3.0, -40], [0, 0, 0, 1]])  # LPS, anisotropic
OBJECTS = {1: "liver lesion", 2: "left kidney"}


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def label_map(seed: int) -> np.ndarray:
    """Two lesions (value 1) and a box (value 2) in 24 x 20 x 12 voxels, moved about by the seed."""
    label = np.zeros((24, 20, 12), np.uint8)
    label[2 + seed : 5 + seed, 3:6, 2:4] = 1
    label[15, 15, 8] = 1
    label[8:20, 8:14, 4:10] = 2
    return label


@pytest.fixture
def make_volume() -> Callable[..., Path]:
    return write_volume


@pytest.fixture
def labels_dir(tmp_path: Path) -> Path:
    for i in range(3):
        write_volume(tmp_path / "labels" / f"case_{i}.nii.gz", label_map(i))
    return tmp_path / "labels"


@pytest.fixture
def exact_predictions(tmp_path: Path) -> Path:
    """Label maps equal to the labels, nnU-Net's layout."""
    for i in range(3):
        write_volume(tmp_path / "exact" / f"case_{i}.nii.gz", label_map(i))
    return tmp_path / "exact"
