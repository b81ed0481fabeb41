"""Four readers' outlines to one mask: what at least two of them drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.draw import polygon, polygon_perimeter

from boltzformer.data.prepare.lidc_xml import Mark, Outline, Reading
from boltzformer.errors import InputError


@dataclass(frozen=True)
class Nodule:
    """One nodule, found again across readers.

    Attributes:
        readers: how many readers drew it.
        marks: how many drawings it has (a reader may have drawn it in parts).
        voxels: size of the consensus; 0 where too few readers agree on any voxel.
    """

    readers: int
    marks: int
    voxels: int


def consensus(
    reading: Reading, slices: Mapping[str, int], shape: tuple[int, int, int], min_readers: int = 2
) -> tuple[np.ndarray, list[Nodule]]:
    """The voxels that at least `min_readers` readers drew, and the nodules that they belong to.

    Drawings of different readers are one nodule where they share a voxel, lines included; this is transitive.

    Args:
        reading: the outlines of all readers.
        slices: SOPInstanceUID to index along the third axis.
        shape: (columns, rows, slices) of the series.
        min_readers: 2 of the 4 is the usual rule.

    Returns:
        (columns, rows, slices) uint8 mask, and the nodules in the order of the first drawing of each.

    Raises:
        InputError: an outline on a slice that is not in the series, or outside the image.
    """
    insides, reaches = [], []
    for mark in reading.marks:
        inside, reach = _voxels(mark, slices, shape)
        insides.append(inside)
        reaches.append(reach)
    votes = np.zeros(int(np.prod(shape)), dtype=np.uint8)
    for reader in range(reading.readers):
        own = [inside for mark, inside in zip(reading.marks, insides, strict=True) if mark.reader == reader]
        if own:
            votes[np.unique(np.concatenate(own))] += 1
    mask = votes >= min_readers
    nodules = []
    for members in _clusters(reading.marks, reaches):
        drawn = np.unique(np.concatenate([insides[i] for i in members]))
        readers = len({reading.marks[i].reader for i in members})
        nodules.append(Nodule(readers, len(members), int(mask[drawn].sum())))
    return mask.astype(np.uint8).reshape(shape), nodules


def outline_pixels(points: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels inside a closed line, and those of the line itself.

    Args:
        points: (n, 2) column and row of each point.
        shape: (columns, rows) of the slice.

    Returns:
        two (columns, rows) bool masks; they share no pixel.
    """
    line = np.zeros(shape, dtype=bool)
    line[polygon_perimeter(points[:, 0], points[:, 1], shape=shape, clip=True)] = True
    inside = np.zeros(shape, dtype=bool)
    inside[polygon(points[:, 0], points[:, 1], shape=shape)] = True
    return inside & ~line, line


def _voxels(mark: Mark, slices: Mapping[str, int], shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the voxels inside a drawing, and of these with its lines."""
    inside: dict[int, np.ndarray] = {}
    lines: dict[int, np.ndarray] = {}
    # holes last: they are cut out of what is there
    for outline in sorted(mark.outlines, key=lambda outline: not outline.inclusion):
        k = _slice(outline, slices, shape)
        filled, line = outline_pixels(outline.points, shape[:2])
        if outline.inclusion:
            inside[k] = inside.get(k, False) | filled
            lines[k] = lines.get(k, False) | line
        elif k in inside:
            inside[k] = inside[k] & ~filled
    return _flat(inside, shape), _flat({k: inside[k] | lines[k] for k in inside}, shape)


def _slice(outline: Outline, slices: Mapping[str, int], shape: tuple[int, int, int]) -> int:
    if outline.sop_uid not in slices:
        raise InputError(f"an outline lies on slice {outline.sop_uid}, which the series lacks; download it in full.")
    if len(outline.points) and (outline.points >= np.array(shape[:2])).any():
        raise InputError(f"an outline reaches {outline.points.max(axis=0).tolist()}, outside {shape[0]} x {shape[1]}.")
    return slices[outline.sop_uid]


def _flat(masks: Mapping[int, np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    found = [np.ravel_multi_index((*np.nonzero(mask), np.full(int(mask.sum()), k)), shape) for k, mask in masks.items()]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _clusters(marks: tuple[Mark, ...], reaches: list[np.ndarray]) -> list[list[int]]:
    count = len(marks)
    pairs = [
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if marks[i].reader != marks[j].reader and np.intersect1d(reaches[i], reaches[j]).size
    ]
    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_matrix((np.ones(len(pairs)), (first, second)), shape=(count, count))
    _, names = connected_components(graph, directed=False) if count else (0, np.zeros(0, dtype=int))
    return [list(np.flatnonzero(names == name)) for name in dict.fromkeys(names.tolist())]
