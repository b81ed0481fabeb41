"""Ignite handler: calibration error of the predicted probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine

from boltzformer.errors import InputError
from boltzformer.metrics.handlers.rows import RowHandler, as_mask
from boltzformer.metrics.measures.rows import SLICE_KEY, Row
from boltzformer.metrics.summary.calibration import RELIABILITY_BINS


class CalibrationHandler(RowHandler):
    """Expected calibration error of the predicted probability, over all pixels of the evaluated slices or volumes.

    ``engine.state.metrics`` gets ``<name>``: sum over 15 bins of equal width of n_b / n |mean probability - share of
    object pixels|.

    Args:
        name: key of the metric.
        probability_key: probabilities in [0, 1]; keep them beside the thresholded mask (``CopyItemsd`` before
            ``AsDiscreted``).
        label_key: binary mask of the same shape.
        key_columns: what names an item; numbers are compared as numbers.
    """

    def __init__(
        self,
        name: str = "val_ece",
        probability_key: str = "probability",
        label_key: str = "label",
        key_columns: Sequence[str] = SLICE_KEY,
    ) -> None:
        super().__init__(None, name, (probability_key, label_key, *key_columns), key_columns)
        self.probability_key, self.label_key = probability_key, label_key

    def item_rows(self, item: Mapping[str, Any]) -> Sequence[Row]:
        """Pixels, sum of probabilities and object pixels of each bin."""
        probability = as_mask(item[self.probability_key]).double().flatten().cpu()
        truth = as_mask(item[self.label_key]).double().flatten().cpu()
        if probability.shape != truth.shape or not bool(((probability >= 0) & (probability <= 1)).all()):
            raise InputError(f"{self.probability_key} must lie in [0, 1] and have the label's shape")
        index = (probability * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1)
        sums = [
            torch.bincount(index, weights=weights, minlength=RELIABILITY_BINS).tolist()
            for weights in (torch.ones_like(truth), probability, truth)
        ]
        names = {key: _plain(item[key]) for key in self.key_columns}
        return [{**names, "sums": sums}]

    def summarise(self, engine: Engine) -> dict[str, float]:
        """The calibration error; NaN without any pixel."""
        if not self.rows:
            return {self.name: math.nan}
        count, confidence, positive = np.sum([row["sums"] for row in self.rows], axis=0)
        return {self.name: float(np.abs(confidence - positive).sum() / count.sum())}

    def publish(self) -> None:
        """Nothing to write: the number is in the engine's metrics."""


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value.item() if isinstance(value, torch.Tensor) else value
