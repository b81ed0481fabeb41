"""A whole training set on the device: slices as 8-bit numbers, augmented and resized there a batch at a time.

A GPU that trains a small network waits for its loader: a worker process resizes and augments some hundred slices a
second. Here the workers only choose (which slices, prompts and wordings, from the same draws as `SliceDataset` items),
and the pixels never leave the device. The price is memory, one byte a pixel of image and label map, and 8-bit grey
levels within the window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from boltzformer.data.augmentation import shift_in, shifts_of
from boltzformer.data.canvas import Box, body_box, canvas_of, check_pixel_sizes
from boltzformer.data.case_prompts import NO_VALUE
from boltzformer.data.moves import Move, bends, block_means, sampled, sampling_matrices
from boltzformer.data.slice_dataset import Draw, SliceDataset, known_spacing
from boltzformer.data.slice_transforms import harden_box, height_and_width
from boltzformer.data.windows import apply_window
from boltzformer.errors import InputError

_NOTHING = 255  # in a label map of bytes, what NO_VALUE asks for
_MOST_OF_MEMORY = 0.6  # of what is free on a device; the rest is for the network


@dataclass(frozen=True)
class Choice:
    """A slice with its prompts and its augmentation, as the loader's workers hand them to the device; see `Draws`."""

    draw: Draw
    move: Move


