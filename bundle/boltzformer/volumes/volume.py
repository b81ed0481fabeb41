"""A volume in memory: its voxels, where they are, and what it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from boltzformer.volumes.dicom import DicomSeries


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image with its geometry.

    Attributes:
        voxels: (X, Y, Z) of any number type, in the modality's units (Hounsfield units for CT), as stored: not turned.
        affine: (4, 4) float64, voxel index to RAS+ coordinates in mm.
        name: what messages call it: the path, or "the array".
        path: the file, or the folder of the DICOM series; None for a volume that came from memory.
        series: the DICOM series with its files in slice order (third axis) and their positions; None for other volumes.
        modality: "CT", "MR" or another, see `normal_modality`; empty where the source does not say.
        body_part: empty where the source does not say.
        header: of a NIfTI source, whose qform, sform and units the results keep; None for others.
        spacing_known: False where the voxel size in the affine means nothing (`boltzformer.volumes.spacing`).
    """

    voxels: np.ndarray
    affine: np.ndarray
    name: str
    path: Path | None = None
    series: DicomSeries | None = None
    modality: str = ""
    body_part: str = ""
    header: nib.Nifti1Header | None = None
    spacing_known: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the three axes."""
        x, y, z = (float(size) for size in nib.affines.voxel_sizes(self.affine))
        return x, y, z

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read; empty for a volume that came from memory."""
        if self.series is not None:
            return self.series.files
        return () if self.path is None else (self.path,)
