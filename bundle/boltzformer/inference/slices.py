"""A volume cut into slices, and what was found in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from boltzformer.data.windows import apply_window
from boltzformer.errors import InputError

BLANK_LOGIT = -16.0
"""Of a slice that is not computed; a probability of 1e-7."""


NOT_IN_MASK = -1


def ranks_of(logits: Tensor) -> Tensor:
    """All that masks and label map need of logits, in one byte.

    Args:
        logits: (n, P, H, W).

    Returns:
        (n, P, H, W) int8: -1 where a logit is below 0, else 1, and 2 for the first of the largest of the P logits.
        Masks (at least 0) and label map (the largest) are those of the logits.
    """
    inside, highest = logits >= 0, logits.amax(1)
    ranks = inside.view(torch.int8) * 2 - 1
    open_ = torch.ones_like(inside[:, 0])
    for p in range(logits.shape[1]):  # a tenth of the time of `argmax` over a second axis
        surest = (logits[:, p] == highest) & open_
        open_ &= ~surest
        ranks[:, p] += (surest & inside[:, p]).view(torch.int8)
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
    """
    if resolution_mm is None or not all(mm > 0 for mm in spacing):
        return (1, 1)
    height, width = (max(1, round(resolution_mm / mm)) for mm in spacing)
    return height, width


@dataclass
class Found:
    """What was found so far in D slices for P prompts.

    Attributes:
        logits: (D, P, H, W) float16, or their ranks (`ranks_of`) in int8; a slice lies in one piece of memory: it is
            computed, turned and saved by slices.
        scores: probability that the object is there, (D, P) float32; 0 where it was not computed.
        scored: whether the network scores it.
    """

    logits: Tensor
    scores: Tensor
    scored: bool = False

    @classmethod
    def nothing(cls, volume: Slices, prompts: int, keep_logits: bool = True) -> Found:
        """Empty masks for a volume, to be filled with logits or with their ranks."""
        shape = (len(volume), prompts, *volume.voxels.shape[1:])
        blank, dtype = (BLANK_LOGIT, torch.float16) if keep_logits else (NOT_IN_MASK, torch.int8)
        return cls(torch.full(shape, blank, dtype=dtype, device=volume.voxels.device), torch.zeros(shape[:2]))

    def take(self, chosen: Tensor, asked: Tensor, part: Part) -> None:
        """Keep what was found in some slices, all prompts that will ever be asked for there being asked for now.

        Args:
            chosen: indices of n slices.
            asked: bool (n, P).
            part: of these slices.
        """
        for index, which, masks in zip(chosen.tolist(), part.kept, part.masks, strict=True):
            if len(masks):
                self.logits[index, which] = masks
        if part.probability is not None:
            i, p = asked.nonzero(as_tuple=True)
            self.scores[chosen[i], p], self.scored = part.probability.cpu()[i, p], True


@dataclass
class Part:
    """What was found in n slices.

    Attributes:
        kept: which prompts have a mask there, bool (n, P), on the host; the others' are empty.
        masks: for each slice those of its k prompts, in the form of `Found.logits`, (k, H, W).
        probability: that the object is there, (n, P) float32; None from a network without the score.
    """

    kept: Tensor
    masks: list[Tensor]
    probability: Tensor | None

    @classmethod
    def of(cls, volume: Slices, logits: Tensor, kept: Tensor, probability: Tensor | None, keep_logits: bool) -> Part:
        """Bring the masks that are kept onto the volume's own pixels; most of the others would be as much work.

        Args:
            volume: from which the slices were taken.
            logits: (n, P, *volume.size).
            kept: see above, on any device.
            probability: see above.
            keep_logits: keep logits, not their ranks.
        """
        kept, device = kept.cpu(), volume.voxels.device
        masks = []
        for one, which in zip(logits, kept, strict=True):
            if bool(which.any()):
                made = volume.enlarged(one[which.to(one.device)][None]).to(device, torch.float16)
                masks.append((made if keep_logits else ranks_of(made))[0])
            else:
                masks.append(torch.empty(0, *volume.voxels.shape[1:]))
        return cls(kept, masks, probability)


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
