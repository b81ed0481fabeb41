"""The view that training takes of a slice, and the paper's augmentation (appendix A.5) of it; small turns besides."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.transforms import Randomizable, RandomizableTransform, Transform

from boltzformer.data.canvas import check_pixel_sizes
from boltzformer.data.slice_transforms import cut_to_view, harden_masks, height_and_width, view_of
from boltzformer.errors import InputError

ANY_DATASET = "*"


class RandSliceAffined(RandomizableTransform):
    """Dictionary transform: with probability `prob` a turn, a shift and a scale, all uniform, in one interpolation.

    The turn is by 0, 90, 180 or 270 degrees and by up to ±`angle` degrees more, the centre moves by up to
    ±`shift` of each side, the content grows by a factor in 1 ± `scale`. The image is sampled bilinearly; of the
    masks the coverage is, and `harden_masks` keeps small objects. What comes from outside the slice is 0. There is
    no mirroring: prompts tell left from right, which quarter turns make unlearnable too (`turn=False`).

    Args:
        prob: probability of any change, in [0, 1].
        shift: largest shift as a share of the side, in [0, 1); or a map from a dataset's name (the item's
            `dataset`; "*" is any other) to one, for crops whose object always lies in the middle.
        scale: largest change of the factor, in [0, 1).
        turn: draw a quarter turn; without it the slice stays upright, but for `angle`.
        angle: largest small turn either way in degrees, in [0, 45].
        image_key: (C, H, W) float32 image.
        label_key: (K, H, W) binary masks; may be missing in an item.
        spacing_key: (2,) mm along H and W, which swaps and scales with the content; may be missing in an
            item.
        known_spacing_key: the same before any growth, which swaps alone; may be missing in an item.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(
        self,
        prob: float = 0.5,
        shift: float | Mapping[str, float] = 0.1,
        scale: float = 0.1,
        turn: bool = True,
        angle: float = 0.0,
        image_key: str = "image",
        label_key: str = "label",
        spacing_key: str = "spacing",
        known_spacing_key: str = "known_spacing",
    ) -> None:
        self.shifts = shifts_of(shift)
        if not (0 <= prob <= 1 and all(0 <= s < 1 for s in self.shifts.values()) and 0 <= scale < 1):
            raise InputError("RandSliceAffined: prob must lie in [0, 1], shift and scale in [0, 1).")
        if not 0 <= angle <= 45:
            raise InputError(f"RandSliceAffined: angle must lie in [0, 45] degrees, found {angle}.")
        RandomizableTransform.__init__(self, prob)
        self.scale, self.turn, self.angle = scale, turn, angle
        self.image_key, self.label_key, self.spacing_key = image_key, label_key, spacing_key
        self.known_spacing_key = known_spacing_key
        self.turns, self.offset, self.factor, self.degrees = 0, (0.0, 0.0), 1.0, 0.0

    def randomize(self, data: Any = None) -> None:
        """Draw the turns, the shift (shares of height and width) and the factor for an item of a dataset."""
        super().randomize(data)
        shift = shift_in(self.shifts, str(data))
        turns = int(self.R.randint(4))
        self.turns = turns if self.turn else 0
        self.offset = (self.R.uniform(-shift, shift), self.R.uniform(-shift, shift))
        self.factor = self.R.uniform(1 - self.scale, 1 + self.scale)
        if self.angle:  # not drawn without need: the draws of a run without small turns stay what they were
            self.degrees = self.R.uniform(-self.angle, self.angle)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change one item, or pass it on."""
        item = dict(data)
        self.randomize(item.get("dataset", ""))
        if not self._do_transform:
            return item
        move = (self.turns, self.offset, self.factor, self.degrees)
        item[self.image_key] = move_slice(item[self.image_key], *move)
        if self.label_key in item:
            item[self.label_key] = harden_masks(move_slice(item[self.label_key], *move))
        if self.spacing_key in item:
            spacing = item[self.spacing_key] / self.factor
            item[self.spacing_key] = spacing.flip(0) if self.turns % 2 else spacing
        if self.turns % 2 and self.known_spacing_key in item:
            item[self.known_spacing_key] = item[self.known_spacing_key].flip(0)
        return item


class RandSliceViewd(Randomizable, Transform):
    """Dictionary transform: cuts a slice and its masks to the view of it that the network would see.

    List it first. Behind a shift or a growth the view of the body would follow the body, and undo them.
    The view of the body is the box itself or, half of the time, seen from farther away, by chance up to the whole
    slice: in a scan whose air is not empty the box is larger. Of several views the one that holds most of the masks is
    taken, or any where they are empty.

    Args:
        spatial_size: the network's working size in pixels: height and width, or one number for both.
        pixel_size_mm: smallest and largest size of the working size's pixels, in mm, that the network knows; None takes
            every slice whole.
        body_view: look at the slice through the box of its body, as near as `pixel_size_mm` allows.
        image_key: (C, H, W) float32 image.
        label_key: (K, H, W) binary masks; may be missing in an item.
        known_spacing_key: (2,) mm along H and W, NaN where not known; without it the slice is taken whole.

    Raises:
        InputError: sizes that are none.
    """

    def __init__(
        self,
        spatial_size: int | Sequence[int],
        pixel_size_mm: float | Sequence[float] | None = None,
        body_view: bool = False,
        image_key: str = "image",
        label_key: str = "label",
        known_spacing_key: str = "known_spacing",
    ) -> None:
        self.size = height_and_width(spatial_size, "spatial_size")
        self.pixel_size_mm = None if pixel_size_mm is None else check_pixel_sizes(pixel_size_mm)
        self.body_view = body_view
        self.image_key, self.label_key, self.known_spacing_key = image_key, label_key, known_spacing_key
        self.loosely, self.place = 0.0, 0.0

    def randomize(self, data: Any = None) -> None:
        """Draw how far the view keeps away from the body's box, and which of several views is taken."""
        self.loosely = max(0.0, self.R.uniform(-1, 1))
        self.place = self.R.uniform()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut one item."""
        item = dict(data)
        self.randomize()
        if self.pixel_size_mm is None or self.known_spacing_key not in item:
            return item
        spacing = item[self.known_spacing_key].tolist()
        image = item[self.image_key]
        canvas = view_of(image, spacing, self.size, self.pixel_size_mm, self.body_view, self.loosely)
        return cut_to_view(item, canvas, self.image_key, self.label_key, self.place)


def shifts_of(shift: float | Mapping[str, float]) -> dict[str, float]:
    """The largest shift in each dataset, by name, from one for all or a map; see `RandSliceAffined`."""
    return dict(shift) if isinstance(shift, Mapping) else {ANY_DATASET: shift}


def shift_in(shifts: Mapping[str, float], dataset: str) -> float:
    """The largest shift in a dataset: its own, else any other's, else none."""
    return shifts.get(dataset, shifts.get(ANY_DATASET, 0.0))


