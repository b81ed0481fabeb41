"""What a person wants to know of a mask: found or not, how large, in how many parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boltzformer.data.prompts import Prompt
from boltzformer.metrics.measures.lesions import find_components
from boltzformer.metrics.measures.surfaces import bounding_box
from boltzformer.volumes.write import Grid


@dataclass(frozen=True)
class Finding:
    """One prompt in one volume.

    Attributes:
        label: value of the prompt in the label map.
        name: of the prompt's files.
        prompt: its text.
        found: whether any voxel was marked.
        probability: that the object is in the volume, in [0, 1]: the largest of its slices' existence scores; None
            where the network gives none.
        voxels: that were marked.
        millilitres: their volume; None where the voxel size is not known.
        parts: connected ones (26 neighbours); the lesions, where each is apart.
        nearest_known: the nearest term that the network was trained on, see `Segmentation`; None where it is not known.
    """

    label: int
    name: str
    prompt: str
    found: bool
    probability: float | None
    voxels: int
    millilitres: float | None
    parts: int
    nearest_known: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Finding:
        """From what `as_dict` gave.

        Raises:
            TypeError: an entry is missing, is not known, or is of another kind.
        """
        made = cls(**content)
        kinds = {"label": int, "name": str, "prompt": str, "found": bool, "voxels": int, "parts": int}
        numbers = [number for number in (made.millilitres, made.probability) if number is not None]
        wrong = [name for name, kind in kinds.items() if type(getattr(made, name)) is not kind]
        if wrong or not all(type(number) in (int, float) for number in numbers):
            raise TypeError(f"a finding whose {', '.join(wrong) or 'numbers'} cannot be")
        return made


def measure(
    masks: np.ndarray,
    prompts: Sequence[Prompt],
    grid: Grid,
    existence: np.ndarray | None = None,
    nearest_known: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Finding]:
    """Measure the masks of a volume.

    Args:
        masks: (P, X, Y, Z) of 0 and 1.
        prompts: P of them.
        grid: of the volume.
        existence: (P, slices), probability in [0, 1] that the object is in a slice; None where it is not known.
        nearest_known: prompt's name -> nearest known term; None where it is not known.

    Returns:
        a finding for each prompt.
    """
    found = []
    for index, prompt in enumerate(prompts):
        mask = masks[index] > 0
        voxels = int(np.count_nonzero(mask))
        box = bounding_box(mask)
        parts = 0 if box is None else find_components(mask[box])[1]
        probability = None if existence is None else round(float(np.max(existence[index])), 4)
        found.append(
            Finding(
                index + 1,
                prompt.name,
                prompt.text,
                bool(voxels),
                probability,
                voxels,
                grid.millilitres(voxels),
                parts,
                (nearest_known or {}).get(prompt.name),
            )
        )
    return found
