"""The slice cache: every volume is decompressed, oriented and indexed once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from boltzformer.data.cached_volume import CachedVolume, open_cached_volume, save_cached_volume
from boltzformer.data.folders import folder_lock, new_folder
from boltzformer.data.windows import intensity_quantiles
from boltzformer.errors import InputError
from boltzformer.volumes.checks import check_label_values, check_pair, check_voxels, read_volume
from boltzformer.volumes.names import NIFTI_SUFFIXES, volume_suffix
from boltzformer.volumes.nifti_files import open_nibabel, tell_of_sides

CACHE_VERSION = 4  # raise it with whatever changes what is read of a file, or which files are refused
_MAX_LISTED = 20
_LONGEST_NAME = 60  # file systems end at 255 bytes, and drafts have longer names
_BYTES_PER_VOXEL = 3  # int16 image and uint8 label
_INT16 = np.iinfo(np.int16)


def build_cache(
    cases: Sequence[Mapping[str, Any]],
    cache_dir: str | Path,
    axis: int = 2,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[CachedVolume]:
    """Bring every case into the slice cache, or find it there.

    A case's folder is named after its files' paths, times and sizes, the axis and the cache's version: a changed file
    is read anew, also one whose time of modification was put back. Several processes may build one cache at once; they
    share the work. An image that leaves open which side is left brings a warning as it comes into the cache.

    Args:
        cases: cases with `image`, `label` and `objects` (see `boltzformer.data.cases.load_cases`).
        cache_dir: folder of the cache.
        axis: of the RAS volume along which it is cut: 0 sagittal, 1 coronal, 2 axial.
        num_workers: threads that read volumes (decompression runs in parallel); None takes one a core, at
            most 8.
        progress: show a progress bar while building.

    Returns:
        one volume for each case, in order.

    Raises:
        InputError: bad files (missing, truncated, not 3D, geometry of image and label different, NaN, label
            values without a name), all of them in one message before training starts; or no room on the disk.
    """
    if axis not in (0, 1, 2):
        raise InputError(f"axis: expected 0 (sagittal), 1 (coronal) or 2 (axial), found {axis!r}.")
    if not cases:
        raise InputError("The list of cases is empty; nothing to read.")
    problems: list[str] = []
    folders = []
    for case in cases:
        with _collected(problems):
            folders.append(_cache_folder(case, Path(cache_dir), axis))
    _raise_all(problems, len(cases))
    volumes = [open_cached_volume(folder) for folder in folders]
    missing = [i for i, volume in enumerate(volumes) if volume is None]
    if missing:
        _check_before_work([cases[i] for i in missing], len(cases), Path(cache_dir))
        workers = num_workers or min(os.cpu_count() or 1, 8)
        for i, result in _build_all(cases, folders, missing, axis, workers, progress):
            if isinstance(result, InputError):
                problems.append(str(result))
            else:
                volumes[i] = result
        _raise_all(problems, len(cases))
    ready = [volume for volume in volumes if volume is not None]
    for case, volume in zip(cases, ready, strict=True):
        with _collected(problems):
            check_label_values(volume.values, case["objects"], case["label"])
    _raise_all(problems, len(cases))
    return ready


def load_slices(case: Mapping[str, Any], axis: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a case and cut it into slices.

    Args:
        case: with `image` and `label`.
        axis: see `build_cache`.

    Returns:
        image (slices, H, W), int16 where that is exact and float32 otherwise; label (slices, H, W), uint8
        where its values fit and uint16 otherwise; the (4, 4) affine of the RAS volume.

    Raises:
        InputError: see `build_cache`.
    """
    check_pair(case["image"], case["label"])
    image, header = read_volume(case["image"])
    label, _ = read_volume(case["label"])
    # one orientation for both: their affines may differ by rounding
    orientation = nib.io_orientation(header.affine)
    affine = header.affine @ nib.orientations.inv_ornt_aff(orientation, header.shape)
    stacks = [
        np.ascontiguousarray(np.moveaxis(nib.apply_orientation(array, orientation), axis, 0))
        for array in (_compact_image(image, case["image"]), _compact_label(label, case["label"]))
    ]
    return stacks[0], stacks[1], affine


