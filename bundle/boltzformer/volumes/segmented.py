"""What was segmented in one volume: the one thing that every output format writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class SegmentedVolume:
    """The masks of one volume, on the volume's own grid.

    Attributes:
        case: name of the volume, fit for a file.
        masks: (P, X, Y, Z) of 0 and 1, uint8; of a DICOM series X runs over columns, Y over rows, Z over `series`.
        affine: (4, 4), voxel index to RAS+ in mm.
        segments: the P prompts.
        algorithm: what made the masks.
        source: the file or folder that was read, None for an array.
        series: the source's DICOM files in the order of Z; empty where the source is no DICOM series.
        image: (X, Y, Z) voxels of the volume, for pictures; None where they are not at hand.
        findings: for each segment what was measured of it, in the order of `segments`; may be empty.
    """

    case: str
    masks: np.ndarray
    affine: np.ndarray
    segments: tuple[Segment, ...]
    algorithm: Algorithm
    source: Path | None = None
    series: tuple[Path, ...] = ()
    image: np.ndarray | None = None
    findings: tuple[Mapping[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.masks.ndim != 4 or len(self.masks) != len(self.segments):
            raise ValueError(f"masks {self.masks.shape} do not fit {len(self.segments)} segments")
        if self.series and len(self.series) != self.masks.shape[3]:
            raise ValueError(f"{len(self.series)} DICOM files for {self.masks.shape[3]} slices")


def color_of(index: int) -> tuple[int, int, int]:
    """RGB of segment `index`, 0 to 255."""
    return COLORS[index % len(COLORS)]
