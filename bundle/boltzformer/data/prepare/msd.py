"""Medical Segmentation Decathlon: Task06 Lung, Task07 Pancreas, Task08 HepaticVessel, Task10 Colon.

Layout (http://medicaldecathlon.com, Simpson et al., arXiv 1902.09063; Antonelli et al., Nature Communications 2022): a
tar without compression, `Task06_Lung.tar`, holds one folder `Task06_Lung` with `dataset.json`, `imagesTr`, `labelsTr`
and `imagesTs`, all `.nii.gz`, and beside nearly every file a `._` file of the Finder that is no image. `dataset.json`
lists `training` as pairs of `./imagesTr/lung_001.nii.gz` and `./labelsTr/lung_001.nii.gz`, `test` as image names alone
(their labels are not public, so they are left out here, and a labelled test set is split off by patient), and `labels`
from value to name. Every volume is another patient's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from boltzformer.data.prepare.plan import DatasetPlan, PlannedCase, Structure, Writer
from boltzformer.data.prepare.source import Source
from boltzformer.errors import InputError

_TUMOUR = ("tumor", "cancer", "malignant lesion")


@dataclass(frozen=True)
class MsdTask:
    """A task of the Decathlon.

    Attributes:
        folder: its official name.
        name: of the prepared dataset.
        body_part: as prompts word it.
        labels: label value to the official name in `dataset.json`.
        structures: label value to the object that prompts ask for.
    """

    folder: str
    name: str
    body_part: str
    labels: Mapping[int, str]
    structures: Mapping[int, Structure]


TASKS = (
    MsdTask(
        "Task06_Lung",
        "MSD_Lung",
        "lung",
        {1: "cancer"},
        {1: Structure("neoplasm", ("lung tumor", "lung cancer", "tumor", "lung mass"))},
    ),
    MsdTask(
        "Task07_Pancreas",
        "MSD_Pancreas",
        "pancreas",
        {1: "pancreas", 2: "cancer"},
        {
            1: Structure("pancreas", ("pancreatic parenchyma",), "abdominal"),
            2: Structure("neoplasm", ("pancreatic tumor", "pancreatic mass", *_TUMOUR)),
        },
    ),
    MsdTask(
        "Task08_HepaticVessel",
        "MSD_HepaticVessel",
        "liver",
        {1: "Vessel", 2: "Tumour"},
        {
            1: Structure("hepatic vessel", ("liver vessel", "vessel", "intrahepatic vessel")),
            2: Structure("neoplasm", ("liver tumor", "hepatic tumor", "liver lesion", *_TUMOUR)),
        },
    ),
    MsdTask(
        "Task10_Colon",
        "MSD_Colon",
        "colon",
        {1: "colon cancer primaries"},
        {1: Structure("neoplasm", ("colon tumor", "primary colon cancer", "colorectal tumor", *_TUMOUR))},
    ),
)


def plan_msd(source: Source) -> list[DatasetPlan]:
    """Plan one task of the Decathlon.

    Args:
        source: the task's tar, or its unpacked folder.

    Returns:
        a list of one plan.

    Raises:
        InputError: another task or another label table than the official one, files that `dataset.json` lists and that
            are not there, or fewer cases than it states.
    """
    index = source.find_one("dataset.json")
    content = source.read_json(index)
    task = _task(source, index, content)
    _check_labels(source, task, content.get("labels"))
    root = PurePosixPath(index).parent
    pairs = [_pair(source, root, item) for item in _training(source, content)]
    source.require([name for pair in pairs for name in pair], f"{index} lists")
    return [
        DatasetPlan(
            name=task.name,
            description=f"{task.folder} of the Medical Segmentation Decathlon",
            reference=str(content.get("reference", "")) or "Antonelli et al., Nature Communications 2022",
            licence=str(content.get("licence", "")) or "CC BY-SA 4.0",
            modality="CT",
            body_part=task.body_part,
            structures=task.structures,
            cases=[_case(source, image, label) for image, label in pairs],
            parameters={"family": "msd", "task": task.folder},
            notes=("the task's own test images have no public labels and are left out",),
        )
    ]


def copy_pair(source: Source, image: str, label: str) -> Writer:
    """A writer that copies two files as they are.

    Args:
        source: holds them.
        image: name of the image there, `.nii.gz`.
        label: name of its label map there, `.nii.gz`.
    """

    def write(to_image: Path, to_label: Path) -> dict[str, Any]:
        source.copy(image, to_image)
        source.copy(label, to_label)
        return {"image": image, "label": label}

    return write


def _task(source: Source, index: str, content: Mapping[str, Any]) -> MsdTask:
    """The task by its folder, else by the name in its JSON, else by the archive's name."""
    names = [PurePosixPath(index).parent.name, str(content.get("name", "")), source.path.name]
    for name in names:
        for task in TASKS:
            short = task.folder.split("_")[1].lower()
            if name.lower() == short or task.folder.lower() in name.lower():
                return task
    raise InputError(
        f"{source.path}: is '{names[0] or names[1]}', none of {', '.join(task.folder for task in TASKS)}; other "
        "tasks are in Decathlon layout already and can be given to training as they are."
    )


def _check_labels(source: Source, task: MsdTask, labels: Any) -> None:
    found = {str(k): str(v).lower() for k, v in labels.items()} if isinstance(labels, Mapping) else {}
    found.pop("0", None)
    expected = {str(value): name.lower() for value, name in task.labels.items()}
    if found != expected:
        raise InputError(
            f"{source.path}: its labels are {found or 'not stated'} where {task.folder} has {expected}; "
            "this is another version of the task, whose masks would get wrong names."
        )


def _training(source: Source, content: Mapping[str, Any]) -> list[Any]:
    items = content.get("training")
    if not isinstance(items, list) or not items:
        raise InputError(f"{source.path}: its dataset.json lists no training cases.")
    stated = content.get("numTraining")
    if isinstance(stated, int) and stated > len(items):
        raise InputError(f"{source.path}: its dataset.json states {stated} training cases and lists {len(items)}.")
    return items


def _pair(source: Source, root: PurePosixPath, item: Any) -> tuple[str, str]:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("image", "label")):
        raise InputError(f"{source.path}: a training item of its dataset.json is no pair of image and label: {item!r}.")
    return str(root / item["image"]), str(root / item["label"])


def _case(source: Source, image: str, label: str) -> PlannedCase:
    name = PurePosixPath(image).name.removesuffix(".nii.gz")
    return PlannedCase(name, name, copy_pair(source, image, label), source.sizes[image] + source.sizes[label])
