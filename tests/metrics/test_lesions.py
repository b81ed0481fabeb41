"""Lesion matching against cc3d, brute force over all assignments and hand-made cases with a known answer."""

from __future__ import annotations

import itertools
import math

import cc3d
import numpy as np
import pytest
from boltzformer.metrics.measures.lesions import (
    FALSE_POSITIVE,
    MATCHED,
    MISSED,
    LesionRule,
    equivalent_diameter,
    find_components,
    match_components,
)
from boltzformer.metrics.measures.lesions import lesion_rows as place_lesion_rows
from boltzformer.metrics.summary.lesions import bucket_lesions, count_lesions, summarise_lesions
from scipy.ndimage import center_of_mass, gaussian_filter

PLACE = {"dataset": "d", "case": "c", "patient": "p", "object": "o"}


def lesion_rows(*arguments) -> list[dict]:
    return place_lesion_rows(PLACE, *arguments)


def volume(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


def box(x: int, y: int, z: int, side: int) -> tuple[slice, slice, slice]:
    return slice(x, x + side), slice(y, y + side), slice(z, z + side)


def kinds(rows: list[dict]) -> list[str]:
    return [row["kind"] for row in rows]


def speckle(seed: int) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).random((24, 24, 16)), 0.8)
    return field > np.quantile(field, 0.85)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components_equal_cc3d(connectivity):
    for seed in range(3):
        ours, count = find_components(speckle(seed), connectivity)
        theirs, expected = cc3d.connected_components(speckle(seed), connectivity=connectivity, return_N=True)
        assert count == expected
        # the same partition, whatever the numbers
        assert len(np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)[0]) == count + 1


def test_two_touching_lesions():
    """Corner to corner: one lesion under 26-connectivity, two under 6 and 18; face to face: one under any."""
    corner = volume(box(2, 2, 2, 3), box(5, 5, 5, 3))
    assert [find_components(corner, c)[1] for c in (6, 18, 26)] == [2, 2, 1]
    edge = volume(box(2, 2, 2, 3), box(5, 5, 2, 3))
    assert [find_components(edge, c)[1] for c in (6, 18, 26)] == [2, 1, 1]
    face = volume(box(2, 2, 2, 3), box(5, 2, 2, 3))
    assert [find_components(face, c)[1] for c in (6, 18, 26)] == [1, 1, 1]
    rows = lesion_rows(corner, corner, (1, 1, 1), LesionRule(connectivity=6))
    assert kinds(rows) == [MATCHED, MATCHED]
    assert all(row["iou"] == 1 for row in rows)


def test_prediction_that_bridges_two_lesions_finds_one():
    label = volume(box(2, 2, 2, 4), box(8, 2, 2, 3))
    pred = volume((slice(2, 11), slice(2, 6), slice(2, 6)))
    rows = lesion_rows(pred, label, (1, 1, 1))
    assert kinds(rows) == [MATCHED, MISSED]
    assert rows[0]["iou"] == pytest.approx(64 / 144)


def test_two_predictions_in_one_lesion_leave_a_false_positive():
    label = volume((slice(0, 10), slice(0, 4), slice(0, 4)))
    pred = volume(box(0, 0, 0, 4), (slice(6, 9), slice(0, 4), slice(0, 4)))
    rows = lesion_rows(pred, label, (1, 1, 1))
    assert kinds(rows) == [MATCHED, FALSE_POSITIVE]
    assert rows[0]["iou"] == pytest.approx(0.4)
    assert rows[1]["predicted_mm3"] == 48


def test_one_voxel_lesion_with_anisotropic_spacing():
    label = volume(box(7, 8, 9, 1))
    (row,) = lesion_rows(label, label, (0.5, 0.5, 4.0))
    assert row["kind"] == MATCHED
    assert row["label_mm3"] == 1.0
    assert row["label_diameter_mm"] == pytest.approx((6 / math.pi) ** (1 / 3))
    assert (row["i"], row["j"], row["k"]) == (7, 8, 9)


def test_threshold_is_inclusive_and_dice_follows_iou():
    label, pred = volume((slice(0, 10), slice(0, 1), slice(0, 1))), volume(box(0, 0, 0, 1))
    (row,) = lesion_rows(pred, label, (1, 1, 1), LesionRule(min_iou=0.1))
    assert (row["kind"], row["iou"]) == (MATCHED, 0.1)
    assert row["dice"] == pytest.approx(2 * 1 / 11)
    assert kinds(lesion_rows(pred, label, (1, 1, 1), LesionRule(min_iou=0.11))) == [MISSED, FALSE_POSITIVE]


