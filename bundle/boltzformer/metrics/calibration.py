"""How far a predicted probability can be trusted: calibration error, and one temperature that mends it.

Voxels are kept as a histogram over the logit, apart for object and background voxels, so that a cohort of any
size takes a fixed amount of memory and every number, also for another temperature, comes from the histogram.
Its bins are 0.01 wide: a probability is exact to 0.0013, and errors of sums far more so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

LOGIT_LIMIT = 14.0  # beyond a probability of 1 - 1e-6, more certainty is not told apart
BIN_WIDTH = 0.01
FOLDS = 5
RELIABILITY_BINS = 15
CHUNK = 1 << 20
_BINS = round(2 * LOGIT_LIMIT / BIN_WIDTH)
_CENTRES = (np.arange(_BINS) + 0.5) * BIN_WIDTH - LOGIT_LIMIT


class Calibration:
    """Collects (probability, truth) of voxels; fixed size, can be added over cases and processes.

    Patients fall into five folds by a hash of their name, so that a temperature can be judged on patients
    that it was not fitted to.

    Attributes:
        counts: (folds, 2, bins) int64; voxels of the background (0) and of the object (1) by logit.
    """

    def __init__(self, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros((FOLDS, 2, _BINS), np.int64) if counts is None else counts

    def add(self, probability: np.ndarray, truth: np.ndarray, patient: str) -> None:
        """Add voxels.

        Args:
            probability: in [0, 1], any shape.
            truth: boolean, the same shape.
            patient: whose voxels these are.

        Raises:
            ValueError: for a probability outside [0, 1] or NaN, or another shape.
        """
        if probability.shape != truth.shape:
            raise ValueError(f"probability {probability.shape} and truth {truth.shape} differ in shape")
        if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
            raise ValueError("probabilities must lie in [0, 1]")
        fold = self.counts[zlib.crc32(patient.encode()) % FOLDS]
        flat, kinds = probability.reshape(-1), truth.reshape(-1)
        for start in range(0, flat.size, CHUNK):  # a large volume needs no float64 copies of its own size
            part = slice(start, start + CHUNK)
            with np.errstate(divide="ignore"):
                logits = np.clip(logit(flat[part].astype(np.float64)), -LOGIT_LIMIT, LOGIT_LIMIT)
            index = np.minimum(((logits + LOGIT_LIMIT) / BIN_WIDTH).astype(np.int64), _BINS - 1)
            both = np.bincount(index + _BINS * kinds[part].astype(np.int64), minlength=2 * _BINS)
            fold += both.reshape(2, _BINS)

    def merge(self, other: Calibration) -> None:
        """Add another collection's voxels."""
        self.counts += other.counts

    def summary(self) -> dict[str, Any]:
        """Calibration before and after temperature scaling.

        Returns:
            ``voxels``, ``object_share``, ``before`` and ``after`` (:func:`describe`, None where there are no
            voxels), ``temperature`` fitted to all voxels, and ``after_is``: "cross-fitted by patient" where
            each fold is scaled by the temperature of the other folds, or "fitted to the same voxels" where
            only one fold has voxels.
        """
        total = self.counts.sum(axis=0)
        voxels = int(total.sum())
        if voxels == 0:
            return {"voxels": 0, "object_share": None, "before": None, "temperature": None, "after": None}
        used = [fold for fold in range(FOLDS) if self.counts[fold].sum()]
        temperature = fit_temperature(total)
        if len(used) > 1:
            temperatures = [fit_temperature(total - self.counts[fold]) for fold in used]
            parts = [self.counts[fold] for fold in used]
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
    """Temperature T > 0 that minimises the cross-entropy of sigmoid(logit / T) (Guo et al. 2017, section
    4.2).

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
        ``ece``: expected calibration error over 15 bins of equal width in probability, sum over bins of
        n_b / n |mean probability - share of object voxels|; ``brier``: mean squared error; ``nll``: mean
        cross-entropy in nats; ``bins``: for each reliability bin n, mean probability and share of object
        voxels (None where n = 0).
    """
    voxels = np.zeros(RELIABILITY_BINS)
    confidence = np.zeros(RELIABILITY_BINS)
    positives = np.zeros(RELIABILITY_BINS)
    brier = entropy = 0.0
    for counts, temperature in zip(parts, temperatures, strict=True):
        p = expit(_CENTRES / temperature)
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
    scaled = _CENTRES / temperature
    cost = (counts[1] * np.logaddexp(0, -scaled) + counts[0] * np.logaddexp(0, scaled)).sum()
    return float(cost / counts.sum())
