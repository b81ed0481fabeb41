"""One picture of a volume's masks: for each prompt the slice that shows most of it, closer where it is small."""

from __future__ import annotations

import math
import os
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from boltzformer.output_files import write_file
from boltzformer.volumes.segmented import color_of
from boltzformer.volumes.write import MADE_BY, is_ours, size_text

MOST_TILES = 24
MOST_COLUMNS = 4
DPI = 110
TILE_INCHES, ONE_TILE_INCHES = 3.4, 6.0
CAPTION_INCHES, HEADER_INCHES, GAP_INCHES = 0.62, 0.42, 0.1
LINE_LETTERS, MOST_LINES = 44, 2
SMALL = 0.22
"""An object whose box is below this share of the slice's shorter side gets a close-up."""
CLOSE_UP, CLOSE_UP_MM = 0.45, 12.0
"""Side of a close-up as a share of its tile's, and what it shows around the object."""

FRAME_MM = 5.0

_Span = tuple[float, float]


@dataclass(frozen=True)
class _Shown:
    """A prompt's place on the sheet: its number, its slice, and its size; `voxels` is 0 where nothing was found."""

    number: int
    slice: int
    voxels: int


@dataclass(frozen=True)
class _Tile:
    """What a tile and its close-up draw: a slice (X, Y), its mask, mm a pixel, black and white, the outline's color."""

    plane: np.ndarray
    mask: np.ndarray
    spacing: Sequence[float]
    limits: tuple[float, float]
    color: tuple[int, int, int]


def contact_sheet(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    spacing: Sequence[float],
    limits: tuple[float, float],
    prompts: Sequence[str],
    title: str,
    millilitres: Callable[[int], float | None],
) -> Figure:
    """Draw a tile for each prompt, axial, as radiologists look: the patient's right on the left, anterior up.

    Args:
        image: (X, Y, Z) in RAS orientation.
        masks: P masks of 0 and 1, uint8, of the same shape and orientation.
        spacing: voxel size in mm.
        limits: intensities that are drawn black and white.
        prompts: the P prompts.
        title: written on top, such as the case's name.
        millilitres: size of an object of so many voxels, see `Grid.millilitres`.

    Returns:
        the sheet. Of more than `MOST_TILES` prompts those that were found go first, and the title says what is missing.
    """
    every = [_most_of(mask, number) for number, mask in enumerate(masks)]
    shown = every if len(every) <= MOST_TILES else sorted(every, key=lambda one: one.voxels == 0)[:MOST_TILES]
    columns = min(MOST_COLUMNS, math.ceil(math.sqrt(len(shown))))
    rows = math.ceil(len(shown) / columns)
    width = ONE_TILE_INCHES if len(shown) == 1 else TILE_INCHES
    seen = [(image[:, :, one.slice] > limits[0]) | masks[one.number][:, :, one.slice].view(bool) for one in shown]
    frame = _frame(seen, spacing)
    aspect = (frame[1][1] - frame[1][0]) / (frame[0][1] - frame[0][0])
    height = width * min(max(aspect, 0.4), 1.6)
    size = (
        columns * (width + GAP_INCHES) + GAP_INCHES,
        rows * (height + CAPTION_INCHES) + HEADER_INCHES + GAP_INCHES,
    )
    figure = Figure(figsize=size, facecolor="black")
    _write_header(figure, size, title, limits, len(every) - len(shown))
    for place, one in enumerate(shown):
        row, column = divmod(place, columns)
        left = GAP_INCHES + column * (width + GAP_INCHES)
        top = size[1] - HEADER_INCHES - row * (height + CAPTION_INCHES) - CAPTION_INCHES
        axes = figure.add_axes((left / size[0], (top - height) / size[1], width / size[0], height / size[1]))
        plane, mask = image[:, :, one.slice], masks[one.number][:, :, one.slice]
        _draw_tile(axes, _Tile(plane, mask, spacing, limits, color_of(one.number)), frame)
        size_told = size_text(one.voxels, millilitres(one.voxels))
        told = f"{size_told}, slice {one.slice + 1} of {image.shape[2]}" if one.voxels else "not found"
        _write_caption(figure, (left / size[0], (top + 0.05) / size[1]), prompts[one.number], told, one)
    return figure


def write_contact_sheet(figure: Figure, path: str | os.PathLike[str], protected: Iterable[Path] = ()) -> Path:
    """Write a sheet as PNG, whole or not at all, and never over an input or a file that was not written here.

    Args:
        figure: from `contact_sheet`.
        path: ends in .png.
        protected: inputs.

    Returns:
        `path`.

    Raises:
        InputError: the file is an input or not ours, or cannot be written.
    """
    return write_file(path, partial(_save, figure), protected, is_ours)


def _save(figure: Figure, file: BinaryIO) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks are drawn as boxes
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": MADE_BY})


def _most_of(mask: np.ndarray, number: int) -> _Shown:
    # slice by slice: counting truth values is ten times faster than a sum, and needs no temporaries
    areas = [int(np.count_nonzero(mask[:, :, k].view(bool))) for k in range(mask.shape[2])]
    most = int(np.argmax(areas)) if any(areas) else len(areas) // 2
    return _Shown(number, most, sum(areas))


