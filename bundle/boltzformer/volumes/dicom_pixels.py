"""The voxels of a DICOM series."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boltzformer.errors import InputError
from boltzformer.volumes.dicom import DicomSeries

logger = logging.getLogger(__name__)


def read_series(series: DicomSeries) -> np.ndarray:
    """Decode a series, with each file's rescale slope and intercept applied (Hounsfield units for CT).

    MONOCHROME1 says how an image is to be shown, not what its values mean, so it changes nothing here.

    Args:
        series: from `find_series`.

    Returns:
        (columns, rows, slices) array, int16 (int32 where that is too narrow) where the rescaling gives whole numbers,
        else float32.

    Raises:
        InputError: a slice cannot be decoded, or what comes has another shape than the headers say.
    """
    if series.uneven:  # said here, once a volume: headers alone are read more often, also of a series that is refused
        logger.warning("%s: %s: masks are written on the mean spacing", series.folder, series.uneven)
    if len(set(zip(series.scaling, series.stored, strict=True))) == 1:
        array = _decode(series.files, series)
    else:
        # ITK takes the whole series' number type from its first file, in which others wrap or lose fractions
        array = np.concatenate([_decode([file], series) for file in series.files])
    if array.shape != series.shape[::-1]:
        raise InputError(f"{series.folder}: {array.shape} voxels came where the headers say {series.shape[::-1]}.")
    array = _undo_inversion(array, series)
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif np.iinfo(np.int16).min <= array.min() and array.max() <= np.iinfo(np.int16).max:
        array = array.astype(np.int16, copy=False)  # half the memory of the decoder's int32
    return array.transpose(2, 1, 0)


def _decode(files: Sequence[Path], series: DicomSeries) -> np.ndarray:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        where = files[0] if len(files) == 1 else _first_bad(files) or series.folder
        raise InputError(f"{where}: a slice cannot be decoded ({reason}); export the series again.") from error
    if array.shape[0] != len(files):
        raise InputError(f"{series.folder}: {array.shape[0]} slices came of {len(files)} files.")
    return array


def _first_bad(files: Sequence[Path]) -> Path | None:
    """The file that cannot be decoded by itself."""
    import SimpleITK as sitk

    for file in files:
        try:
            sitk.ReadImage(str(file))
        except RuntimeError:
            return file
    return None


def _undo_inversion(array: np.ndarray, series: DicomSeries) -> np.ndarray:
    """Values of MONOCHROME1 slices as stored: ITK gives slope (M - stored) + intercept."""
    if all(highest is None for highest in series.inverted):
        return array
    wide = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    for k, (highest, (slope, intercept)) in enumerate(zip(series.inverted, series.scaling, strict=True)):
        if highest is not None:
            total = highest * slope + 2 * intercept
            wide[k] = (total if wide.dtype.kind == "f" else round(total)) - wide[k]
    return wide if wide.dtype.kind == "f" else wide.astype(np.int32)
