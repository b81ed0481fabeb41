"""The patches of high confidence: the masked attention of the paper's table 3."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from boltzformer.errors import InputError

from .rule import AttentionRule, fill_empty


@dataclass(frozen=True)
class Threshold(AttentionRule):
    """No draw: the patches whose confidence is at least `value` (the masked attention of table 3).

    Args:
        value: in [0, 1].

    Raises:
        InputError: a value out of its range.
    """

    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise InputError(f"value={self.value} of the threshold must lie in [0, 1]")

    def keep(self, logits: Tensor, layer: int, noise: Tensor | None) -> Tensor:
        """See `AttentionRule`."""
        return threshold_attention_set(logits, self.value)


def threshold_attention_set(logits: Tensor, threshold: float) -> Tensor:
    """Attention set of the paper's table 3 without sampling: the patches with confidence >= `threshold`."""
    return fill_empty(logits.float().sigmoid() >= threshold)
