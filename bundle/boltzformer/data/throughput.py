"""How many (slice, prompt) pairs a second a loader delivers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoaderRate:
    """Result of `measure_loader`.

    Attributes:
        pairs_per_second: (slice, prompt) pairs delivered a second.
        pairs: pairs that were counted.
        seconds: time they took.
        first_batch_seconds: time to the first batch (start of the workers), which is not in the rate.
    """

    pairs_per_second: float
    pairs: int
    seconds: float
    first_batch_seconds: float


def measure_loader(loader: Iterable[dict[str, Any]], seconds: float = 5.0, max_epochs: int = 100) -> LoaderRate:
    """Read batches with no work between them and count the pairs; compare with the network's rate.

    Args:
        loader: a DataLoader of `SliceDataset`, with the workers that training uses.
        seconds: time to measure for, after the first batch.
        max_epochs: times that the loader is run through at most.

    Returns:
        the rate. Where training is slower than this, the loader keeps up.

    Raises:
        ValueError: the loader has fewer than two batches, too few to time.
    """
    begin = time.perf_counter()
    started: float | None = None
    first = elapsed = 0.0
    pairs = 0
    for _ in range(max_epochs):
        for batch in loader:
            now = time.perf_counter()
            if started is None:
                started, first = now, now - begin
                continue
            pairs += len(batch["label"] if "label" in batch else batch["text"])  # choices have no masks yet
            elapsed = now - started
            if elapsed >= seconds:
                return LoaderRate(pairs / elapsed, pairs, elapsed, first)
    if not pairs:
        raise ValueError("the loader has fewer than two batches, too few to time")
    return LoaderRate(pairs / elapsed, pairs, elapsed, first)
