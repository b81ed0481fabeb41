"""Results on the grid of the volume they were made from, as NIfTI."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform

from boltzformer.errors import InputError
from boltzformer.output_files import write_bytes, write_file
from boltzformer.volumes.checks import check_volume
from boltzformer.volumes.deflate import pack
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.grids import is_same_grid, is_sheared, without_shear
from boltzformer.volumes.names import NIFTI_SUFFIXES, volume_suffix
from boltzformer.volumes.nifti_files import open_nibabel
from boltzformer.volumes.volume import Volume

MADE_BY = "BoltzFormer"
"""Stands in every file that is written here, and tells it from a user's own."""
GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_MM = 2  # NIfTI's code
_LONGEST_AXIS = 32767  # of NIfTI-1
_PNG_HEAD = 1024  # bytes in which a PNG's notes stand, before its pixels


@dataclass(frozen=True, eq=False)
class Grid:
    """A volume's grid: where its voxels are, and the header that says so.

    Attributes:
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to RAS+ in mm.
        name: of the volume, for messages.
        files: of the volume, which no result is written over.
        header: of a NIfTI volume, whose qform, sform and units are kept bit by bit; None writes the affine in mm.
        spacing_known: False where the voxel size in the affine means nothing.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    name: str
    files: tuple[Path, ...] = ()
    header: nib.Nifti1Header | None = None
    spacing_known: bool = True

    @classmethod
    def of_volume(cls, volume: Volume) -> Grid:
        """The grid of a volume that was read."""
        x, y, z = volume.voxels.shape
        return cls((x, y, z), volume.affine, volume.name, volume.files, volume.header, volume.spacing_known)

    @classmethod
    def of_path(cls, path: str | Path, series_uid: str = "", uneven_spacing: str = "warn") -> Grid:
        """The grid of a file or of a DICOM series, from headers alone; arguments as of `open_volume`.

        Raises:
            InputError: it cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            series = find_series(path, uneven_spacing, series_uid)
            return cls(series.shape, series.affine, str(path), series.files)
        found = check_volume(path)
        image = open_nibabel(path) if volume_suffix(path.name) in NIFTI_SUFFIXES else None
        return cls(
            found.shape, found.affine, str(path), (path,), image.header if isinstance(image, nib.Nifti1Image) else None
        )

    def check(self, shape: Sequence[int], affine: np.ndarray) -> None:
        """Check that a result lies on this grid.

        Args:
            shape: of the result.
            affine: of the result, (4, 4).

        Raises:
            InputError: it does not, which would be a fault of the preprocessing.
        """
        if tuple(shape) != self.shape or not is_same_grid(self.shape, self.affine, affine):
            raise InputError(
                f"{self.name}: the result's grid {tuple(shape)} is not the input's {self.shape}; the preprocessing "
                "holds a transform that `Invertd` cannot undo."
            )

    @property
    def sheared(self) -> bool:
        """Whether the axes are not perpendicular (a tilted gantry); ITK refuses to read such a file."""
        return is_sheared(self.shape, self.affine)

    def write(self, array: np.ndarray, path: Path, replace_foreign: bool = False) -> Path:
        """Write an array on this grid; the file appears whole or not at all.

        Args:
            array: (X, Y, Z), uint8 or float32, the type that is written.
            path: ends in .nii.gz.
            replace_foreign: also over a file that was not written here.

        Returns:
            `path`.

        Raises:
            InputError: the file is an input or not ours, or cannot be written.
        """
        image = _image(array, self.affine, self.header)
        return write_file(path, lambda file: _save(image, file), self.files, None if replace_foreign else is_ours)

    def write_orthogonal(self, labels: np.ndarray, path: Path) -> Path:
        """Write a label map on a grid with perpendicular axes that covers this one, for viewers that refuse shear.

        Rows, columns and slices keep their direction and spacing; each slice is moved to its place by whole pixels.

        Args:
            labels: (X, Y, Z) uint8.
            path: ends in .nii.gz.

        Returns:
            `path`.

        Raises:
            InputError: as `write`.
        """
        affine, shape = _orthogonal_cover(self.shape, self.affine)
        back = np.linalg.inv(self.affine) @ affine
        moved = affine_transform(labels, back[:3, :3], back[:3, 3], output_shape=shape, order=0, prefilter=False)
        image = _image(moved, affine, None)
        return write_file(path, lambda file: _save(image, file), self.files, is_ours)

    def millilitres(self, voxels: int) -> float | None:
        """Size of an object to six digits; None where the voxel size is not known."""
        if not self.spacing_known:
            return None
        voxel_mm3 = abs(float(np.linalg.det(self.affine[:3, :3])))  # of a sheared grid less than the sizes' product
        return float(f"{voxels * voxel_mm3 / 1000:.6g}")


