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

    def forward(self, query_masks: Tensor, from_image: Tensor) -> Tensor:
        """Aggregate.

        Plain form, with the normalised image at both sizes: `mean_mask / 2 + combine(cat(image_at_double,
        upsample(cat(image_at_map, query_masks)))) / 2`, which makes c channels at twice the map's size only to add
        them up. Nothing stands between the two convolutions, so they are one; it is a sum of the image's share, the
        same for all prompts of a slice, and the masks'.

        Args:
            query_masks: logits of the m queries, (B, m, H, W).
            from_image: `image_share` of S slices, (S, 1, 2H, 2W), B / S prompts for each.

        Returns:
            Logits of one mask, (B, 1, 2H, 2W).
        """
        kernel, _ = self._one_convolution()
        correction = F.conv_transpose2d(query_masks, kernel[3:].to(query_masks.dtype), stride=2, padding=1)
        correction = (correction.unflatten(0, (from_image.shape[0], -1)) + from_image[:, None]).flatten(0, 1)
        return (correction + mean_mask(query_masks, from_image.shape[-2:])) / 2

    def image_share(self, image: Tensor, map_size: tuple[int, int]) -> Tensor:
        """The part of the correction that depends on the image alone.

        Args:
            image: normalised, (S, 3, *).
            map_size: H and W of the semantic map.

        Returns:
            (S, 1, 2H, 2W).
        """
        double = (map_size[0] * 2, map_size[1] * 2)
        at_map = F.interpolate(image, size=map_size, mode="bilinear", align_corners=False)
        at_double = F.interpolate(image, size=double, mode="bilinear", align_corners=False)
        kernel, bias = self._one_convolution()
        upsampled = F.conv_transpose2d(at_map, kernel[:3], bias, stride=2, padding=1)
        return upsampled + F.conv2d(at_double, self.combine.weight[:, :3])

    def _one_convolution(self) -> tuple[Tensor, Tensor]:
        """`combine` after `upsample` as one transposed convolution: kernel (3 + m, 1, 4, 4) and bias (1,)."""
        weights = self.combine.weight[:, 3:, 0, 0]  # (1, c)
        kernel = torch.einsum("icyx,oc->ioyx", self.upsample.weight, weights)
        assert self.upsample.bias is not None
        assert self.combine.bias is not None
        return kernel, weights @ self.upsample.bias + self.combine.bias


def mean_mask(query_masks: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Ensemble only (the paper's ablation): mean over the queries, resized; (B, m, H, W) -> (B, 1, *size)."""
    mean = query_masks.mean(1, keepdim=True)
    return F.interpolate(mean, size=tuple(size), mode="bilinear", align_corners=False)
