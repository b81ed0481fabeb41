"""How far a predicted probability can be trusted: calibration error, and one temperature that mends it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from boltzformer.metrics.measures.calibration import FOLDS, LOGIT_CENTRES, Calibration

RELIABILITY_BINS = 15


def summarise_calibration(collected: Calibration) -> dict[str, Any]:
    """Calibration before and after temperature scaling.

    Returns:
        `voxels`, `object_share`, `before` and `after` (`describe`, None where there are no
        voxels), `temperature` fitted to all voxels, and `after_is`: "cross-fitted by patient" where
        each fold is scaled by the temperature of the other folds, or "fitted to the same voxels" where
        only one fold has voxels.
    """
    total = collected.counts.sum(axis=0)
    voxels = int(total.sum())
    if voxels == 0:
        return {"voxels": 0, "object_share": None, "before": None, "temperature": None, "after": None}
    used = [fold for fold in range(FOLDS) if collected.counts[fold].sum()]
    temperature = fit_temperature(total)
    if len(used) > 1:
        temperatures = [fit_temperature(total - collected.counts[fold]) for fold in used]
        parts = [collected.counts[fold] for fold in used]
    else:
        temperatures, parts = [temperature], [total]
    return {
        "voxels": voxels,
        "object_share": float(total[1].sum() / voxels),
        "before": describe([total], [1.0]),
        "temperature": temperature,
        "after": describe(parts, temperatures),
        "after_is": "cross-fitted by patient" if len(used) > 1 else "fitted to the same voxels",
    }


def fit_temperature(counts: np.ndarray) -> float:
    """Temperature T > 0 that minimises the cross-entropy of sigmoid(logit / T) (Guo et al. 2017, section 4.2).

    Args:
        counts: (2, bins) voxels of background and object by logit.

    Returns:
        T in [0.05, 20]; above 1 the probabilities were too sure of themselves. 1 where one kind is absent.
    """
    if not counts[0].any() or not counts[1].any():
        return 1.0

    def cost(log_temperature: float) -> float:
        return _cross_entropy(counts, math.exp(log_temperature))

    found = minimize_scalar(cost, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))


def describe(parts: Sequence[np.ndarray], temperatures: Sequence[float]) -> dict[str, Any]:
    """Calibration of histograms, each under its temperature, taken together.

    Returns:
        `ece`: expected calibration error over 15 bins of equal width in probability, sum over bins of
        n_b / n |mean probability - share of object voxels|; `brier`: mean squared error; `nll`: mean
        cross-entropy in nats; `bins`: for each reliability bin n, mean probability and share of object
        voxels (None where n = 0).
    """
    voxels = np.zeros(RELIABILITY_BINS)
    confidence = np.zeros(RELIABILITY_BINS)
    positives = np.zeros(RELIABILITY_BINS)
    brier = entropy = 0.0
    for counts, temperature in zip(parts, temperatures, strict=True):
        p = expit(LOGIT_CENTRES / temperature)
        index = np.minimum((p * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
        both = counts.sum(axis=0)
        voxels += np.bincount(index, weights=both, minlength=RELIABILITY_BINS)
        confidence += np.bincount(index, weights=both * p, minlength=RELIABILITY_BINS)
        positives += np.bincount(index, weights=counts[1], minlength=RELIABILITY_BINS)
        brier += float((counts[0] * p**2 + counts[1] * (1 - p) ** 2).sum())
        entropy += _cross_entropy(counts, temperature) * both.sum()
    total = voxels.sum()
    bins = [
        {
            "n": int(n),
            "mean_probability": float(c / n) if n else None,
            "object_share": float(k / n) if n else None,
        }
        for n, c, k in zip(voxels, confidence, positives, strict=True)
    ]
    return {
        "ece": float(np.abs(confidence - positives).sum() / total),
        "brier": float(brier / total),
        "nll": float(entropy / total),
        "bins": bins,
    }


def _cross_entropy(counts: np.ndarray, temperature: float) -> float:
    """Mean of -log p(truth): log(1 + exp(-x)) for object voxels, log(1 + exp(x)) for the background."""
    scaled = LOGIT_CENTRES / temperature
    cost = (counts[1] * np.logaddexp(0, -scaled) + counts[0] * np.logaddexp(0, scaled)).sum()
    return float(cost / counts.sum())
