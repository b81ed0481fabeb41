"""The recipe that a training run writes into its checkpoints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from boltzformer.data.slice_dataset import SliceDataset, known_spacing
from boltzformer.data.wordings import WordingBook, object_key
from boltzformer.recipe import DEFAULTS, Recipe, check_recipe, versions
from boltzformer.recipe_network import record_definition
from boltzformer.volumes.spacing import is_known


def recipe_of_run(network: nn.Module, recipe: Recipe, dataset: SliceDataset, wordings: WordingBook) -> dict[str, Any]:
    """Say what a network is trained with.

    Args:
        network: the bare network.
        recipe: the run's settings.
        dataset: the training examples.
        wordings: of the objects.

    Returns:
        the recipe as JSON can hold it; the checksum comes with each file.

    Raises:
        InputError: the network cannot be described, see `record_definition`.
    """
    content = {
        "network": record_definition(network, recipe.bundle_root / "models"),
        "input": {name: recipe.content["input"][name] for name in DEFAULTS},
        "trained_on": _joined(recipe.content.get("trained_on", {}), _trained_on(dataset, wordings), dataset.counts()),
        "prompts": {"templates": list(wordings.templates), "entries": wordings.entries, "mode": wordings.file_mode},
        "thresholds": dict(recipe.content.get("thresholds", {})),
        "versions": versions(),
    }
    check_recipe({**content, "format": 1, "sha256": "0" * 64}, "this training run")
    return content


def _joined(earlier: Mapping[str, Any], now: Mapping[str, Any], examples: Iterable[str]) -> dict[str, Any]:
    """What the weights have seen: a network that goes on from others' weights has seen their data too.

    Args:
        earlier: of the weights that training starts from; may be empty.
        now: of this training.
        examples: objects that a slice of this training shows; a datalist may name others.
    """
    joined = dict(now)
    for name, value in earlier.items():
        if isinstance(value, list) and name in now:
            joined[name] = sorted({*value, *now[name]})
    if "pixel_mm" in earlier:  # the finer of the two: what inference averages away was then seen in neither training
        joined["pixel_mm"] = min(earlier["pixel_mm"], now.get("pixel_mm", earlier["pixel_mm"]))
    texts = {name: list(wordings) for name, wordings in now["objects"].items()}
    for name, wordings in earlier.get("objects", {}).items():  # also in words that this training does not use
        own = texts.setdefault(name, [])
        own += [text for text in wordings if text not in own]
    joined["objects"] = dict(sorted(texts.items()))
    shown = {object_key(name) for name in examples}
    known = {object_key(name) for name in earlier.get("objects", {})}
    lost = known - shown  # one that was never known and is not shown either is no matter of forgetting
    if earlier_only := [name for name in joined["objects"] if object_key(name) in lost]:
        joined["earlier_only"] = earlier_only
    return joined


def _trained_on(dataset: SliceDataset, wordings: WordingBook) -> dict[str, Any]:
    cases: Sequence[Mapping[str, Any]] = dataset.data
    objects: dict[str, list[str]] = {}
    for case in cases:
        for value, name in case["objects"].items():
            known = objects.setdefault(name, [])
            known += [text for text in wordings.for_case(case, value) if text not in known]

    def named(key: str) -> list[str]:
        return sorted({str(case[key]) for case in cases if case.get(key)})

    sides = [known_spacing(*one) for one in zip(cases, dataset.volumes, strict=True)]
    pixels = [math.prod(both) ** 0.5 for both in sides if is_known(*both)]
    return {
        **({"pixel_mm": round(statistics.median(pixels), 3)} if pixels else {}),
        "datasets": named("dataset"),
        "cases": len(cases),
        "patients": len(named("patient")),
        "modalities": named("modality"),
        "body_parts": named("body_part"),
        "objects": dict(sorted(objects.items())),
    }
