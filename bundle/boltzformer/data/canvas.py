"""Slices at a size in mm that the network knows: padded, or seen in views, where the field of view is another.

The network stretches a slice to its own grid, so how large an organ appears depends on the field of view. A recipe may
state which sizes of the grid's pixels (in mm) training covered. A slice of 512 x 512 pixels of 0.5 mm on a grid of 256
has grid pixels of 1 mm; for a network that was trained with 1.9 to 2.8 mm it is padded to 973 x 973 pixels, whose grid
pixels have 1.9 mm. Whole pixels are added and removed, so what comes back lies exactly on the slice's own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from boltzformer.errors import InputError
from boltzformer.volumes.spacing import cannot_be, is_known

OVERLAP = 0.25
"""Least share of a window that it has in common with the next."""
OUTSIDE = -30.0
"""Logit of what lies outside the view: there is air, which holds no object."""
_BLOCKS = 64  # to a side, whose means show the body: 8 mm in a field of 50 cm, which a couch's thin shell does not fill
_AIR = 0.05  # largest mean of a block without body; fat has 0.15 in the window of soft tissue
_MARGIN = 0.04  # of the box on every side, as a share of it
_LONGEST_SIDE = 1 << 14  # of a padded slice, in pixels: 1 GB of it; pixels would have 0.02 mm
_MOST_PIXELS = 1 << 24  # of a slice's views on the grid, 256 of 256 x 256: a field of view of 8 m
_TOLERANCE = 1e-3  # a pixel size that is this near to a limit, relative to it, is within


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """Where the network's views of a slice lie, in pixels of the slice.

    Attributes:
        size: height and width of the slice.
        window: height and width of each view; larger than the slice where it is padded.
        rows: first row of each view, negative where it is padded.
        columns: first column of each view.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    rows: tuple[int, ...] = (0,)
    columns: tuple[int, ...] = (0,)

    @property
    def is_whole(self) -> bool:
        """Whether the slice goes in as it is."""
        return self.size == self.window

    def views(self, image: Tensor) -> list[Tensor]:
        """Cut the views out; what lies outside the slice is 0, which is air in CT and background in MR.

        Args:
            image: (..., h, w) of `size`.

        Returns:
            for each view (..., H, W) of `window`, rows first.
        """
        if self.is_whole:
            return [image]
        return [_cut(image, row, column, self.window) for row, column in product(self.rows, self.columns)]

    def join(self, views: Sequence[Tensor]) -> Tensor:
        """Lay results for the views back onto the slice; where they overlap, the nearer to a view's centre weighs more.

        Args:
            views: (..., H, W) float for each of `views`, in its order.

        Returns:
            (..., h, w); with one view its very numbers.
        """
        if self.is_whole:
            return views[0]
        places = list(product(self.rows, self.columns))
        if len(places) == 1:
            return _cut(views[0], -places[0][0], -places[0][1], self.size, OUTSIDE)
        height, width = self.window
        weight = _ramp(height, views[0])[:, None] * _ramp(width, views[0])[None, :]
        total = views[0].new_zeros((*views[0].shape[:-2], *self.size))
        weights = views[0].new_zeros(self.size)
        for (row, column), view in zip(places, views, strict=True):
            total += _cut(view * weight, -row, -column, self.size)
            weights += _cut(weight, -row, -column, self.size)
        return total / weights


def canvas_of(
    size: Sequence[int],
    spacing: Sequence[float],
    grid: Sequence[int],
    pixel_size_mm: tuple[float, float] | None,
    body: Box | None = None,
    loosely: float = 0.0,
) -> Canvas:
    """Choose the views of a slice.

    Args:
        size: height and width in pixels.
        spacing: mm along both; NaN where they are not known.
        grid: height and width of the network's working size, in pixels.
        pixel_size_mm: smallest and largest size of the grid's pixels that training covered; None takes the slice whole.
        body: what the view has to hold (`body_box`), where that is nearer than the whole slice; None looks at it all.
        loosely: how far the view keeps away from the body's box, from 0, the box, to 1, the whole slice.

    Returns:
        the slice whole where its pixels on the grid lie within the range or their size is not known.

    Raises:
        InputError: a field of view so large, or pixels so small, that the voxel size must be wrong.
    """
    whole = (int(size[0]), int(size[1]))
    if pixel_size_mm is None or not is_known(*spacing):
        return Canvas(whole, whole)
    (height, rows), (width, columns) = (
        _along(pixels, float(mm), points, pixel_size_mm)
        for pixels, mm, points in zip(whole, spacing, grid, strict=True)
    )
    if max(height, width) > _LONGEST_SIDE or len(rows) * len(columns) * grid[0] * grid[1] > _MOST_PIXELS:
        raise cannot_be(f"slices of {whole[0]} x {whole[1]} pixels of {float(spacing[0]):g} x {float(spacing[1]):g} mm")
    seen = Canvas(whole, (height, width), rows, columns)
    return seen if body is None else _nearer(seen, spacing, grid, pixel_size_mm, body, loosely)


