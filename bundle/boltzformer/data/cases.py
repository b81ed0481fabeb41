"""Lists of cases: which volume, which label map, whose, and what its labels mean."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer.data.case_checks import (
    check_apart,
    check_files,
    check_images_apart,
    check_labels_apart,
    check_once,
    goes_by_its_name,
)
from boltzformer.data.datalist import Case, read_item
from boltzformer.errors import InputError
from boltzformer.json_file import read_json

logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation", "test")
ALL = "all"
"""In a section's place: training and validation list together, neither split."""


def load_cases(
    dataset: str | Path | Sequence[str | Path],
    section: str = "training",
    validation_share: float = 0.2,
    seed: int = 0,
    patient_pattern: str | None = None,
) -> list[Case]:
    """Read the cases of a section of one or several datasets.

    A dataset is a folder in Medical Segmentation Decathlon layout (with `dataset.json`) or a datalist JSON:
    the same keys, or a bare list of items as its `training` section. File names are relative to the JSON's
    folder. An item has `image` and `label`, and optionally `patient`, `modality`, `body_part`, `labels` (or
    `objects`), `prompts`, `annotated`, `window` and `"spacing": "unknown"` (the files' voxel size means nothing);
    what an item lacks it takes from the top of the JSON.
    Where there is no `validation` list, `validation_share` of the training patients is set apart, by patient,
    the same ones for the same seed.

    Args:
        dataset: folder or JSON file, or several of them, whose cases are joined.
        section: "training", "validation", "test" (whose items may be without a label), or "all" for the training and
            the validation list, as far as they are there.
        validation_share: share of patients in [0, 1) to set apart where the dataset has no validation list; 0
            keeps all of them for training.
        seed: of the split.
        patient_pattern: regular expression whose first group (or whole match) in the image's file name is the
            patient, for datasets with several volumes a patient and no `patient` key.

    Returns:
        cases in the dataset's order: `image`, `label` (paths), `patient`, `dataset`, `modality` ("CT", "MR",
        another or empty), `body_part` (may be empty), `objects` {label value: name}; `prompts` {label value:
        wordings}, `annotated` (label values annotated even where absent), `window` and `spacing_known` (False)
        where the dataset gives them.

    Raises:
        InputError: a file is missing, the JSON is malformed, the section is empty, patients are shared
            between the training and validation lists, an image of one dataset's training list is in the validation
            list of another or in the test list, an item is listed twice or its image is its own label, images of one
            label map pass for several patients, or there are too few patients to split. All missing files come at once.
            Between datasets one patient's name in both is only told: file names, which stand in for it, may begin anew.
    """
    if section not in (*SECTIONS, ALL):
        raise InputError(f"section: expected one of {', '.join((*SECTIONS, ALL))}, found {section!r}.")
    if not 0 <= validation_share < 1:
        raise InputError(f"validation_share: expected a number in [0, 1), found {validation_share}.")
    if not isinstance(dataset, (str, Path)):
        if not dataset:
            raise InputError("dataset: the list of datasets is empty.")
        joined = [c for one in dataset for c in load_cases(one, section, validation_share, seed, patient_pattern)]
        if section != "test" and len(dataset) > 1:
            _check_datasets_apart(dataset, section, validation_share, seed, patient_pattern)
        return joined
    path = _datalist_of(dataset)
    content = _read_json(path)
    if section == ALL:
        cases = _all_cases(content, path, patient_pattern)
    else:
        cases = _cases_of(content, path, section, validation_share, seed, patient_pattern)
    if not cases:
        raise InputError(f"{path}: the {section} list is empty; add items with `image` and `label`.")
    check_files(cases, path)
    return cases


def list_images(dataset: str | Path, section: str = "") -> list[Case]:
    """The images of a dataset to segment; neither labels nor their names are needed, and no file is looked for.

    Args:
        dataset: see `load_cases`.
        section: "training", "validation" or "test". Empty takes the test images, else the validation images, else all
            of a bare list, else the share of the training images that `load_cases` sets apart.

    Returns:
        cases with `image`, `modality` and `body_part` at least.

    Raises:
        InputError: the JSON is malformed, or lists nothing there.
    """
    path = _datalist_of(dataset)
    content = _read_json(path)
    if section and section not in SECTIONS:
        raise InputError(f"section: expected one of {', '.join(SECTIONS)}, found {section!r}.")
    chosen = section or next((name for name in ("test", "validation") if content.get(name)), "training")
    cases = _section_cases(content, path, chosen, None, needs_label=False)
    if not cases:
        raise InputError(f"{path}: the {chosen} list is empty; add images, or choose another `section`.")
    if not section and chosen == "training" and set(content) != {"training"}:
        total, cases = len(cases), _split(cases, "validation", 0.2, 0, path)
        logger.info("%s: has neither test nor validation images; %d of %d set apart", path, len(cases), total)
    else:
        logger.info("%s: %d %s images", path, len(cases), chosen)
    return cases


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(
            f"{path}: no such file; give a folder with a dataset.json (Decathlon layout) or a datalist JSON."
        )
    content = read_json(path, "datalist")
    if isinstance(content, list):
        content = {"training": content}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object with a `training` list, or a list of items.")
    return content