class Draws(Dataset[Choice]):
    """What `SliceDataset` items ask for, and their augmentation, without a pixel.

    With `body_view` each worker reads a slice once, for its box.

    Every number is a function of (seed, epoch, index), as in `SliceDataset`.

    Args:
        dataset: the examples, with several prompts a slice or one.
        size: height and width of the grid, or one number for both.
        pixel_size_mm: see `slice_transforms.ResizeSliced`; of several views one is drawn.
        body_view: look at the body's box, half of the time from farther away, by chance up to the whole slice: in a
            scan whose air is not empty the box is larger.
        prob: probability of a turn, shift and scale.
        shift: largest shift as a share of the view's side; or a map from datasets' names, see `RandSliceAffined`.
        scale: largest change of the factor.
        stretch: largest change of the growth along the rows alone, in [0, 1).
        angle: largest turn in degrees.
        warp: largest bend, as a share of the view's side, in [0, 0.1]; see `bends`. It makes more anatomies of a few.
        intensity_prob: probability of each change of the intensities.
        gain: largest change of their factor.
        offset: largest number added.
        gamma: largest change of their exponent, in [0, 1).
        noise: largest standard deviation of noise.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        size: int | Sequence[int],
        pixel_size_mm: float | Sequence[float] | None = None,
        body_view: bool = False,
        prob: float = 0.9,
        shift: float | Mapping[str, float] = 0.1,
        scale: float = 0.2,
        stretch: float = 0.0,
        angle: float = 12.0,
        warp: float = 0.0,
        intensity_prob: float = 0.5,
        gain: float = 0.15,
        offset: float = 0.1,
        gamma: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.shifts = shifts_of(shift)
        shares = {"prob": prob, "scale": scale, "stretch": stretch, "gain": gain, "gamma": gamma}
        shares["intensity_prob"] = intensity_prob
        shares.update({f"shift of {name}": value for name, value in self.shifts.items()})
        for name, share in shares.items():
            if not 0 <= share <= 1 or (share == 1 and "prob" not in name):
                raise InputError(f"Draws: {name} must lie in [0, 1), found {share}.")
        if not 0 <= angle <= 45 or offset < 0 or noise < 0:
            raise InputError("Draws: angle must lie in [0, 45] degrees; offset and noise must be 0 or more.")
        if not 0 <= warp <= 0.1:
            raise InputError(f"Draws: warp must lie in [0, 0.1], found {warp}: a larger bend folds the slice.")
        self.dataset = dataset
        self.size = height_and_width(size)
        self.pixel_size_mm = None if pixel_size_mm is None else check_pixel_sizes(pixel_size_mm)
        self.body_view = body_view
        self._boxes: dict[tuple[int, int], Box | None] = {}
        self.prob, self.scale, self.angle = prob, scale, math.radians(angle)
        self.stretch, self.warp = stretch, warp
        self.intensity_prob, self.gain, self.offset, self.gamma, self.noise = intensity_prob, gain, offset, gamma, noise

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Choice:
        drawn, rng = self.dataset.draw(index)
        return Choice(drawn, self._move(drawn.case, drawn.slice, rng))

    def _box(self, number: int, where: int) -> Box | None:
        if (number, where) not in self._boxes:
            picture = self.dataset.picture(number, where)
            self._boxes[number, where] = body_box(torch.from_numpy(picture))
        return self._boxes[number, where]

    def _move(self, number: int, where: int, rng: np.random.Generator) -> Move:
        case, volume = self.dataset.data[number], self.dataset.volumes[number]
        box = self._box(number, where) if self.body_view else None
        loosely = max(0.0, rng.uniform(-1, 1)) if self.body_view and self.dataset.training else 0.0
        canvas = canvas_of(volume.shape[1:], known_spacing(case, volume), self.size, self.pixel_size_mm, box, loosely)
        corner = (int(rng.choice(canvas.rows)), int(rng.choice(canvas.columns)))
        if not self.dataset.training:
            return Move(canvas.window, corner)
        moved = rng.random() < self.prob
        near = min(1.0, *(side / whole for side, whole in zip(canvas.window, canvas.size, strict=True)))
        shift = shift_in(self.shifts, case["dataset"]) * moved * near
        changed = (rng.random(4) < self.intensity_prob).astype(float)
        return Move(
            canvas.window,
            corner,
            shift=(rng.uniform(-shift, shift), rng.uniform(-shift, shift)),
            factor=1 + moved * rng.uniform(-self.scale, self.scale),
            stretch=(1 - self.stretch) ** (moved * rng.uniform(-1, 1)) if self.stretch else 1.0,
            angle=moved * rng.uniform(-self.angle, self.angle),
            warp=moved * near * rng.uniform(0, self.warp) if self.warp else 0.0,
            gain=1 + changed[0] * rng.uniform(-self.gain, self.gain),
            offset=changed[1] * rng.uniform(-self.offset, self.offset),
            gamma=(1 - self.gamma) ** (changed[2] * rng.uniform(-1, 1)),
            noise=changed[3] * rng.uniform(0, self.noise),
            seed=int(rng.integers(2**32)),
        )


def collate_choices(choices: Sequence[Choice]) -> dict[str, Any]:
    """A batch for `ResidentSlices`: the choices, and `text` and `object` of all (slice, prompt) pairs."""
    return {
        "choices": list(choices),
        "text": [text for choice in choices for text in choice.draw.texts],
        "object": [name for choice in choices for name in choice.draw.names],
    }


class ResidentSlices:
    """MONAI `prepare_batch`: turns choices into slices and masks on the device, where all slices lie.

    Args:
        dataset: the examples; its windowed slices are copied to the device on construction.
        size: height and width of the grid, or one number for both.
        device: where the slices shall lie.

    Raises:
        InputError: the slices do not fit beside a network, or a label value is above 254.
    """

    def __init__(self, dataset: SliceDataset, size: int | Sequence[int], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.size = height_and_width(size)
        self.channels = 2 * dataset.num_adjacent + 1
        self._check_room(dataset)
        shapes = sorted({volume.shape[1:] for volume in dataset.volumes})
        self._first_row: list[tuple[int, int, int]] = []  # of each case: its group, first row there, slices
        images: list[list[np.ndarray]] = [[] for _ in shapes]
        labels: list[list[np.ndarray]] = [[] for _ in shapes]
        rows = [0] * len(shapes)
        for case, volume, limits in zip(dataset.data, dataset.volumes, dataset.limits, strict=True):
            if volume.values and max(volume.values) >= _NOTHING:
                raise InputError(f"{case['image']}: label value {max(volume.values)}; a resident set takes up to 254.")
            group = shapes.index(volume.shape[1:])
            windowed = apply_window(volume.image(0, volume.shape[0]), *limits)
            images[group].append(np.rint(windowed * 255).astype(np.uint8))
            labels[group].append(np.stack([volume.label(i) for i in range(volume.shape[0])]).astype(np.uint8))
            self._first_row.append((group, rows[group], volume.shape[0]))
            rows[group] += volume.shape[0]
        self._images = [torch.from_numpy(np.concatenate(some)).to(self.device) for some in images]
        self._labels = [torch.from_numpy(np.concatenate(some)).to(self.device) for some in labels]

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Any]]:
        """Assemble a batch of `collate_choices`.

        Returns:
            slices (S, C, H, W) float32 in [0, 1], masks (S·K, 1, H, W) float32 of 0 and 1, and, as MONAI passes them
            to the network, no further arguments and the `text`.
        """
        choices: Sequence[Choice] = batch["choices"]
        image = torch.empty((len(choices), self.channels, *self.size), device=self.device)
        masks = torch.empty((len(choices), len(choices[0].draw.values), *self.size), device=self.device)
        places = [self._first_row[choice.draw.case] for choice in choices]
        # by blocks too: what a slice looks like must not depend on how far the others of its batch shrink
        kinds = [(place[0], *self._blocks(choice.move)) for choice, place in zip(choices, places, strict=True)]
        for kind in sorted(set(kinds)):
            here = [i for i, other in enumerate(kinds) if other == kind]
            where = self._put(np.asarray(here))
            pictures, labels = self._moved(*kind, [choices[i] for i in here], [places[i] for i in here])
            image[where], masks[where] = pictures, labels
        return self._recoloured(image, choices), masks.flatten(0, 1).unsqueeze(1), (), {"text": batch["text"]}

    def _blocks(self, move: Move) -> tuple[int, int]:
        """Sides of the blocks whose means are sampled, of pictures and of masks: what lies between two samples counts.

        Of masks half as many, for sampling averages two of them: together they cover about one new pixel.
        """
        shrinks = max(move.window[0] / self.size[0], move.window[1] / self.size[1])
        return max(1, round(shrinks)), max(1, math.ceil(shrinks / 2))

    def _moved(
        self, group: int, block: int, mask_block: int, choices: Sequence[Choice], places: Sequence[tuple[int, int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Slices (n, C, *size) and hard masks (n, K, *size) of one stack, from means over blocks."""
        reach = np.arange(self.channels) - self.channels // 2
        rows = [p[1] + np.clip(c.draw.slice + reach, 0, p[2] - 1) for c, p in zip(choices, places, strict=True)]
        pictures = self._images[group][self._put(np.stack(rows))].float() / 255
        middle = np.asarray([p[1] + c.draw.slice for c, p in zip(choices, places, strict=True)])
        values = np.asarray([[_NOTHING if v == NO_VALUE else v for v in c.draw.values] for c in choices])
        wanted = self._put(values.astype(np.uint8))[..., None, None]
        coverage = (self._labels[group][self._put(middle)][:, None] == wanted).float()
        shape = (int(pictures.shape[-2]), int(pictures.shape[-1]))
        matrices = self._put(sampling_matrices([c.move for c in choices], shape))
        grid = F.affine_grid(matrices, [len(choices), 1, *self.size], align_corners=False)
        if any(c.move.warp for c in choices):
            reach_of_bend = self._put(np.asarray([c.move.warp for c in choices], dtype=np.float32))
            grid = grid + bends(reach_of_bend, self.size, choices[0].move.seed)
        pictures = sampled(block_means(pictures, block), grid)
        coverage = sampled(block_means(coverage, mask_block), grid)
        return pictures, harden_box(coverage.flatten(0, 1)).view(coverage.shape)

    def _recoloured(self, image: Tensor, choices: Sequence[Choice]) -> Tensor:
        moves = [c.move for c in choices]
        numbers = np.asarray([(m.gain, m.offset, m.gamma, m.noise) for m in moves], dtype=np.float32)
        gain, offset, gamma, noise = self._put(numbers).T[..., None, None, None]
        if numbers[:, 2].min() < 1 or numbers[:, 2].max() > 1:
            image = image.clamp(min=0) ** gamma
        image = image * gain + offset
        if numbers[:, 3].any():
            generator = torch.Generator(self.device).manual_seed(moves[0].seed)
            image = image + noise * torch.randn(image.shape, generator=generator, device=self.device)
        return image.clamp(0, 1)

    def _put(self, array: np.ndarray) -> Tensor:
        """To the device, without waiting for it."""
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)

    def _check_room(self, dataset: SliceDataset) -> None:
        wanted = 2 * sum(math.prod(volume.shape) for volume in dataset.volumes)
        if self.device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(self.device)
        if wanted > _MOST_OF_MEMORY * free:
            raise InputError(
                f"The training set takes {wanted / 1e9:.1f} GB on {self.device}, which has {free / 1e9:.1f} GB free: "
                "leave configs/resident.json out, and slices are read from the cache instead."
            )
