"""How slices come to lie on the network's grid in a training on the device: turned, scaled, shifted, bent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BEND_POINTS = 7  # to a side: 8 cm apart in a field of 50 cm, so that organs bend and bones' edges stay smooth


@dataclass(frozen=True)
class Move:
    """How a slice comes to lie on the grid: a view of it, turned, scaled and shifted.

    Attributes:
        window: height and width of the view in the slice's pixels; larger than the slice where it is padded.
        corner: first row and column of the view.
        shift: of the content, in shares of the slice's height and width.
        factor: growth of the content.
        angle: counter-clockwise turn, in radians.
        stretch: growth of the content along the rows alone, on top of `factor`, before the turn.
        warp: largest bend of the content, as a share of the slice's sides; see `bends`.
        gain: factor of the intensities.
        offset: added to them.
        gamma: exponent of them.
        noise: standard deviation of what is added to them.
        seed: of that noise and of the bend.
    """

    window: tuple[int, int]
    corner: tuple[int, int]
    shift: tuple[float, float] = (0.0, 0.0)
    factor: float = 1.0
    angle: float = 0.0
    stretch: float = 1.0
    warp: float = 0.0
    gain: float = 1.0
    offset: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0
    seed: int = 0


def sampling_matrices(moves: Sequence[Move], shape: tuple[int, int]) -> np.ndarray:
    """Where a grid's points lie in the slice.

    A point p of the slice (pixels right and down of its centre) is moved to factor · R S p + shift · (W, H), where S
    stretches along the rows; the view is cut out of what comes of that and stretched to the grid.

    Args:
        moves: of n slices.
        shape: their height and width.

    Returns:
        (n, 2, 3) float32, from the grid's (x, y, 1) to the slice's (x, y), both in [-1, 1] to the outer edges, as
        `torch.nn.functional.affine_grid` takes them.
    """
    height, width = shape
    matrices = []
    for move in moves:
        half = np.array([move.window[1], move.window[0]]) / 2
        centre = np.array([move.corner[1], move.corner[0]]) + half - np.array([width, height]) / 2
        centre = centre - np.array([move.shift[1] * width, move.shift[0] * height])
        cos, sin = math.cos(move.angle), math.sin(move.angle)
        # y runs down, so a counter-clockwise turn of the content is undone by this one
        back = np.array([[1 / move.stretch], [1]]) * np.array([[cos, -sin], [sin, cos]]) / move.factor
        matrix = np.concatenate((back * half, (back @ centre)[:, None]), axis=1)
        matrices.append(matrix * (2 / np.array([[width], [height]])))
    return np.stack(matrices).astype(np.float32)


def bends(reach: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """Smooth random displacements of a grid's points (elastic deformation).

    Points `_BEND_POINTS` to a side are moved by uniform random numbers; bicubic interpolation between them.

    Args:
        reach: (n,) largest displacement at those points, as a share of the slice's sides.
        size: height and width of the grid.
        seed: of the displacements, for all n.

    Returns:
        (n, *size, 2), to be added to a grid in [-1, 1].
    """
    generator = torch.Generator(reach.device).manual_seed(seed)
    coarse = torch.rand((len(reach), 2, _BEND_POINTS, _BEND_POINTS), generator=generator, device=reach.device) * 2 - 1
    smooth = F.interpolate(coarse * (2 * reach)[:, None, None, None], size, mode="bicubic", align_corners=True)
    return smooth.movedim(1, -1)


def block_means(stack: Tensor, block: int) -> Tensor:
    """Means over blocks of so many pixels a side, of (n, C, H, W); 1 and less change nothing."""
    if block <= 1:
        return stack
    height, width = stack.shape[-2:]
    return F.adaptive_avg_pool2d(stack, (-(-height // block), -(-width // block)))


def sampled(stack: Tensor, grid: Tensor) -> Tensor:
    """(n, C, h, w), linearly at the points of a grid (n, h, w, 2) in [-1, 1]; 0 outside."""
    return F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