def test_unique_majority_match_is_kept_against_a_larger_sum():
    """A and L1 have IoU 0.51; matching A-L2 and B-L1 would sum to more, but panoptic quality needs A-L1."""
    label, pred = np.zeros((1, 1, 150), np.int32), np.zeros((1, 1, 150), np.int32)
    pred[..., :100] = 1  # A
    pred[..., 100:132] = 2  # B
    label[..., 32:132] = 1  # L1: 68 in A, 32 in B -> IoU with A 68 / 132 = 0.515
    label[..., :32] = 2  # L2: in A, IoU 0.32
    matches = match_components(pred, label, 0.1)
    assert matches == [(1, 1, pytest.approx(68 / 132))]


def test_below_one_half_the_larger_sum_wins():
    """A and L1 have IoU 0.43, but A-L2 and B-L1 sum to 0.7."""
    label, pred = np.zeros((1, 1, 140), np.int32), np.zeros((1, 1, 140), np.int32)
    pred[..., :100] = 1  # A
    pred[..., 100:135] = 2  # B, in L1: 35 / 100
    label[..., 40:] = 1  # L1: 60 in A, IoU 60 / 140
    label[..., :35] = 2  # L2, in A: 35 / 100
    assert match_components(pred, label, 0.1) == [(1, 2, pytest.approx(0.35)), (2, 1, pytest.approx(0.35))]


def brute_force(pred: np.ndarray, label: np.ndarray, min_iou: float) -> float:
    """Largest total IoU over all one-to-one assignments in which pairs above one half are fixed."""
    labels, preds = range(1, label.max() + 1), range(1, pred.max() + 1)
    iou = {
        (t, p): ((label == t) & (pred == p)).sum() / ((label == t) | (pred == p)).sum() for t in labels for p in preds
    }
    sure = {pair: v for pair, v in iou.items() if v > 0.5}
    free_t = [t for t in labels if all(t != pair[0] for pair in sure)]
    free_p = [p for p in preds if all(p != pair[1] for pair in sure)]
    size = max(len(free_t), len(free_p))
    padded = free_p + [None] * (size - len(free_p))
    best = 0.0
    for order in itertools.permutations(padded, len(free_t)):
        values = [iou[t, p] for t, p in zip(free_t, order, strict=True) if p is not None]
        best = max(best, sum(v for v in values if v >= min_iou))
    return sum(sure.values()) + best


@pytest.mark.parametrize("seed", range(6))
def test_matching_is_the_best_of_all_assignments(seed):
    random = np.random.default_rng(seed)
    label, pred = np.zeros((2, 1, 60), np.int32), np.zeros((2, 1, 60), np.int32)
    for mask in (label, pred):
        cuts = np.sort(random.choice(60, 12, replace=False))
        for number, (start, stop) in enumerate(zip(cuts[::2], cuts[1::2], strict=True), start=1):
            mask[..., start:stop] = number
    matches = match_components(pred, label, 0.1)
    assert len({t for t, _, _ in matches}) == len({p for _, p, _ in matches}) == len(matches)
    assert sum(v for _, _, v in matches) == pytest.approx(brute_force(pred, label, 0.1))


def test_counts_of_a_known_scene():
    """3 lesions: one exact, one with IoU 1/3, one missed; 1 false positive; 2 scans."""
    label = volume(box(0, 0, 0, 3), (slice(6, 10), slice(0, 2), slice(0, 2)), box(15, 15, 15, 1))
    pred = volume(box(0, 0, 0, 3), (slice(8, 12), slice(0, 2), slice(0, 2)), box(0, 15, 15, 2))
    found = count_lesions(lesion_rows(pred, label, (1, 1, 1)), scans=2)
    assert (found["lesions"], found["true_positives"], found["missed"], found["false_positives"]) == (3, 2, 1, 1)
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["false_positives_per_scan"] == 0.5
    # At IoU > 0.5: TP 1, FP 2, FN 2.
    assert found["segmentation_quality"] == 1.0
    assert found["recognition_quality"] == pytest.approx(1 / (1 + 1 + 1))
    assert found["panoptic_quality"] == pytest.approx(1 / 3)


