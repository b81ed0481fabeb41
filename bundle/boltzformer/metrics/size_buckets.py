"""Dice of every (slice, prompt), set out by the size of the object.

The paper's table 2 parts objects at 1 % of the slice area. Below 1 % there is more to tell, so finer edges
come beside it, and the same by equivalent diameter in mm, which does not change with the field of view.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.meandice import compute_dice

PERCENT_EDGES = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
DIAMETER_EDGES_MM = (3.0, 6.0, 10.0, 20.0, 30.0)
SMALL_BELOW_PERCENT = 1.0
MISSED_BELOW_DICE = 0.01


@dataclass(frozen=True)
class Buckets:
    """Half-open intervals [edge, next edge) over a size, open at both ends.

    Args:
        edges: strictly increasing, positive; n edges give n + 1 buckets.
        unit: appended to the names, such as " %" or " mm".
        label: prefix of the names, for where names of several rulers meet in one table.
    """

    edges: tuple[float, ...]
    unit: str = " %"
    label: str = ""

    def __post_init__(self) -> None:
        edges = tuple(float(edge) for edge in self.edges)
        rising = all(low < high for low, high in itertools.pairwise(edges))
        if not edges or edges[0] <= 0 or not rising or not all(map(math.isfinite, edges)):
            raise ValueError(f"bucket edges must be positive and strictly increasing, got {list(self.edges)}")
        object.__setattr__(self, "edges", edges)

    @property
    def names(self) -> list[str]:
        """One name for each bucket, smallest first."""
        low, *_, high = (self.edges[0], self.edges[-1])
        inner = [f"{a:g}-{b:g}{self.unit}" for a, b in zip(self.edges, self.edges[1:], strict=False)]
        return [self.label + name for name in (f"< {low:g}{self.unit}", *inner, f">= {high:g}{self.unit}")]

    def index(self, size: float) -> int | None:
        """Bucket of a size; None where the size is not known (NaN or None)."""
        if size is None or math.isnan(size):
            return None
        return int(np.searchsorted(np.asarray(self.edges), size, side="right"))


def describe_dice(dice: Sequence[float] | np.ndarray, missed_below: float = MISSED_BELOW_DICE) -> dict[str, Any]:
    """n, mean, median and the share of missed objects of a list of Dice values (NaN are left out).

    A list with nothing in it has n = 0 and None for the rest: an empty bucket has no Dice, least of all 0.

    Returns:
        ``{"n", "mean_dice", "median_dice", "missed", "missed_share"}``; missed: Dice < ``missed_below``.
    """
    values = np.asarray(dice, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return {"n": 0, "mean_dice": None, "median_dice": None, "missed": 0, "missed_share": None}
    missed = int((values < missed_below).sum())
    return {
        "n": int(values.size),
        "mean_dice": math.fsum(values) / values.size,
        "median_dice": float(np.median(values)),
        "missed": missed,
        "missed_share": missed / values.size,
    }


class SizeBucketDice(CumulativeIterationMetric):
    """Dice per slice in size buckets: one row for every item, NaN outside the item's buckets.

    Rows stay aligned whatever each item holds, so that they can be gathered over processes. The columns are
    named by :attr:`columns`. A slice whose label is empty (a negative) has NaN in every Dice column; what it
    can be judged by (predicted area) has columns of its own, which in turn are NaN on positive slices.

    Args:
        percent_edges: bucket edges in % of the slice area.
        diameter_edges_mm: bucket edges of the equivalent diameter, 2 sqrt(area / pi), in mm; used where
            spacing is given.
        small_below_percent: the paper's border between small and large objects (table 2).
        missed_below: an object counts as missed where its Dice is below this.
    """

    def __init__(
        self,
        percent_edges: Sequence[float] = PERCENT_EDGES,
        diameter_edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
        small_below_percent: float = SMALL_BELOW_PERCENT,
        missed_below: float = MISSED_BELOW_DICE,
    ) -> None:
        super().__init__()
        self.percent = Buckets(tuple(percent_edges), " %")
        self.diameter = Buckets(tuple(diameter_edges_mm), " mm")
        self.border = Buckets((small_below_percent,), " %")
        self.missed_below = missed_below
        self.dice_columns = ["dice", "small", "large", *self.percent.names, *self.diameter.names]
        self.columns = [
            *self.dice_columns,
            "area_percent",
            "diameter_mm",
            "false_positive_percent",
            "specificity",
        ]

    def rows(
        self, y_pred: torch.Tensor, y: torch.Tensor, spacing: torch.Tensor | Sequence[float] | None = None
    ) -> torch.Tensor:
        """Rows of a batch, without adding them to the buffer.

        Args:
            y_pred: predicted masks, (B, 1, H, W), values 0 and 1.
            y: labels, the same shape and values.
            spacing: pixel spacing in mm, (2,) for all items or (B, 2); None where it is not known.

        Returns:
            (B, len(columns)) float64 on the CPU.

        Raises:
            ValueError: for another shape, values other than 0 and 1, or a spacing that is not positive.
        """
        if y_pred.ndim != 4 or y_pred.shape != y.shape or y.shape[1] != 1:
            raise ValueError(
                f"prediction and label must be (B, 1, H, W), got {tuple(y_pred.shape)} and {tuple(y.shape)}"
            )
        for what, mask in (("prediction", y_pred), ("label", y)):
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ValueError(f"the {what} has values other than 0 and 1: threshold it first (AsDiscreted)")
        dice = compute_dice(y_pred.float(), y.float(), ignore_empty=True)[:, 0].double().cpu()
        pixels = y.shape[-2] * y.shape[-1]
        object_pixels = y.flatten(1).sum(1, dtype=torch.float64).cpu()
        false_pixels = (y_pred.bool() & ~y.bool()).flatten(1).sum(1, dtype=torch.float64).cpu()
        pixel_areas = _pixel_areas(spacing, len(y))
        table = torch.full((len(y), len(self.columns)), math.nan, dtype=torch.float64)
        for i, row in enumerate(table):
            if object_pixels[i] == 0:
                row[-2] = 100.0 * false_pixels[i] / pixels
                row[-1] = 1.0 - false_pixels[i] / pixels
                continue
            # One division, so that a share that equals an edge falls on its upper side whatever the slice
            # size.
            share = float(100.0 * object_pixels[i] / pixels)
            diameter = 2.0 * math.sqrt(float(object_pixels[i] * pixel_areas[i]) / math.pi)
            row[-4], row[-3] = share, diameter
            for column in self._dice_columns_of(share, diameter):
                row[column] = dice[i]
        return table

    def summary(self) -> dict[str, dict[str, Any]]:
        """``describe_dice`` of each Dice column over the buffer (all processes), keyed by column."""
        buffer = self.get_buffer()
        if buffer is None:
            buffer = torch.empty((0, len(self.columns)), dtype=torch.float64)
        return {
            name: describe_dice(buffer[:, i].cpu().numpy(), self.missed_below)
            for i, name in enumerate(self.dice_columns)
        }

    def aggregate(self) -> torch.Tensor:
        """Mean Dice of the positive slices in the buffer (all processes), 0-d; NaN where there is none."""
        buffer = self.get_buffer()
        return torch.tensor(math.nan) if buffer is None else buffer[:, 0].nanmean()

    def _dice_columns_of(self, share: float, diameter: float) -> list[int]:
        found = [0, 1 + (self.border.index(share) or 0), 3 + (self.percent.index(share) or 0)]
        by_diameter = self.diameter.index(diameter)
        if by_diameter is not None:
            found.append(3 + len(self.percent.names) + by_diameter)
        return found

    def _compute_list(
        self, y_pred: Any, y: Any = None, spacing: torch.Tensor | Sequence[Any] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """List of channel-first items, with one spacing for all or one for each."""
        spacings = _spacing_tensor(spacing, len(y_pred))
        return torch.cat([self.rows(p[None], t[None], s) for p, t, s in zip(y_pred, y, spacings, strict=True)], dim=0)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None:
            raise ValueError("SizeBucketDice needs the label")
        return self.rows(y_pred, y, kwargs.get("spacing"))


def _spacing_tensor(spacing: torch.Tensor | Sequence[Any] | None, count: int) -> torch.Tensor:
    """(count, 2) float64 spacing in mm; NaN where not known."""
    if spacing is None:
        return torch.full((count, 2), math.nan, dtype=torch.float64)
    if not isinstance(spacing, torch.Tensor):
        spacing = torch.as_tensor(np.asarray(spacing, dtype=np.float64))
    values = spacing.detach().double().cpu()
    if values.shape not in ((2,), (count, 2)) or bool((values <= 0).any()):
        raise ValueError(f"spacing must be positive, (2,) or ({count}, 2), got {values.tolist()}")
    return values.expand(count, 2)


def _pixel_areas(spacing: torch.Tensor | Sequence[Any] | None, count: int) -> torch.Tensor:
    return _spacing_tensor(spacing, count).prod(dim=1)
