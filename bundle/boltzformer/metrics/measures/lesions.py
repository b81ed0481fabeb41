"""Lesion by lesion: connected components in 3D, matched one to one.

The rule, which `docs/evaluation.md` states for readers: components under 26-connectivity by default; a pair
whose intersection over union (IoU) exceeds one half is matched, for it can have no rival (Kirillov et al.
2019, "Panoptic Segmentation", theorem in section 4.1); the rest, without pairs below `min_iou`, is assigned one to one
with the largest total IoU. A label lesion without a partner is missed, a predicted one
without a partner is a false positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from boltzformer.metrics.measures.rows import LesionRow, Place
from boltzformer.metrics.measures.surfaces import bounding_box

MATCHED, MISSED, FALSE_POSITIVE = "matched", "missed", "false positive"
SCAN = "scan"  # a searched pair of volume and object, for false positives per scan; never in a file
PANOPTIC_IOU = 0.5
_RANK_OF = {6: 1, 18: 2, 26: 3}


@dataclass(frozen=True)
class LesionRule:
    """How lesions are found and matched.

    Args:
        connectivity: neighbours that belong together: 6 (faces), 18 (and edges) or 26 (and corners).
        min_iou: least IoU of a match, in (0, 0.5]; a match above one half is unique, a lower value is kinder
            to small lesions, where one voxel moves the IoU by much.
        score: of a predicted lesion, from the probabilities of its voxels: their mean or maximum.
    """

    connectivity: int = 26
    min_iou: float = 0.1
    score: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.connectivity not in _RANK_OF:
            raise ValueError(f"connectivity must be 6, 18 or 26, got {self.connectivity}")
        if not 0 < self.min_iou <= 0.5:
            raise ValueError(f"min_iou must lie in (0, 0.5], got {self.min_iou}")
        if self.score not in ("mean", "max"):
            raise ValueError(f"score must be 'mean' or 'max', got {self.score!r}")


def find_components(mask: np.ndarray, connectivity: int = 26) -> tuple[np.ndarray, int]:
    """Number the connected components of a 3D boolean mask from 1; returns (int32 numbers, count)."""
    structure = ndimage.generate_binary_structure(3, _RANK_OF[connectivity])
    numbers, count = ndimage.label(mask, structure=structure, output=np.int32)
    return numbers, int(count)


def match_components(pred: np.ndarray, label: np.ndarray, min_iou: float) -> list[tuple[int, int, float]]:
    """One-to-one matches (label number, predicted number, IoU) of two numbered component maps of one shape."""
    both = (pred > 0) & (label > 0)
    if not both.any():
        return []
    pairs, overlap = np.unique(np.stack([label[both], pred[both]]), axis=1, return_counts=True)
    label_size, pred_size = (np.bincount(numbers[numbers > 0]) for numbers in (label, pred))
    iou = overlap / (label_size[pairs[0]] + pred_size[pairs[1]] - overlap)
    sure = iou > PANOPTIC_IOU
    matches = [(int(t), int(p), float(v)) for t, p, v in zip(*pairs[:, sure], iou[sure], strict=True)]
    rest = ~sure & ~np.isin(pairs[0], pairs[0, sure]) & ~np.isin(pairs[1], pairs[1, sure]) & (iou >= min_iou)
    if rest.any():
        label_ids, rows = np.unique(pairs[0, rest], return_inverse=True)
        pred_ids, columns = np.unique(pairs[1, rest], return_inverse=True)
        table = np.zeros((len(label_ids), len(pred_ids)))
        table[rows, columns] = iou[rest]
        for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True):
            if table[i, j] > 0:
                matches.append((int(label_ids[i]), int(pred_ids[j]), float(table[i, j])))
    return sorted(matches)


def equivalent_diameter(volume_mm3: float) -> float:
    """Diameter in mm of the ball of this volume: (6 V / pi)^(1/3)."""
    return (6 * volume_mm3 / math.pi) ** (1 / 3)


def lesion_rows(
    place: Place,
    pred: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float] | None,
    rule: LesionRule | None = None,
    probability: np.ndarray | None = None,
) -> list[LesionRow]:
    """One row for every lesion of the label and every false positive of the prediction; their only producer.

    Args:
        place: whose masks these are.
        pred: boolean mask, 3D.
        label: likewise, of the same shape.
        spacing: voxel size in mm, one for each axis; None where it is not known, and lesions have no size in mm.
        rule: connectivity, matching threshold and score.
        probability: of the object at each voxel, the masks' shape, in [0, 1]; without it there is no score.

    Returns:
        Rows with `kind` (matched, missed, false positive), `iou` and `dice` (of the matched pair),
        volumes and equivalent diameters of both in mm3 and mm, `score` of the predicted lesion, and `i`,
        `j`, `k`, the centre of mass in voxels of the label lesion, or of the predicted one where it is a
        false positive.
    """
    rule = rule or LesionRule()
    box = bounding_box(pred, label)
    if box is None:
        return []
    label_map, label_count = find_components(label[box], rule.connectivity)
    pred_map, pred_count = find_components(pred[box], rule.connectivity)
    voxel = None if spacing is None else math.prod(float(s) for s in spacing)
    origin = [part.start for part in box]
    label_sizes, label_centres = _sizes_and_centres(label_map, label_count, origin)
    pred_sizes, pred_centres = _sizes_and_centres(pred_map, pred_count, origin)
    scores = None
    if probability is not None and pred_count:
        inside = pred_map > 0
        statistic = ndimage.mean if rule.score == "mean" else ndimage.maximum
        scores = statistic(probability[box][inside], pred_map[inside], np.arange(1, pred_count + 1))
    partner = {t: (p, iou) for t, p, iou in match_components(pred_map, label_map, rule.min_iou)}

    def mm3(sizes: np.ndarray, number: int | None) -> float | None:
        return None if number is None or voxel is None else float(sizes[number - 1] * voxel)

    def row(kind: str, t: int | None, p: int | None, iou: float | None) -> LesionRow:
        label_mm3, predicted_mm3 = mm3(label_sizes, t), mm3(pred_sizes, p)
        centre = label_centres[t - 1] if t is not None else pred_centres[(p or 1) - 1]
        found = {
            **place,
            "kind": kind,
            "iou": iou,
            "dice": None if iou is None else 2 * iou / (1 + iou),
            "label_mm3": label_mm3,
            "label_diameter_mm": None if label_mm3 is None else equivalent_diameter(label_mm3),
            "predicted_mm3": predicted_mm3,
            "predicted_diameter_mm": None if predicted_mm3 is None else equivalent_diameter(predicted_mm3),
            "score": None if p is None or scores is None else float(scores[p - 1]),
            **dict(zip("ijk", (round(float(c), 1) for c in centre), strict=True)),
        }
        return cast(LesionRow, found)

    taken = {p for p, _ in partner.values()}
    rows = [
        row(MATCHED, t, *partner[t]) if t in partner else row(MISSED, t, None, None) for t in range(1, label_count + 1)
    ]
    return rows + [row(FALSE_POSITIVE, None, p, None) for p in range(1, pred_count + 1) if p not in taken]


def _sizes_and_centres(numbers: np.ndarray, count: int, origin: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, (count,), and centres of mass in voxels, (count, 3), of the numbered components.

    Only foreground voxels are visited: a box with stray voxels in its corners is nearly all background.
    """
    places = np.nonzero(numbers)
    found = numbers[places] - 1
    sizes = np.bincount(found, minlength=count)
    sums = [
        np.bincount(found, weights=axis + start, minlength=count) for axis, start in zip(places, origin, strict=True)
    ]
    return sizes, np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