def test_empty_prediction_empty_label_and_nothing():
    label, empty = volume(box(2, 2, 2, 3)), volume()
    missed = count_lesions(lesion_rows(empty, label, (1, 1, 1)), 1)
    assert (missed["sensitivity"], missed["precision"], missed["f1"]) == (0.0, None, 0.0)
    false = count_lesions(lesion_rows(label, empty, (1, 1, 1)), 1)
    assert (false["sensitivity"], false["precision"], false["false_positives_per_scan"]) == (None, 0.0, 1.0)
    nothing = count_lesions(lesion_rows(empty, empty, (1, 1, 1)), 1)
    assert (nothing["f1"], nothing["panoptic_quality"], nothing["false_positives"]) == (None, None, 0)


def test_scores_are_those_of_the_predicted_lesion():
    pred = volume(box(2, 2, 2, 2), box(10, 10, 10, 1))
    probability = np.full(pred.shape, 0.1, np.float32)
    probability[2:4, 2:4, 2] = 0.6
    probability[2:4, 2:4, 3] = 0.8
    probability[10, 10, 10] = 0.55
    label = volume(box(2, 2, 2, 2))
    mean = lesion_rows(pred, label, (1, 1, 1), LesionRule(score="mean"), probability)
    assert [row["score"] for row in mean] == pytest.approx([0.7, 0.55])
    peak = lesion_rows(pred, label, (1, 1, 1), LesionRule(score="max"), probability)
    assert [row["score"] for row in peak] == pytest.approx([0.8, 0.55])


def test_buckets_by_lesion_diameter():
    label = volume(box(0, 0, 0, 2), box(5, 5, 5, 5))  # 2.48 mm and 6.2 mm
    pred = volume(box(5, 5, 5, 5), box(15, 15, 15, 4))  # the large one; a false one of 4.96 mm
    table = bucket_lesions(lesion_rows(pred, label, (1, 1, 1)), (3, 6, 10))
    assert equivalent_diameter(math.pi / 6 * 1000) == pytest.approx(10)
    assert table["< 3 mm"] == {"lesions": 1, "sensitivity": 0.0, "mean_dice": 0.0, "false_positives": 0}
    assert table["3-6 mm"] == {"lesions": 0, "sensitivity": None, "mean_dice": None, "false_positives": 1}
    assert table["6-10 mm"] == {"lesions": 1, "sensitivity": 1.0, "mean_dice": 1.0, "false_positives": 0}


def test_summary_counts_scans_without_lesions():
    rows = [{"dataset": "d", "object": "o", **row} for row in lesion_rows(volume(box(1, 1, 1, 2)), volume(), (1, 1, 1))]
    summary = summarise_lesions(rows, {"d / o": 4, "d / p": 3}, LesionRule())
    assert summary["overall"]["scans"] == 7
    assert summary["objects"]["d / o"]["false_positives_per_scan"] == 0.25
    assert summary["objects"]["d / p"]["false_positives"] == 0


@pytest.mark.parametrize("wrong", [{"connectivity": 8}, {"min_iou": 0}, {"min_iou": 0.6}, {"score": "median"}])
def test_bad_rules(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LesionRule(**wrong)


# Segmentation, recognition and panoptic quality by panoptica 2.1.7 of the scenes below, its threshold set just above
# one half: at exactly 0.5, which small lesions reach often, it matches and the definition (IoU > 0.5) does not.
PANOPTICA = {
    0: (0.7590722995087769, 0.6845637583892618, 0.5196333862409076),
    1: (0.7922811593083604, 0.703125, 0.5570726901386909),
    2: (0.7559001735912422, 0.6622516556291391, 0.5005961414511538),
}


@pytest.mark.parametrize("seed", PANOPTICA)
def test_panoptic_quality_equals_panoptica(seed):
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.random((40, 40, 30)), 1.5)
    label = field > np.quantile(field, 0.93)
    pred = gaussian_filter(field + 0.3 * field.std() * random.standard_normal(field.shape), 0.6)
    found = count_lesions(lesion_rows(pred > np.quantile(pred, 0.93), label, (1, 1, 1)), 1)
    names = ("segmentation_quality", "recognition_quality", "panoptic_quality")
    assert [found[name] for name in names] == pytest.approx(PANOPTICA[seed], abs=1e-9)


def test_centres_and_sizes_equal_scipy():
    label = speckle(1)
    numbers, count = find_components(label)
    rows = lesion_rows(np.zeros_like(label), label, (1, 1, 1))
    centres = center_of_mass(label, numbers, range(1, count + 1))
    for row, centre, number in zip(rows, centres, range(1, count + 1), strict=True):
        assert [row[axis] for axis in "ijk"] == [round(float(c), 1) for c in centre]
        assert row["label_mm3"] == (numbers == number).sum()
