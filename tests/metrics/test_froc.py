"""FROC and AUROC against MONAI, scikit-learn and a curve drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from boltzformer.metrics.summary.froc import auroc, froc, lesion_auroc
from monai.metrics import compute_froc_curve_data
from sklearn.metrics import roc_auc_score


def rows(true: list[float], false: list[float], missed: int) -> list[dict]:
    return (
        [{"kind": "matched", "score": s} for s in true]
        + [{"kind": "false positive", "score": s} for s in false]
        + [{"kind": "missed", "score": None}] * missed
    )


def test_curve_by_hand():
    """Scores 0.9 T, 0.8 F, 0.7 T, 0.6 F over 2 scans with 3 lesions."""
    found = froc(rows([0.9, 0.7], [0.8, 0.6], 1), scans=2)
    assert found["false_positives_per_scan"] == [0, 0, 0.5, 0.5, 1]
    assert found["sensitivity"] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert found["at"] == {
        **{"0.125": pytest.approx(1 / 3), "0.25": pytest.approx(1 / 3)},
        **{key: pytest.approx(2 / 3) for key in ("0.5", "1", "2", "4", "8")},
    }
    assert found["score"] == pytest.approx((2 / 3 + 5 * 2 / 3) / 7)


def test_curve_equals_monai_where_monai_keeps_every_threshold():
    """With undetected targets as zeros, MONAI's own convention, the lowest score it drops is that zero."""
    random = np.random.default_rng(0)
    true, false = random.random(30), random.random(50)
    found = froc(rows(list(true), list(false), 5), scans=7)
    per_scan, sensitivity = compute_froc_curve_data(false, np.concatenate([true, np.zeros(5)]), 35, 7)
    assert found["false_positives_per_scan"][::-1] == pytest.approx(per_scan.tolist())
    assert found["sensitivity"][::-1] == pytest.approx(sensitivity.tolist())


def test_laxest_threshold_is_there_when_all_lesions_are_found():
    found = froc(rows([0.9, 0.5], [], 0), scans=1)
    assert found["sensitivity"][-1] == 1.0


def test_equal_scores_enter_together():
    found = froc(rows([0.5], [0.5, 0.5], 0), scans=1)
    assert list(zip(found["false_positives_per_scan"], found["sensitivity"], strict=True)) == [(0, 0), (2, 1)]
    assert found["at"]["1"] == 0
    assert found["at"]["2"] == 1


def test_without_scores_or_lesions():
    assert froc(rows([0.5], [None], 0), scans=1) == {}
    assert froc(rows([], [0.5], 0), scans=1)["score"] is None
    nothing_predicted = froc(rows([], [], 3), scans=2)
    assert nothing_predicted["sensitivity"] == [0]
    assert nothing_predicted["score"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_auroc_equals_sklearn(seed):
    random = np.random.default_rng(seed)
    scores, truth = random.integers(0, 10, 60) / 10, random.random(60) < 0.4
    assert auroc(scores.tolist(), truth.tolist()) == pytest.approx(roc_auc_score(truth, scores))


def test_lesion_auroc():
    assert lesion_auroc(rows([0.9, 0.7], [0.8, 0.1], 4)) == {"true": 2, "false": 2, "auroc": 0.75}
    assert lesion_auroc(rows([0.9], [], 1))["auroc"] is None
