"""Slices at a size in mm that the network knows: padded, or seen in views, where the field of view is another.

The network stretches a slice to its own grid, so how large an organ appears depends on the field of view. A recipe may
state which sizes of the grid's pixels (in mm) training covered. A slice of 512 x 512 pixels of 0.5 mm on a grid of 256
has grid pixels of 1 mm; for a network that was trained with 1.9 to 2.8 mm it is padded to 973 x 973 pixels, whose grid
pixels have 1.9 mm. Whole pixels are added and removed, so what comes back lies exactly on the slice's own pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from boltzformer.errors import InputError

OVERLAP = 0.25
"""Least share of a window that it has in common with the next."""
_TOLERANCE = 1e-3  # a pixel size that is this near to a limit, relative to it, is within


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
            return _cut(views[0], -places[0][0], -places[0][1], self.size)
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
) -> Canvas:
    """Choose the views of a slice.

    Args:
        size: height and width in pixels.
        spacing: mm along both; NaN where they are not known.
        grid: height and width of the network's working size, in pixels.
        pixel_size_mm: smallest and largest size of the grid's pixels that training covered; None takes the slice whole.

    Returns:
        the slice whole where its pixels on the grid lie within the range or their size is not known.
    """
    whole = (int(size[0]), int(size[1]))
    if pixel_size_mm is None or not all(float(mm) > 0 for mm in spacing):
        return Canvas(whole, whole)
    (height, rows), (width, columns) = (
        _along(pixels, float(mm), points, pixel_size_mm)
        for pixels, mm, points in zip(whole, spacing, grid, strict=True)
    )
    return Canvas(whole, (height, width), rows, columns)


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


def _cut(image: Tensor, row: int, column: int, size: tuple[int, int]) -> Tensor:
    """The part (..., H, W) that begins at a row and column, with 0 outside the image."""
    height, width = image.shape[-2:]
    sides = (-column, column + size[1] - width, -row, row + size[0] - height)
    return functional.pad(image, sides)  # a negative number cuts


def _ramp(length: int, like: Tensor) -> Tensor:
    """Weights that fall from the middle to both ends of a view, above 0."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.minimum(place + 1, length - place) / length
