"""Small volumes that the tests of this room share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data.phantom import write_phantoms

LPS = np.diag([-2.0, -2.0, 3.0, 1.0])


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., str]:
    """Write an array as NIfTI under the test's folder and give the path."""

    def write(name: str, array: np.ndarray, affine: np.ndarray = LPS) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return str(path)

    return write


@pytest.fixture
def make_case(write_nifti: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Write an image and a label and give their case."""

    def make(
        name: str = "a",
        image: np.ndarray | None = None,
        label: np.ndarray | None = None,
        affine: np.ndarray = LPS,
        **entries: Any,
    ) -> dict[str, Any]:
        if label is None:
            label = np.zeros((12, 10, 6), dtype=np.uint8)
            label[3:6, 4:7, 2:4] = 1
            label[8, 8, 2] = 2
        if image is None:
            image = np.random.default_rng(len(name)).integers(-1000, 1000, label.shape).astype(np.int16)
        return {
            "image": write_nifti(f"images/{name}.nii.gz", image, affine),
            "label": write_nifti(f"labels/{name}.nii.gz", label, affine),
            "patient": name,
            "dataset": "toy",
            "modality": "CT",
            "body_part": "chest",
            "objects": {1: "block", 2: "dot", 3: "ghost"},
            **entries,
        }

    return make


@pytest.fixture
def write_datalist(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSON, and an empty file for every image and label that it names."""

    def write(content: Any, name: str = "dataset.json") -> Path:
        items = content if isinstance(content, list) else [i for k in content for i in _items(content[k])]
        for item in items:
            for key in ("image", "label"):
                file = tmp_path / (item[key] if isinstance(item, dict) else item)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


def _items(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else []


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small phantoms in Decathlon layout."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, num_training=2, num_validation=1, size=(64, 64, 16))
    return folder
