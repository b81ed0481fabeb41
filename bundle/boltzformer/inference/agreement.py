"""Neighbouring slices have to agree: scores and masks are means over the slices around them.

The network sees one slice at a time, so that its errors differ from slice to slice while the object hardly does. Means
weighted by a Gaussian of the distance in mm take part of them away:

1. of the existence logits, over the slices that were computed; then the gate decides which slices show the object,
   of those whose own score does not rule it out (`existence.IMPROBABLE`): their masks alone were kept;
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
from boltzformer.volumes.spacing import is_known

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

    def neighbours(self, prompts: Sequence[str], spacing_mm: float, places: Tensor | None = None) -> Neighbours | None:
        """What holds the masks of a volume; None where every slice of every prompt stands for itself.

        Args:
            prompts: P sentences.
            spacing_mm: distance of neighbouring slices; NaN where it is not known.
            places: where slices lie in mm, (D,), if not evenly spaced; goes before `spacing_mm`.
        """
        near = torch.tensor([self.terms is None or says(prompt, self.terms) for prompt in prompts])
        if not bool(near.any()):
            return None
        if places is not None and self.sigma_mm:
            return Neighbours([1.0], near, places / self.sigma_mm)
        weights = weights_of(self.sigma_mm, spacing_mm)
        return Neighbours(weights, near) if weights[1:] else None


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
    if not sigma_mm or not is_known(spacing_mm):
        return [1.0]
    count = int(REACH * sigma_mm / spacing_mm + 1e-6)
    return [math.exp(-0.5 * (away * spacing_mm / sigma_mm) ** 2) for away in range(count + 1)]


class Neighbours:
    """Masks of slices, held until all slices around them are there.

    Args:
        weights: see `weights_of`.
        near: which prompts take part in means, bool (P,).
        places: where slices lie in sigmas, (D,), if not evenly spaced; goes before `weights`.
    """

    def __init__(self, weights: Sequence[float], near: Tensor, places: Tensor | None = None) -> None:
        self.weights = torch.tensor(weights)
        self.places = places
        self.near = near
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def hold(self, index: int, which: Tensor, logits: Tensor) -> None:
        """Keep what was found in a slice.

        Args:
            index: of the slice.
            which: prompts that have a mask there, bool (P,).
            logits: of those k prompts, (k, h, w); kept in float16, as in the end.
        """
        self._held[index] = (which, logits.half())

    @property
    def slices(self) -> list[int]:
        """Indices of the slices that are held, in rising order."""
        return sorted(self._held)

    def which(self, index: int) -> Tensor:
        """Prompts that have a mask in a slice, bool (P,)."""
        return self._held[index][0]

    def logits(self, index: int) -> Tensor:
        """Of those prompts, (k, h, w) float32."""
        return self._held[index][1].float()

    def mean_existence(self, existence: Tensor) -> Tensor:
        """Mean existence logits over the slices around each; of prompts that do not take part, their own.

        Args:
            existence: logits (D, P), -inf where they were not computed, which does not count and stays.
        """
        computed = existence.isfinite() & self.near
        weights = self._between(torch.arange(len(existence)))
        total = weights @ existence.where(computed, 0.0)
        return (total / (weights @ computed.float())).where(computed, existence)

    def restrict(self, kept: Tensor) -> None:
        """Let go of masks that are not shown after all.

        Args:
            kept: bool (D, P).
        """
        for index, (which, logits) in list(self._held.items()):
            stays = which & kept[index]
            if bool(stays.any()):
                self._held[index] = (stays, logits[stays[which].to(logits.device)])
            else:
                del self._held[index]

    def average(self) -> None:
        """Put means in place of the masks, prompt by prompt: a prompt's bits depend on no other."""
        slices = self.slices
        for p in self.near.nonzero()[:, 0].tolist():
            indices = [index for index in slices if bool(self.which(index)[p])]
            if len(indices) < 2:
                continue
            # views of what is held: a prompt's row is the number of prompts before it
            own = [self._held[index][1][int(self.which(index)[:p].sum())] for index in indices]
            probability = torch.stack(own).float().sigmoid()
            weights = self._between(torch.tensor(indices)).to(probability.device)
            means = (weights / weights.sum(1, keepdim=True)) @ probability.flatten(1)
            # eps: where all are certain a logit has to stay finite, and below float16's largest
            logits = torch.logit(means, eps=1e-7).half().view_as(probability)
            for mask, mean in zip(own, logits, strict=True):
                mask.copy_(mean)

    def _between(self, indices: Tensor) -> Tensor:
        """What n slices weigh for each other, (n, n) float32."""
        if self.places is not None:
            sigmas = (self.places[indices, None] - self.places[indices]).abs()
            return torch.where(sigmas <= REACH + 1e-6, torch.exp(-0.5 * sigmas**2), 0.0).float()
        away = (indices[:, None] - indices).abs()
        near = away < len(self.weights)
        return self.weights[away.where(near, 0)] * near
