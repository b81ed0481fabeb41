"""Every patch: the full attention of the paper's table 3."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .rule import AttentionRule


@dataclass(frozen=True)
class Full(AttentionRule):
    """Every patch (full attention of table 3)."""

    keeps_all = True

    def keep(self, logits: Tensor, layer: int, noise: Tensor | None) -> None:
        """See `AttentionRule`."""
        return None
