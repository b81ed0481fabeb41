"""What a network without text is given: the plan of its training, and volumes as it reads them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.networks.nets import DynUNet
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform, Orientationd, Spacingd

from boltzformer.errors import InputError

IGNORED = -1
"""Value of the truth where an object was not annotated."""


@dataclass(frozen=True)
class ClosedSetPlan:
    """What is fixed before training, in nnU-Net's manner: from the training cases alone.

    Attributes:
        objects: label value to name, in channel order.
        spacing: mm of the network's grid along x, y, z in RAS: the median of the cases.
        patch: voxels of a training patch, multiples of what the strides need.
        low, high: HU or grey values that are clipped to: the 0.5th and 99.5th percentile inside objects.
        mean, sd: of the grey values inside objects.
        kernels, strides: of the DynUNet.
    """

    objects: dict[int, str]
    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    low: float
    high: float
    mean: float
    sd: float
    kernels: list[list[int]]
    strides: list[list[int]]


def make_plan(cases: Sequence[Mapping[str, Any]], patch: Sequence[int], most: int = 40) -> ClosedSetPlan:
    """Plan a training.

    Args:
        cases: training cases, see `boltzformer.data.cases.load_cases`.
        patch: voxels wished for; rounded up to what the strides need.
        most: cases that are looked at.

    Raises:
        InputError: cases name other labels than the first one, or none has a voxel of any object.
    """
    objects = dict(sorted(cases[0]["objects"].items()))
    if odd := next((case for case in cases if dict(case["objects"]) != objects), None):
        raise InputError(f"{odd['image']}: names other labels than the first case; train one network for each list.")
    load = read_volumes(("image", "label"))
    spacings, inside = [], []
    for case in cases[:most]:
        item = load({key: case[key] for key in ("image", "label")})
        spacings.append(np.asarray(item["image"].pixdim, dtype=np.float64))
        values = item["image"].numpy()[np.isin(item["label"].numpy(), list(objects))]
        inside.append(values[:: max(1, len(values) // 10000)])
    grey = np.concatenate(inside)
    if not len(grey):
        raise InputError(f"{cases[0]['image']}: neither it nor the next {most} training cases hold a labelled voxel.")
    spacing = np.median(spacings, axis=0)
    kernels, strides, steps = topology(patch, spacing)
    low, high = np.percentile(grey, [0.5, 99.5])
    x, y, z = (int(-(-size // step) * step) for size, step in zip(patch, steps, strict=True))
    mean, sd = float(grey.mean()), float(max(grey.std(), 1e-6))
    places = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return ClosedSetPlan(objects, places, (x, y, z), float(low), float(high), mean, sd, kernels, strides)


def topology(patch: Sequence[int], spacing: np.ndarray) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Kernels and strides of each level: long and fine axes are halved, as nnU-Net does; at most 5 times.

    Args:
        patch: voxels wished for.
        spacing: mm along each axis.

    Returns:
        kernels, strides, and the voxels along each axis that a patch must be a multiple of.
    """
    size, spacing = np.array(patch), np.array(spacing)
    steps, kernel = np.ones(3, int), np.ones(3, int)
    kernels, strides = [], [[1, 1, 1]]
    while True:
        # an axis that is too coarse for a kernel of 3 gets one when the others are as coarse, and keeps it from then on
        kernel = np.where(spacing <= 2 * spacing.min(), 3, kernel)
        kernels.append([int(one) for one in kernel])
        stride = np.where((spacing <= 2 * spacing.min()) & (size >= 8), 2, 1)
        if np.all(stride == 1) or len(strides) == 6:
            return kernels, strides, steps
        size, spacing, steps = -(-size // stride), spacing * stride, steps * stride
        strides.append([int(one) for one in stride])


def make_network(plan: ClosedSetPlan, first_filters: int = 32) -> DynUNet:
    """The DynUNet of a plan, a channel for each object.

    Args:
        plan: the plan.
        first_filters: at full resolution; each level doubles them, to 320 at most.
    """
    filters = [min(first_filters * 2**level, 320) for level in range(len(plan.strides))]
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(plan.objects),
        kernel_size=plan.kernels,
        strides=plan.strides,
        upsample_kernel_size=plan.strides[1:],
        filters=filters,
    )


class CountedObjectsd(MapTransform):
    """Dictionary transform: an item's `counted` are the objects that its case teaches: there, or looked for.

    Comes before a patch is cut out: an object that lies elsewhere in the case is absent from the patch.

    Args:
        keys: label maps (1, ...).
        plan: says the objects.
    """

    def __init__(self, keys: KeysCollection, plan: ClosedSetPlan) -> None:
        super().__init__(keys)
        self.values = list(plan.objects)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Of one item; its `annotated` says which absent objects are negatives."""
        item = dict(data)
        for key in self.key_iterator(item):
            known = {*item.get("annotated", ()), *torch.unique(item[key]).tolist()}
            item["counted"] = [value for value in self.values if value in known]
        return item


class ObjectChannelsd(MapTransform):
    """Dictionary transform: label map (1, ...) -> a channel of 0 and 1 for each object, or of `IGNORED`.

    Args:
        keys: label maps.
        plan: says the objects.
    """

    def __init__(self, keys: KeysCollection, plan: ClosedSetPlan) -> None:
        super().__init__(keys)
        self.values = list(plan.objects)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Of one item with the `counted` of `CountedObjectsd`."""
        item = dict(data)
        for key in self.key_iterator(item):
            channels = torch.cat([(item[key] == value).float() for value in self.values])
            for channel, value in zip(channels, self.values, strict=True):
                if value not in item["counted"]:
                    channel.fill_(IGNORED)
            item[key] = channels
        return item


class Greyd(MapTransform):
    """Dictionary transform: clip to a plan's range, then subtract its mean and divide by its standard deviation."""

    def __init__(self, keys: KeysCollection, plan: ClosedSetPlan) -> None:
        super().__init__(keys)
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Of one item."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = (item[key].clamp(self.plan.low, self.plan.high) - self.plan.mean) / self.plan.sd
        return item


def read_volumes(keys: Sequence[str]) -> Compose:
    """Transform: files -> volumes (1, X, Y, Z) in RAS order."""
    return Compose([LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="RAS", labels=None)])


def to_grid(keys: Sequence[str], plan: ClosedSetPlan) -> list[Any]:
    """Transforms to the plan's spacing."""
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    return [Spacingd(keys, pixdim=plan.spacing, mode=modes, padding_mode="border")]
