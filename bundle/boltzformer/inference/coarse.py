"""A first look every few millimetres: between two looks that find an object improbable, it is not searched for.

The existence score would have emptied the slices between as well, unless the object is smaller than the distance of
two looks. So the distance is chosen on validation, for the objects that were there (`boltzformer calibrate`), and
stands in the checkpoint's recipe. A prompt for anything else, and one in words that the recipe does not know, is
searched for in every slice; so is every prompt where slices are not evenly spaced.

Example, looks every 4 slices, 10 slices, one prompt: slices 0, 4, 8 and 9 come first. If slice 4 alone finds the object
probable, 1 to 3 and 5 to 7 are computed too; if none does, nothing is, and the mask is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from boltzformer.errors import InputError
from boltzformer.inference.existence import IMPROBABLE
from boltzformer.inference.known_terms import says, terms_of
from boltzformer.recipe import Recipe
from boltzformer.volumes.spacing import is_known


@dataclass(frozen=True)
class CoarsePass:
    """Which slices are looked at first.

    Args:
        distance_mm: largest distance of two looks; 0 looks everywhere at once.
        terms: what prompts must say (`known_terms.terms_of`).
    """

    distance_mm: float = 0.0
    terms: frozenset[str] = frozenset()

    def steps(self, prompts: Sequence[str], spacing_mm: float) -> list[int]:
        """Slices from one look to the next, for each prompt; 1 where every slice is looked at.

        Args:
            prompts: sentences.
            spacing_mm: distance of neighbouring slices; NaN where it is not known.
        """
        step = step_of(self.distance_mm, spacing_mm)
        return [step if says(prompt, self.terms) else 1 for prompt in prompts]


def step_of(distance_mm: float, spacing_mm: float) -> int:
    """Slices from one look to the next, 1 or more, for looks that lie no farther apart than a distance.

    Args:
        distance_mm: 0 or more.
        spacing_mm: distance of neighbouring slices; NaN where it is not known, which gives 1.
    """
    return max(1, int(distance_mm / spacing_mm + 1e-6)) if is_known(spacing_mm) else 1


def coarse_pass_of(recipe: Recipe, distance_mm: float | None = None) -> CoarsePass:
    """The coarse pass that a checkpoint's recipe allows.

    Args:
        recipe: of the checkpoint.
        distance_mm: in place of the recipe's; 0 for none.

    Raises:
        InputError: a distance below 0, or one for a checkpoint without objects that it was measured for.
    """
    if distance_mm is not None and not 0 <= distance_mm <= 1000:
        raise InputError(f"coarse_mm is {distance_mm}: give millimetres, or 0 to look at every slice.")
    stated = recipe.content.get("coarse")
    if stated is None:
        if distance_mm:
            raise InputError(
                f"coarse_mm is {distance_mm}, but the checkpoint does not say for which objects a coarse pass loses "
                "nothing: `boltzformer calibrate` measures that."
            )
        return CoarsePass()
    distance = stated["mm"] if distance_mm is None else distance_mm
    return CoarsePass(float(distance), terms_of(recipe, stated["objects"]))


def first_looks(slices: Tensor, steps: Sequence[int], depth: int) -> Tensor:
    """Which slices are looked at first, for every prompt: a slice is encoded once, whoever asks.

    Args:
        slices: indices of the slices that are not blank, rising, (n,).
        steps: of `CoarsePass.steps`; the largest counts.
        depth: slices of the volume.

    Returns:
        bool (depth,).
    """
    looks = torch.zeros(depth, dtype=torch.bool)
    for run in _runs(slices):
        looks[run[:: max(steps)]] = True
        looks[run[-1]] = True
    return looks


def after_looks(slices: Tensor, looks: Tensor, probability: Tensor, steps: Sequence[int]) -> Tensor:
    """Where each prompt is still to be searched for.

    With a step of 1 that is everywhere; else between two looks of which one does not find it improbable.

    Args:
        slices: as for `first_looks`.
        looks: slices that were looked at, bool (depth,).
        probability: that the object is there, (depth, P), valid at the looks.
        steps: of `CoarsePass.steps`, P of them, each 1 or the largest.

    Returns:
        bool (depth, P), False at the looks.
    """
    wanted = torch.zeros(len(looks), len(steps), dtype=torch.bool)
    for run in _runs(slices):
        for p, step in enumerate(steps):
            if step == 1:
                wanted[run, p] = ~looks[run]
                continue
            for first, last in pairwise(run[looks[run]].tolist()):
                if max(probability[first, p], probability[last, p]) >= IMPROBABLE:
                    wanted[first + 1 : last, p] = True
    return wanted


def _runs(slices: Tensor) -> list[Tensor]:
    """Neighbouring slices together; blank ones lie between two runs."""
    if not len(slices):
        return []
    breaks = (slices.diff() > 1).nonzero()[:, 0] + 1
    return list(slices.tensor_split(breaks))
