"""Any raw dataset of nnU-Net.

Layout (nnU-Net v2, documentation/dataset_format.md; Isensee et al., Nature Methods 2021): `Dataset001_Name` with
`dataset.json`, `imagesTr/CASE_0000.nii.gz` (one file a channel, numbered in four digits) and `labelsTr/CASE.nii.gz`.
Version 2 has `channel_names` {"0": "CT"}, `labels` {"background": 0, "tumor": 1} and `file_ending`; version 1 has
`modality` and `labels` {"0": "background", "1": "tumor"}. Optional `imagesTs` with `labelsTs` become the test set.
nnU-Net takes every voxel without a label as background, so all labels count as annotated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import SimpleITK as sitk

from boltzformer.data.datalist import body_part_of
from boltzformer.data.prepare.msd import copy_pair
from boltzformer.data.prepare.plan import DatasetPlan, PlannedCase, Structure, Writer
from boltzformer.data.prepare.source import Source
from boltzformer.errors import InputError
from boltzformer.volumes.modality import normal_modality

_VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")


def plan_nnunet(
    source: Source,
    channel: int = 0,
    patient_pattern: str | None = None,
    body_part: str | None = None,
    modality: str | None = None,
) -> list[DatasetPlan]:
    """Plan a raw dataset of nnU-Net.

    Args:
        source: the dataset's folder, or an archive of it.
        channel: which channel becomes the image; the network reads one.
        patient_pattern: regular expression whose first group (or whole match) in a case's name is its patient; by
            default every case is a patient of its own.
        body_part: for the wordings; by default guessed from the dataset's name.
        modality: CT, MR or another; by default what the channel is called, which may be a way of normalising instead.

    Returns:
        a list of one plan.

    Raises:
        InputError: no such channel, or one whose name is no modality, labels that are regions or "ignore" (a Decathlon
            label map has neither), a file ending that is no volume's, or files that are missing.
    """
    index = source.find_one("dataset.json")
    content = source.read_json(index)
    root = PurePosixPath(index).parent
    name = _name(source, root, content)
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in _VOLUMES:
        raise InputError(f"{source.path}: its files end in {ending}; volumes in {', '.join(_VOLUMES)} can be prepared.")
    structures = {value: Structure(label) for value, label in _labels(source, content.get("labels")).items()}
    channels = _channels(source, content, channel)
    kind = _modality(source, channel, channels[channel]) if modality is None else normal_modality(modality)
    several = f"channel {channel} ({channels[channel]}) of {', '.join(channels.values())} is the image"
    cases = _cases(source, root, channel, ending, patient_pattern)
    stated = content.get("numTraining")
    found = sum(case.section == "" for case in cases)
    if isinstance(stated, int) and stated != found:
        raise InputError(f"{source.path}: its dataset.json states {stated} training cases and {found} are there.")
    part = body_part_of(name) if body_part is None else body_part
    return [
        DatasetPlan(
            name=name,
            description=str(content.get("description", "")) or f"nnU-Net raw dataset {name}",
            reference=str(content.get("reference", "")),
            licence=str(content.get("licence", content.get("license", ""))),
            modality=kind,
            body_part=part,
            structures=structures,
            cases=cases,
            parameters={
                **{"family": "nnunet", "channel": channel, "patient_pattern": patient_pattern, "body_part": part},
                **({} if modality is None else {"modality": kind}),
            },
            notes=(several,) if len(channels) > 1 else (),
        )
    ]


def _name(source: Source, root: PurePosixPath, content: Mapping[str, Any]) -> str:
    name = root.name or source.path.name.split(".")[0] or str(content.get("name", ""))
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def _labels(source: Source, labels: Any) -> dict[int, str]:
    """Label values and names from version 2 (name to value) or 1 (value to name)."""
    if not isinstance(labels, Mapping) or not labels:
        raise InputError(f"{source.path}: its dataset.json names no labels.")
    named: dict[int, str] = {}
    for key, entry in labels.items():
        value, name = (key, entry) if str(key).isdigit() else (entry, key)
        if isinstance(value, list | tuple):
            raise InputError(
                f"{source.path}: label '{name}' is a region of several values {value}; regions overlap, which a label "
                "map cannot hold. Give each value a name of its own."
            )
        if str(name).lower() == "ignore":
            raise InputError(f"{source.path}: has an 'ignore' label; complete or drop those cases first.")
        if not str(value).isdigit():
            raise InputError(f"{source.path}: label '{name}' has the value {value!r}, which is no whole number.")
        if int(value):
            named[int(value)] = " ".join(str(name).replace("_", " ").split())
    return dict(sorted(named.items()))


def _channels(source: Source, content: Mapping[str, Any], channel: int) -> dict[int, str]:
    """What the channels are called, the wanted one among them."""
    names = content.get("channel_names", content.get("modality"))
    if not isinstance(names, Mapping) or str(channel) not in names:
        known = ", ".join(map(str, names)) if isinstance(names, Mapping) else "none"
        raise InputError(f"{source.path}: has no channel {channel}; dataset.json names {known}.")
    return {int(number): str(name) for number, name in names.items() if str(number).isdigit()}


def _modality(source: Source, channel: int, name: str) -> str:
    if re.search(r"MR|T1|T2|FLAIR|DWI|ADC", name.upper()):
        return "MR"
    try:
        return normal_modality(name)
    except InputError:
        raise InputError(
            f"{source.path}: channel {channel} is called {name!r}, which says no modality; say it with --modality, for "
            "example --modality MR."
        ) from None


def _cases(source: Source, root: PurePosixPath, channel: int, ending: str, pattern: str | None) -> list[PlannedCase]:
    cases = []
    for folder, section in (("Tr", ""), ("Ts", "test")):
        below = str(root / f"labels{folder}") + "/"
        labels = [name for name in source.sizes if name.startswith(below) and name.endswith(ending)]
        for label in labels:
            name = PurePosixPath(label).name.removesuffix(ending)
            image = str(root / f"images{folder}" / f"{name}_{channel:04d}{ending}")
            source.require([image], "go with a label map")
            num_bytes = source.sizes[image] + source.sizes[label]
            write = copy_pair(source, image, label) if ending == ".nii.gz" else _convert_pair(source, image, label)
            cases.append(PlannedCase(name, _patient(source, name, pattern), write, num_bytes, section))
    if not cases:
        raise InputError(f"{source.path}: holds no label maps ({root}/labelsTr/*{ending}).")
    return cases


def _patient(source: Source, name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None:
        raise InputError(f"{source.path}: patient pattern {pattern!r} does not match '{name}'.")
    return match.group(1) if match.groups() else match.group(0)


def _convert_pair(source: Source, image: str, label: str) -> Writer:
    """A writer that brings other volume formats to `.nii.gz`, grid and values unchanged."""

    def write(to_image: Path, to_label: Path) -> dict[str, Any]:
        for name, target in ((image, to_image), (label, to_label)):
            copy = target.with_name(f".{PurePosixPath(name).name}")
            try:
                source.copy(name, copy)
                sitk.WriteImage(sitk.ReadImage(str(copy)), str(target))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise InputError(f"{source.path}: {name} cannot be read ({reason}).") from error
            finally:
                copy.unlink(missing_ok=True)
        return {"image": image, "label": label}

    return write