def _section_cases(
    content: Mapping[str, Any], path: Path, section: str, pattern: str | None, needs_label: bool | None = None
) -> list[Case]:
    items = content.get(section)
    if items is None and section == "training":
        if "channel_names" in content:
            raise InputError(
                f"{path}: is a raw dataset of nnU-Net, which lists no files; `boltzformer prepare nnunet {path.parent} "
                "OUT` makes a dataset of it."
            )
        there = next((name for name in ("test", "validation") if content.get(name)), "")
        score = f", or score its `{there}` list with --section {there}" if there else ""
        raise InputError(f"{path}: has no `training` list; list items with `image` and `label` there{score}.")
    if not isinstance(items or [], list):
        raise InputError(f"{path}: `{section}` must be a list, found {type(items).__name__}.")
    if needs_label is None:
        needs_label = section != "test"
    cases = [
        read_item(item, content, path, f"{path}, {section} item {number}", needs_label, pattern)
        for number, item in enumerate(items or [], start=1)
    ]
    check_once([case for case in cases if "label" in case], path)
    return cases


def _cases_of(
    content: Mapping[str, Any], path: Path, section: str, share: float, seed: int, pattern: str | None
) -> list[Case]:
    """The cases of one section, held against the others; the validation list may come of a split."""
    cases = _section_cases(content, path, section, pattern)
    other = "validation" if section == "training" else "training"
    if section == "test":
        if content.get("training"):
            trained = _section_cases(content, path, "training", pattern, needs_label=False)
            check_images_apart(trained, str(path), cases, "its test list", tell=True)
    elif content.get("validation"):
        if content.get(other):  # a held-out set may have a `validation` list alone
            check_apart(cases, _section_cases(content, path, other, pattern), path)
    else:
        pool = _section_cases(content, path, "training", pattern)
        check_labels_apart(pool, path)
        cases = _split(pool, section, share, seed, path)
        if section == "validation":
            patients = [len({case["patient"] for case in some}) for some in (cases, pool)]
            logger.warning(
                "%s has no `validation` list: %d of %d cases (%d of %d patients, %.0f %% split) are taken for it.",
                *(path, len(cases), len(pool), *patients, 100 * share),
            )
    return cases


def _all_cases(content: Mapping[str, Any], path: Path, pattern: str | None) -> list[Case]:
    """Training and validation list together; a held-out set may have the second alone."""
    held_out = _section_cases(content, path, "validation", pattern)
    training = _section_cases(content, path, "training", pattern) if content.get("training") or not held_out else []
    check_apart(training, held_out, path)
    if not training and not held_out:
        raise InputError(f"{path}: the training and validation lists are empty; add items with `image` and `label`.")
    return training + held_out


def _split(pool: list[Case], section: str, share: float, seed: int, path: Path) -> list[Case]:
    """Set apart a share of the patients, never a part of one patient's volumes."""
    patients = sorted({case["patient"] for case in pool})
    if share == 0 and section == "training":
        return pool
    if share == 0:
        raise InputError(f"{path}: has no `validation` list; add one, or set validation_share above 0.")
    if len(patients) < 2:
        name = Path(pool[0]["image"]).name if pool else ""
        alike = len(pool) > 1 and all(Path(case["image"]).name == name and goes_by_its_name(case) for case in pool)
        cure = (
            f"all {len(pool)} images are called {name}, which stands for the patient: give each item its `patient`"
            if alike
            else "add a `validation` list, or take all that is there: `--section all` scores it, `--section training` "
            "segments it"
        )
        raise InputError(f"{path}: {len(patients)} patient(s) cannot be split into training and validation; {cure}.")
    count = min(max(round(share * len(patients)), 1), len(patients) - 1)
    order = np.random.default_rng(seed).permutation(len(patients))
    held_out = {patients[i] for i in order[:count]}
    return [case for case in pool if (case["patient"] in held_out) == (section == "validation")]


def _check_datasets_apart(
    datasets: Sequence[str | Path], section: str, validation_share: float, seed: int, pattern: str | None
) -> None:
    """What one dataset trains must not validate another."""
    lists: list[tuple[str, list[Case], list[Case]]] = []
    for one in datasets:
        path = _datalist_of(one)
        content = _read_json(path)
        training = _section_cases(content, path, "training", pattern) if content.get("training") else []
        held_out = _section_cases(content, path, "validation", pattern)
        if training and not held_out and validation_share:
            held_out, training = (
                _split(training, name, validation_share, seed, path) for name in ("validation", "training")
            )
        lists.append((str(path), training, held_out))
    tell = section == "validation"  # once: both sections are read for a training
    for (name, training, _), (other, _, held_out) in itertools.permutations(lists, 2):
        if other != name:
            check_images_apart(training, name, held_out, f"the validation list of {other}", tell)


def _datalist_of(dataset: str | Path) -> Path:
    path = Path(dataset)
    return path / "dataset.json" if path.is_dir() else path