def _cache_folder(case: Mapping[str, Any], cache_dir: Path, axis: int) -> Path:
    parts: list[object] = [CACHE_VERSION, axis]
    for key in ("image", "label"):
        if not case.get(key):
            raise InputError(f"{case.get('image', case)}: the case has no {key}; training and evaluation need both.")
        path = Path(case[key])
        try:
            stat = path.stat()
        except OSError:
            raise InputError(f"{path}: no such file; check the path in the datalist.") from None
        parts += [str(path.resolve()), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
    name = Path(case["image"]).name.split(".")[0].encode()[:_LONGEST_NAME].decode(errors="ignore")
    return cache_dir / f"{name}-{digest}"


def _check_before_work(cases: Sequence[Mapping[str, Any]], total: int, cache_dir: Path) -> None:
    """Headers of all cases and the room on the disk, before anything is decompressed."""
    problems: list[str] = []
    needed = 0
    for case in cases:
        with _collected(problems):
            header, _ = check_pair(case["image"], case["label"])
            needed += int(np.prod(header.shape)) * _BYTES_PER_VOXEL
    _raise_all(problems, total)
    for image in dict.fromkeys(Path(case["image"]) for case in cases):
        if volume_suffix(image.name) in NIFTI_SUFFIXES:
            tell_of_sides(open_nibabel(image), str(image))
    parent = next(folder for folder in (cache_dir, *cache_dir.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(
            f"{cache_dir}: the slice cache needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space or set cache_dir to another disk."
        )


def _build_all(
    cases: Sequence[Mapping[str, Any]],
    folders: list[Path],
    missing: list[int],
    axis: int,
    workers: int,
    progress: bool,
) -> Iterator[tuple[int, CachedVolume | InputError]]:
    """Build the missing volumes; those that another process builds meanwhile come last, and are then waited for."""
    columns = (
        TextColumn("Building the slice cache"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True)
    with bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("", total=len(missing))
        waiting = missing
        for timeout in (0, -1):
            futures = {pool.submit(_build_one, cases[i], folders[i], axis, timeout): i for i in waiting}
            waiting = []
            try:
                for future in as_completed(futures):
                    i, result = futures[future], future.result()
                    if result is None:
                        waiting.append(i)
                        continue
                    bar.advance(task)
                    yield i, result
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _build_one(case: Mapping[str, Any], folder: Path, axis: int, timeout: float) -> CachedVolume | InputError | None:
    """Build one volume under its folder's lock; None where another process holds the lock and `timeout` is 0."""
    try:
        with folder_lock(folder).acquire(timeout=timeout):
            volume = open_cached_volume(folder)
            if volume is None:
                with new_folder(folder) as new:
                    _write(case, new, axis)
                volume = open_cached_volume(folder)
            return volume
    except Timeout:
        return None
    except InputError as error:
        return error


def _write(case: Mapping[str, Any], folder: Path, axis: int) -> None:
    image, label, affine = load_slices(case, axis)
    sizes = nib.affines.voxel_sizes(affine)
    spacing = [float(sizes[axis])] + [float(s) for i, s in enumerate(sizes) if i != axis]
    files = {key: Path(case[key]).name for key in ("image", "label")}  # a path tells more about the place than it needs
    source = {**files, "axis": axis, "version": CACHE_VERSION}
    spacing_mm = (spacing[0], spacing[1], spacing[2])
    save_cached_volume(folder, image, label, spacing_mm, affine, intensity_quantiles(image), source)


def _compact_image(image: np.ndarray, path: str) -> np.ndarray:
    """Store as int16 where that changes nothing, as float32 otherwise."""
    if image.dtype == np.int16:
        return image
    if _INT16.min <= image.min() and image.max() <= _INT16.max:
        whole = image.astype(np.int16)
        if image.dtype.kind in "iu" or np.array_equal(whole, image):
            return whole
    with np.errstate(over="ignore"):
        stored = image.astype(np.float32)
    if image.dtype.itemsize > stored.dtype.itemsize:  # float64 reaches farther: what overflows here is no intensity
        check_voxels(stored, path)
    return stored


def _compact_label(label: np.ndarray, path: str) -> np.ndarray:
    if label.dtype == np.uint8:
        return label
    low, high = label.min(), label.max()
    whole = label.astype(np.uint8 if high < 256 else np.uint16) if low >= 0 and high < 65536 else None
    if whole is None or (label.dtype.kind == "f" and not np.array_equal(whole, label)):
        odd = label[whole != label][0] if whole is not None else low if low < 0 else high
        raise InputError(
            f"{path}: a label map must hold whole numbers in 0 ... 65535, found {odd!s}; save it as integers (a "
            "resampled label needs nearest neighbour, a map of probabilities a threshold)."
        )
    return whole


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def _raise_all(problems: list[str], total: int) -> None:
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        listed = "\n  ".join(problems[:_MAX_LISTED])
        more = f"\n  and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise InputError(f"{len(problems)} of {total} cases cannot be used:\n  {listed}{more}")
