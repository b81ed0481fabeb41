"""A volume cut into slices, and what was found in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from boltzformer.data.windows import apply_window
from boltzformer.errors import InputError
from boltzformer.inference.agreement import Neighbours
from boltzformer.inference.existence import ExistenceGate
from boltzformer.inference.workers import Workers
from boltzformer.volumes.spacing import cannot_be, is_known

BLANK_LOGIT = -16.0
"""Of a slice that is not computed; a probability of 1e-7."""
MOST_AVERAGED = 1024
"""Pixels in a row that are averaged to one; more would each be a few micrometres wide."""


def ranks_of(logits: Tensor) -> Tensor:
    """All that masks and label map need of logits, in one byte.

    Args:
        logits: (n, P, H, W).

    Returns:
        (n, P, H, W) uint8: 0 where a logit is below 0, else 1, and 2 for the first of the largest of the P logits:
        masks are what is above 0, the label map shows who has the 2.
    """
    inside, highest = logits >= 0, logits.amax(1)
    ranks = inside.to(torch.uint8)
    open_ = torch.ones_like(inside[:, 0])
    for p in range(logits.shape[1]):  # a tenth of the time of `argmax` over a second axis
        surest = (logits[:, p] == highest) & open_
        open_ &= ~surest
        ranks[:, p] += (surest & inside[:, p]).view(torch.uint8)
    return ranks


def blocks_of(spacing: Sequence[float], resolution_mm: float | None) -> tuple[int, int]:
    """How many pixels to average so that slices are as coarse as those of training.

    In a scan with pixels of 1 mm edges are sharper than any that a network trained on 4 mm has seen, and what lies
    between bones looks narrower.

    Args:
        spacing: mm along H and W; NaN where it is not known, which averages nothing.
        resolution_mm: size of the training's pixels; None averages nothing.

    Returns:
        pixels along H and W.

    Raises:
        InputError: pixels so small that their size must be wrong.
    """
    if resolution_mm is None or not is_known(*spacing):
        return (1, 1)
    height, width = (max(1, round(resolution_mm / mm)) for mm in spacing)
    if max(height, width) > MOST_AVERAGED:
        raise cannot_be(f"pixels of {float(spacing[0]):g} x {float(spacing[1]):g} mm")
    return height, width


class Slices:
    """A volume cut into slices, which are averaged and windowed when they are taken.

    Args:
        voxels: (D, H, W), a view of the volume.
        limits: of a window that is still to be applied; None where the voxels lie in [0, 1].
        blocks: pixels along H and W of which a pixel of the slices that are taken is the mean (`blocks_of`).
    """

    def __init__(self, voxels: Tensor, limits: tuple[float, float] | None, blocks: tuple[int, int] = (1, 1)) -> None:
        self.voxels = voxels
        self.limits = limits
        self.blocks = blocks

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the slices that are taken: the volume's, over the blocks, rounded up."""
        return -(-int(self.voxels.shape[1]) // self.blocks[0]), -(-int(self.voxels.shape[2]) // self.blocks[1])

    def __len__(self) -> int:
        return len(self.voxels)

    def windowed(self, chosen: Tensor) -> Tensor:
        """Slices of some indices (n, C), as (n, C, *size) float32."""
        taken = self.voxels[chosen.to(self.voxels.device)]
        if self.blocks != (1, 1):  # before the window, as a scanner with larger pixels would have averaged
            taken = F.avg_pool2d(taken.float(), self.blocks, ceil_mode=True, count_include_pad=False)
        return taken.float() if self.limits is None else apply_window(taken, *self.limits)

    def enlarged(self, logits: Tensor) -> Tensor:
        """Logits (n, P, *size) for slices that were taken, on the volume's own pixels: (n, P, H, W)."""
        if self.blocks == (1, 1):
            return logits
        covered = [side * block for side, block in zip(self.size, self.blocks, strict=True)]
        made = F.interpolate(logits, covered, mode="bilinear", align_corners=False)
        return made[..., : self.voxels.shape[1], : self.voxels.shape[2]]

    def check_and_see(self) -> Tensor:
        """Which slices hold anything above 0, after the window; bool (D,) on the host.

        Raises:
            InputError: there is no window to apply, and the voxels are outside [0, 1].
        """
        highest = torch.stack([one.amax() for one in self.voxels]).cpu()
        if self.limits is None and not bool((highest <= 1).all()):
            raise InputError(
                f"expected intensities in [0, 1], found up to {float(highest.max()):g}, and no window to apply: the "
                "preprocessing lacks `IntensityWindowd`, or the volume has lost its metadata on the way."
            )
        # by the very arithmetic of the window
        return (highest if self.limits is None else apply_window(highest, *self.limits)) > 0


@dataclass
class Part:
    """What was found in n slices.

    Attributes:
        kept: which prompts have a mask there, bool (n, P), on the host; the others' are empty.
        masks: for each slice those of its k prompts, as `Found.part` makes them.
        existence: logits that the object is there, (n, P); None from a network without the score.
    """

    kept: Tensor
    masks: list[Tensor]
    existence: Tensor | None


@dataclass
class Found:
    """What was found so far in D slices for P prompts.

    Attributes:
        volume: the slices.
        logits: (D, P, H, W) float16, or their ranks (`ranks_of`); a slice lies in one piece of memory: it is
            computed, turned and saved by slices.
        existence: logits that the object is there, (D, P) float32; -inf where they were not computed.
        neighbours: hold masks until `agree`; None where every slice stands for itself.
        scored: whether the network scores it.
        alone: `existence` as it was before `agree`; None where every slice stands for itself.
    """

    volume: Slices
    logits: Tensor
    existence: Tensor
    neighbours: Neighbours | None = None
    scored: bool = False
    alone: Tensor | None = None

    @classmethod
    def nothing(
        cls, volume: Slices, prompts: int, keep_logits: bool = True, neighbours: Neighbours | None = None
    ) -> Found:
        """Empty masks for a volume, to be filled with logits or with their ranks."""
        shape = (len(volume), prompts, *volume.voxels.shape[1:])
        device = volume.voxels.device
        if keep_logits:
            empty = torch.full(shape, BLANK_LOGIT, dtype=torch.float16, device=device)
        elif device.type == "cpu":  # of NumPy's zeros only what is written to takes memory, and most slices stay empty
            empty = torch.from_numpy(np.zeros(shape, dtype=np.uint8))
        else:
            empty = torch.zeros(shape, dtype=torch.uint8, device=device)
        return cls(volume, empty, torch.full(shape[:2], -torch.inf), neighbours)

    def part(self, logits: Tensor, kept: Tensor, existence: Tensor | None) -> Part:
        """Bring what a network found into the form that `take` takes; in a worker's thread.

        Args:
            logits: of n slices, (n, P, *volume.size).
            kept: which are masks, bool (n, P), on any device: nothing is done for the others.
            existence: see `Part`.
        """
        kept = kept.cpu()
        masks = [one[which.to(one.device)] for one, which in zip(logits, kept, strict=True)]
        if self.neighbours is None:
            masks = [self._finished(some) for some in masks]
        return Part(kept, masks, existence)

    def take(self, chosen: Tensor, asked: Tensor, part: Part) -> None:
        """Keep what was found in some slices, all prompts that will ever be asked for there being asked for now.

        Args:
            chosen: indices of n slices.
            asked: bool (n, P).
            part: of these slices.
        """
        for index, which, masks in zip(chosen.tolist(), part.kept, part.masks, strict=True):
            if not len(masks):
                continue
            if self.neighbours is None:
                self.logits[index, which] = masks
            else:
                self.neighbours.hold(index, which, masks)
        if part.existence is not None:
            i, p = asked.nonzero(as_tuple=True)
            self.existence[chosen[i], p], self.scored = part.existence.float().cpu()[i, p], True

    def agree(self, gate: ExistenceGate, workers: Workers) -> None:
        """Finish what is held, after the last part: scores first, then the masks that the gate lets through."""
        held = self.neighbours
        if held is None:
            return
        if self.scored:
            self.alone = self.existence
            self.existence = held.mean_existence(self.existence)
            held.restrict(gate.keeps(self.existence))
        held.average()
        finished = workers.results(lambda index: self._finished(held.logits(index)), held.slices)
        for index, masks in zip(held.slices, finished, strict=True):
            self.logits[index, held.which(index)] = masks

    def _finished(self, logits: Tensor) -> Tensor:
        """Logits (k, *volume.size) on the volume's own pixels, in the form of `logits`: (k, H, W)."""
        if not len(logits):
            return torch.empty(0)
        made = self.volume.enlarged(logits[None]).to(self.logits.device, torch.float16)
        return (made if self.logits.dtype == torch.float16 else ranks_of(made))[0]
