"""Slices with the truth and several networks' masks side by side, close enough to see a small object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from boltzformer.inference.sampling_trace import outline, upright
from boltzformer.metrics.measures.volumes import overlap_dice

LEAST_SIDE = 64
"""Pixels that a picture shows at least along each axis, where the slice has them."""
SURROUNDINGS = 3.0
"""Side of a picture over that of the object's box."""


@dataclass(frozen=True)
class ComparedSlice:
    """One slice and what was found in it.

    Attributes:
        image: (H, W) in [0, 1].
        label: (H, W) bool, of a slice that holds the object.
        masks: a network's name to its mask, (H, W) bool.
        prompt: what was looked for.
        place: where it comes from, for the caption.
    """

    image: np.ndarray
    label: np.ndarray
    masks: Mapping[str, np.ndarray]
    prompt: str
    place: str


def mask_figure(slices: Sequence[ComparedSlice]) -> Figure:
    """A row for each slice: image, truth, and each network's mask with its Dice.

    Args:
        slices: of the same networks.
    """
    names = list(slices[0].masks)
    columns = 2 + len(names)
    figure = Figure(figsize=(2.5 * columns, 2.8 * len(slices)), layout="constrained")
    grid = figure.subplots(len(slices), columns, squeeze=False)
    for axes, one in zip(grid, slices, strict=True):
        window = close_up(one.label)
        for axis in axes:
            axis.imshow(upright(one.image[window]), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        axes[0].set_title(f"{one.prompt}\n{one.place}", fontsize=7)
        axes[1].set_title("truth", fontsize=8)
        outline(axes[1], one.label[window], "lime")
        for axis, name in zip(axes[2:], names, strict=True):
            mask = one.masks[name]
            axis.set_title(f"{name}: {overlap_dice(mask, one.label):.2f}", fontsize=8)
            outline(axis, one.label[window], "lime")
            outline(axis, mask[window], "orange")
    return figure


def close_up(label: np.ndarray) -> tuple[slice, slice]:
    """The part of a slice around its object, clipped to the slice; all of it without an object."""
    if not label.any():
        return slice(None), slice(None)
    sides = []
    for axis in (0, 1):
        where = np.flatnonzero(label.any(axis=1 - axis))
        length = label.shape[axis]
        side = min(length, max(LEAST_SIDE, round(SURROUNDINGS * (where[-1] - where[0] + 1))))
        start = min(max(0, (where[0] + where[-1] + 1 - side) // 2), length - side)
        sides.append(slice(int(start), int(start + side)))
    return sides[0], sides[1]
