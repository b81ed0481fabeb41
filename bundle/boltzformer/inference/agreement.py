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
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzformer.errors import InputError
from boltzformer.inference.known_terms import says, terms_of
from boltzformer.recipe import Recipe

REACH = 3.0
"""Slices farther away than so many sigmas do not take part."""


@dataclass(frozen=True)
class Agreement:
    """Which prompts' slices have to agree, and how far along.

    Args:
        sigma_mm: of the Gaussian; 0 leaves every slice to itself.
        terms: what prompts must say (`known_terms.terms_of`); None takes every prompt.

    Raises:
        InputError: sigma is not within 0 and 100.
    """

    sigma_mm: float = 0.0
    terms: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_mm <= 100:
            raise InputError(f"agreement_mm is {self.sigma_mm}: give millimetres, or 0 to leave every slice to itself.")

    def neighbours(self, prompts: Sequence[str], spacing_mm: float) -> Neighbours | None:
        """What holds the masks of a volume; None where every slice of every prompt stands for itself.

        Args:
            prompts: P sentences.
            spacing_mm: distance of neighbouring slices; NaN where it is not known.
        """
        near = torch.tensor([self.terms is None or says(prompt, self.terms) for prompt in prompts])
        weights = weights_of(self.sigma_mm, spacing_mm)
        return Neighbours(weights, near) if weights[1:] and bool(near.any()) else None


def agreement_of(recipe: Recipe, sigma_mm: float | None = None) -> Agreement:
    """The agreement that a checkpoint's recipe asks for.

    What it gains was measured for some objects. A smaller one, such as a nodule of a few mm, may lose by it.

    Args:
        recipe: of the checkpoint.
        sigma_mm: in place of the recipe's, for every prompt; 0 for none.

    Raises:
        InputError: sigma is not within 0 and 100.
    """
    if sigma_mm is not None:
        return Agreement(float(sigma_mm))
    stated = recipe.content.get("agreement")
    return Agreement() if stated is None else Agreement(float(stated["mm"]), terms_of(recipe, stated["objects"]))


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


@dataclass
class Held:
    """Masks of one slice.

    Attributes:
        which: prompts that have one, bool (P,).
        near: logits of those that take part in means, (k', h, w) float16.
        alone: of the others, float32.
    """

    which: Tensor
    near: Tensor
    alone: Tensor


class Neighbours:
    """Masks of slices, held until all slices around them are there.

    Args:
        weights: see `weights_of`.
        near: which prompts take part, bool (P,).
    """

    def __init__(self, weights: Sequence[float], near: Tensor) -> None:
        self.weights = list(weights)
        self.near = near
        self._held: dict[int, Held] = {}

    def hold(self, index: int, which: Tensor, logits: Tensor) -> None:
        """Keep what was found in a slice.

        Args:
            index: of the slice.
            which: prompts that have a mask there, bool (P,).
            logits: of those k prompts, (k, h, w).
        """
        near = self.near[which].to(logits.device)
        self._held[index] = Held(which, logits[near].half(), logits[~near].float())

    @property
    def slices(self) -> list[int]:
        """Indices of the slices that are held, in rising order."""
        return sorted(self._held)

    def which(self, index: int) -> Tensor:
        """Prompts that have a mask in a slice, bool (P,)."""
        return self._held[index].which

    def mean_existence(self, existence: Tensor) -> Tensor:
        """Mean existence logits over the slices around each; of prompts that do not take part, their own.

        Args:
            existence: logits (D, P), -inf where they were not computed, which does not count and stays.
        """
        computed = existence.isfinite() & self.near
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
        for index, held in list(self._held.items()):
            which = held.which & kept[index]
            if bool(which.any()):
                near, alone = (which[held.which & part].to(held.near.device) for part in (self.near, ~self.near))
                self._held[index] = Held(which, held.near[near], held.alone[alone])
            else:
                del self._held[index]

    def mean(self, index: int) -> Tensor:
        """Logits of the mean over the slices around one, (k, h, w) float32.

        The order of the sum is that of the distance, so the bits do not depend on what came first.
        """
        own = self._held[index]
        total = own.near.float().sigmoid()
        weight = torch.ones(len(total), device=total.device)
        for away, share in enumerate(self.weights[1:], 1):
            for other in (self._held.get(index - away), self._held.get(index + away)):
                if other is None:
                    continue
                both = own.which & other.which
                # rows of this slice whose prompt the other has too, and those of the other
                rows, others = (both[one.which & self.near].to(total.device) for one in (own, other))
                total[rows] += share * other.near[others].float().sigmoid()
                weight[rows] += share
        # eps: where all are certain a logit has to stay finite, and below float16's largest
        near = torch.logit(total / weight[:, None, None], eps=1e-7)
        made = own.alone.new_empty((len(near) + len(own.alone), *own.alone.shape[1:]))
        of_near = self.near[own.which].to(made.device)
        made[of_near], made[~of_near] = near, own.alone
        return made
