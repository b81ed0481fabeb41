from __future__ import annotations

import time

import pytest
import torch
from boltzformer.data.throughput import measure_loader


class _SlowLoader:
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self):
        for _ in range(self.batches):
            time.sleep(0.01)
            yield {"label": torch.zeros(5, 1, 2, 2)}


def test_rate_of_a_loader_of_known_speed():
    rate = measure_loader(_SlowLoader(8), seconds=0.2)
    assert rate.pairs_per_second == pytest.approx(rate.pairs / rate.seconds)
    assert 100 < rate.pairs_per_second <= 505  # five slices each 10 ms, and sleeping may take longer
    assert rate.seconds >= 0.2
    assert rate.first_batch_seconds >= 0.01


def test_a_short_loader_ends_and_one_batch_is_too_few():
    assert measure_loader(_SlowLoader(3), seconds=60, max_epochs=2).pairs == 25
    with pytest.raises(ValueError, match="two batches"):
        measure_loader(_SlowLoader(1), max_epochs=1)
