"""The semantic map S and what queries read from it: mask logits, at full size or at a coarser patch grid.

S = W * F + b is a 3x3 convolution of the pixel decoder's finest level F, and a query reads mu^T S. Both are linear,
as is bilinear resizing, which gives two exact shortcuts:

* ``explicit``: compute S once, resize S once for each patch grid, and read the small maps at each layer
  (mu^T resize(S) = resize(mu^T S)).
* ``folded``: never compute S; fold mu into the kernel (mu^T (W * F) = (mu^T W) * F), m outputs in place of d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SemanticMap(Protocol):
    """What the decoder asks of a semantic map of B slices."""

    def mask_logits(self, mu: Tensor) -> Tensor:
        """mu^T S at every pixel of the map: (B, m, d) -> (B, m, H, W)."""

    def patch_logits(self, mu: Tensor, size: tuple[int, int]) -> Tensor:
        """mu^T S resized bilinearly to a patch grid: (B, m, d) -> (B, m, h, w), float32."""

    def __getitem__(self, index: slice) -> SemanticMap:
        """Some of the slices."""

    def expand(self, count: int) -> SemanticMap:
        """One slice's map for ``count`` prompts."""

    def concatenate(self, parts: Sequence[Any]) -> SemanticMap:
        """Several maps of this kind, one after another."""


