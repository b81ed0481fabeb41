"""The semantic map S and what queries read from it: mask logits, at full size or at a coarser patch grid.

S = W * F + b is a 3x3 convolution of the pixel decoder's finest level F, and a query reads mu^T S. Three ways:

* `plain`: compute S, and resize each query's whole mask to a layer's grid. Read this one.
* `explicit`: resize S once for each grid, and read the small maps: bilinear resizing is linear, so
  mu^T resize(S) = resize(mu^T S).
* `folded`: never compute S; fold mu into the kernel: convolution is linear, so (mu^T W) * F = mu^T (W * F), with m
  outputs in place of d.

S slices serve B prompts, B / S for each slice (`attention.patches.by_slice`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention.patches import by_prompt, by_slice

EXPECTED_PROMPTS = 4  # of a slice in evaluation, where one way of computing has to serve any number
SLOWNESS_OF_FEW_OUTPUTS = 4  # time of a multiply-add with m outputs over that of one with d, measured at m = 10

Grid = tuple[int, int]
MapForm = Literal["plain", "explicit", "folded"]


@dataclass(frozen=True)
class SemanticMap(ABC):
    """What the decoder asks of the semantic map of S slices.

    Attributes:
        maps: what it is computed from, (S, d, H, W); float16 and bfloat16 are allowed.
        at_grid: for each patch grid that is read, what reading there starts from, float32, (S, ...).
    """

    maps: Tensor
    at_grid: Mapping[Grid, Tensor]

    @abstractmethod
    def mask_logits(self, mu: Tensor) -> Tensor:
        """mu^T S at every pixel of the map: (B, m, d) -> (B, m, H, W)."""

    @abstractmethod
    def patch_logits(self, mu: Tensor, grid: Grid) -> Tensor:
        """mu^T S resized bilinearly to a patch grid: (B, m, d) -> (B, m, h, w), float32 under autocast too."""

    def __getitem__(self, index: slice) -> Self:
        """Some of the slices."""
        return replace(self, maps=self.maps[index], at_grid={grid: made[index] for grid, made in self.at_grid.items()})

    @staticmethod
    def concatenate(parts: Sequence[SemanticMap]) -> SemanticMap:
        """Several maps of one form and size, one after another."""
        grids = {grid: torch.cat([part.at_grid[grid] for part in parts]) for grid in parts[0].at_grid}
        return replace(parts[0], maps=torch.cat([part.maps for part in parts]), at_grid=grids)


class PlainSemanticMap(SemanticMap):
    """S itself, and masks resized after they are read."""

    def mask_logits(self, mu: Tensor) -> Tensor:
        """See `SemanticMap`."""
        return torch.einsum("bmd,bdhw->bmhw", mu, self.maps.repeat_interleave(mu.shape[0] // self.maps.shape[0], 0))

    def patch_logits(self, mu: Tensor, grid: Grid) -> Tensor:
        """See `SemanticMap`."""
        return F.interpolate(self.mask_logits(mu).float(), size=grid, mode="bilinear", align_corners=False)


class ExplicitSemanticMap(SemanticMap):
    """S itself, resized once for each grid."""

    def mask_logits(self, mu: Tensor) -> Tensor:
        """See `SemanticMap`."""
        return by_prompt(_read_map(by_slice(mu, self.maps.shape[0]), self.maps), mu.shape[0])

    def patch_logits(self, mu: Tensor, grid: Grid) -> Tensor:
        """See `SemanticMap`."""
        with torch.autocast(mu.device.type, enabled=False):
            logits = _read_map(by_slice(mu.float(), self.maps.shape[0]), self.at_grid[grid])
            return by_prompt(logits, mu.shape[0]).contiguous()  # a query's patches side by side, for the draw


@dataclass(frozen=True)
class FoldedSemanticMap(SemanticMap):
    """S = W * F + b, never computed: queries are folded into the kernel. `maps` is F.

    Shapes by example, F of 64x64 read at a grid of 16x16 (stride 4), m = 10, d = 128: the kernel mu^T W is
    (B, 10, 128, 3, 3). Downsizing by 4 bilinearly averages the two middle rows and columns of each 4x4 block, so the
    kernel is widened by a 2x2 mean to (B, 10, 4, 4, 128) and applied at stride 4: one window of 4x4 pixels for each
    patch. `at_grid` holds the windows as channels, (S, 16 * 128, 16, 16), so that reading them is one product. At
    stride 2 windows overlap, and their copies would take four times the map: there the map is kept as 2x2 blocks,
    (S, 4 * 128, 33, 33) with its padding, and a window is the sum of four neighbouring blocks.

    Attributes:
        projection: the 3x3 convolution (W, b) with zero padding 1 that would give S.
    """

    projection: nn.Conv2d

    def mask_logits(self, mu: Tensor) -> Tensor:
        """One convolution with as many outputs as a slice has queries, see `SemanticMap`."""
        kernel, bias = self._fold(by_slice(mu, self.maps.shape[0]))
        slices = zip(_slices(self.maps), kernel, bias, strict=True)
        return by_prompt(_join([F.conv2d(f, k, b, padding=1) for f, k, b in slices]), mu.shape[0])

    def patch_logits(self, mu: Tensor, grid: Grid) -> Tensor:
        """See `SemanticMap`."""
        with torch.autocast(mu.device.type, enabled=False):
            kernel, bias = self._fold(by_slice(mu.float(), self.maps.shape[0]))
            wide = torch.stack([F.pad(kernel, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)]).mean(0)
            by_pixel, pixels = wide.movedim(2, -1), self.at_grid[grid]
            logits = _by_window(by_pixel, pixels) if pixels.shape[-2:] == grid else _by_block(by_pixel, pixels)
            return by_prompt(logits + bias[..., None, None], mu.shape[0])

    def _fold(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """mu^T W of shape (S, n, d, 3, 3) and mu^T b of shape (S, n)."""
        weight = self.projection.weight.to(mu.dtype)
        kernel = (mu @ weight.flatten(1)).unflatten(-1, tuple(weight.shape[1:]))
        if self.projection.bias is None:
            return kernel, mu.new_zeros(mu.shape[:-1])
        return kernel, mu @ self.projection.bias.to(mu.dtype)


def semantic_map_of(finest: Tensor, projection: nn.Conv2d, grids: Sequence[Grid], form: MapForm) -> SemanticMap:
    """The semantic map of slices.

    Args:
        finest: F, the pixel decoder's finest level, (S, d, H, W).
        projection: the 3x3 convolution to S, with zero padding 1.
        grids: patch grids that will be read.
        form: how it is computed; "folded" needs grids of the map's size over 2, 4 or 8.
    """
    if form == "folded":
        maps = finest.float()
        return FoldedSemanticMap(finest, {grid: _prepare_folded(maps, grid) for grid in grids}, projection)
    maps = projection(finest)
    if form == "plain":
        return PlainSemanticMap(maps, {})
    # many products read a grid's map, and are up to five times as fast with the channels first in memory
    return ExplicitSemanticMap(maps, {grid: _resize(maps.float(), grid).contiguous() for grid in grids})


def _prepare_folded(maps: Tensor, grid: Grid) -> Tensor:
    if not foldable(maps.shape[-2:], grid):
        raise ValueError(f"{tuple(maps.shape[-2:])} is not 2, 4 or 8 times {grid}")
    return _blocks(maps) if maps.shape[-1] == 2 * grid[-1] else _windows(maps, grid)


def _windows(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The 4x4 pixels in the middle of each block of a grid as channels: (B, d, H, W) -> (B, 16 d, h, w)."""
    stride = maps.shape[-1] // size[-1]
    first = stride // 2 - 2
    pixels = maps.movedim(1, -1).unflatten(2, (size[1], stride)).unflatten(1, (size[0], stride))
    inner = pixels[:, :, first : first + 4, :, first : first + 4]  # (B, h, 4, w, 4, d)
    return inner.transpose(2, 3).flatten(3).movedim(-1, 1)


