"""How far a prompt is from everything that a network was trained to find.

A network marks something for any prompt. One that names an organ it never saw deserves a word of warning, and the
nearest term that it knows. The distance is 1 - cosine between sentence embeddings (mean over tokens) of the network's
own language encoder. What surrounds the term ("... in head and neck CT", "outline the ...") is left out first: with it
two prompts of one style lie near each other whatever they name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzformer.data.prompts import Prompt
from boltzformer.recipe import Recipe

logger = logging.getLogger(__name__)

THRESHOLD = "far_prompt"
"""Name of the threshold in a checkpoint's recipe."""
_MODALITY = r"(?:CT|MRI?|computed tomography|magnetic resonance)"
_AROUND = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:in|on)\b(?: (?:an?|the|this|that))?(?: [\w-]+){{0,4}}? {_MODALITY}\b(?: (?:scans?|images?|slices?))?",
        rf",[\w -]*\b{_MODALITY}\b(?: scans?)?",
        rf"^[\w -]*\b{_MODALITY}(?: scans?)?,",
        r"^\s*(?:please )?(?:segment|outline|find|mark|show|delineate|locate)\b",
        r"\b(?:as )?organs? at risk\b",
        r"\b(?:the|an?|this|that|all)\b",
    )
)


def terms_of(recipe: Recipe, objects: Sequence[str]) -> frozenset[str]:
    """What prompts for some objects say, in all words that a checkpoint knows; without what surrounds the term.

    Args:
        recipe: of the checkpoint.
        objects: their names.
    """
    wordings = {text for name in objects for text in (name, *recipe.objects.get(name, ()))}
    return frozenset(core_of(text).lower() for text in wordings)


def says(prompt: str, terms: frozenset[str]) -> bool:
    """Whether a prompt says one of some terms (`terms_of`)."""
    return core_of(prompt).lower() in terms


@dataclass(frozen=True)
class NearestTerm:
    """The known term that is nearest to a prompt.

    Attributes:
        term: the object's name, as the network was trained with it.
        wording: the trained wording of it that is nearest.
        distance: 0 for the same words, about 1 for unrelated ones.
        far: whether the distance is above the network's threshold.
        earlier_only: whether the last training had no example of the object, so that it may be forgotten.
    """

    term: str
    wording: str
    distance: float
    far: bool
    earlier_only: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {"term": self.term, "wording": self.wording, "distance": round(self.distance, 3), "far": self.far}
        return {**told, "earlier_only": True} if self.earlier_only else told


class KnownTerms:
    """What a network was trained to find, as points in its language encoder's space.

    Args:
        objects: each object's name to its wordings.
        encode: prompts -> `TextFeatures`, such as a text encoder's `together`.
        threshold: distance above which a prompt is far.
        earlier_only: objects that the last training had no example of.
    """

    def __init__(
        self,
        objects: Mapping[str, Sequence[str]],
        encode: Callable[[Sequence[str]], Any],
        threshold: float,
        earlier_only: Collection[str] = (),
    ) -> None:
        self.encode = encode
        self.earlier_only = frozenset(earlier_only)
        self.threshold = threshold
        self.wordings = [(name, text) for name, texts in objects.items() for text in dict.fromkeys((name, *texts))]
        self._points: Tensor | None = None
        self._found: dict[str, NearestTerm] = {}

    def nearest(self, prompt: str) -> NearestTerm:
        """The known term that is nearest to a prompt."""
        if prompt not in self._found:
            if self._points is None:
                self._points = sentence_points([text for _, text in self.wordings], self.encode)
            distances = 1 - self._points @ sentence_points([prompt], self.encode)[0]
            index = int(distances.argmin())
            distance = max(0.0, float(distances[index]))
            name, wording = self.wordings[index]
            far = distance > self.threshold
            self._found[prompt] = NearestTerm(name, wording, distance, far, name in self.earlier_only)
        return self._found[prompt]

    def tell(self, prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
        """Look prompts up, with a warning for each that is far, or near what may be forgotten.

        Returns:
            the prompt's name -> its nearest term, as JSON.
        """
        found = {prompt.name: self.nearest(prompt.text) for prompt in prompts}
        for prompt in prompts:
            near = found[prompt.name]
            if near.far:
                logger.warning(
                    "prompt %r is far from everything that the network was trained on; the nearest known term is %r "
                    "(distance %.2f, above %.2f): expect no useful mask",
                    *(prompt.text, near.term, near.distance, self.threshold),
                )
            elif near.earlier_only:
                logger.warning(
                    "prompt %r: the last training of the network had no example of %r, which an earlier one taught: it "
                    "may be forgotten",
                    *(prompt.text, near.term),
                )
        return {name: near.as_dict() for name, near in found.items()}


def core_of(prompt: str) -> str:
    """A prompt without what surrounds its term: "outline the larynx in neck CT" is "larynx"."""
    words = prompt
    for pattern in _AROUND:
        words = pattern.sub(" ", words)
    return " ".join(words.split()).strip(" ,.") or prompt


def sentence_points(prompts: Sequence[str], encode: Callable[[Sequence[str]], Any]) -> Tensor:
    """Sentence embeddings of prompts' cores, (P, width) float32 of length 1, on the CPU."""
    with torch.no_grad():
        features = encode([core_of(prompt) for prompt in prompts])
        sums = features.tokens.float().sum(dim=1).cpu()  # of a mean's direction; padding is 0
    return torch.nn.functional.normalize(sums, eps=1e-12)


def known_terms_of(recipe: Recipe, network: Any) -> KnownTerms | None:
    """The known terms of a network; None where its recipe states no objects or no threshold.

    Args:
        recipe: of the network's checkpoint.
        network: with its weights.
    """
    threshold = recipe.threshold(THRESHOLD)
    if threshold is None or not recipe.objects:
        return None
    return KnownTerms(recipe.objects, network.text_encoder.together, threshold, recipe.earlier_only)


def nearest_known(recipe: Recipe, network: Any, prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]] | None:
    """`KnownTerms.tell` for a config; None where the recipe has no known terms."""
    known = known_terms_of(recipe, network)
    return None if known is None else known.tell(prompts)