def move_slice(
    image: torch.Tensor, turns: int, offset: tuple[float, float], factor: float, degrees: float = 0.0
) -> torch.Tensor:
    """Turn, scale and shift a slice about its centre in one bilinear interpolation.

    A point p (pixels down and right of the centre) lands at factor · R p + offset · (H, W), where R is
    `turns` quarter turns counter-clockwise. Quarter turns move whole pixels, and scale and shift act on each
    axis alone, so the bilinear weights are a product and the interpolation runs along one axis after the
    other.

    Args:
        image: (C, H, W) float.
        turns: number of quarter turns.
        offset: shift of the content, in shares of H and W.
        factor: growth of the content.
        degrees: a further turn counter-clockwise, by any angle.

    Returns:
        (C, H, W); 0 where the source is outside the slice.
    """
    if degrees:
        return _turn_and_move(torch.rot90(image, turns % 4, (-2, -1)), offset, factor, math.radians(degrees))
    moved = torch.rot90(image, turns % 4, (-2, -1)).contiguous()
    for side, share in zip(image.shape[-2:], offset, strict=True):
        around_centre = torch.arange(side, device=image.device) - (side - 1) / 2 - share * side
        moved = _interpolate_rows(moved, around_centre / factor + (moved.shape[-2] - 1) / 2)
        # reading whole rows is several times faster than reading along them
        moved = moved.transpose(-2, -1).contiguous()
    return moved


def _interpolate_rows(image: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Read the axis -2 at fractional positions, linearly, with 0 outside."""
    size = image.shape[-2]
    below = positions.floor()
    parts = []
    for index, weight in ((below, below + 1 - positions), (below + 1, positions - below)):
        inside = torch.where((index >= 0) & (index < size), weight, 0.0).to(image.dtype)
        parts.append(image.index_select(-2, index.clamp(0, size - 1).long()).mul_(inside[:, None]))
    return parts[0].add_(parts[1])


def _turn_and_move(image: torch.Tensor, offset: tuple[float, float], factor: float, angle: float) -> torch.Tensor:
    """`move_slice` for a turn by any angle, which mixes the axes: two-dimensional bilinear interpolation."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2 - offset[0] * height,
        torch.arange(width) - (width - 1) / 2 - offset[1] * width,
        indexing="ij",
    )
    # where a pixel comes from: y runs down, so a counter-clockwise turn of the content is undone by a clockwise one
    source_x = (math.cos(angle) * x - math.sin(angle) * y) / factor
    source_y = (math.sin(angle) * x + math.cos(angle) * y) / factor
    grid = torch.stack((source_x * 2 / width, source_y * 2 / height), dim=-1).to(image)  # in [-1, 1] to the outer edges
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
