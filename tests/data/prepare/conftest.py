"""Small archives made to the published layouts."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])
MSD_LABELS = {
    "Task06_Lung": {"0": "background", "1": "cancer"},
    "Task07_Pancreas": {"0": "background", "1": "pancreas", "2": "cancer"},
    "Task08_HepaticVessel": {"0": "background", "1": "Vessel", "2": "Tumour"},
    "Task10_Colon": {"0": "background", "1": "colon cancer primaries"},
}
AMOS_LABELS = [
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gall bladder",
    "esophagus",
    "liver",
    "stomach",
    "arota",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate/uterus",
]


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def volume(seed: int, shape: tuple[int, int, int] = (12, 10, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


def labels(values: list[int], shape: tuple[int, int, int] = (12, 10, 5)) -> np.ndarray:
    array = np.zeros(shape, dtype=np.uint8)
    for i, value in enumerate(values):
        array[i % shape[0], i // shape[0] : i // shape[0] + 2, 2] = value
    return array


def write_task(folder: Path, task: str = "Task06_Lung", cases: int = 6, seed: int = 0, **changes: Any) -> Path:
    """A Decathlon task with its unlabelled test images and the Finder's `._` files."""
    root = folder / task
    short = task.split("_")[1].lower()
    names = MSD_LABELS.get(task, {"0": "background", "1": "liver"})
    for i in range(cases):
        save(root / "imagesTr" / f"{short}_{i:03d}.nii.gz", volume(seed + i))
        save(root / "labelsTr" / f"{short}_{i:03d}.nii.gz", labels([int(v) for v in names if v != "0"]))
        (root / "imagesTr" / f"._{short}_{i:03d}.nii.gz").write_bytes(b"\0\5\x16\7 no image")
    save(root / "imagesTs" / f"{short}_100.nii.gz", volume(seed + 100))
    content = {
        "name": task.split("_")[1],
        "description": "made by a test",
        "reference": "somewhere",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": names,
        "numTraining": cases,
        "numTest": 1,
        "training": [{key: f"./{key}sTr/{short}_{i:03d}.nii.gz" for key in ("image", "label")} for i in range(cases)],
        "test": [f"./imagesTs/{short}_100.nii.gz"],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def pack(root: Path) -> Path:
    """A tar without compression, as the Decathlon's."""
    archive = root.parent / f"{root.name}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, root.name)
    return archive


@pytest.fixture(scope="session")
def lung_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(write_task(tmp_path_factory.mktemp("msd")))


@pytest.fixture(scope="session")
def amos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four CT and three MRI in `Tr`, one of each in `Va`."""
    root = tmp_path_factory.mktemp("amos") / "amos22"
    numbers = {"training": ("Tr", [1, 4, 5, 499, 500, 507, 590]), "validation": ("Va", [8, 508])}
    content: dict[str, Any] = {
        "name": "AMOS",
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in enumerate(AMOS_LABELS)},
        "numTraining": 7,
        "test": [{"image": "./imagesTs/amos_0002.nii.gz", "label": "./labelsTs/amos_0002.nii.gz"}],
    }
    for section, (short, listed) in numbers.items():
        content[section] = []
        for number in listed:
            pair = {key: f"./{key}s{short}/amos_{number:04d}.nii.gz" for key in ("image", "label")}
            save(root / pair["image"], volume(number))
            save(root / pair["label"], labels(list(range(1, 16))))
            content[section].append(pair)
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def nnunet_folder(tmp_path: Path) -> Callable[..., Path]:
    """A raw dataset of two channels; two scans of each patient."""

    def write(ending: str = ".nii.gz", **changes: Any) -> Path:
        root = tmp_path / "nnUNet_raw" / "Dataset042_BrainMets"
        for patient in range(4):
            for scan in "ab":
                name = f"mets_{patient:02d}{scan}"
                for channel in range(2):
                    image = volume(100 * channel + 10 * patient + ord(scan))
                    save_as(root / "imagesTr" / f"{name}_{channel:04d}{ending}", image)
                save_as(root / "labelsTr" / f"{name}{ending}", labels([1, 2]))
        content = {
            "channel_names": {"0": "T1", "1": "FLAIR"},
            "labels": {"background": 0, "metastasis": 1, "edema": 2},
            "numTraining": 8,
            "file_ending": ending,
            **changes,
        }
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return write


def save_as(path: Path, array: np.ndarray) -> None:
    """Write by the ending: NIfTI by nibabel, the others by SimpleITK, on one grid."""
    if ".nii" in path.name:
        save(path, array)
        return
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((1.5, 1.5, 3.0))  # ITK's world is LPS: AFFINE's negative signs are its positive ones
    sitk.WriteImage(image, str(path))


def gzip_damaged(path: Path) -> None:
    """Flip a byte in the middle of the compressed data."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def tar_of(files: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
