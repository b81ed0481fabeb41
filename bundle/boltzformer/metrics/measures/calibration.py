"""Probabilities of voxels against the truth, kept in a fixed amount of memory.

Voxels are kept as a histogram over the logit, apart for object and background voxels, so that a cohort of any
size takes a fixed amount of memory and every number, also for another temperature, comes from the histogram.
Its bins are 0.01 wide: a probability is exact to 0.0013, and errors of sums far more so.
"""

from __future__ import annotations

import zlib

import numpy as np
from scipy.special import logit

LOGIT_LIMIT = 14.0  # beyond a probability of 1 - 1e-6, more certainty is not told apart
BIN_WIDTH = 0.01
FOLDS = 5
CHUNK = 1 << 20
_BINS = round(2 * LOGIT_LIMIT / BIN_WIDTH)
LOGIT_CENTRES = (np.arange(_BINS) + 0.5) * BIN_WIDTH - LOGIT_LIMIT


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
