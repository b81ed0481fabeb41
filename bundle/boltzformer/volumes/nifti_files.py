"""NIfTI files (and others that nibabel reads): opened with care, read with their checksum."""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError, SpatialImage
from pydicom.misc import is_dicom

from boltzformer.errors import InputError
from boltzformer.volumes.deflate import BUFFER, DAMAGE, open_gzip
from boltzformer.volumes.grids import check_affine
from boltzformer.volumes.names import volume_suffix

logger = logging.getLogger(__name__)

_MM_OF_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's codes of metre and micrometre
_SIDES = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}


def image_affine(image: Any, where: str) -> np.ndarray:
    """The affine of a nibabel image in mm, (4, 4): NIfTI may be in metres or micrometres.

    Raises:
        InputError: it is not invertible.
    """
    affine = check_affine(image.affine, where)
    if isinstance(image, nib.Nifti1Image):
        affine[:3] *= _MM_OF_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0)  # nibabel fails on codes that are none
    return affine


def tell_of_sides(image: Any, where: str) -> None:
    """Warn where a NIfTI header leaves open, or says in two ways, which side is left.

    Args:
        image: of nibabel; one that is no NIfTI says nothing.
        where: what to name in the warning.
    """
    if not isinstance(image, nib.Nifti1Image):
        return
    header = image.header
    if not header["sform_code"] and not header["qform_code"]:
        axes = ", ".join(_SIDES[code] for code in nib.aff2axcodes(image.affine))
        logger.warning(
            "%s: the header says no orientation (qform and sform code 0); its axes are taken as running %s, so left "
            "and right may be wrong",
            *(where, axes),
        )
    elif header["sform_code"] and header["qform_code"]:
        # a qform that nothing uses may hold anything
        with contextlib.suppress(HeaderDataError, ValueError), np.errstate(invalid="ignore", divide="ignore"):
            first, second = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in _forms(header))
            if (first * second).sum(axis=0).min() < 0.5:  # an axis that turns by over 60 degrees
                logger.warning(
                    "%s: its qform and sform say different orientations; the sform is taken, a viewer may take the "
                    "other, so left and right may be wrong",
                    where,
                )


def _forms(header: nib.Nifti1Header) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(header.get_qform()), np.asarray(header.get_sform())


def read_nibabel(path: Path) -> np.ndarray:
    """Read all voxels of a file, its checksum tested.

    Raises:
        InputError: as `open_nibabel`; also damaged data.
    """
    image = open_nibabel(path)
    try:
        if path.name.lower().endswith(".gz") and isinstance(image, nib.Nifti1Image):
            with open_gzip(path) as file:
                array = image_voxels(type(image).from_stream(file))
                # the checksum stands behind the last voxel and is tested only by reading on
                while file.read(BUFFER):
                    pass
            return array
        return image_voxels(image)
    except DAMAGE as error:
        raise InputError(
            f"{path}: the data is truncated or damaged ({error}); copy or export the file again."
        ) from error


def check_present(path: Path) -> None:
    """Check that a path is a file with something in it.

    Raises:
        InputError: it is missing, a link to nothing, a folder, or empty.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: is a link to {os.readlink(path)}, which is not there; fetch or copy that file.")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path in the datalist or on the command line.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder where a volume file was expected.")
    if not path.is_file():  # a pipe or a device would be read without end
        raise InputError(f"{path}: is no plain file; copy the volume into one.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy or export it again.")


def open_nibabel(path: Path) -> Any:
    """Open a volume lazily with nibabel, turning every way to fail into one sentence.

    Raises:
        InputError: the file is missing, empty, no volume, or its header cannot be believed.
    """
    check_present(path)
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises many kinds on a damaged header
        if is_dicom(path):
            raise InputError(f"{path}: is a DICOM file; give the folder that holds its series.") from None
        raise InputError(
            f"{path}: cannot be read as a volume ({error}); it may be truncated, or is no NIfTI file (.nii, .nii.gz)."
        ) from error
    if not isinstance(image, SpatialImage):
        raise InputError(f"{path}: is a {type(image).__name__}, not a volume; expected NIfTI (.nii, .nii.gz).")
    if isinstance(image, nib.Nifti1Image) and volume_suffix(path.name):
        _check_raw_header(path, image)
    return image


def _check_raw_header(path: Path, image: nib.Nifti1Image) -> None:
    """Fields that nibabel puts right, or takes as they are, without a word."""
    kind = type(image.header)
    with nib.openers.ImageOpener(str(path), "rb") as file:
        block = file.read(kind.template_dtype.itemsize)
    raw = kind(block, endianness=image.header.endianness, check=False)
    offset = float(raw["vox_offset"])
    if not offset >= kind.single_vox_offset:
        raise InputError(f"{path}: the header says that voxels begin at byte {offset:g}, inside it; export it again.")
    if raw["sform_code"] == 0 and not np.all(np.abs(raw["pixdim"][1:4]) > 0):
        raise InputError(
            f"{path}: the header gives voxel sizes of {raw['pixdim'][1:4].tolist()} mm; write the file with its "
            "true ones."
        )


def image_voxels(image: Any) -> np.ndarray:
    """All voxels of a nibabel image, scaled in float32 (not float64) where the header asks for scaling."""
    proxy = image.dataobj
    if type(proxy) is not ArrayProxy:  # an array; or a proxy of another format, which scales by more than these two
        return np.asanyarray(proxy)
    if proxy.slope == 1.0 and proxy.inter == 0.0:
        return np.asanyarray(proxy.get_unscaled())
    return np.asarray(proxy, dtype=np.float32)


def check_length(path: Path, image: Any, num_bytes: int) -> None:
    """Compare the file's length with what its header announces (single-file NIfTI only).

    Raises:
        InputError: it is shorter.
    """
    suffix = volume_suffix(path.name)
    if not isinstance(image, nib.Nifti1Image) or not suffix:
        return
    proxy: Any = image.dataobj
    expected = int(proxy.offset) + num_bytes
    if suffix == ".nii":
        found, problem = path.stat().st_size, ""
    else:
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            trailer = int.from_bytes(file.read(4), "little")
        if trailer == expected % 2**32:
            return
        found, problem = _decompressed_length(path)
    if found < expected and problem:
        raise InputError(
            f"{path}: the compressed data is truncated or damaged after {found} of {expected} bytes ({problem}); "
            "copy or export the file again."
        )
    if found < expected:
        raise InputError(f"{path}: the file is truncated ({found} of {expected} bytes); copy or export it again.")


def _decompressed_length(path: Path) -> tuple[int, str]:
    """Bytes of a gzip file up to its end or first damage (a trailer may be of its last member only), and the damage."""
    total = 0
    unpack = zlib.decompressobj(wbits=31)
    with open(path, "rb") as file:
        try:
            while block := file.read(1 << 16):
                while block:
                    total += len(unpack.decompress(block))
                    block = unpack.unused_data
                    if unpack.eof:
                        unpack = zlib.decompressobj(wbits=31)
        except zlib.error as error:
            return total, str(error)
    return total, ""
