"""Resizing of slices and their masks, so that training examples collate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform
from torch.nn import functional

from boltzformer.errors import InputError


def harden_mask(coverage: torch.Tensor) -> torch.Tensor:
    """Turn the share of each pixel that an object covers into a binary mask that loses no small object.

    A pixel belongs to the object from half coverage on, which keeps areas on average. An object that reaches
    a half nowhere would vanish, and its example would teach that the object is absent; there the pixel that
    it covers most (the strict maximum of its 3 × 3 neighbourhood, if nothing in there reaches a half) stands
    for it. Nearest neighbour, the usual choice, drops three of four single pixels when it halves a slice.

    Args:
        coverage: (1, H, W) float in [0, 1].

    Returns:
        (1, H, W) float32 of 0 and 1.
    """
    mask = (coverage >= 0.5).to(torch.float32)
    covered = coverage[0] > 1e-3
    rows, columns = (torch.nonzero(covered.any(dim)).flatten() for dim in (1, 0))
    if len(rows):
        box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        mask[box] = torch.maximum(mask[box], _peaks(coverage[box], mask[box]))
    return mask


def _peaks(coverage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mark each strict 3 × 3 maximum of the coverage that has no pixel of the mask beside it."""
    faint = (coverage > 1e-3) & (mask == 0)
    rows = torch.arange(coverage.shape[-2], device=coverage.device)[:, None] % 3
    columns = torch.arange(coverage.shape[-1], device=coverage.device)[None, :] % 3
    # equal neighbours are told apart by a term that differs within any 3 × 3 window
    ranked = coverage - 1e-4 * (3 * rows + columns) / 9
    highest, near = functional.max_pool2d(torch.stack([ranked, mask]), 3, stride=1, padding=1)
    return (faint & (ranked == highest) & (near == 0)).to(torch.float32)


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
    """Resize a binary mask through the coverage of the new pixels (see `harden_mask`).

    Args:
        mask: (1, H, W) float32 of 0 and 1.
        size: new height and width.

    Returns:
        (1, *size) float32 of 0 and 1.
    """
    if tuple(mask.shape[-2:]) == size:
        return mask
    shrinks = size[0] <= mask.shape[-2] and size[1] <= mask.shape[-1]
    if shrinks:
        # the mean over the new pixel's box is the covered share; the triangle filter would blur small objects
        return harden_mask(functional.adaptive_avg_pool2d(mask[None], size)[0])
    return harden_mask(functional.interpolate(mask[None], size, mode="bilinear", align_corners=False)[0])


class ResizeSliced(Transform):
    """Dictionary transform that brings a slice and its mask to one size; `spacing` follows.

    The picture is stretched where its aspect differs from the new one, as the paper resizes every slice to a
    square.

    Args:
        spatial_size: new height and width, or one number for both, in pixels.
        image_key: (C, H, W) float32 image.
        label_key: (1, H, W) binary mask; may be missing in an item.
        spacing_key: (2,) mm along H and W; may be missing in an item.

    Raises:
        InputError: a size that is not one or two positive numbers.
    """

    def __init__(
        self,
        spatial_size: int | Sequence[int],
        image_key: str = "image",
        label_key: str = "label",
        spacing_key: str = "spacing",
    ) -> None:
        sizes = [spatial_size, spatial_size] if isinstance(spatial_size, int) else list(spatial_size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise InputError(f"spatial_size: expected one or two positive numbers, found {spatial_size!r}.")
        self.size = (int(sizes[0]), int(sizes[1]))
        self.image_key, self.label_key, self.spacing_key = image_key, label_key, spacing_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resize one item."""
        item = dict(data)
        height, width = item[self.image_key].shape[-2:]
        item[self.image_key] = resize_image(item[self.image_key], self.size)
        if self.label_key in item:
            item[self.label_key] = resize_mask(item[self.label_key], self.size)
        if self.spacing_key in item:
            scale = torch.tensor([height / self.size[0], width / self.size[1]], dtype=torch.float32)
            item[self.spacing_key] = item[self.spacing_key] * scale
        return item
