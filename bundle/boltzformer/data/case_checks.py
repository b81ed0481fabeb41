"""What the lists of a dataset must satisfy: nothing twice, nothing missing, no patient on both sides."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer.data.datalist import Case, patient_of_name
from boltzformer.errors import InputError

logger = logging.getLogger(__name__)

_MAX_LISTED = 20


def check_apart(cases: list[Case], others: list[Case], path: Path) -> None:
    """Refuse patients that are in the training and in the validation list."""
    shared = sorted({case["patient"] for case in cases} & {case["patient"] for case in others})
    if shared:
        raise InputError(
            f"{path}: {len(shared)} patient(s) are in both the training and the validation list "
            f"({', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}); keep each patient in one of "
            "them."
        )
    check_labels_apart([*cases, *others], path)


def check_labels_apart(cases: list[Case], path: Path) -> None:
    """Refuse images of one label map, such as the sequences of an MR, that pass for several patients by their names.

    One would be trained on and another scored. A `patient` that an item gives is believed.
    """
    images: dict[str, set[str]] = {}
    for case in cases:
        if "label" in case and goes_by_its_name(case):
            images.setdefault(case["label"], set()).add(case["image"])
    shared = {label: sorted(some) for label, some in images.items() if len(some) > 1}
    if shared:
        label, some = next(iter(shared.items()))
        raise InputError(
            f"{path}: {label} is the label map of {_some([Path(image).name for image in some])}, whose names stand for "
            "different patients, so that one would be trained on and another scored; give each item its `patient`."
        )


def goes_by_its_name(case: Mapping[str, Any]) -> bool:
    """Whether the patient is only the image's file name."""
    return bool(case["patient"] == patient_of_name(case["image"]))


def _image_file(case: Mapping[str, Any]) -> str:
    """Where the image lies, whatever links lead there."""
    return os.path.realpath(case["image"])


def check_images_apart(training: list[Case], name: str, held_out: list[Case], where: str, tell: bool) -> None:
    """Refuse one image in a training list and in one that scores; tell of one patient's name in both."""
    images, patients = (
        sorted(set(map(told, training)) & set(map(told, held_out)))
        for told in (_image_file, lambda case: case["patient"])
    )
    if images:
        raise InputError(
            f"{name}: {_some(images)} of its training list: also in {where}, to score what it has taught. Keep "
            "a patient's images in lists of one kind; datasets of the same images need `validation` lists that agree."
        )
    if patients and tell:
        logger.warning(
            "%s: patients of its training list are named in %s too (%s): unless they are others, scores are too good; "
            "if they are, give each a `patient` of its own in the datalists",
            *(name, where, _some(patients)),
        )


def check_once(cases: list[Case], path: Path) -> None:
    """Refuse an item that is listed twice, and one whose image is its own label."""
    seen: set[tuple[str, str]] = set()
    for case in cases:
        files = (_image_file(case), os.path.realpath(case["label"]))
        if files[0] == files[1]:
            raise InputError(f"{path}: {case['image']} is image and label of one item; name the label map.")
        # an image may come again with the label map of another object
        if files in seen:
            raise InputError(f"{path}: {case['image']} is listed twice; remove one, or it counts twice.")
        seen.add(files)


def check_files(cases: list[Case], path: Path) -> None:
    """Refuse files that are not there, all of them in one error."""
    files = [case[key] for case in cases for key in ("image", "label") if key in case]
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        listed = "\n  ".join(missing[:_MAX_LISTED])
        more = f"\n  and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        if Path(missing[0].replace(".nii", "_0000.nii")).is_file():
            more += (
                f"\nWith _0000 they do: `boltzformer prepare nnunet {path.parent} OUT` reads nnU-Net's raw datasets."
            )
        raise InputError(
            f"{path}: {len(missing)} of {len(files)} files do not exist; correct the paths or copy them:\n  "
            f"{listed}{more}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