def size_text(voxels: int, millilitres: float | None) -> str:
    """The size of an object for a person: "0.38 ml", or "383 voxels" where the voxel size is not known."""
    return f"{voxels} voxels" if millilitres is None else f"{millilitres:.3g} ml"


def write_notes(content: Mapping[str, Any], path: Path, protected: Iterable[Path] = ()) -> Path:
    """Write JSON that `is_ours` knows again.

    Raises:
        InputError: the file is an input or not ours, or cannot be written.
    """
    text = json.dumps({"made_by": MADE_BY, **content}, indent=4, ensure_ascii=False) + "\n"
    return write_bytes(path, text.encode("utf-8"), protected, is_ours)


def is_ours(path: Path) -> bool:
    """Whether a NIfTI, JSON or PNG file was written by this program."""
    try:
        if path.name.lower().endswith(".png"):
            with path.open("rb") as file:
                return b"tEXtSoftware\0" + MADE_BY.encode() in file.read(_PNG_HEAD)
        if path.name.lower().endswith(".json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(content, dict) and content.get("made_by") == MADE_BY
        header = cast(Any, nib.load(path)).header
        return bytes(header["descrip"].item()).rstrip(b"\0") == MADE_BY.encode()
    except Exception:  # whatever cannot be read is not ours
        return False


def _image(array: np.ndarray, affine: np.ndarray, source: nib.Nifti1Header | None) -> nib.Nifti1Image:
    if source is None:
        kind = nib.Nifti1Image if max(array.shape) <= _LONGEST_AXIS else nib.Nifti2Image
        image = kind(array, affine, dtype=array.dtype)
        image.set_sform(affine, 1)
        if is_sheared(array.shape, affine):
            image.set_qform(None, 0)
        else:
            image.set_qform(affine, 1, strip_shears=True, update_affine=False)
        image.header["xyzt_units"] = _MM
    else:
        header = source.__class__()  # NIfTI-2 stays NIfTI-2
        header.set_data_shape(array.shape)
        header.set_data_dtype(array.dtype)
        for field in GRID_FIELDS:
            header[field] = source[field]
        image = (nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image)(array, None, header)
    image.header["descrip"] = MADE_BY
    return image


def _save(image: nib.Nifti1Image, file: BinaryIO) -> None:
    with pack(file) as packed:
        image.to_stream(packed)


def _orthogonal_cover(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of a grid with perpendicular axes, the first two as they are, around another grid."""
    straight = affine.copy()
    first = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    second = affine[:3, 1] - first * (first @ affine[:3, 1])
    normal = np.cross(first, second / np.linalg.norm(second))
    straight[:3, 1] = second
    straight[:3, 2] = normal * (normal @ affine[:3, 2])
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    inside = nib.affines.apply_affine(np.linalg.inv(straight) @ affine, corners)
    low, high = np.floor(inside.min(axis=0) + 1e-6), np.ceil(inside.max(axis=0) - 1e-6)
    straight[:3, 3] = nib.affines.apply_affine(straight, low)
    return without_shear(straight), tuple(int(n) + 1 for n in high - low)
