"""Sine position embedding of a patch grid, kept separable so that a query meets it in O(h + w), not O(h * w)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_cache: dict[tuple[int, int, torch.device], Tensor] = {}


def _axis_embedding(length: int, features: int, device: torch.device) -> Tensor:
    """The embedding of one axis, computed once for each size and device."""
    if torch.compiler.is_compiling():  # a tracer's tensors must not outlive the trace
        return _compute(length, features, device)
    key = (length, features, device)
    if key not in _cache:
        with torch.inference_mode(False):  # else training could not use what inference left
            embedding = _compute(length, features, device)
        if type(embedding) is not Tensor:
            return embedding
        _cache[key] = embedding
    return _cache[key]


def _compute(length: int, features: int, device: torch.device) -> Tensor:
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * 2 * math.pi
    index = torch.arange(features, dtype=torch.float32, device=device)
    frequency = 10000.0 ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    angle = position[:, None] / frequency
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


def axis_embeddings(height: int, width: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows' and columns' halves of the normalised sine embedding.

    A patch (y, x) has the embedding `cat(rows[y], columns[x])`: coordinates 1..n over n, times 2 pi, with
    wavelengths from 2 pi to 10000 * 2 pi, sine and cosine interleaved.

    Args:
        height: patches along y.
        width: patches along x.
        dim: features of the embedding; a multiple of 4.
        device: where the result lies. Results are cached, do not write into them.

    Returns:
        Tensors of shape (height, dim / 2) and (width, dim / 2), float32.
    """
    return _axis_embedding(height, dim // 2, device), _axis_embedding(width, dim // 2, device)


def sine_embedding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """The whole embedding, shape (dim, height, width); see `axis_embeddings`."""
    rows, columns = axis_embeddings(height, width, dim, device)
    grid = (
        rows[:, None, :].expand(-1, width, -1),
        columns[None, :, :].expand(height, -1, -1),
    )
    return torch.cat(grid, dim=2).permute(2, 0, 1)
