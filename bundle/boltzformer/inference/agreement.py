"""Neighbouring slices have to agree: scores and masks are means over the slices around them.

The network sees one slice at a time, so that its errors differ from slice to slice while the object hardly does. Means
weighted by a Gaussian of the distance in mm take part of them away:

1. of the existence logits, over the slices that were computed; then the gate decides which slices show the object;
2. of the masks' probabilities, over the slices that show it: an object keeps its first and last slices.

Example, sigma 2.5 mm and slices of 3 mm: the slice itself weighs 1, the next ones 0.49, those at 6 mm 0.06. With slices
of 1 mm seven on either side take part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boltzformer.errors import InputError

REACH = 3.0
"""Slices farther away than so many sigmas do not take part."""
SUREST = 16.0
"""Logits of a mean lie within this: probabilities are held in float16, where 1 - 1e-4 is 1."""


def check_agreement(sigma_mm: float | None) -> float:
    """Sigma in mm, 0 for None.

    Raises:
        InputError: it is not within 0 and 100.
    """
    if sigma_mm is not None and not 0 <= sigma_mm <= 100:
        raise InputError(f"agreement_mm is {sigma_mm}: give millimetres, or 0 to leave every slice to itself.")
    return sigma_mm or 0.0


def weights_of(sigma_mm: float, spacing_mm: float) -> list[float]:
    """What a slice weighs that lies 0, 1, 2 ... slices away.

    Args:
        sigma_mm: of the Gaussian; 0 counts the slice alone.
        spacing_mm: distance of neighbouring slices; NaN where it is not known, which counts the slice alone.
    """
    if not sigma_mm or not spacing_mm > 0:
        return [1.0]
    count = int(REACH * sigma_mm / spacing_mm + 1e-6)
    return [math.exp(-0.5 * (away * spacing_mm / sigma_mm) ** 2) for away in range(count + 1)]


class Neighbours:
    """Masks of slices, held until all slices around them are there.

    Args:
        weights: see `weights_of`.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def form(logits: Tensor) -> Tensor:
        """What is held of logits: probabilities, any shape, float16."""
        return logits.float().sigmoid().half()

    def hold(self, index: int, which: Tensor, probability: Tensor) -> None:
        """Keep what was found in a slice.

        Args:
            index: of the slice.
            which: prompts that have a mask there, bool (P,).
            probability: of those k prompts, `form` of (k, h, w).
        """
        self._held[index] = (which, probability)

    @property
    def slices(self) -> list[int]:
        """Indices of the slices that are held, in rising order."""
        return sorted(self._held)

    def which(self, index: int) -> Tensor:
        """Prompts that have a mask in a slice, bool (P,)."""
        return self._held[index][0]

    def mean_existence(self, existence: Tensor) -> Tensor:
        """Mean existence logits over the slices around each.

        Args:
            existence: logits (D, P), -inf where they were not computed, which does not count and stays.
        """
        computed = existence.isfinite()
        values = existence.where(computed, 0.0)
        total, weight = values.clone(), computed.float()
        for away, share in enumerate(self.weights[1:], 1):
            for to, of in ((slice(away, None), slice(None, -away)), (slice(None, -away), slice(away, None))):
                total[to] += share * values[of]
                weight[to] += share * computed[of]
        return (total / weight).where(computed, existence)

    def restrict(self, kept: Tensor) -> None:
        """Let go of masks that are not shown after all.

        Args:
            kept: bool (D, P).
        """
        for index, (which, probability) in list(self._held.items()):
            rows = kept[index][which]
            if bool(rows.any()):
                self._held[index] = (which & kept[index], probability[rows.to(probability.device)])
            else:
                del self._held[index]

    def mean(self, index: int) -> Tensor:
        """Logits of the mean over the slices around one, (k, h, w) float32.

        The order of the sum is that of the distance, so the bits do not depend on what came first.
        """
        which, own = self._held[index]
        total, weight = own.float(), torch.ones(len(own), device=own.device)
        for away, share in enumerate(self.weights[1:], 1):
            for other in (index - away, index + away):
                if other not in self._held:
                    continue
                there, probability = self._held[other]
                both = which & there
                rows = both[which].to(own.device)  # of the prompts of this slice, those that the other has too
                total[rows] += share * probability[both[there].to(own.device)].float()
                weight[rows] += share
        return torch.logit(total / weight[:, None, None]).clamp(-SUREST, SUREST)
