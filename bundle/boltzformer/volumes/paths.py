"""A path -> `Volume`: a NIfTI, NRRD or MetaImage file, or the folder of a DICOM series. Needs no torch."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib

from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_voxels, read_volume
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.dicom_pixels import read_series
from boltzformer.volumes.modality import normal_modality
from boltzformer.volumes.names import NIFTI_SUFFIXES, is_utf8, volume_suffix
from boltzformer.volumes.nifti_files import open_nibabel, tell_of_sides
from boltzformer.volumes.volume import Volume

logger = logging.getLogger(__name__)


def open_path(path: str | os.PathLike[str], uneven_spacing: str = "refuse", series_uid: str = "") -> Volume:
    """Read a file or a series; arguments and errors as of `boltzformer.volumes.sources.open_volume`.

    Returns:
        the volume, not yet checked as `checked` does.
    """
    path = Path(path).expanduser()
    if not is_utf8(path.name):
        raise InputError(f"{path}: its name is no UTF-8 text; rename it, as the results are named after it.")
    return _open_series(path, uneven_spacing, series_uid) if path.is_dir() else _open_file(path)


def checked(volume: Volume, modality: object = "", body_part: str = "") -> Volume:
    """Check the voxels of a volume, and settle its modality and body part.

    Args:
        volume: as read.
        modality: goes before what the source says, see `normal_modality`.
        body_part: goes before what the source says.

    Raises:
        InputError: the voxels are no finite numbers on three axes, or the modality is unknown.
    """
    if volume.voxels.dtype.kind not in "iuf":
        raise InputError(f"{volume.name}: voxels of type {volume.voxels.dtype}; give integers or floats.")
    if volume.voxels.ndim != 3:
        raise InputError(f"{volume.name}: expected 3 dimensions (X, Y, Z), found {volume.voxels.shape}.")
    if not volume.voxels.size:
        raise InputError(f"{volume.name}: the volume is empty (shape {volume.voxels.shape}).")
    check_voxels(volume.voxels, volume.name)
    wanted = normal_modality(modality)
    if wanted and volume.modality and wanted != volume.modality:
        logger.warning("%s: says %s, taken as %s as asked for", volume.name, volume.modality, wanted)
    return replace(volume, modality=wanted or volume.modality, body_part=body_part or volume.body_part)


def _open_file(path: Path) -> Volume:
    voxels, header = read_volume(path)
    image = open_nibabel(path) if volume_suffix(path.name) in NIFTI_SUFFIXES else None
    tell_of_sides(image, str(path))
    return Volume(
        voxels, header.affine, str(path), path, header=image.header if isinstance(image, nib.Nifti1Image) else None
    )


def _open_series(path: Path, uneven_spacing: str, series_uid: str) -> Volume:
    series = find_series(path, uneven_spacing, series_uid)
    voxels = read_series(series)
    try:
        modality = normal_modality(series.modality, str(path))
    except InputError as error:
        logger.warning("%s", error)
        modality = ""
    return Volume(voxels, series.affine, str(path), path, series, modality, series.body_part)
