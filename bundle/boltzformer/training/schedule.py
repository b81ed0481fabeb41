"""The learning rate over a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int, final_share: float = 0.01) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `final_share` of the learning rate, where it stays.

    MONAI's `WarmupCosineSchedule` rises again beyond its total and stores that total in checkpoints; here the
    settings of the current config hold, so a resumed run may be made longer.

    Args:
        optimizer: whose groups are scheduled; call `step` after each of its steps.
        warmup_steps: steps until the full learning rate, at least 0.
        total_steps: steps of the whole run.
        final_share: share of the learning rate at the end, in [0, 1].

    Returns:
        The schedule; its state dict holds the position only.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, share)
