"""What the score "the object is in this slice" does to a volume's masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from boltzformer.errors import InputError

EXISTENCE_KEY = "existence"
EXISTENCE_ALONE_KEY = "existence_alone"
"""Scores as each slice gave them, where `existence` has means over the slices around."""
EXISTENCE_AXIS_KEY = "existence_axis"
COARSE_KEY = "coarse_mm"
"""For each prompt how far apart its first looks may lie (`inference.coarse`); 0 where it was looked for everywhere."""
AGREEMENT_KEY = "agreement_mm"
"""For each prompt the sigma of the means over neighbouring slices (`inference.agreement`); 0 where there were none."""
IMPROBABLE = 0.2
"""Calibrated probability below which a slice by itself rules an object out, whatever its neighbours say."""


@dataclass(frozen=True)
class ExistenceGate:
    """Empty the slices in which an object is improbable.

    Args:
        threshold: of the calibrated probability, in [0, 1]; slices below it are emptied for that object. None, or 0,
            empties nothing.
        temperature: T of the calibration, probability = sigmoid(logit / T), above 0; None is 1.

    Raises:
        InputError: a number out of its range.
    """

    threshold: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"existence_threshold is {self.threshold}: a probability lies in [0, 1].")
        if self.temperature is not None and self.temperature <= 0:
            raise InputError(f"existence_temperature is {self.temperature}: it must be above 0.")

    def probability(self, existence: Tensor) -> Tensor:
        """Calibrated probabilities of existence logits, float32, any shape."""
        return torch.sigmoid(existence.float() / (self.temperature or 1.0))

    def keeps(self, existence: Tensor) -> Tensor:
        """Whether a mask stays, for existence logits of any shape; bool."""
        return self.probability(existence) >= (self.threshold or 0.0)

    def may_keep(self, existence: Tensor) -> Tensor:
        """Whether it might stay once the scores of the slices around it are known too."""
        return self.probability(existence) >= min(self.threshold or 0.0, IMPROBABLE)


class ExistenceFromMetad(MapTransform):
    """Dictionary transform: what the inferer left in the metadata of `pred` becomes part of the item.

    That is `existence`, (P, slices) in the order of the RAS volume, `existence_axis`, and where neighbouring slices
    had to agree `existence_alone`, as `existence` but of each slice by itself; and `coarse_mm` and `agreement_mm`,
    (P,). It stands before `Invertd`, which gives the prediction the image's metadata.

    Args:
        keys: the prediction.
        allow_missing_keys: see `monai.transforms.MapTransform`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move it; an item without stays as it is."""
        item = dict(data)
        for key in self.key_iterator(item):
            for name in (COARSE_KEY, AGREEMENT_KEY):
                if isinstance(item[key], MetaTensor) and name in item[key].meta:
                    item[name] = item[key].meta[name].flatten()  # (1, P) unless taken apart
            if isinstance(item[key], MetaTensor) and EXISTENCE_KEY in item[key].meta:
                for name in (EXISTENCE_KEY, EXISTENCE_ALONE_KEY):
                    if name in item[key].meta:
                        scores = item[key].meta[name]
                        item[name] = scores[0] if scores.dim() == 3 else scores  # (1, P, slices) unless taken apart
                item[EXISTENCE_AXIS_KEY] = item[key].meta[EXISTENCE_AXIS_KEY]
        return item
