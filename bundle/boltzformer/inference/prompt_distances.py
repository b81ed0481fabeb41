"""The threshold above which a prompt is far, chosen from wordings that are meant and terms that are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boltzformer.inference.known_terms import KnownTerms

FRAMES = ("{}", "{} in head and neck CT", "{} in chest CT", "outline the {}", "{}, planning CT", "{} on a CT scan")
"""What a user may write around a term."""


@dataclass(frozen=True)
class Distances:
    """What was measured.

    Attributes:
        threshold: distance above which a prompt is far.
        rows: for each group of prompts its size, distances, and the share that gets a warning.
    """

    threshold: float
    rows: list[dict[str, Any]]


def measure_distances(
    objects: Mapping[str, Sequence[str]],
    unseen: Sequence[str],
    others: Sequence[str],
    encode: Callable[[Sequence[str]], Any],
) -> Distances:
    """Measure how far prompts are from known terms.

    The threshold lies halfway between the farthest unseen wording and the nearest other term. Where these overlap, it
    lies where the share of unseen wordings that get a warning and the share of other terms that get none have the least
    sum. Other terms are asked for in every frame, known wordings each without itself.

    Args:
        objects: object -> wordings that training used.
        unseen: wordings of the same objects that it did not use.
        others: terms for other organs and findings.
        encode: see `KnownTerms`.
    """
    known = KnownTerms(objects, encode, 0.0)
    near = np.array([known.nearest(text).distance for text in unseen])
    far = {frame: np.array([known.nearest(frame.format(text)).distance for text in others]) for frame in FRAMES}
    threshold = round(_between(near, np.concatenate(list(far.values()))), 3)
    rows = [
        _row("known wordings, each without itself", _left_out(objects, encode), threshold),
        _row("wordings never trained", near, threshold),
    ]
    return Distances(
        threshold, rows + [_row(f"other terms: {frame}", found, threshold) for frame, found in far.items()]
    )


def _between(near: np.ndarray, far: np.ndarray) -> float:
    if near.max() < far.min():
        return float((near.max() + far.min()) / 2)
    places = np.unique(np.concatenate([near, far]))
    costs = [(near > place).mean() + (far <= place).mean() for place in places]
    return float(places[int(np.argmin(costs))])


def _left_out(objects: Mapping[str, Sequence[str]], encode: Callable[[Sequence[str]], Any]) -> np.ndarray:
    found = []
    for texts in objects.values():
        for text in texts:
            others = {key: [t for t in listed if t != text] for key, listed in objects.items()}
            found.append(KnownTerms(others, encode, 0.0).nearest(text).distance)
    return np.array(found)


def _row(name: str, distances: np.ndarray, threshold: float) -> dict[str, Any]:
    return {
        "prompts": name,
        "n": len(distances),
        "smallest": float(distances.min()),
        "median": float(np.median(distances)),
        "largest": float(distances.max()),
        "warned": float((distances > threshold).mean()),
    }
