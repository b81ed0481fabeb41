"""AMOS22: abdominal organs in CT and MRI, told apart by the case's number.

Layout (Ji et al., arXiv 2206.08023; readme of `amos22.zip`, zenodo 7262581): one folder `amos22` with `dataset.json`,
`imagesTr`, `labelsTr`, `imagesVa`, `labelsVa` and `imagesTs`; files are named `amos_0001.nii.gz`, alike for image and
label. The readme says that numbers below 500 are CT and the others MRI; 200 CT and 40 MRI are in `Tr`, 100 and 20 in
`Va`. Labels are 1 to 15; `dataset.json` spells the aorta "arota". Labels of `Ts` are not public. Here `Va`, which is
labelled and set apart by the challenge, becomes the test set, and validation patients come out of `Tr`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from boltzformer.data.prepare.msd import copy_pair
from boltzformer.data.prepare.plan import DatasetPlan, PlannedCase, Structure
from boltzformer.data.prepare.source import Source
from boltzformer.errors import InputError

FIRST_MRI = 500
STRUCTURES = {
    1: Structure("spleen", ("splenic organ",)),
    2: Structure("right kidney", ("kidney on the right side",)),
    3: Structure("left kidney", ("kidney on the left side",)),
    4: Structure("gallbladder", ("gall bladder",)),
    5: Structure("esophagus", ("oesophagus", "gullet")),
    6: Structure("liver", ("hepatic organ",)),
    7: Structure("stomach", ("gastric organ",)),
    8: Structure("aorta", ("abdominal aorta",)),
    9: Structure("inferior vena cava", ("postcava", "IVC")),
    10: Structure("pancreas", ("pancreatic gland",)),
    11: Structure("right adrenal gland", ("right suprarenal gland",)),
    12: Structure("left adrenal gland", ("left suprarenal gland",)),
    13: Structure("duodenum", ("first part of the small bowel",)),
    14: Structure("bladder", ("urinary bladder",)),
    15: Structure("prostate or uterus", ("prostate", "uterus")),
}
_OFFICIAL = {4: "gall bladder", 8: "arota", 9: "postcava", 15: "prostate/uterus"}
"""Names in the archive's `dataset.json` that differ from ours."""


def plan_amos(source: Source) -> list[DatasetPlan]:
    """Plan AMOS22's CT and MRI cases as two datasets.

    Args:
        source: `amos22.zip`, or its unpacked folder.

    Returns:
        a plan for `AMOS22_CT` and one for `AMOS22_MR`; a modality without cases is left out.

    Raises:
        InputError: another label table, listed files that are not there, or a case without a number.
    """
    index = source.find_one("dataset.json")
    content = source.read_json(index)
    _check_labels(source, content.get("labels"))
    root = PurePosixPath(index).parent
    cases: dict[str, list[PlannedCase]] = {"CT": [], "MR": []}
    for section, mark in (("training", ""), ("validation", "test")):
        for item in content.get(section) or []:
            case = _case(source, root, item, mark)
            cases["MR" if _number(source, case.name) >= FIRST_MRI else "CT"].append(case)
    if not any(cases.values()):
        raise InputError(f"{source.path}: its dataset.json lists no labelled cases.")
    return [_plan(modality, found, content) for modality, found in cases.items() if found]


def _plan(modality: str, cases: list[PlannedCase], content: Mapping[str, Any]) -> DatasetPlan:
    return DatasetPlan(
        name=f"AMOS22_{modality}",
        description=f"AMOS22, the {modality} cases: 15 abdominal organs",
        reference="Ji et al., AMOS, NeurIPS 2022 Datasets and Benchmarks",
        licence=str(content.get("licence", "")) or "see the archive's readme",
        modality=modality,
        body_part="abdominal",
        structures=STRUCTURES,
        cases=cases,
        parameters={"family": "amos", "modality": modality},
        notes=("the challenge's labelled validation cases (Va) are the test list",),
    )


def _check_labels(source: Source, labels: Any) -> None:
    found = {str(k): _plain(v) for k, v in labels.items()} if isinstance(labels, Mapping) else {}
    for value, structure in STRUCTURES.items():
        allowed = {_plain(structure.name), _plain(_OFFICIAL.get(value, structure.name))}
        if found.get(str(value)) not in allowed:
            raise InputError(
                f"{source.path}: label {value} is {found.get(str(value))!r} where AMOS22 has "
                f"{_OFFICIAL.get(value, structure.name)!r}; this is another label table."
            )


def _case(source: Source, root: PurePosixPath, item: Any, section: str) -> PlannedCase:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("image", "label")):
        raise InputError(f"{source.path}: an item of its dataset.json is no pair of image and label: {item!r}.")
    image, label = str(root / item["image"]), str(root / item["label"])
    source.require([image, label], "its dataset.json lists")
    name = PurePosixPath(image).name.removesuffix(".nii.gz")
    return PlannedCase(name, name, copy_pair(source, image, label), source.sizes[image] + source.sizes[label], section)


def _number(source: Source, name: str) -> int:
    match = re.fullmatch(r"amos_(\d{4})", name)
    if match is None:
        raise InputError(f"{source.path}: '{name}' is not named like amos_0001, so CT and MRI cannot be told apart.")
    return int(match.group(1))


def _plain(name: Any) -> str:
    return " ".join(str(name).lower().replace("_", " ").split())
