"""Which examples there are in a list of cached volumes: slices with an object, slices without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boltzformer.data.cached_volume import CachedVolume
from boltzformer.data.case_prompts import case_name
from boltzformer.errors import InputError


class NegativePool:
    """Slices without an object that is annotated in their case, numbered without listing them."""

    def __init__(self, cases: Sequence[Mapping[str, Any]], volumes: Sequence[CachedVolume]) -> None:
        self.volumes = volumes
        pairs, sizes = [], []
        for number, (case, volume) in enumerate(zip(cases, volumes, strict=True)):
            for value in sorted({*volume.values, *case.get("annotated", ())}):
                pairs.append((number, value))
                sizes.append(len(self._empty_slices(number, value)))
        self.pairs = pairs
        self.ends = np.cumsum(np.asarray(sizes, dtype=np.int64))
        self.size = int(self.ends[-1]) if sizes else 0

    def find(self, index: int) -> tuple[int, int, int]:
        """Case, slice and label value of a negative."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        number, value = self.pairs[which]
        within = index - (int(self.ends[which - 1]) if which else 0)
        return number, int(self._empty_slices(number, value)[within]), value

    def _empty_slices(self, number: int, value: int) -> np.ndarray:
        volume = self.volumes[number]
        if value not in volume.values:
            return np.arange(volume.shape[0])
        return np.flatnonzero(volume.areas[volume.values.index(value)] == 0)


def check_images_named_apart(cases: Sequence[Mapping[str, Any]]) -> None:
    """Check that no two images of a dataset share their name and an object: their scores would have one name too.

    Args:
        cases: complete ones, whose slices are to be scored.

    Raises:
        InputError: two share both.
    """
    seen: dict[tuple[str, str, str], str] = {}
    for case in cases:
        for name in case["objects"].values():
            first = seen.setdefault((case["dataset"], case_name(case), name), case["image"])
            if first != case["image"]:
                raise InputError(
                    f"{first} and {case['image']} are both {case_name(case)} of {case['dataset'] or 'one dataset'}, so "
                    "their scores cannot be told apart: a case is named by dataset and image file. Give images names "
                    "of their own (not pt_1/ct.nii.gz and pt_2/ct.nii.gz), datasets too"
                )


def check_labelled_once(
    cases: Sequence[Mapping[str, Any]], volumes: Sequence[CachedVolume], examples: Iterable[Sequence[int]]
) -> None:
    """Check that no object of a slice is to be scored against two label maps; an image may have one for each object.

    Args:
        cases: complete ones, with images named apart.
        volumes: of them.
        examples: (case, slice, label value) of all that is scored.

    Raises:
        InputError: two label maps of an image answer for an object in a slice, and one of them shows it there.
    """
    seen: dict[tuple[str, str, str, int], tuple[int, int]] = {}
    for number, position, value in examples:
        case, volume = cases[number], volumes[number]
        pixels = int(volume.areas[volume.values.index(value), position]) if value in volume.values else 0
        key = (case["dataset"], case["image"], case["objects"][value], position)
        first, its_pixels = seen.setdefault(key, (number, pixels))
        if first != number and (pixels or its_pixels):
            raise InputError(
                f"{case['image']}: {cases[first]['label']} and {case['label']} both answer for "
                f"'{case['objects'][value]}' in slice {position}, so it would be scored against two labels; list an "
                "image with one label map of an object, and only that object in its `labels` and `annotated`"
            )


def without_objects(volumes: Sequence[CachedVolume]) -> np.ndarray:
    """Rows (case, slice) of slices without any label, of cases that have some elsewhere."""
    rows = [np.zeros((0, 2), dtype=np.int64)]
    for number, volume in enumerate(volumes):
        if not volume.values:
            continue
        empty = np.flatnonzero(~volume.areas.any(axis=0))
        rows.append(np.stack([np.full_like(empty, number), empty], axis=1))
    return np.concatenate(rows)


def positives(volumes: Sequence[CachedVolume], min_area: int) -> np.ndarray:
    """Rows (case, slice, label value), ordered so that the objects of a slice follow each other."""
    rows = [np.zeros((0, 3), dtype=np.int64)]
    for number, volume in enumerate(volumes):
        which, positions = np.nonzero(volume.areas >= min_area)
        values = np.asarray(volume.values, dtype=np.int64)[which]
        block = np.stack([np.full_like(positions, number), positions, values], axis=1)
        rows.append(block[np.lexsort((block[:, 2], block[:, 1]))])
    return np.concatenate(rows)