def _by_window(kernel: Tensor, windows: Tensor) -> Tensor:
    """A convolution with 4x4 kernels (B, m, 4, 4, d), each window being the channels of one pixel."""
    return _read(kernel.flatten(2), windows)


def _blocks(maps: Tensor) -> Tensor:
    """2x2 blocks of the zero-padded map as channels: (B, d, H, W) -> (B, 4 d, H / 2 + 1, W / 2 + 1)."""
    batch, dim, height, width = maps.shape
    blocks = maps.new_zeros(batch, height // 2 + 1, width // 2 + 1, 2, 2, dim)
    pixels = maps.movedim(1, -1)
    for y in (0, 1):  # an even row of the map is the lower row of a block
        for x in (0, 1):
            part = blocks[:, y : y + height // 2, x : x + width // 2, 1 - y, 1 - x]
            part.copy_(pixels[:, y::2, x::2])
    return blocks.flatten(3).movedim(-1, 1)


def _by_block(kernel: Tensor, blocks: Tensor) -> Tensor:
    """A convolution with 4x4 kernels (B, m, 4, 4, d) at stride 2: a window is four neighbouring blocks.

    Every quarter of the kernel reads every block, and each window adds up its four.
    """
    quarters = kernel.unflatten(3, (2, 2)).unflatten(2, (2, 2)).transpose(3, 4)  # (B, m, 2, 2, 2, 2, d)
    quarters = quarters.flatten(4).movedim(1, 3).flatten(1, 3)  # (B, 4 m, 4 d)
    read = _read(quarters, blocks).unflatten(1, (2, 2, kernel.shape[1]))
    upper = read[:, 0, 0, :, :-1, :-1] + read[:, 0, 1, :, :-1, 1:]
    return upper + read[:, 1, 0, :, 1:, :-1] + read[:, 1, 1, :, 1:, 1:]


def foldable(map_size: torch.Size | tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether a patch grid is the map's size over 2, 4 or 8 on both axes."""
    return any(tuple(map_size) == (size[0] * s, size[1] * s) for s in (2, 4, 8))


def folding_pays(queries: int, dim: int, map_pixels: int, patches_of_layers: int, prompts: int = 1) -> bool:
    """Whether folding takes less time than computing S, for some prompts on a slice.

    Multiply-adds over d. Folded: 9 m per pixel of the final mask and 16 m per patch of every layer, for each prompt.
    Explicit: 9 d per pixel for S once, and m per pixel and patch to read it. What has m outputs takes longer for each
    multiply-add than what has d.
    """
    few_outputs = prompts * queries * SLOWNESS_OF_FEW_OUTPUTS
    folded = few_outputs * (9 * map_pixels + 16 * patches_of_layers)
    explicit = 9 * dim * map_pixels + few_outputs * (map_pixels + patches_of_layers)
    return folded < explicit


def _read_map(mu: Tensor, maps: Tensor) -> Tensor:
    """mu^T S: (B, m, d) and (B, d, h, w) -> (B, m, h, w)."""
    return (mu.to(maps.dtype) @ maps.flatten(2)).unflatten(-1, tuple(maps.shape[-2:]))


def _read(mu: Tensor, maps: Tensor) -> Tensor:
    """The same for the thousands of channels of a folded map.

    On the CPU a 1x1 convolution takes as little as a quarter of the time of a matrix product with so few rows.
    """
    if maps.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _read_map(mu, maps)
    mu = mu.to(maps.dtype)
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
