"""PiGMA: pixel-grounded mask aggregation, from the queries' masks to one mask (figure 3 of the paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PiGMA(nn.Module):
    """Average of the queries' mean mask and a correction grounded in the image's pixels.

    Args:
        num_queries: m.
        channels: c, channels between the two convolutions.
    """

    def __init__(self, num_queries: int, channels: int = 10) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(num_queries + 3, channels, kernel_size=4, stride=2, padding=1)
        self.combine = nn.Conv2d(channels + 3, 1, kernel_size=1)

    def forward(self, query_masks: Tensor, image_at_map: Tensor, image_at_double: Tensor) -> Tensor:
        """Aggregate.

        Args:
            query_masks: logits of the m queries, (B, m, H, W).
            image_at_map: normalised image resized to the map, (B, 3, H, W).
            image_at_double: the same at twice the map, (B, 3, 2H, 2W).

        Returns:
            Logits of one mask, (B, 1, 2H, 2W).
        """
        correction = self.upsample(torch.cat((image_at_map, query_masks), 1))
        correction = self.combine(torch.cat((image_at_double, correction), 1))
        return (correction + mean_mask(query_masks, image_at_double.shape[-2:])) / 2


def mean_mask(query_masks: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Ensemble only (the paper's ablation): mean over the queries, resized; (B, m, H, W) -> (B, 1, *size)."""
    mean = query_masks.mean(1, keepdim=True)
    return F.interpolate(mean, size=tuple(size), mode="bilinear", align_corners=False)