def body_box(image: Tensor) -> Box | None:
    """The part of a slice that is not air.

    Args:
        image: (C, h, w) in [0, 1], C neighbouring slices.

    Returns:
        first row, first column, and the row and column behind the last; None where all is air.
    """
    return body_boxes(image[None])[0]


def body_boxes(images: Tensor) -> list[Box | None]:
    """`body_box` of each of n slices (n, C, h, w), with one wait for their device."""
    height, width = images.shape[-2:]
    block = -(-max(height, width) // _BLOCKS)
    means = functional.avg_pool2d(images, block, ceil_mode=True, count_include_pad=False)
    boxes: list[Box | None] = []
    for seen in (means.amax(dim=1) > _AIR).cpu():
        rows, columns = (seen.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
        if not rows:
            boxes.append(None)
            continue
        bottom, right = min(height, (rows[-1] + 1) * block), min(width, (columns[-1] + 1) * block)
        boxes.append((rows[0] * block, columns[0] * block, bottom, right))
    return boxes


def _nearer(
    seen: Canvas,
    spacing: Sequence[float],
    grid: Sequence[int],
    limits: tuple[float, float],
    body: Box,
    loosely: float,
) -> Canvas:
    """The view of the body, if its pixels on the grid are smaller than those of `seen`; else that.

    They are square, so that what fills the grid along one axis leaves room along the other. A body that the field of
    view cuts off on two sides is larger than its box; it is seen with pixels of the middle of the range or larger ones,
    if need be from farther away than the slice reaches: shoulders in a field of 25 cm must not look like a head.
    """
    mm = [float(along) for along in spacing]
    now = max(seen.window[i] * mm[i] / grid[i] for i in range(2))
    needed = max((body[i + 2] - body[i]) * (1 + 2 * _MARGIN) * mm[i] / grid[i] for i in range(2))
    cut_off = any(body[i] == 0 and body[i + 2] == seen.size[i] for i in range(2))
    least = math.sqrt(limits[0] * limits[1]) if cut_off else limits[0]
    pixel = max(needed, least) ** (1 - loosely) * max(now, least) ** loosely
    if now >= least and pixel >= now * (1 - _TOLERANCE):
        return seen
    height, width = (max(1, round(pixel * grid[i] / mm[i])) for i in range(2))
    row, column = ((body[i] + body[i + 2] - side) // 2 for i, side in enumerate((height, width)))
    return Canvas(seen.size, (height, width), (row,), (column,))


def check_pixel_sizes(value: float | Sequence[float]) -> tuple[float, float]:
    """A range of pixel sizes in mm from one number or two.

    Raises:
        InputError: not one or two rising positive numbers up to 100.
    """
    numbers = [value, value] if isinstance(value, int | float) else list(value)
    try:
        low, high = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise InputError(f"pixel_size_mm: expected a size in mm or [smallest, largest], found {value!r}.") from None
    if not 0 < low <= high <= 100:
        raise InputError(f"pixel_size_mm: expected 0 < smallest <= largest <= 100, found {value!r}.")
    return low, high


def _along(pixels: int, mm: float, points: int, limits: tuple[float, float]) -> tuple[int, tuple[int, ...]]:
    """Length of the views along one axis and where each begins."""
    low, high = limits
    on_grid = pixels * mm / points
    if on_grid < low * (1 - _TOLERANCE):
        length = round(low * points / mm)
        return length, ((pixels - length) // 2,)
    if on_grid <= high * (1 + _TOLERANCE):
        return pixels, (0,)
    length = max(1, int(high * points / mm))
    last = pixels - length
    count = 1 + -(-last // max(1, int(length * (1 - OVERLAP))))
    return length, tuple(round(last * i / max(1, count - 1)) for i in range(count))


def _cut(image: Tensor, row: int, column: int, size: tuple[int, int], outside: float = 0.0) -> Tensor:
    """The part (..., H, W) that begins at a row and column, with `outside` beyond the image."""
    height, width = image.shape[-2:]
    sides = (-column, column + size[1] - width, -row, row + size[0] - height)
    return functional.pad(image, sides, value=outside)  # a negative number cuts


def _ramp(length: int, like: Tensor) -> Tensor:
    """Weights that fall from the middle to both ends of a view, above 0."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.minimum(place + 1, length - place) / length
