"""Visual features as the attention reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """Visual features V of one scale, for S slices.

    Attributes:
        rows: one patch a row, contiguous, (S, h * w, d). A layer returns the patches for the next layer of the scale
            to read, so that in training the layers' gradients meet in one buffer (`gathered`).
        size: h and w.
    """

    rows: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, maps: Tensor) -> Patches:
        """From maps (S, d, h, w); without a copy where the channels are last in memory."""
        size = (int(maps.shape[-2]), int(maps.shape[-1]))
        return cls(maps.flatten(2).transpose(1, 2).contiguous(), size)

    @property
    def columns(self) -> Tensor:
        """V with one patch a column, (S, d, h * w), a view."""
        return self.rows.transpose(1, 2)

    def __getitem__(self, index: slice) -> Patches:
        return Patches(self.rows[index], self.size)


def by_slice(x: Tensor, slices: int) -> Tensor:
    """Put the prompts of a slice side by side: (B, n, ...) -> (S, B / S * n, ...), B / S prompts for each slice.

    All that is asked of a slice's features then is one product, however many prompts ask; nothing is copied. Example:
    2 slices with 3 prompts each and 10 queries: (6, 10, d) -> (2, 30, d), which meets (2, patches, d).
    """
    return x.unflatten(0, (slices, -1)).flatten(1, 2)


def by_prompt(x: Tensor, prompts: int) -> Tensor:
    """The way back: (S, B / S * n, ...) -> (B, n, ...), for `prompts` = B."""
    return x.unflatten(1, (prompts // x.shape[0], -1)).flatten(0, 1)
