"""Random fields behind the Boltzmann draws: fresh for every training example, seeded and shared in evaluation."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

Noise = Sequence[Tensor]
"""One tensor of standard exponential variates a layer, shape (1 or B, sets a query, queries, patches)."""


def fresh_noise(batch: int, sets: int, queries: int, patches: Sequence[int], device: torch.device) -> list[Tensor]:
    """A new draw for every example, from the device's default generator."""
    return [torch.empty(batch, sets, queries, n, device=device).exponential_() for n in patches]


_one_at_a_time = threading.Lock()  # of all networks: a network's own could not be copied with it


class SeededNoise:
    """Noise that depends on the seed and the grid alone, so that a slice's mask does not depend on its company.

    The field is drawn on the CPU (the same on every device) and kept on the device that asks for it.

    Args:
        capacity_mib: memory that the kept fields may take; the one not used for longest goes first.
    """

    def __init__(self, capacity_mib: float = 1024) -> None:
        self._capacity = capacity_mib * 2**20
        self._fields: dict[tuple, list[Tensor]] = {}

    def __call__(
        self, seed: int, sets: int, queries: int, patches: Sequence[int], device: torch.device
    ) -> list[Tensor]:
        """Noise of shape (1, sets, queries, patches[i]) for each layer i."""
        with _one_at_a_time:
            return self._field(seed, sets, queries, patches, device)

    def _field(self, seed: int, sets: int, queries: int, patches: Sequence[int], device: torch.device) -> list[Tensor]:
        key = (seed, sets, queries, tuple(patches), device)
        field = self._fields.pop(key, None)
        if field is None:
            generator = torch.Generator().manual_seed(seed)
            drawn = [torch.empty(1, sets, queries, n).exponential_(generator=generator) for n in patches]
            field = [layer.to(device, non_blocking=True) for layer in drawn]
        self._fields[key] = field  # last: the most recently used
        while len(self._fields) > 1 and sum(map(_bytes, self._fields.values())) > self._capacity:
            self._fields.pop(next(iter(self._fields)))
        return field


def _bytes(field: list[Tensor]) -> int:
    return sum(layer.numel() * layer.element_size() for layer in field)
