"""The existence score of a slice: ranking and calibration against scikit-learn and by hand, and what gating does."""

from __future__ import annotations

import numpy as np
import pytest
from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.slices import SliceCounts, slice_row
from boltzformer.metrics.summary.existence import calibration_error, describe_existence
from boltzformer.metrics.summary.slices import summarise_slices
from sklearn.metrics import brier_score_loss, roc_auc_score


def row(index: int, label: int, predicted: int, overlap: int, existence: float | None, case: str = "c") -> dict:
    place = {"dataset": "d", "case": case, "patient": case, "object": "o"}
    counts = SliceCounts(label, predicted, overlap, 1000, 1.0, existence)
    return slice_row(place, index, "o", counts, Catalogue().slice_rule)


def test_ranking_and_calibration_equal_sklearn_and_a_plain_loop():
    random = np.random.default_rng(0)
    scores, present = np.round(random.random(300), 2), random.random(300) < 0.4
    rows = [row(i, 5 if there else 0, 0, 0, s) for i, (s, there) in enumerate(zip(scores, present, strict=True))]
    found = describe_existence(rows)
    assert (found["n"], found["positive"]) == (300, int(present.sum()))
    assert found["auroc"] == pytest.approx(roc_auc_score(present, scores))
    assert found["brier"] == pytest.approx(brier_score_loss(present, scores))
    index = np.minimum((scores * 15).astype(int), 14)
    parts = [
        (index == b).mean() * abs(scores[index == b].mean() - present[index == b].mean())
        for b in range(15)
        if (index == b).any()
    ]
    assert found["ece"] == pytest.approx(sum(parts))


def test_calibration_error_by_hand():
    """Two bins: 0.1 and 0.1 with one true, 1.0 with one true: (2 |0.1 - 0.5| + 0) / 3."""
    assert calibration_error(np.array([0.1, 0.1, 1.0]), np.array([True, False, True])) == pytest.approx(0.8 / 3)


def test_gating_at_a_threshold():
    rows = [
        row(0, 10, 10, 10, 0.9),  # Dice 1, kept
        row(1, 10, 10, 5, 0.2),  # Dice 0.5, emptied
        row(2, 0, 8, 0, 0.5),  # false positive, kept: a score of the threshold itself is kept
        row(3, 0, 8, 0, 0.1),  # false positive, emptied
        row(4, 0, 0, 0, 0.9),  # empty anyway
        row(0, 0, 4, 0, 0.1, case="without"),  # a volume that does not hold the object has no Dice
    ]
    overall = summarise_slices(rows)["overall"]
    assert overall["mean_dice"] == 0.75
    assert overall["gated"] == {"mean_dice": 0.5, "missed_share": 0.5}
    assert overall["negatives"]["specificity"] == 1 / 4
    assert overall["negatives"]["specificity_gated"] == 3 / 4
    volumes = overall["volume_dice"]
    assert volumes["n"] == 1
    assert volumes["positive_slices"] == pytest.approx(2 * 15 / 40)
    assert volumes["all_slices"] == pytest.approx(2 * 15 / (20 + 36))
    assert volumes["gated"] == pytest.approx(2 * 10 / (20 + 18))


def test_without_scores_nothing_is_claimed():
    overall = summarise_slices([row(0, 10, 10, 10, None), row(1, 0, 8, 0, None)])["overall"]
    assert overall["existence"] is None
    assert overall["gated"] == {"mean_dice": None, "missed_share": None}
    assert overall["negatives"]["specificity_gated"] is None
    assert overall["volume_dice"]["gated"] is None
    assert overall["volume_dice"]["all_slices"] == pytest.approx(2 * 10 / 28)


def test_one_kind_alone_has_no_ranking():
    assert describe_existence([row(0, 3, 0, 0, 0.7)])["auroc"] is None
    with pytest.raises(ValueError, match="existence_threshold"):
        Catalogue(existence_threshold=1.5)
