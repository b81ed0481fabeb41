"""Datasets made from a dataset to prove a claim: mirrored, resampled, cut and shifted scans with their labels.

All changes work on volumes in RAS orientation, whose first axis runs from left to right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from boltzformer.data.folders import new_folder
from boltzformer.errors import InputError
from boltzformer.output_files import write_bytes
from boltzformer.volumes.checks import check_pair, read_volume
from boltzformer.volumes.names import case_name, check_names
from boltzformer.volumes.spacing import has_spacing

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_OF_THE_IMAGE = ("patient", "modality", "body_part", "window")
_OF_ITS_LABELS = ("prompts", "annotated")


@dataclass(frozen=True)
class Scan:
    """A volume with its labels in RAS orientation.

    Attributes:
        image: (X, Y, Z).
        label: (X, Y, Z), whole numbers.
        affine: (4, 4), voxel index to RAS+ in mm.
        objects: label value -> name.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    objects: Mapping[int, str]

    @property
    def spacing(self) -> tuple[float, float]:
        """Voxel size along X and Y in mm."""
        x, y, _ = (float(size) for size in nib.affines.voxel_sizes(self.affine))
        return x, y


Change = Callable[[Scan, int], Scan]
"""A scan and its number in the list -> the changed scan."""


def read_scan(case: Mapping[str, Any]) -> Scan:
    """Read a case of `load_cases`.

    Raises:
        InputError: image and label do not fit, or cannot be read.
    """
    check_pair(case["image"], case["label"])
    image, header = read_volume(case["image"])
    label, _ = read_volume(case["label"])
    orientation = nib.io_orientation(header.affine)
    affine = header.affine @ nib.orientations.inv_ornt_aff(orientation, header.shape)
    arrays = [nib.apply_orientation(array, orientation) for array in (image, label)]
    return Scan(arrays[0], arrays[1].astype(np.uint8), affine, {int(v): name for v, name in case["objects"].items()})


