"""Resizing of slices and their masks, so that training examples collate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform
from torch.nn import functional

from boltzformer.data.canvas import Canvas, body_box, canvas_of, check_pixel_sizes
from boltzformer.errors import InputError

_FAINTEST = 1e-3  # coverage below which a pixel is taken as not touched
_TIE = 1e-4  # coverages that differ by less are taken as equal


def harden_mask(coverage: torch.Tensor) -> torch.Tensor:
    """Turn the share of each pixel that an object covers into a binary mask that loses no small object.

    A pixel belongs to the object where it is covered by half or more; of the ties, which are frequent when a
    slice is halved, every other one, which keeps areas on average. An object that reaches a half nowhere
    would vanish, and its example would teach that the object is absent; there the pixel that it covers most
    (the strict maximum of its 3 × 3 neighbourhood, if nothing in there belongs to the object) stands for it.
    Nearest neighbour, the usual choice, drops three of four single pixels when it halves a slice.

    Args:
        coverage: (1, H, W) float in [0, 1].

    Returns:
        (1, H, W) float32 of 0 and 1.
    """
    mask = torch.zeros_like(coverage, dtype=torch.float32)
    covered = coverage[0] > _FAINTEST
    rows, columns = (torch.nonzero(covered.any(dim)).flatten() for dim in (1, 0))
    if len(rows):
        # only the object's box: the neighbourhoods of a whole slice take longer than all the rest
        box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        mask[box] = harden_box(coverage[box])
    return mask


def harden_masks(coverage: torch.Tensor) -> torch.Tensor:
    """`harden_mask` for each of K masks by itself, (K, H, W) -> (K, H, W)."""
    return torch.cat([harden_mask(one) for one in coverage.split(1)])


def harden_box(coverage: torch.Tensor) -> torch.Tensor:
    """What `harden_mask` does inside an object's box, for any number of masks at once: (N, H, W) -> (N, H, W)."""
    rows = torch.arange(coverage.shape[-2], device=coverage.device)[:, None]
    columns = torch.arange(coverage.shape[-1], device=coverage.device)[None, :]
    mask = (coverage >= 0.5 + _TIE * (2 * ((rows + columns) % 2) - 1)).to(torch.float32)
    # equal neighbours are told apart by a term that differs within any 3 × 3 window
    ranked = coverage - _TIE * (3 * (rows % 3) + columns % 3) / 9
    highest, near = functional.max_pool2d(torch.stack([ranked, mask]), 3, stride=1, padding=1)
    peaks = (coverage > _FAINTEST) & (ranked == highest) & (near == 0)
    return torch.maximum(mask, peaks.to(torch.float32))


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize bilinearly, with a low-pass filter where the slice shrinks.

    Args:
        image: (C, H, W) float32.
        size: new height and width.

    Returns:
        (C, *size) float32.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize binary masks through the coverage of the new pixels (see `harden_mask`).

    Args:
        mask: (K, H, W) float32 of 0 and 1.
        size: new height and width.

    Returns:
        (K, *size) float32 of 0 and 1.
    """
    if tuple(mask.shape[-2:]) == size:
        return mask
    # the mean over a larger pixel's box is the share covered; the low-pass filter would blur small objects
    shrunk = (min(size[0], mask.shape[-2]), min(size[1], mask.shape[-1]))
    coverage = mask[None]
    if shrunk != tuple(mask.shape[-2:]):
        coverage = functional.adaptive_avg_pool2d(coverage, shrunk)
    if shrunk != size:
        coverage = functional.interpolate(coverage, size, mode="bilinear", align_corners=False)
    return harden_masks(coverage[0])


def height_and_width(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """A size in pixels from one number for both sides, or two.

    Raises:
        InputError: not one or two positive numbers; it names the argument.
    """
    sizes = [size, size] if isinstance(size, int) else list(size)
    if len(sizes) != 2 or min(sizes) < 1:
        raise InputError(f"{name}: expected one or two positive numbers, found {size!r}.")
    return int(sizes[0]), int(sizes[1])


class ResizeSliced(Transform):
    """Dictionary transform that brings a slice and its mask to one size; `spacing` follows.

    The picture is stretched where its aspect differs from the new one, as the paper resizes every slice to a
    square. With `pixel_size_mm` it is first padded, or cut to the view that holds most of the masks, as inference does
    (`boltzformer.data.canvas`), so that objects have a size that the network knows. Behind an augmentation leave it out
    and begin with `augmentation.RandSliceViewd`: a view of the body that is looked for behind a shift or a growth
    follows the body, and undoes them.

    Args:
        spatial_size: new height and width, or one number for both, in pixels.
        image_key: (C, H, W) float32 image.
        label_key: (K, H, W) binary masks; may be missing in an item.
        spacing_key: (2,) mm along H and W; may be missing in an item.
        pixel_size_mm: smallest and largest size of the new pixels, in mm, that the network knows; None takes every
            slice whole.
        known_spacing_key: (2,) mm along H and W before any augmentation, NaN where not known; may be missing.
        body_view: look at the slice through the box of its body, as near as `pixel_size_mm` allows.

    Raises:
        InputError: a size that is not one or two positive numbers.
    """

    def __init__(
        self,
        spatial_size: int | Sequence[int],
        image_key: str = "image",
        label_key: str = "label",
        spacing_key: str = "spacing",
        pixel_size_mm: float | Sequence[float] | None = None,
        known_spacing_key: str = "known_spacing",
        body_view: bool = False,
    ) -> None:
        self.body_view = body_view
        self.size = height_and_width(spatial_size, "spatial_size")
        self.image_key, self.label_key, self.spacing_key = image_key, label_key, spacing_key
        self.known_spacing_key = known_spacing_key
        self.pixel_size_mm = None if pixel_size_mm is None else check_pixel_sizes(pixel_size_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resize one item."""
        item = self._on_canvas(dict(data))
        height, width = item[self.image_key].shape[-2:]
        item[self.image_key] = resize_image(item[self.image_key], self.size)
        if self.label_key in item:
            item[self.label_key] = resize_mask(item[self.label_key], self.size)
        if self.spacing_key in item:
            scale = torch.tensor([height / self.size[0], width / self.size[1]], dtype=torch.float32)
            item[self.spacing_key] = item[self.spacing_key] * scale
        return item

    def _on_canvas(self, item: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the view of the slice that holds most of its masks."""
        if self.pixel_size_mm is None or self.known_spacing_key not in item:
            return item
        spacing = item[self.known_spacing_key].tolist()
        canvas = view_of(item[self.image_key], spacing, self.size, self.pixel_size_mm, self.body_view)
        return cut_to_view(item, canvas, self.image_key, self.label_key)


def view_of(
    image: torch.Tensor,
    spacing: Sequence[float],
    size: tuple[int, int],
    pixel_size_mm: tuple[float, float],
    body_view: bool,
    loosely: float = 0.0,
) -> Canvas:
    """Where the network's views of a slice (C, H, W) lie, by its body where asked for; see `canvas.canvas_of`."""
    body = body_box(image) if body_view else None
    return canvas_of(image.shape[-2:], spacing, size, pixel_size_mm, body, loosely)


def cut_to_view(
    item: dict[Hashable, Any], canvas: Canvas, image_key: str = "image", label_key: str = "label", place: float = 0.0
) -> dict[Hashable, Any]:
    """Cut an item to the view that holds most of its masks.

    Args:
        item: with the slice, perhaps with masks; changed.
        canvas: the views.
        image_key: (C, H, W) slice.
        label_key: (K, H, W) masks.
        place: in [0, 1): which of the views is taken where no mask holds a pixel.

    Returns:
        the item.
    """
    views = canvas.views(item[image_key])
    best = int(place * len(views))
    if label_key in item:
        masks = canvas.views(item[label_key])
        held = [float(mask.sum()) for mask in masks]
        best = held.index(max(held)) if any(held) else best
        item[label_key] = masks[best]
    item[image_key] = views[best]
    return item
