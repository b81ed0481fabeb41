"""Pixel decoder: backbone features at four strides -> three attention scales and the semantic map's input.

A feature pyramid (GroupNorm, 3x3 output convolutions) whose coarsest level passes through a small transformer
encoder, as in MaskFormer's transformer-encoder pixel decoder, which the paper follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import sine_embedding


class ConvNorm(nn.Module):
    """Convolution without bias, GroupNorm, optional ReLU; "same" padding."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


class PositionedEncoderLayer(nn.Module):
    """Post-norm transformer encoder layer; the position goes to queries and keys, not to values."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Tokens (B, N, d) and position (1, N, d) -> (B, N, d)."""
        placed = tokens + position
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens, need_weights=False)[0])
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class PixelDecoder(nn.Module):
    """Turn backbone features into the visual features V and the finest level, from which the semantic map comes.

    Args:
        in_channels: channels of the backbone's features, finest (stride 4) first; four of them.
        dim: d, channels of every output.
        num_heads: heads of the transformer encoder.
        feedforward_dim: width of its feed-forward layers.
        encoder_layers: layers of the transformer encoder on the stride-32 level.
        norm_groups: groups of each GroupNorm; must divide `dim`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        encoder_layers: int = 6,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.input_proj = nn.Conv2d(in_channels[-1], dim, kernel_size=1)
        self.encoder = nn.ModuleList(
            PositionedEncoderLayer(dim, num_heads, feedforward_dim) for _ in range(encoder_layers)
        )
        self.adapters = nn.ModuleList(ConvNorm(c, dim, 1, norm_groups, relu=False) for c in in_channels[:-1])
        self.outputs = nn.ModuleList(ConvNorm(dim, dim, 3, norm_groups, relu=True) for _ in in_channels)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif parameter.dim() == 4:
                nn.init.kaiming_uniform_(parameter, a=1)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Run the pyramid from the coarsest level to the finest.

        Args:
            features: (B, C_i, H / 2^i, W / 2^i), finest first, at strides 4, 8, 16, 32.

        Returns:
            The visual features V at strides 32, 16, 8 and the finest level at stride 4, each with `dim` channels,
            channels last in memory: convolutions and resizing are faster so, and a patch is one contiguous row.
        """
        features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        x = self.input_proj(features[-1])
        height, width = x.shape[-2:]
        position = sine_embedding(height, width, x.shape[1], x.device).flatten(1).T[None]
        position = position.to(self.input_proj.weight.dtype)  # also where the module was converted
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            tokens = layer(tokens, position)
        level = self.outputs[-1](tokens.transpose(1, 2).unflatten(2, (height, width)))
        levels = [level]
        for i in reversed(range(len(self.adapters))):
            lateral = self.adapters[i](features[i])
            level = self.outputs[i](lateral + F.interpolate(level, size=lateral.shape[-2:], mode="nearest"))
            levels.append(level)
        return levels[:-1], levels[-1]