def write_derived(cases: Sequence[Mapping[str, Any]], change: Change, folder: Path) -> Path:
    """Write changed copies of cases as the validation list of a dataset in Decathlon layout.

    Args:
        cases: from `load_cases`, of one dataset.
        change: what is done to each.
        folder: of the new dataset; a derived dataset there is replaced.

    Returns:
        the folder.

    Raises:
        InputError: a case cannot be read, two have one name, or the folder holds something else.
    """
    check_names((case_name(case["image"]), case["image"]) for case in cases)
    if folder.exists() and not (folder / "derived").is_file():
        raise InputError(f"{folder}: exists and holds no derived dataset; name another output folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as new:
        (new / "derived").touch()
        items = []
        for number, case in enumerate(cases):
            made = change(read_scan(case), number)
            item = _item(case)
            for key, array in (("image", made.image), ("label", made.label)):
                item[key] = f"{key}s/{case_name(case['image'])}.nii.gz"
                (new / f"{key}s").mkdir(exist_ok=True)
                nifti = nib.Nifti1Image(np.ascontiguousarray(array), made.affine, dtype=array.dtype)
                nifti.header.set_xyzt_units("mm")
                nib.save(nifti, new / item[key])
            items.append(item)
        content = {"name": cases[0]["dataset"], "labels": items[0]["labels"], "validation": items}
        (new / "dataset.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return folder


def write_datalist(cases: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write cases as the validation list of a datalist that names their own files.

    Args:
        cases: from `load_cases`, of one dataset.
        path: of the JSON.
    """
    files = [{key: str(Path(case[key]).resolve()) for key in ("image", "label")} for case in cases]
    items = [_item(case) | names for case, names in zip(cases, files, strict=True)]
    content = {"name": cases[0]["dataset"], "labels": items[0]["labels"], "validation": items}
    return write_bytes(path, (json.dumps(content, indent=4) + "\n").encode())


def _item(case: Mapping[str, Any]) -> dict[str, Any]:
    """What a datalist says of a case, but for its files."""
    item = about_image(case) | {key: case[key] for key in _OF_ITS_LABELS if key in case}
    return item | {"labels": {str(value): name for value, name in case["objects"].items()}}


def about_image(case: Mapping[str, Any]) -> dict[str, Any]:
    """What a datalist says of a case's image, whatever is labelled in it."""
    item = {key: case[key] for key in _OF_THE_IMAGE if key in case}
    return item | ({} if has_spacing(case) else {"spacing": "unknown"})


def unchanged(scan: Scan, number: int) -> Scan:
    """The scan itself."""
    return scan


def mirrored(scan: Scan, number: int) -> Scan:
    """Left and right exchanged, in the picture and in the names: what lay on the left is now right, and named so."""
    swapped = np.arange(int(scan.label.max()) + 1, dtype=scan.label.dtype)
    for value in scan.objects:
        twin = twin_of(value, scan.objects)
        if twin is not None and value < len(swapped):
            swapped[value] = twin
    return Scan(scan.image[::-1], swapped[scan.label[::-1]], scan.affine, scan.objects)


def other_side(name: str) -> str:
    """The name of an organ's twin: "left kidney" of "right kidney"; the name itself where it has no side."""
    return _SIDE.sub(lambda found: "right" if found.group().lower() == "left" else "left", name)


def twin_of(value: int, objects: Mapping[int, str]) -> int | None:
    """Label value of the same organ on the other side; None for an organ without one among the objects.

    Args:
        value: of the organ.
        objects: label value to name.
    """
    values = {name.casefold(): other for other, name in objects.items()}
    twin = values.get(other_side(objects[value]).casefold())
    return None if twin == value else twin


def resampled(mm: float) -> Change:
    """Slices on pixels of another size, over the same field of view: the image linearly, labels by nearest neighbour.

    Args:
        mm: size of the new pixels.
    """

    def change(scan: Scan, number: int) -> Scan:
        sizes = [max(1, round(n * s / mm)) for n, s in zip(scan.image.shape[:2], scan.spacing, strict=True)]
        factors = [n / size for n, size in zip(scan.image.shape[:2], sizes, strict=True)]
        rows, columns = (((np.arange(size) + 0.5) * f).astype(int) for size, f in zip(sizes, factors, strict=True))
        step = np.diag([*factors, 1.0, 1.0])
        step[:2, 3] = [(factor - 1) / 2 for factor in factors]  # pixels' outer edges stay where they are
        image = torch.from_numpy(np.ascontiguousarray(scan.image.astype(np.float32))).permute(2, 0, 1)[None]
        image = functional.interpolate(image, sizes, mode="bilinear", antialias=True, align_corners=False)
        made = _in_type_of(scan, image[0].permute(1, 2, 0).numpy())
        return Scan(made, scan.label[rows][:, columns], scan.affine @ step, scan.objects)

    return change


def softened(mm: float) -> Change:
    """What `resampled` leaves of a scan's sharpness, on the scan's own pixels: there and, by means, back again.

    Finer pixels that are made of coarse ones hold less than a scan of that resolution, and less than the coarse pixels
    themselves: what is lost by them alone is lost here too.

    Args:
        mm: size of the pixels in between.
    """

    def change(scan: Scan, number: int) -> Scan:
        fine = torch.from_numpy(np.ascontiguousarray(resampled(mm)(scan, number).image.astype(np.float32)))
        back = functional.interpolate(fine.permute(2, 0, 1)[None], scan.image.shape[:2], mode="area")
        made = _in_type_of(scan, back[0].permute(1, 2, 0).numpy())
        return Scan(made, scan.label, scan.affine, scan.objects)

    return change


def field_of_view(field_mm: float, mm: float) -> Change:
    """A square part of each slice around the labelled organs, on pixels of a given size.

    Args:
        field_mm: its sides.
        mm: size of the new pixels.
    """

    def change(scan: Scan, number: int) -> Scan:
        cuts, offset = [], np.eye(4)
        for axis, size in enumerate(scan.spacing):
            pixels = min(scan.image.shape[axis], max(1, round(field_mm / size)))
            first, last = _extent(scan.label, axis)
            start = int(np.clip((first + last + 1 - pixels) // 2, 0, scan.image.shape[axis] - pixels))
            cuts.append(slice(start, start + pixels))
            offset[axis, 3] = start
        part = Scan(scan.image[tuple(cuts)], scan.label[tuple(cuts)], scan.affine @ offset, scan.objects)
        return resampled(mm)(part, number)

    return change


def back_on_grid(mask: np.ndarray, affine: np.ndarray, scan: Scan) -> np.ndarray:
    """A mask of a `resampled` scan, or of its `field_of_view`, on the pixels of the scan that it was made from.

    A pixel belongs to the mask if half of it does. Labels are drawn on the scan's pixels: finer ones would ask a mask
    to follow their steps.

    Args:
        mask: (X', Y', Z).
        affine: (4, 4), of the mask.
        scan: before the change.

    Returns:
        bool, of the scan's shape; False outside the mask's field of view.
    """
    step = np.linalg.inv(scan.affine) @ affine
    sizes = [max(1, round(n * step[axis, axis])) for axis, n in enumerate(mask.shape[:2])]
    corner = step @ [-0.5, -0.5, 0, 1] + [0.5, 0.5, 0, 0]
    x, y = (round(float(place)) for place in corner[:2])
    slices = torch.from_numpy(np.ascontiguousarray(mask > 0)).float().permute(2, 0, 1)[None]
    share = functional.interpolate(slices, sizes, mode="area")[0].permute(1, 2, 0).numpy()
    found = np.zeros(scan.label.shape, dtype=bool)
    found[x : x + sizes[0], y : y + sizes[1]] = share >= 0.5
    return found


def shifted(seed: int) -> Change:
    """Scans moved in-plane at random, as far as the labelled objects stay inside; 0 comes in, as in training.

    Args:
        seed: of the draw.
    """

    def change(scan: Scan, number: int) -> Scan:
        draw = np.random.default_rng([seed, number])
        image, label = scan.image, scan.label
        for axis in (0, 1):
            first, last = _extent(scan.label, axis)
            step = int(draw.integers(-first, image.shape[axis] - last))
            image, label = (_moved(array, step, axis) for array in (image, label))
        return Scan(image, label, scan.affine, scan.objects)

    return change


def _in_type_of(scan: Scan, made: np.ndarray) -> np.ndarray:
    """An image made of a scan's; whole numbers stay whole."""
    return made if scan.image.dtype.kind == "f" else np.rint(made).astype(scan.image.dtype)


def _extent(label: np.ndarray, axis: int) -> tuple[int, int]:
    """First and last index that holds a label; the whole axis where none does."""
    others = tuple(i for i in range(3) if i != axis)
    places = np.flatnonzero((label > 0).any(axis=others))
    return (int(places[0]), int(places[-1])) if len(places) else (0, label.shape[axis] - 1)


def _moved(array: np.ndarray, step: int, axis: int) -> np.ndarray:
    moved = np.roll(array, step, axis)
    gap: list[Any] = [slice(None)] * 3
    gap[axis] = slice(0, step) if step >= 0 else slice(step, None)
    moved[tuple(gap)] = 0
    return moved