def _draw_tile(axes: Axes, tile: _Tile, frame: tuple[_Span, _Span]) -> None:
    _draw_slice(axes, tile)
    # the first axis runs from the patient's left to the right: turned, so that the right is on the left
    axes.set(xlim=frame[0][::-1], ylim=frame[1])
    axes.set_axis_off()
    for x, side in ((0.02, "R"), (0.95, "L")):
        axes.text(x, 0.95, side, color="white", transform=axes.transAxes, fontsize=9, va="center")
    if not tile.mask.any():
        return
    if max(_sides(_box(tile.mask, tile.spacing))) < SMALL * min(_sides(frame)):
        _draw_close_up(axes, tile, sum(frame[0]) / 2)


def _draw_slice(axes: Axes, tile: _Tile) -> None:
    # arrays run (right, anterior): transposed and with the origin below, anterior points up
    axes.imshow(
        tile.plane.T,
        cmap="gray",
        vmin=tile.limits[0],
        vmax=max(tile.limits[1], tile.limits[0] + 1e-6),
        origin="lower",
        extent=(0.0, tile.plane.shape[0] * tile.spacing[0], 0.0, tile.plane.shape[1] * tile.spacing[1]),
    )
    edges = _edges(tile.mask) * np.asarray(tile.spacing[:2])
    axes.add_collection(LineCollection(list(edges), colors=[tuple(part / 255 for part in tile.color)], linewidths=1.3))


def _draw_close_up(axes: Axes, tile: _Tile, centre: float) -> None:
    """In the lower corner on the side that the object is not on, with its frame in the slice."""
    box = _box(tile.mask, tile.spacing)
    middle = [(low + high) / 2 for low, high in box]
    half = max(_sides(box)) / 2 + CLOSE_UP_MM
    on_left = middle[0] > centre
    inset = axes.inset_axes((1 - CLOSE_UP if on_left else 0.0, 0.0, CLOSE_UP, CLOSE_UP))
    inset.set_anchor("SE" if on_left else "SW")
    _draw_slice(inset, tile)
    inset.set(xlim=(middle[0] + half, middle[0] - half), ylim=(middle[1] - half, middle[1] + half))
    inset.set(xticks=[], yticks=[], facecolor="black", aspect="equal")
    inset.spines[:].set(color="white", linewidth=0.8)
    corner = (middle[0] - half, middle[1] - half)
    axes.add_patch(Rectangle(corner, 2 * half, 2 * half, fill=False, color="white", linewidth=0.6))


def _edges(mask: np.ndarray) -> np.ndarray:
    """Borders between a mask's pixels and others, (n, 2, 2): two ends (x, y) of each, in pixels."""
    padded = np.pad(mask.astype(np.int8), 1)
    x, y = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    upright = np.stack([np.stack([x, y], -1), np.stack([x, y + 1], -1)], axis=1)
    x, y = np.nonzero(np.diff(padded, axis=1)[1:-1])
    level = np.stack([np.stack([x, y], -1), np.stack([x + 1, y], -1)], axis=1)
    return np.concatenate([upright, level])


def _frame(seen: Sequence[np.ndarray], spacing: Sequence[float]) -> tuple[_Span, _Span]:
    """In mm: what the tiles show, all slices' pixels in which there is anything, with a margin."""
    union = np.logical_or.reduce(seen)
    whole = tuple((0.0, union.shape[k] * spacing[k]) for k in (0, 1))
    if not union.any():
        return whole[0], whole[1]
    box = _box(union, spacing)
    first, second = (
        (max(low - FRAME_MM, 0.0), min(high + FRAME_MM, end)) for (low, high), (_, end) in zip(box, whole, strict=True)
    )
    return first, second


def _sides(box: tuple[_Span, _Span]) -> tuple[float, float]:
    return box[0][1] - box[0][0], box[1][1] - box[1][0]


def _box(mask: np.ndarray, spacing: Sequence[float]) -> tuple[_Span, _Span]:
    """In mm: (lowest, highest) along both axes."""
    found = np.argwhere(mask)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    first, second = ((float(low[k] * spacing[k]), float(high[k] * spacing[k])) for k in (0, 1))
    return first, second


def _write_header(figure: Figure, size: _Span, title: str, limits: tuple[float, float], left_out: int) -> None:
    y = 1 - 0.6 * HEADER_INCHES / size[1]
    missing = f"   and {left_out} prompts more" if left_out else ""
    letters = int(size[0] * 6)
    short = title if len(title) <= letters else title[: letters - 1] + "…"
    style: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(GAP_INCHES / size[0], y, short + missing, color="white", fontsize=11, **style)
    window = f"window {limits[0]:.5g} to {limits[1]:.5g}"
    figure.text(1 - GAP_INCHES / size[0], y, window, color="#a0a0a0", fontsize=8, ha="right", **style)


def _write_caption(figure: Figure, place: _Span, prompt: str, told: str, one: _Shown) -> None:
    lines = textwrap.wrap(prompt, LINE_LETTERS) or [""]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][: LINE_LETTERS - 1] + "…"]
    color = tuple(part / 255 for part in color_of(one.number)) if one.voxels else (0.6, 0.6, 0.6)
    # a prompt is text: `$` starts no formula
    text = "\n".join([*lines, told])
    figure.text(*place, text, color=color, fontsize=9, va="bottom", linespacing=1.25, parse_math=False)
