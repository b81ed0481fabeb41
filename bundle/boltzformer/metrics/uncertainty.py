"""Several seeded decodings of one image -> mean probability, entropy, and how much they agree.

The network samples its attention sets; K seeds give K masks at the cost of K decodings of one image encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import entr


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy in bits of a Bernoulli variable at each voxel: 0 where certain, 1 at probability one half.

    Args:
        probability: in [0, 1], any shape.

    Returns:
        float32, the same shape, in [0, 1].

    Raises:
        ValueError: for a probability outside [0, 1] or NaN.
    """
    p = np.asarray(probability, dtype=np.float32)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError("probabilities must lie in [0, 1]")
    return (entr(p) + entr(1 - p)) / np.float32(np.log(2))


class DecodingEnsemble:
    """Running mean and variance of K probability maps; two maps are held whatever K is (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | None = None
        self._squares: np.ndarray | None = None

    def add(self, probability: np.ndarray) -> None:
        """Add one decoding's probabilities, in [0, 1], any shape but the same for all.

        Raises:
            ValueError: for another shape than the decodings before.
        """
        values = np.asarray(probability, dtype=np.float32)
        if self._mean is None or self._squares is None:
            self._mean, self._squares = np.zeros_like(values), np.zeros_like(values)
        if values.shape != self._mean.shape:
            raise ValueError(f"decodings must have one shape, got {values.shape} after {self._mean.shape}")
        self.count += 1
        change = values - self._mean
        self._mean += change / self.count
        self._squares += change * (values - self._mean)

    @property
    def mean(self) -> np.ndarray:
        """Mean probability, float32.

        Raises:
            ValueError: where nothing was added.
        """
        if self._mean is None:
            raise ValueError("no decoding was added")
        return np.clip(self._mean, 0.0, 1.0)

    @property
    def standard_deviation(self) -> np.ndarray:
        """Standard deviation over decodings (population, divided by K), float32."""
        if self._squares is None:
            raise ValueError("no decoding was added")
        return np.sqrt(np.maximum(self._squares, 0) / self.count)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the mean probability in bits."""
        return binary_entropy(self.mean)


def ensemble(decodings: Iterable[np.ndarray]) -> DecodingEnsemble:
    """All decodings of an iterable (a generator, so that only one is alive at a time) in one ensemble."""
    collected = DecodingEnsemble()
    for probability in decodings:
        collected.add(probability)
    return collected
