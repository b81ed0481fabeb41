"""A volume as a stack of slices on disk: one slice is one short read, with nothing to decompress."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from boltzformer.errors import InputError

INDEX_NAME = "index.json"


@dataclass(frozen=True)
class CachedVolume:
    """Slices of one case in the slice cache, in RAS orientation.

    A slice's axes are the two remaining of (right, anterior, superior), in this order: an axial slice is
    (right, anterior), as `monai.inferers.SliceInferer(spatial_dim=2)` cuts it from a RAS volume.

    Attributes:
        folder: holds `image.npy` and `label.npy`, both (slices, H, W) and uncompressed, `areas.npy`,
            `checksums.npy`, `index.json`.
        shape: (slices, H, W).
        spacing: mm along the same axes.
        affine: (4, 4) as nested tuples, RAS voxel index (not slice index) to world.
        values: label values that occur in the volume, ascending, without 0.
        areas: (len(values), slices) int32, pixels of each value in each slice.
        checksums: (2, slices) uint32, CRC-32 of each slice of the image and of the label map, tested as it is read.
        quantiles: of the foreground, see `boltzformer.data.windows.intensity_quantiles`.
        image_dtype: "int16" where the intensities are integers of that range, else "float32".
        label_dtype: "uint8" or "uint16".
        offsets: bytes before the first voxel of `image.npy` and of `label.npy`.
    """

    folder: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    values: tuple[int, ...]
    areas: np.ndarray
    checksums: np.ndarray
    quantiles: np.ndarray
    image_dtype: str
    label_dtype: str
    offsets: tuple[int, int]

    def image(self, first: int, last: int) -> np.ndarray:
        """Read the slices `first` to `last`, exclusive.

        Returns:
            (last − first, H, W), int16 or float32.

        Raises:
            InputError: the cache file was removed or cut.
        """
        return self._read("image.npy", self.image_dtype, self.offsets[0], first, last)

    def label(self, index: int) -> np.ndarray:
        """Read one slice of the label map: (H, W), uint8 or uint16.

        Raises:
            InputError: the cache file was removed or cut.
        """
        return self._read("label.npy", self.label_dtype, self.offsets[1], index, index + 1)[0]

    def _read(self, name: str, dtype: str, offset: int, first: int, last: int) -> np.ndarray:
        # Plain reads rather than a memory map: no open file or mapping for each volume and worker, and the
        # page cache serves them as fast.
        pixels = self.shape[1] * self.shape[2]
        start = offset + first * pixels * np.dtype(dtype).itemsize
        try:
            array = np.fromfile(self.folder / name, dtype, (last - first) * pixels, offset=start)
        except OSError as error:
            raise InputError(
                f"{self.folder / name}: cannot be read ({error}); delete the folder to rebuild it."
            ) from error
        if array.size != (last - first) * pixels:
            raise InputError(f"{self.folder / name}: is cut short; delete the folder and start again to rebuild it.")
        array = array.reshape(last - first, self.shape[1], self.shape[2])
        known = self.checksums[0 if name == "image.npy" else 1, first:last]
        if not np.array_equal(_checksums(array), known):
            raise InputError(f"{self.folder / name}: was changed; delete the folder and start again to rebuild it.")
        return array


def save_cached_volume(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray,
    spacing: tuple[float, float, float],
    affine: np.ndarray,
    quantiles: np.ndarray,
    source: dict[str, object],
) -> None:
    """Write a volume's slices and their index.

    Args:
        folder: an existing, empty folder.
        image: (slices, H, W) int16 or float32, C-contiguous.
        label: (slices, H, W) uint8 or uint16, C-contiguous.
        spacing: mm along the same axes.
        affine: (4, 4) of the RAS volume.
        quantiles: of the image's foreground.
        source: what the cache was made of, kept for a reader of the file.

    Raises:
        OSError: the disk is full, or the folder may not be written.
    """
    counts = np.stack([np.bincount(one.reshape(-1), minlength=int(label.max()) + 1) for one in label])
    values = [int(value) for value in np.flatnonzero(counts.any(axis=0)) if value]
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    checksums, areas = np.stack([_checksums(image), _checksums(label)]), counts[:, values].T.astype(np.int32)
    np.save(folder / "checksums.npy", checksums)
    np.save(folder / "areas.npy", areas)
    index = {
        "source": source,
        "axes": "slices, H, W of the volume in RAS orientation",
        "shape": list(image.shape),
        "spacing_mm": list(spacing),
        "affine": affine.tolist(),
        "image_dtype": image.dtype.name,
        "label_dtype": label.dtype.name,
        "values": values,
        "quantiles": quantiles.tolist(),
    }
    index["checksum"] = _summary(index, areas, checksums)
    # the index comes last: a folder with one is whole
    (folder / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")


def open_cached_volume(folder: Path) -> CachedVolume | None:
    """Open a volume of the cache.

    Args:
        folder: its folder.

    Returns:
        the volume, or None where the folder is absent or damaged and has to be written again.
    """
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        shape = tuple(index["shape"])
        values = tuple(index["values"])
        offsets = tuple(
            _payload_offset(folder / f"{kind}.npy", np.dtype(index[f"{kind}_dtype"]), shape)
            for kind in ("image", "label")
        )
        areas = np.load(folder / "areas.npy")
        checksums = np.load(folder / "checksums.npy")
        if areas.shape != (len(values), shape[0]) or checksums.shape != (2, shape[0]):
            return None
        if index.pop("checksum") != _summary(index, areas, checksums):
            return None
        return CachedVolume(
            folder,
            (shape[0], shape[1], shape[2]),
            tuple(index["spacing_mm"]),
            tuple(tuple(row) for row in index["affine"]),
            values,
            areas,
            checksums,
            np.asarray(index["quantiles"]),
            index["image_dtype"],
            index["label_dtype"],
            (offsets[0], offsets[1]),
        )
    except Exception:  # NumPy raises many kinds on damaged bytes
        return None


def _checksums(stack: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(one).data) for one in stack], np.uint32)


def _summary(index: dict[str, object], areas: np.ndarray, checksums: np.ndarray) -> int:
    """CRC-32 of all but the slices, which have their own: numbers as JSON, so that they come back the same."""
    text = json.dumps([index, areas.dtype.str, checksums.dtype.str]).encode()
    return zlib.crc32(text + areas.tobytes() + checksums.tobytes())


def _payload_offset(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of the .npy header; the file must have the length that shape and type ask for."""
    with open(path, "rb") as file:
        npy.read_magic(file)
        found_shape, fortran, found_dtype = npy.read_array_header_1_0(file)
        offset = file.tell()
    expected = offset + int(np.prod(shape)) * dtype.itemsize
    if found_shape != shape or fortran or found_dtype != dtype or path.stat().st_size != expected:
        raise ValueError(f"{path} does not match its index")
    return offset