class ExplicitSemanticMap:
    """S itself, shape (B, d, H, W); each resized copy is made once and kept."""

    def __init__(self, semantic_map: Tensor) -> None:
        self.semantic_map = semantic_map
        self._resized: dict[tuple[int, int], Tensor] = {}
        self._source: ExplicitSemanticMap | None = None

    def mask_logits(self, mu: Tensor) -> Tensor:
        """Mask logits (B, m, H, W) of queries (B, m, d)."""
        return _read(mu, self.semantic_map)

    def patch_logits(self, mu: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits at a patch grid, (B, m, h, w), float32 under autocast too."""
        with torch.autocast(mu.device.type, enabled=False):
            return _read(mu.float(), self._at(size)).contiguous()  # a query's patches side by side, for the draw

    def _at(self, size: tuple[int, int]) -> Tensor:
        """The map at a patch grid; prompts of one slice share their slice's."""
        if self._source is not None:
            return self._source._at(size).expand(self.semantic_map.shape[0], -1, -1, -1)
        if torch.is_grad_enabled():
            return _resize(self.semantic_map.float(), size)
        if size not in self._resized:
            self._resized[size] = _resize(self.semantic_map.float(), size)
        return self._resized[size]

    def __getitem__(self, index: slice) -> ExplicitSemanticMap:
        part = ExplicitSemanticMap(self.semantic_map[index])
        part._resized = {size: maps[index] for size, maps in self._resized.items()}
        part._source = self._source
        return part

    def expand(self, count: int) -> ExplicitSemanticMap:
        """One slice's map for ``count`` prompts, without copying."""
        many = ExplicitSemanticMap(self.semantic_map.expand(count, -1, -1, -1))
        many._source = self
        return many

    def concatenate(self, parts: Sequence[ExplicitSemanticMap]) -> ExplicitSemanticMap:
        """Several maps, one after another."""
        return ExplicitSemanticMap(torch.cat([part.semantic_map for part in parts]))


class FoldedSemanticMap:
    """S = W * F + b, never computed: queries are folded into the kernel.

    Args:
        finest: F, shape (B, d, H, W).
        projection: the 3x3 convolution (W, b) with zero padding 1 that would give S.
    """

    def __init__(self, finest: Tensor, projection: nn.Conv2d) -> None:
        self.finest = finest
        self.projection = projection
        self._windows: dict[tuple[int, int], Tensor] = {}
        self._source: FoldedSemanticMap | None = None

    def mask_logits(self, mu: Tensor) -> Tensor:
        """Mask logits (B, m, H, W) of queries (B, m, d): one convolution with m outputs."""
        kernel, bias = self._fold(mu)
        slices = zip(_slices(self.finest), kernel, bias, strict=True)
        return _join([F.conv2d(f, k, b, padding=1) for f, k, b in slices])

    def patch_logits(self, mu: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits at a patch grid, (B, m, h, w), float32 under autocast too.

        Downsizing bilinearly by 2, 4 or 8 averages the two middle rows and columns of each block, so the resized
        map is a convolution of F with the kernel widened by a 2x2 mean, at the stride of the patch grid.
        """
        stride = self.finest.shape[-1] // size[-1]
        if not foldable(self.finest.shape[-2:], size):
            raise ValueError(f"{tuple(self.finest.shape[-2:])} is not 2, 4 or 8 times {size}")
        with torch.autocast(mu.device.type, enabled=False):
            kernel, bias = self._fold(mu.float())
            wide = torch.stack([F.pad(kernel, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)]).mean(0)
            if stride > 2:  # windows do not overlap: one copy of them serves all layers of the scale
                by_pixel = wide.permute(0, 1, 3, 4, 2).flatten(2)
                return (by_pixel @ self._windows_at(size).transpose(1, 2) + bias[..., None]).unflatten(-1, size)
            slices = zip(_slices(self.finest.float()), wide, bias, strict=True)
            return _join([F.conv2d(f, k, b, stride=2, padding=1) for f, k, b in slices])

    def _windows_at(self, size: tuple[int, int]) -> Tensor:
        """The 4x4 pixels of F behind each patch of a grid, (B, h * w, 16 d); prompts of a slice share them."""
        if self._source is not None:
            return self._source._windows_at(size).expand(self.finest.shape[0], -1, -1)
        if size in self._windows and not torch.is_grad_enabled():
            return self._windows[size]
        stride = self.finest.shape[-1] // size[-1]
        first = stride // 2 - 2
        pixels = self.finest.float().permute(0, 2, 3, 1).unflatten(2, (size[1], stride)).unflatten(1, (size[0], stride))
        inner = pixels[:, :, first : first + 4, :, first : first + 4]  # (B, h, 4, w, 4, d)
        windows = inner.transpose(2, 3).flatten(3).flatten(1, 2)
        if not torch.is_grad_enabled():
            self._windows[size] = windows
        return windows

    def __getitem__(self, index: slice) -> FoldedSemanticMap:
        part = FoldedSemanticMap(self.finest[index], self.projection)
        part._windows = {size: windows[index] for size, windows in self._windows.items()}
        part._source = self._source
        return part

    def expand(self, count: int) -> FoldedSemanticMap:
        """One slice's map for ``count`` prompts, without copying."""
        many = FoldedSemanticMap(self.finest.expand(count, -1, -1, -1), self.projection)
        many._source = self
        return many

    def concatenate(self, parts: Sequence[FoldedSemanticMap]) -> FoldedSemanticMap:
        """Several maps, one after another."""
        return FoldedSemanticMap(torch.cat([part.finest for part in parts]), self.projection)

    def _fold(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """mu^T W of shape (B, m, d, 3, 3) and mu^T b of shape (B, m)."""
        weight = self.projection.weight.to(mu.dtype)
        kernel = (mu @ weight.flatten(1)).unflatten(-1, tuple(weight.shape[1:]))
        if self.projection.bias is None:
            return kernel, mu.new_zeros(mu.shape[:-1])
        return kernel, mu @ self.projection.bias.to(mu.dtype)


def foldable(map_size: torch.Size | tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether a patch grid is the map's size over 2, 4 or 8 on both axes."""
    return any(tuple(map_size) == (size[0] * s, size[1] * s) for s in (2, 4, 8))


def folding_pays(queries: int, dim: int, map_pixels: int, patches_of_layers: int) -> bool:
    """Whether folding takes fewer multiply-adds than computing S, for one prompt.

    Folded: 9 m d per pixel of the final mask and 16 m d per patch of every layer. Explicit: 9 d^2 per pixel for S,
    and m d per pixel and patch to read it.
    """
    folded = queries * (9 * map_pixels + 16 * patches_of_layers)
    explicit = 9 * dim * map_pixels + queries * (map_pixels + patches_of_layers)
    return folded < explicit


def _read(mu: Tensor, maps: Tensor) -> Tensor:
    """mu^T S: (B, m, d) and (B, d, h, w) -> (B, m, h, w).

    On the CPU a 1x1 convolution takes as little as a quarter of the time of a matrix product with so few rows.
    """
    mu = mu.to(maps.dtype)
    if maps.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (mu @ maps.flatten(2)).unflatten(-1, tuple(maps.shape[-2:]))
    slices = zip(_slices(maps), mu[..., None, None], strict=True)
    return _join([F.conv2d(one, kernel) for one, kernel in slices])


def _slices(maps: Tensor) -> list[Tensor]:
    """Each slice of a batch as a batch of one, (1, d, h, w).

    The first stride is set as a batch of one has it, also in an expanded batch: a convolution looks at it to tell the
    memory layout, and another layout is slower and rounds differently.
    """
    return [one.movedim(0, -1)[None].movedim(-1, 1) for one in maps]


def _join(slices: list[Tensor]) -> Tensor:
    """The batch of some slices; one slice is not copied."""
    return slices[0] if len(slices) == 1 else torch.cat(slices)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing; with the channels last, as the pixel decoder gives them, it reads only the pixels it needs."""
    if tuple(maps.shape[-2:]) == (2 * size[0], 2 * size[1]):
        return F.avg_pool2d(maps, 2)  # the same function, twice as fast
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
