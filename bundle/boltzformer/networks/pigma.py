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
        from_image, from_upsampled = self.combine.weight.split((3, self.upsample.out_channels), 1)
        kernel, bias = self._one_channel(from_upsampled)
        maps = torch.cat((image_at_map, query_masks), 1)
        correction = F.conv_transpose2d(maps, kernel, bias, stride=2, padding=1)  # as self.upsample
        correction = correction + F.conv2d(image_at_double, from_image)
        return (correction + mean_mask(query_masks, image_at_double.shape[-2:])) / 2

    def _one_channel(self, from_upsampled: Tensor) -> tuple[Tensor, Tensor]:
        """Both convolutions as one: combine(cat(image, upsample(x))) with nothing in between is linear in x.

        Plain form: ``combine(torch.cat((image_at_double, upsample(x)), 1))``, which makes c channels at twice the map's
        size only to add them up.
        """
        weights = from_upsampled[:, :, 0, 0]  # (1, c)
        kernel = torch.einsum("icyx,oc->ioyx", self.upsample.weight, weights)
        assert self.upsample.bias is not None
        assert self.combine.bias is not None
        return kernel, weights @ self.upsample.bias + self.combine.bias


def mean_mask(query_masks: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Ensemble only (the paper's ablation): mean over the queries, resized; (B, m, H, W) -> (B, 1, *size)."""
    mean = query_masks.mean(1, keepdim=True)
    return F.interpolate(mean, size=tuple(size), mode="bilinear", align_corners=False)
