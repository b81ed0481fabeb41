"""What one pass of the image encoder leaves for any number of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention.patches import Patches
from .semantic_map import SemanticMap


@dataclass(frozen=True)
class ImageFeatures:
    """S encoded slices; index with a slice object to take some of them.

    Attributes:
        scales: visual features V at strides 32, 16, 8.
        semantic_map: S, at stride 4.
        from_image: PiGMA's share that comes from the image alone, logits (S, 1, H / 2, W / 2); None without PiGMA.
        input_size: the input's height and width.
    """

    scales: tuple[Patches, ...]
    semantic_map: SemanticMap
    from_image: Tensor | None
    input_size: tuple[int, int]

    def __len__(self) -> int:
        return self.semantic_map.maps.shape[0]

    def __getitem__(self, index: slice) -> ImageFeatures:
        return ImageFeatures(
            tuple(scale[index] for scale in self.scales),
            self.semantic_map[index],
            None if self.from_image is None else self.from_image[index],
            self.input_size,
        )

    @staticmethod
    def concatenate(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Join slices that were encoded one by one."""
        if len(parts) == 1:
            return parts[0]
        scales = zip(*(part.scales for part in parts), strict=True)
        from_image = [part.from_image for part in parts if part.from_image is not None]
        return ImageFeatures(
            tuple(Patches(torch.cat([scale.rows for scale in same]), same[0].size) for same in scales),
            SemanticMap.concatenate([part.semantic_map for part in parts]),
            torch.cat(from_image) if from_image else None,
            parts[0].input_size,
        )
