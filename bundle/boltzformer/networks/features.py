"""What one pass of the image encoder leaves for any number of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .boltzmann_attention import PatchFeatures
from .semantic_map import ExplicitSemanticMap, FoldedSemanticMap, SemanticMap


@dataclass
class ImageFeatures:
    """Encoded slices; index with a slice object to take some of them.

    Attributes:
        scales: visual features V at strides 32, 16, 8.
        semantic_map: S, explicit or folded.
        image_at_map: normalised image at the semantic map's size, (B, 3, H/4, W/4).
        image_at_double: at twice that size, (B, 3, H/2, W/2).
        input_size: the input's height and width.
    """

    scales: list[PatchFeatures]
    semantic_map: SemanticMap
    image_at_map: Tensor
    image_at_double: Tensor
    input_size: tuple[int, int]

    def __len__(self) -> int:
        return self.image_at_map.shape[0]

    def __getitem__(self, index: slice) -> ImageFeatures:
        return ImageFeatures(
            [scale[index] for scale in self.scales],
            self.semantic_map[index],
            self.image_at_map[index],
            self.image_at_double[index],
            self.input_size,
        )

    def expand(self, count: int) -> ImageFeatures:
        """One slice for ``count`` prompts, without copying."""
        return ImageFeatures(
            [scale.expand(count) for scale in self.scales],
            self.semantic_map.expand(count),
            self.image_at_map.expand(count, -1, -1, -1),
            self.image_at_double.expand(count, -1, -1, -1),
            self.input_size,
        )

    @staticmethod
    def concatenate(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Join slices that were encoded one by one."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        maps = [torch.cat([part.scales[i].maps for part in parts]) for i in range(len(first.scales))]
        return ImageFeatures(
            [PatchFeatures(m) for m in maps],
            SemanticMap.concatenate([part.semantic_map for part in parts]),
            torch.cat([part.image_at_map for part in parts]),
            torch.cat([part.image_at_double for part in parts]),
            first.input_size,
        )


def semantic_map_of(finest: Tensor, projection: nn.Conv2d, folded: bool) -> SemanticMap:
    """The semantic map of slices, from the pixel decoder's finest level and the 3x3 projection."""
    return FoldedSemanticMap(finest, projection) if folded else ExplicitSemanticMap(projection(finest))
