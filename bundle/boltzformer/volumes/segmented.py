"""What was segmented in one volume: the one thing that every output format writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer.volumes.volume import Volume

COLORS = (
    *((230, 85, 35), (50, 135, 210), (45, 160, 85), (240, 190, 40), (150, 85, 180), (0, 175, 175)),
    *((215, 60, 120), (135, 100, 65), (120, 190, 50), (95, 105, 200), (250, 140, 120), (110, 110, 110)),
)
"""RGB in 0 to 255, one for each segment in order, then from the start again; the same in every format."""


@dataclass(frozen=True)
class Segment:
    """One prompt.

    Attributes:
        name: short name, fit for a file.
        text: the prompt itself.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Algorithm:
    """Who drew the masks, as it is written into files that ask for it.

    Attributes:
        name: of the network.
        version: of the bundle.
        weights_sha256: checksum of the weights' file, 64 hexadecimal digits, empty where the weights are no file.
    """

    name: str
    version: str
    weights_sha256: str = ""


@dataclass(frozen=True, eq=False)
class SegmentedVolume:
    """The masks of one volume, on the volume's own grid.

    Attributes:
        case: name of the results, fit for a file.
        volume: what was segmented.
        masks: (P, X, Y, Z) of 0 and 1, uint8, over the voxels of `volume`.
        segments: the P prompts.
        algorithm: what made the masks.
        label_map: (X, Y, Z) uint8, i + 1 where segment i is the surest; None where it is not at hand.
        findings: for each segment what was measured of it, in the order of `segments`; may be empty.
        computation: in which precision and how the masks were computed; empty where that is not known.
        window: the two intensities between which the network saw the volume; None where that is not known.
    """

    case: str
    volume: Volume
    masks: np.ndarray
    segments: tuple[Segment, ...]
    algorithm: Algorithm
    label_map: np.ndarray | None = None
    findings: tuple[Mapping[str, Any], ...] = ()
    computation: str = ""
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.masks.shape != (len(self.segments), *self.volume.voxels.shape):
            raise ValueError(
                f"masks {self.masks.shape} do not fit {len(self.segments)} segments of {self.volume.voxels.shape}"
            )

    @property
    def series(self) -> tuple[Path, ...]:
        """The DICOM files that were read, in the order of the third axis; empty where the source is no series."""
        return self.volume.series.files if self.volume.series is not None else ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read, which no result is written over."""
        return self.volume.files


def color_of(index: int) -> tuple[int, int, int]:
    """RGB of segment `index`, 0 to 255."""
    return COLORS[index % len(COLORS)]
