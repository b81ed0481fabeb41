"""CT-like phantoms with labelled small objects: data to run on where there is none.

A phantom is a chest of ellipsoids and tubes in Hounsfield units, with noise and partial-volume edges. Three
structures are labelled: lung nodules from 0.005 % to 0.5 % of a slice, an aorta of 0.05 to 0.25 %, and a
liver of up to 5 %. Unlabelled look-alikes (lung vessels, a vena cava, a spleen) of similar intensity forbid a
mere threshold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from boltzformer.data.folders import folder_lock, new_folder
from boltzformer.data.phantom_anatomy import DEFAULT_SIZE, LABELS, check_size, make_phantom
from boltzformer.errors import InputError

PHANTOM_VERSION = 1


def write_phantoms(
    out_dir: str | Path,
    num_training: int = 20,
    num_validation: int = 6,
    size: Sequence[int] = DEFAULT_SIZE,
    seed: int = 0,
) -> bool:
    """Write a set of phantoms in Medical Segmentation Decathlon layout, unless it is there already.

    The set is written to a temporary folder and renamed, so that a killed run leaves no half set; a phantom
    set with other parameters is replaced. Several processes may call it at once: one writes, the others wait.

    Args:
        out_dir: folder of the set.
        num_training: number of training volumes, at least 1.
        num_validation: number of validation volumes, at least 1.
        size: see `make_phantom`.
        seed: of the set; volume i of a seed is the same whatever the numbers.

    Returns:
        whether the set was written now.

    Raises:
        InputError: bad numbers, a folder that holds something else, no right to write there, or a full disk.
    """
    if num_training < 1 or num_validation < 1:
        raise InputError("phantoms: num_training and num_validation must be at least 1.")
    out_dir = Path(out_dir)
    parameters = {
        "version": PHANTOM_VERSION,
        "num_training": int(num_training),
        "num_validation": int(num_validation),
        "size": list(check_size(size)),
        "seed": int(seed),
    }
    with folder_lock(out_dir):
        if _existing_parameters(out_dir) == parameters:
            return False
        with new_folder(out_dir) as folder:
            _write_set(folder, parameters)
    return True


def dataset_or_phantoms(
    dataset_dir: str | Path | Sequence[str] | None, default_dir: str | Path, **parameters: Any
) -> str | list[str]:
    """Give the data folder to use: the user's, or a set of phantoms, generated where it is missing.

    Args:
        dataset_dir: the user's dataset, several of them, or None (or empty) for phantoms.
        default_dir: folder of the phantoms.
        **parameters: of `write_phantoms`.

    Returns:
        the folder, or the list of folders; where it is the phantoms', one line on the screen says so.

    Raises:
        InputError: see `write_phantoms`.
    """
    if dataset_dir:
        return str(dataset_dir) if isinstance(dataset_dir, str | Path) else [str(folder) for folder in dataset_dir]
    made = write_phantoms(default_dir, **parameters)
    verb = "generated" if made else "using the"
    print(f"No dataset given: {verb} CT-like phantom volumes in {default_dir}", flush=True)
    return str(default_dir)


def _existing_parameters(out_dir: Path) -> dict[str, Any] | None:
    """Read the parameters of the set in a folder; refuse a folder that holds anything else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    try:
        content = json.loads((out_dir / "dataset.json").read_text(encoding="utf-8"))
        parameters = dict(content["phantom"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{out_dir}: exists and holds no phantoms; choose another folder for them.") from None
    files = [out_dir / item[key] for item in content["training"] + content["validation"] for key in ("image", "label")]
    return parameters if all(file.is_file() for file in files) else {}


def _write_set(folder: Path, parameters: dict[str, Any]) -> None:
    (folder / "imagesTr").mkdir()
    (folder / "labelsTr").mkdir()
    sections: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for which, (section, items) in enumerate(sections.items()):
        for number in range(parameters[f"num_{section}"]):
            image, label, affine = make_phantom(parameters["size"], (parameters["seed"], which, number))
            name = f"phantom_{section}_{number:03d}.nii.gz"
            for kind, array in (("images", image), ("labels", label)):
                nib.save(_nifti(array, affine), folder / f"{kind}Tr" / name)
            items.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "BoltzFormer phantoms",
        "description": "Generated CT-like chest volumes with small labelled objects; no patient data",
        "licence": "CC0 1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "body_part": "chest",
        "annotated": "all",
        "labels": {str(value): name for value, name in LABELS.items()},
        "numTraining": len(sections["training"]),
        "numTest": 0,
        **sections,
        "test": [],
        "phantom": parameters,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image
