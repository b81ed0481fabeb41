"""Calibration against exact sums over voxels, scikit-learn and a temperature put in by hand."""

from __future__ import annotations

import numpy as np
import pytest
from boltzformer.metrics.measures.calibration import FOLDS, Calibration
from boltzformer.metrics.summary.calibration import describe, fit_temperature, summarise_calibration
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss


def voxels(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right after division of their logit by ``temperature``."""
    random = np.random.default_rng(seed)
    true_logits = random.normal(-1.0, 1.5, count)
    truth = random.random(count) < expit(true_logits)
    return expit(true_logits * temperature), truth


def plain_ece(p: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    index = np.minimum((p * bins).astype(int), bins - 1)
    return sum(
        (index == b).mean() * abs(p[index == b].mean() - truth[index == b].mean())
        for b in range(bins)
        if (index == b).any()
    )


def test_numbers_equal_sums_over_voxels_and_sklearn():
    p, truth = voxels(200_000, 2.0)
    collected = Calibration()
    for i in range(10):
        collected.add(p[i::10].reshape(4, -1), truth[i::10].reshape(4, -1), f"patient {i}")
    found = summarise_calibration(collected)
    assert found["voxels"] == 200_000
    assert found["object_share"] == truth.mean()
    assert found["before"]["ece"] == pytest.approx(plain_ece(p, truth), abs=5e-4)
    assert found["before"]["brier"] == pytest.approx(brier_score_loss(truth, p), abs=1e-4)
    assert found["before"]["nll"] == pytest.approx(log_loss(truth, p), abs=1e-4)
    share, mean = calibration_curve(truth, p, n_bins=15)
    filled = [b for b in found["before"]["bins"] if b["n"]]
    np.testing.assert_allclose([b["object_share"] for b in filled], share, atol=0.01)
    np.testing.assert_allclose([b["mean_probability"] for b in filled], mean, atol=0.005)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_put_in_is_found(temperature):
    p, truth = voxels(400_000, temperature)
    collected = Calibration()
    for i in range(20):
        collected.add(p[i::20], truth[i::20], f"patient {i}")
    found = summarise_calibration(collected)
    assert found["temperature"] == pytest.approx(temperature, rel=0.02)
    assert found["after_is"] == "cross-fitted by patient"
    assert found["after"]["ece"] < 0.005
    exact = plain_ece(expit(logit(p) / found["temperature"]), truth)
    assert found["after"]["ece"] == pytest.approx(exact, abs=2e-3)
    if temperature != 1:
        assert found["before"]["ece"] > 0.04


def test_after_is_honest_about_patients_that_differ():
    """One patient's probabilities are too sure, the other's too timid: neither temperature helps the other."""
    collected = Calibration()
    sure, timid = voxels(50_000, 3.0), voxels(50_000, 0.4, seed=1)
    names = iter(f"p{i}" for i in range(100))
    collected.add(*sure, patient=next(names))
    fold = int(collected.counts.sum(axis=(1, 2)).argmax())
    while collected.counts.sum(axis=(1, 2)).astype(bool).sum() < 2:
        trial = Calibration()
        trial.add(*timid, patient=(name := next(names)))
        if trial.counts.sum(axis=(1, 2)).argmax() != fold:
            collected.add(*timid, patient=name)
    found = summarise_calibration(collected)
    assert found["after"]["nll"] > found["before"]["nll"]


def test_certain_voxels_and_no_voxels():
    collected = Calibration()
    assert summarise_calibration(collected)["before"] is None
    collected.add(np.array([0.0, 1.0]), np.array([False, True]), "a")
    found = summarise_calibration(collected)
    assert found["before"]["ece"] < 1e-4
    assert found["after_is"] == "fitted to the same voxels"
    assert fit_temperature(np.zeros((2, collected.counts.shape[2]))) == 1.0


def test_merge_is_the_same_as_adding_all():
    p, truth = voxels(1000, 1.5)
    whole, first, second = Calibration(), Calibration(), Calibration()
    whole.add(p, truth, "a")
    first.add(p[:300], truth[:300], "a")
    second.add(p[300:], truth[300:], "a")
    first.merge(second)
    assert np.array_equal(whole.counts, first.counts)
    assert whole.counts.shape[0] == FOLDS
    assert describe([whole.counts.sum(0)], [1.0]) == summarise_calibration(first)["before"]


@pytest.mark.parametrize("wrong", [[-0.1, 0.5], [0.5, 1.1], [np.nan, 0.5]])
def test_bad_probabilities(wrong):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Calibration().add(np.array(wrong), np.array([True, False]), "a")
    with pytest.raises(ValueError, match="shape"):
        Calibration().add(np.array([0.5]), np.array([True, False]), "a")
