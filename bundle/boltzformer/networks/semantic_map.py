"""The semantic map S and what queries read from it: mask logits, at full size or at a coarser patch grid.

S = W * F + b is a 3x3 convolution of the pixel decoder's finest level F, and a query reads mu^T S. Both are linear,
as is bilinear resizing, which gives two exact shortcuts:

* ``explicit``: compute S once, resize S once for each patch grid, and read the small maps at each layer
  (mu^T resize(S) = resize(mu^T S)).
* ``folded``: never compute S; fold mu into the kernel (mu^T (W * F) = (mu^T W) * F), m outputs in place of d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED_PROMPTS = 4  # of a slice in evaluation, where one way of computing has to serve any number
SLOWNESS_OF_FEW_OUTPUTS = 4  # time of a multiply-add with m outputs over that of one with d, measured at m = 10


class SemanticMap(ABC):
    """What the decoder asks of a semantic map of B slices.

    Args:
        maps: what it is computed from, (B, d, H, W); float16 and bfloat16 are allowed.
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        self._prepared: dict[tuple[int, int], Tensor] = {}
        self._source: SemanticMap | None = None

    @abstractmethod
    def mask_logits(self, mu: Tensor) -> Tensor:
        """mu^T S at every pixel of the map: (B, m, d) -> (B, m, H, W)."""

    @abstractmethod
    def patch_logits(self, mu: Tensor, size: tuple[int, int]) -> Tensor:
        """mu^T S resized bilinearly to a patch grid: (B, m, d) -> (B, m, h, w), float32 under autocast too."""

    @abstractmethod
    def _prepare(self, size: tuple[int, int]) -> Tensor:
        """What reading at a patch grid starts from, float32, (B, ...)."""

    @abstractmethod
    def _like(self, maps: Tensor) -> Self:
        """A map of this kind from other ``maps``."""

    def prepared(self, size: tuple[int, int]) -> Tensor:
        """:meth:`_prepare`, done once for all layers of a scale and for all prompts of a slice."""
        if self._source is not None:
            made = self._source.prepared(size)
            return made.expand(self.maps.shape[0], *made.shape[1:])
        if torch.is_grad_enabled():
            return self._prepare(size)
        if size not in self._prepared:
            self._prepared[size] = self._prepare(size)
        return self._prepared[size]

    def __getitem__(self, index: slice) -> Self:
        """Some of the slices."""
        part = self._like(self.maps[index])
        part._prepared = {size: made[index] for size, made in self._prepared.items()}
        part._source = self._source
        return part

    def expand(self, count: int) -> Self:
        """One slice's map for ``count`` prompts, without copying."""
        many = self._like(self.maps.expand(count, -1, -1, -1))
        many._source = self
        return many

    @staticmethod
    def concatenate(parts: Sequence[SemanticMap]) -> SemanticMap:
        """Several maps of one kind, one after another."""
        return parts[0]._like(torch.cat([part.maps for part in parts]))


class ExplicitSemanticMap(SemanticMap):
    """S itself."""

    def mask_logits(self, mu: Tensor) -> Tensor:
        """See :class:`SemanticMap`."""
        return _read(mu, self.maps)

    def patch_logits(self, mu: Tensor, size: tuple[int, int]) -> Tensor:
        """See :class:`SemanticMap`."""
        with torch.autocast(mu.device.type, enabled=False):
            return _read(mu.float(), self.prepared(size)).contiguous()  # a query's patches side by side, for the draw

    def _prepare(self, size: tuple[int, int]) -> Tensor:
        return _resize(self.maps.float(), size)

    def _like(self, maps: Tensor) -> Self:
        return type(self)(maps)


class FoldedSemanticMap(SemanticMap):
    """S = W * F + b, never computed: queries are folded into the kernel.

    Args:
        finest: F, shape (B, d, H, W).
        projection: the 3x3 convolution (W, b) with zero padding 1 that would give S.
    """

    def __init__(self, finest: Tensor, projection: nn.Conv2d) -> None:
        super().__init__(finest)
        self.projection = projection

    def mask_logits(self, mu: Tensor) -> Tensor:
        """One convolution with m outputs, see :class:`SemanticMap`."""
        kernel, bias = self._fold(mu)
        slices = zip(_slices(self.maps), kernel, bias, strict=True)
        return _join([F.conv2d(f, k, b, padding=1) for f, k, b in slices])

    def patch_logits(self, mu: Tensor, size: tuple[int, int]) -> Tensor:
        """See :class:`SemanticMap`.

        Downsizing bilinearly by 2, 4 or 8 averages the two middle rows and columns of each block, so the resized
        map is a convolution of F with the kernel widened by a 2x2 mean, at the stride of the patch grid.
        """
        with torch.autocast(mu.device.type, enabled=False):
            kernel, bias = self._fold(mu.float())
            wide = torch.stack([F.pad(kernel, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)]).mean(0)
            by_pixel, pixels = wide.movedim(2, -1), self.prepared(size)
            logits = _by_window(by_pixel, pixels) if pixels.shape[-2:] == size else _by_block(by_pixel, pixels)
            return logits + bias[..., None, None]

    def _prepare(self, size: tuple[int, int]) -> Tensor:
        if not foldable(self.maps.shape[-2:], size):
            raise ValueError(f"{tuple(self.maps.shape[-2:])} is not 2, 4 or 8 times {size}")
        maps = self.maps.float()
        return _blocks(maps) if self.maps.shape[-1] == 2 * size[-1] else _windows(maps, size)

    def _like(self, maps: Tensor) -> Self:
        return type(self)(maps, self.projection)

    def _fold(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """mu^T W of shape (B, m, d, 3, 3) and mu^T b of shape (B, m)."""
        weight = self.projection.weight.to(mu.dtype)
        kernel = (mu @ weight.flatten(1)).unflatten(-1, tuple(weight.shape[1:]))
        if self.projection.bias is None:
            return kernel, mu.new_zeros(mu.shape[:-1])
        return kernel, mu @ self.projection.bias.to(mu.dtype)


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
