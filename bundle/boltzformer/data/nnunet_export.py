"""A Decathlon dataset as one of nnU-Net's raw datasets, on the same split; and its predictions back.

nnU-Net splits by itself into five folds unless `splits_final.json` says otherwise; here fold 0 is this dataset's own
training and validation list. Its label values must be 1, 2, 3, ...: others are renumbered on the way there, and
numbered back in what it predicts.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from boltzformer.data.cases import load_cases
from boltzformer.data.folders import folder_lock, new_folder
from boltzformer.errors import InputError
from boltzformer.output_files import write_bytes

BACK = "boltzformer.json"
"""In the raw dataset: from which dataset it came, and label value there by value here."""
ENDING = ".nii.gz"


def export_dataset(dataset: str | Path, raw_dir: str | Path, number: int) -> Path:
    """Write `raw_dir/Dataset<number>_<name>`: links to the images, label maps, `dataset.json` and the split.

    Args:
        dataset: folder in Decathlon layout with `training` and `validation` lists, and a `test` list or none.
        raw_dir: nnU-Net's folder `nnUNet_raw`.
        number: of the dataset, 1 to 999.

    Returns:
        the dataset's folder. `images_validation` and `images_test` hold what is to be predicted.

    Raises:
        InputError: cases mean different things by their labels, have several modalities, or are no `.nii.gz`; or the
            folder exists.
    """
    if not 1 <= number <= 999:
        raise InputError(f"a dataset of nnU-Net has a number from 1 to 999, not {number}.")
    lists = {section: load_cases(dataset, section) for section in ("training", "validation")}
    content = json.loads((Path(dataset) / "dataset.json").read_text(encoding="utf-8"))
    if content.get("test"):
        lists["test"] = load_cases(dataset, "test")
    objects = _objects_of(lists["training"] + lists["validation"], dataset)
    name = re.sub(r"[^A-Za-z0-9]+", "", str(content.get("name") or Path(dataset).name)) or "Dataset"
    target = Path(raw_dir) / f"Dataset{number:03d}_{name}"
    if target.exists():
        raise InputError(f"{target} exists: remove it, or choose another --number.")
    with folder_lock(target), new_folder(target) as folder:
        _write(folder, lists, objects, Path(dataset))
    return target


def _write(
    folder: Path, lists: Mapping[str, Sequence[Mapping[str, Any]]], objects: dict[int, str], source: Path
) -> None:
    values = {value: index for index, value in enumerate(sorted(objects), start=1)}
    for name in ("imagesTr", "labelsTr", *(f"images_{section}" for section in lists if section != "training")):
        (folder / name).mkdir()
    names: dict[str, list[str]] = {section: [_name(case) for case in cases] for section, cases in lists.items()}
    every = [name for listed in names.values() for name in listed]
    if repeated := [name for name in every if every.count(name) > 1]:
        raise InputError(f"{source}: two cases are called {repeated[0]}; rename one.")
    for section, cases in lists.items():
        for case, name in zip(cases, names[section], strict=True):
            image = Path(case["image"])
            if section != "training":
                os.symlink(image, folder / f"images_{section}" / f"{name}_0000{ENDING}")
            if section != "test":
                os.symlink(image, folder / "imagesTr" / f"{name}_0000{ENDING}")
                _write_label(Path(case["label"]), folder / "labelsTr" / f"{name}{ENDING}", values)
    labels = {"background": 0, **{objects[value].replace(" ", "_"): index for value, index in values.items()}}
    modality = lists["training"][0]["modality"] or "unknown"
    description = {
        "channel_names": {"0": modality},
        "labels": labels,
        "numTraining": len(names["training"]) + len(names["validation"]),
        "file_ending": ENDING,
    }
    _write_json(folder / "dataset.json", description)
    _write_json(folder / "splits_final.json", [{"train": names["training"], "val": names["validation"]}])
    back = {"dataset": str(source.resolve()), "values": {str(index): value for value, index in values.items()}}
    _write_json(folder / BACK, back)


def _objects_of(cases: Sequence[Mapping[str, Any]], dataset: str | Path) -> dict[int, str]:
    objects: dict[int, str] = dict(cases[0]["objects"])
    for case in cases:
        if case["objects"] != objects:
            raise InputError(
                f"{dataset}: {case['image']} names other labels than the first case; nnU-Net needs one list."
            )
        if case["modality"] != cases[0]["modality"]:
            raise InputError(f"{dataset}: holds {cases[0]['modality']} and {case['modality']}; make a dataset of each.")
    return objects


def _name(case: Mapping[str, Any]) -> str:
    image = Path(case["image"])
    if not image.name.endswith(ENDING):
        raise InputError(f"{image}: nnU-Net's dataset is written in {ENDING}; convert it first.")
    return image.name.removesuffix(ENDING)


def _write_label(source: Path, target: Path, values: Mapping[int, int]) -> None:
    """A label map as whole numbers in nnU-Net's order: a link where the file has them already."""
    image: Any = nib.load(source)
    stored = np.asanyarray(image.dataobj)
    if stored.dtype.kind in "iu" and all(value == index for value, index in values.items()):
        os.symlink(source.resolve(), target)
        return
    renumbered = np.zeros(stored.shape, np.uint8)
    for value, index in values.items():
        renumbered[stored == value] = index
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    nib.save(nib.Nifti1Image(renumbered, image.affine, header), target)


def number_back(predictions: str | Path, raw_dataset: str | Path) -> int:
    """Give predicted label maps the values of the dataset that they are to be scored on; in place.

    Args:
        predictions: folder of `CASE.nii.gz`, as nnU-Net left them.
        raw_dataset: from `export_dataset`.

    Returns:
        how many files were changed; none where the values are the same.

    Raises:
        InputError: the raw dataset was not written here, or there is no prediction.
    """
    files = sorted(Path(predictions).glob(f"*{ENDING}"))
    if not files:
        raise InputError(f"{predictions}: holds no prediction.")
    values = {int(index): int(value) for index, value in read_back(raw_dataset)["values"].items()}
    if all(index == value for index, value in values.items()):
        return 0
    for file in files:
        image: Any = nib.load(file)
        stored = np.asanyarray(image.dataobj)
        numbered = np.zeros(stored.shape, np.uint8 if max(values.values()) < 256 else np.uint16)
        for index, value in values.items():
            numbered[stored == index] = value
        content = gzip.compress(nib.Nifti1Image(numbered, image.affine).to_bytes(), mtime=0)
        write_bytes(file, content)
    return len(files)


def read_back(raw_dataset: str | Path) -> dict[str, Any]:
    """What `export_dataset` noted: `dataset`, the folder it came from, and `values`.

    Raises:
        InputError: the folder was not written by it.
    """
    file = Path(raw_dataset) / BACK
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"dataset": str(content["dataset"]), "values": dict(content["values"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: cannot be read; write the dataset with `boltzformer nnunet convert`.") from None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
