"""Examples of training and evaluation: (slice, object, prompt, binary mask), or a slice with several prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch.utils.data import Dataset

from boltzformer.data.cached_volume import CachedVolume
from boltzformer.data.case_prompts import NO_VALUE, CasePrompts, case_name, complete_case
from boltzformer.data.examples import (
    NegativePool,
    check_images_named_apart,
    check_labelled_once,
    positives,
    without_objects,
)
from boltzformer.data.prompts import Prompt
from boltzformer.data.slice_cache import build_cache
from boltzformer.data.windows import IntensityWindow, apply_window
from boltzformer.data.wordings import WordingBook
from boltzformer.errors import InputError
from boltzformer.volumes.spacing import has_spacing


@dataclass(frozen=True)
class Draw:
    """What an example asks for: pixels and augmentation come after.

    Attributes:
        case: number of its case in the dataset.
        slice: its slice.
        values: label value of each prompt, present objects first; `NO_VALUE` where it is foreign.
        texts: the prompts.
        names: of the objects.
    """

    case: int
    slice: int
    values: tuple[int, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]


class SliceDataset(Dataset[dict[str, Any]]):
    """All (slice, object) pairs of a list of cases, or all slices with several prompts each, from the slice cache.

    Positive examples are the slices in which an object is present, as in the paper's section 4. Negative
    examples are slices without an object that is annotated in that case; an object that is absent from a
    whole case counts as not annotated, unless the case's `annotated` lists it, and gives no negatives.

    Every random choice (wording, negative slice, augmentation) is a function of (seed, epoch, index) alone:
    call `set_epoch` before each epoch, also with persistent workers, and a resumed run sees what an
    uninterrupted one would. With `training=False` nothing is random from epoch to epoch: the first wording,
    the same negatives.

    Args:
        data: cases from `boltzformer.data.cases.load_cases`.
        cache_dir: folder of the slice cache; built on construction where cases are missing in it.
        window: an `IntensityWindow`, or its first argument. With "auto", a case's own `window` goes first.
        axis: of the RAS volume along which slices are cut: 0 sagittal, 1 coronal, 2 axial.
        num_adjacent: neighbouring slices on either side that become channels (2.5D): 0 gives 1 channel, 1
            gives z−1, z, z+1. The volume's first and last slice are repeated beyond its ends.
        negative_share: share of negatives among all examples, in [0, 1); with several prompts a slice, the share
            of objects that are absent from it, beside the one that is present at least.
        prompts_per_slice: K. 1, as in the paper, gives (slice, object) pairs. More give each slice that holds an
            object once, with K prompts, so that training encodes it once for all of them: as many of its objects
            as there is room for, drawn anew in each epoch, negatives, and where these are too few, an object a
            second time in another wording. Only with `training`; batches come from `collate_prompts`.
        foreign_prompts: sentences for what is in none of the images, such as organs of other body parts: a list, or a
            JSON file with one. Another dataset's objects are foreign to a case too.
        foreign_share: share of negatives that ask for something foreign, in [0, 1]; only in training. With several
            prompts a slice, negatives that no absent object is left for are foreign too.
        empty_share: share of slices without any object among all slices, in [0, 1), all of whose prompts are
            negatives, other slices in each epoch; only with several prompts a slice.
        min_area: pixels that a positive slice's object has at least, 1 or more; slices with fewer are not
            used.
        wordings: the wording book; None takes `WordingBook()`.
        unnamed: what the label values are in cases that name no `objects`, such as the bare pairs of image and label
            that MONAI Label gives: value i + 1 is what prompt i asks for. None refuses such cases.
        modality: of cases that say none.
        training: draw wordings and negatives anew in each epoch.
        transform: dictionary transform of the item, for example a `monai.transforms.Compose`; a
            `Randomizable` is seeded for each item.
        seed: of all draws, 0 or more.
        num_workers: threads that build the cache; None chooses.
        progress: show a progress bar while the cache is built.

    Items:
        With several prompts `label` is (K, H, W) and `text` and `object` are K strings, present objects first.
        `image` (2·num_adjacent+1, H, W) float32 in [0, 1]; `label` (1, H, W) float32 of 0 and 1; `text` str;
        `spacing` (2,) float32, mm along H and W; `known_spacing` the same before any growth, NaN where the
        case's `spacing_known` is False; `dataset`, `case` (the image's file name without its
        ending), `patient`, `object` str; `slice` int, in RAS orientation along `axis`. H and W are axes of
        the RAS volume (see `CachedVolume`). All of them collate, provided that shapes are equal: resize in
        training, or take batches from `CaseBatchSampler`.

    Raises:
        InputError: see `build_cache`; a bad argument; no slice with an object; two objects of a case that
            share a prompt; not in training, what is scored would go by one name or have two labels.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        cache_dir: str | Path,
        window: IntensityWindow | str | Sequence[float] = "auto",
        axis: int = 2,
        num_adjacent: int = 0,
        negative_share: float = 0.0,
        min_area: int = 1,
        wordings: WordingBook | None = None,
        unnamed: Sequence[Prompt] | None = None,
        modality: str = "",
        training: bool = False,
        prompts_per_slice: int = 1,
        foreign_prompts: Sequence[str] | str | Path | None = None,
        foreign_share: float = 0.0,
        empty_share: float = 0.0,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        seed: int = 0,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        if not 0 <= negative_share < 1:
            raise InputError(f"negative_share: expected a number in [0, 1), found {negative_share}.")
        if num_adjacent not in (0, 1):
            raise InputError(f"num_adjacent: expected 0, or 1 for three channels, found {num_adjacent}.")
        if min_area < 1 or seed < 0:
            raise InputError("seed must be 0 or more, min_area 1 or more.")
        if prompts_per_slice < 1 or (prompts_per_slice > 1 and not training):
            raise InputError(f"prompts_per_slice: expected 1, or more in training, found {prompts_per_slice}.")
        if not 0 <= foreign_share <= 1 or (foreign_share and not training):
            raise InputError(f"foreign_share: expected a number in [0, 1], 0 but in training, found {foreign_share}.")
        if not 0 <= empty_share < 1 or (empty_share and prompts_per_slice == 1):
            raise InputError(
                f"empty_share: expected a number in [0, 1), 0 with one prompt a slice, found {empty_share}."
            )
        self.prompts_per_slice = int(prompts_per_slice)
        self.foreign_share = float(foreign_share)
        self.negative_share = float(negative_share)
        self.data = [complete_case(case, unnamed or (), modality) for case in data]
        self.wordings = wordings or WordingBook()
        self.num_adjacent = int(num_adjacent)
        self.training = training
        self.transform = transform
        self.seed = int(seed)
        self.axis = int(axis)
        window = window if isinstance(window, IntensityWindow) else IntensityWindow(window)
        self._prompts = CasePrompts(self.data, self.wordings, (foreign_prompts or ()) if foreign_share else None)
        if not training:
            check_images_named_apart(self.data)
        for case in self.data:
            _check_window(case, window)
        self.volumes: list[CachedVolume] = build_cache(self.data, cache_dir, axis, num_workers, progress)
        self.limits = [_limits(case, v, window) for case, v in zip(self.data, self.volumes, strict=True)]
        self.examples = positives(self.volumes, min_area)
        if not len(self.examples):
            raise InputError(
                f"No slice of the {len(self.data)} cases holds an object of at least {min_area} pixels; "
                "check the label maps."
            )
        self.slices = np.unique(self.examples[:, :2], axis=0)
        self._empty = without_objects(self.volumes) if empty_share else self.slices[:0]
        self.num_empty = round(len(self.slices) * empty_share / (1 - empty_share)) if len(self._empty) else 0
        self._pool = NegativePool(self.data, self.volumes)
        wanted = round(len(self.examples) * negative_share / (1 - negative_share))
        self.num_negatives = wanted if self._pool.size and training else min(wanted, self._pool.size)
        self._fixed = np.zeros(0, np.int64)
        if not training:
            rng = np.random.default_rng([self.seed, len(self.examples)])
            self._fixed = np.sort(rng.choice(self._pool.size, self.num_negatives, replace=False))
            check_labelled_once(self.data, self.volumes, map(self.locate, range(len(self))))
        # shared memory, because persistent workers keep the copy of the dataset that they started with
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        if self.prompts_per_slice > 1:
            return len(self.slices) + self.num_empty
        return len(self.examples) + self.num_negatives

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's draws; workers see it from the next item on.

        Args:
            epoch: 0 or more; without effect where `training` is False.
        """
        if self.training:
            self._epoch[0] = epoch

    def locate(self, index: int) -> tuple[int, int, int]:
        """Find an example in the current epoch.

        Args:
            index: of the example, positives first.

        Returns:
            number of its case, slice, and label value (the first, of several prompts).
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        if self.prompts_per_slice > 1:
            number, where = self._slice_of(index)
            return number, where, self._draw_objects(index, number, where)[0]
        if index < len(self.examples):
            case, position, value = self.examples[index]
            return int(case), int(position), int(value)
        if self.training:
            return self._pool.find(int(self._rng(index).integers(self._pool.size)))
        return self._pool.find(int(self._fixed[index - len(self.examples)]))

    def draw(self, index: int) -> tuple[Draw, np.random.Generator]:
        """Choose what an example asks for in the current epoch, and give the generator for what is drawn next."""
        number, position, value = self.locate(index)
        index %= len(self)
        case = self.data[number]
        several = self.prompts_per_slice > 1
        values = self._draw_objects(index, number, position) if several else [value]
        rng = self._rng(index, stream=1)
        if self.training:
            texts = self._prompts.draw(number, values, rng)
        else:
            texts = [self._prompts.first(number, value) for value in values]
        negative = not several and index >= len(self.examples)
        if negative and self.foreign_share and rng.random() < self.foreign_share:
            values, texts = [NO_VALUE], [self._prompts.draw_foreign(number, rng)]
        names = ["foreign" if v == NO_VALUE else str(case["objects"][v]) for v in values]
        return Draw(number, position, tuple(values), tuple(texts), tuple(names)), rng

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn, rng = self.draw(index)
        case, volume = self.data[drawn.case], self.volumes[drawn.case]
        several = self.prompts_per_slice > 1
        labels = volume.label(drawn.slice)
        item = {
            "image": torch.from_numpy(self.picture(drawn.case, drawn.slice)),
            "label": torch.from_numpy(np.stack([labels == value for value in drawn.values]).astype(np.float32)),
            "text": drawn.texts if several else drawn.texts[0],
            "spacing": torch.tensor(volume.spacing[1:], dtype=torch.float32),
            "known_spacing": torch.tensor(known_spacing(case, volume), dtype=torch.float32),
            "dataset": case["dataset"],
            "case": case_name(case),
            "patient": case["patient"],
            "object": drawn.names if several else drawn.names[0],
            "slice": drawn.slice,
        }
        if self.training and isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=int(rng.integers(2**32)))
        # not `if self.transform`: the length of a Compose flattens it, which seeds its transforms anew
        return item if self.transform is None else self.transform(item)

    def picture(self, number: int, position: int) -> np.ndarray:
        """A slice of a case with its neighbours, (channels, H, W) float32 in [0, 1]."""
        return apply_window(self._read(self.volumes[number], position), *self.limits[number])

    def _slice_of(self, index: int) -> tuple[int, int]:
        """Case and slice of an example with several prompts; empty slices come last and change with the epoch."""
        if index >= len(self.slices):
            number, where = self._empty[int(self._rng(index, stream=3).integers(len(self._empty)))]
        else:
            number, where = self.slices[index]
        return int(number), int(where)

    def _draw_objects(self, index: int, number: int, position: int) -> list[int]:
        """K label values for a slice: present ones, then absent ones; present ones again where both are too few."""
        rng, volume = self._rng(index, stream=2), self.volumes[number]
        first, last = (np.searchsorted(self.examples[:, 0], number + side) for side in (0, 1))
        of_case = self.examples[first:last]
        present = of_case[of_case[:, 1] == position, 2]
        annotated = sorted({*volume.values, *self.data[number].get("annotated", ())})
        areas = dict(zip(volume.values, volume.areas[:, position].tolist(), strict=True))
        absent = np.asarray([value for value in annotated if not areas.get(value, 0)], dtype=np.int64)
        room = self.prompts_per_slice - bool(len(present))  # for negatives
        wanted = int(rng.binomial(room, self.negative_share)) if len(present) else room
        if self.foreign_share:
            foreign = int(rng.binomial(wanted, self.foreign_share))
            foreign = max(foreign, wanted - len(absent))
            negatives = [*rng.permutation(absent)[: wanted - foreign], *[NO_VALUE] * foreign]
        else:
            negatives = list(rng.permutation(absent)[:wanted])
        if not len(present):
            return [int(value) for value in np.resize(negatives, self.prompts_per_slice)]
        there = np.resize(rng.permutation(present), self.prompts_per_slice - len(negatives))  # goes round
        return [int(value) for value in (*there, *negatives)]

    def counts(self) -> dict[str, int]:
        """Count the positive examples of each object, over all cases."""
        return {name: len(shares) for name, shares in self._shares().items()}

    def mean_shares(self) -> dict[str, float]:
        """Mean share of the slice, in [0, 1], that each object covers in its positive examples."""
        return {name: float(np.mean(shares)) for name, shares in self._shares().items()}

    def object_weights(self, power: float) -> np.ndarray:
        """Weight of each example for a draw by object: the sum of n^-power over its objects, n an object's examples.

        Args:
            power: 0 gives equal weights to objects' examples, 1 equal sums to objects.

        Returns:
            (len(self),) float64 that sums to 1; negatives and empty slices weigh as the mean positive.
        """
        counts = self.counts()
        names = [self.data[number]["objects"][value] for number, _, value in self.examples.tolist()]
        weights = np.asarray([counts[name] ** -power for name in names], dtype=np.float64)
        if self.prompts_per_slice > 1:
            # examples are sorted by case and slice, as the unique slices are
            starts = np.flatnonzero(np.r_[True, (np.diff(self.examples[:, :2], axis=0) != 0).any(axis=1)])
            weights = np.add.reduceat(weights, starts)
            weights = np.r_[weights, np.full(self.num_empty, weights.mean())]
        else:
            weights = np.r_[weights, np.full(self.num_negatives, weights.mean())]
        return weights / weights.sum()

    def _shares(self) -> dict[str, list[float]]:
        shares: dict[str, list[float]] = {}
        for number, position, value in self.examples.tolist():
            volume = self.volumes[number]
            share = volume.areas[volume.values.index(value), position] / (volume.shape[1] * volume.shape[2])
            shares.setdefault(self.data[number]["objects"][value], []).append(float(share))
        return shares

    def _rng(self, index: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(self._epoch[0]), index, stream])

    def _read(self, volume: CachedVolume, position: int) -> np.ndarray:
        """The slice and its neighbours, the volume's ends repeated: (channels, H, W)."""
        first, last = position - self.num_adjacent, position + self.num_adjacent + 1
        inside = volume.image(max(first, 0), min(last, volume.shape[0]))
        before, behind = max(-first, 0), max(last - volume.shape[0], 0)
        if not before and not behind:
            return inside
        return np.concatenate([inside[:1]] * before + [inside] + [inside[-1:]] * behind)


def known_spacing(case: Mapping[str, Any], volume: CachedVolume) -> tuple[float, float]:
    """Mm along H and W; NaN where the case says that its spacing is not known."""
    return volume.spacing[1:] if has_spacing(case) else (math.nan, math.nan)


def _check_window(case: Mapping[str, Any], window: IntensityWindow) -> None:
    """Before anything is read: whether a case says enough for its window."""
    own = _window_of(case, window)
    if own.window == "auto" and not case.get("modality"):
        raise InputError(
            f"{case['image']}: window 'auto' needs the modality, and the datalist states none; add `modality`, such as "
            "CT or MR, at its top or to the item, or name a window (`--window percentiles`)."
        )


def _window_of(case: Mapping[str, Any], window: IntensityWindow) -> IntensityWindow:
    if window.window == "auto" and case.get("window"):
        return IntensityWindow(case["window"], window.percentiles)
    return window


def _limits(case: Mapping[str, Any], volume: CachedVolume, window: IntensityWindow) -> tuple[float, float]:
    own = _window_of(case, window)
    return own.limits(case.get("modality", ""), case.get("body_part", ""), quantiles=volume.quantiles)
