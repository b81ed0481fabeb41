"""The learning rate over a run."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to `final_share` of the learning rate, where it stays.

    MONAI's `WarmupCosineSchedule` rises again beyond its total. A run that is taken up with another total goes on
    from the rate it had: from there half a cosine down to the new end, or the final rate where it had reached it. One
    that is taken up with other learning rates goes on with these, at the same share of them.

    Args:
        optimizer: whose groups are scheduled; call `step` after each of its steps.
        warmup_steps: steps until the full learning rate, at least 0.
        total_steps: steps of the whole run.
        final_share: share of the learning rate at the end, in [0, 1].
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, final_share: float = 0.01) -> None:
        self.warmup_steps, self.total_steps, self.final_share = warmup_steps, total_steps, final_share
        # (step, share) from which the cosine falls: the end of the warm-up, or where a run was made longer
        self.anchor: tuple[int, float] | None = None
        super().__init__(optimizer, self.share)

    def share(self, step: int) -> float:
        """Share of the full learning rate at a step."""
        if self.anchor is None and step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        start, top = self.anchor or (self.warmup_steps, 1.0)
        progress = min(1.0, max(0, step - start) / max(1, self.total_steps - start))
        return self.final_share + (top - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    def state_dict(self) -> dict[str, Any]:
        """The position, and what is needed to go on from its rate."""
        return {
            "step": self.last_epoch,
            "share": self.share(self.last_epoch),
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "anchor": self.anchor,
            "base_lrs": self.base_lrs,
            "last_lr": self.get_last_lr(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up an earlier run's position, with this run's learning rates; load the optimizer's state before."""
        self.last_epoch = state_dict.get("step", state_dict.get("last_epoch", 0))
        self._step_count = self.last_epoch + 1
        earlier = [float(rate) for rate in state_dict["base_lrs"]]
        if not len(self.base_lrs) == len(earlier) == len(self.optimizer.param_groups):
            raise ValueError(f"{len(earlier)} rates for {len(self.optimizer.param_groups)} groups of parameters")
        anchor = state_dict.get("anchor")
        self.anchor = None if anchor is None else (int(anchor[0]), float(anchor[1]))
        longer = state_dict.get("total_steps", self.total_steps) != self.total_steps
        if longer and self.last_epoch >= state_dict.get("warmup_steps", self.warmup_steps):
            self.anchor = (self.last_epoch, float(state_dict["share"]))
        if earlier != self.base_lrs:
            logger.warning("this run goes on with the learning rates %s, it had %s", self.base_lrs, earlier)
        share = self.share(self.last_epoch)
        self._last_lr = [rate * share for rate in self.base_lrs]
        for group, base, now in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group.update(initial_lr=base, lr=now)
