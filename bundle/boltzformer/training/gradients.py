"""What happens between the backward pass and the optimizer's step."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from boltzformer.errors import InputError

logger = logging.getLogger(__name__)


class ClipGradients:
    """Ignite handler: scales the gradient down to a largest norm before MONAI's trainer steps.

    Under AMP the gradient is unscaled first, so that `max_norm` means the same with and without it
    (`GradScaler.step` knows and does not unscale again). With `accumulation_steps` only the sum is clipped, and that of
    an epoch's last, shorter group is made the mean that every other step's is: the trainer divides by
    `accumulation_steps` there too. The norm before clipping is left in `engine.state.gradient_norm`.

    A gradient that is not finite, which a finite loss may have, is let go without a step: `GradScaler` does so under
    AMP, and this class does without it.

    Args:
        parameters: the trained parameters.
        max_norm: largest L2 norm of the whole gradient, above 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], max_norm: float = 1.0) -> None:
        if max_norm <= 0:
            raise InputError(f"max_norm is {max_norm}: it must be above 0; drop the handler for no clipping.")
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.max_norm = max_norm

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act after every backward pass of `engine`, a MONAI trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Clip, where this iteration ends with a step."""
        if not steps_now(engine):
            return
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        short = getattr(engine, "accumulation_steps", 1) / group_size(engine)
        if short != 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(short)
        engine.state.gradient_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        guarded = engine.scaler is not None and engine.scaler.is_enabled()
        if not guarded and not bool(torch.isfinite(engine.state.gradient_norm)):
            engine.optimizer.zero_grad()  # to None, which an optimizer passes over
            logger.warning(
                "the gradient at epoch %d, step %d is not finite: the weights stay as they are in this step",
                *(engine.state.epoch, engine.state.iteration),
            )


def steps_now(engine: SupervisedTrainer) -> bool:
    """Whether the trainer's current iteration closes a group of accumulated ones (its own rule)."""
    accumulated = getattr(engine, "accumulation_steps", 1)
    done = _done_in_epoch(engine)
    return done % accumulated == 0 or done == engine.state.epoch_length


def group_size(engine: SupervisedTrainer) -> int:
    """How many iterations the trainer has accumulated so far in the current group, this one included."""
    return (_done_in_epoch(engine) - 1) % int(getattr(engine, "accumulation_steps", 1)) + 1


def _done_in_epoch(engine: SupervisedTrainer) -> int:
    """Iterations of the epoch so far, this one included; of the run, where epochs have no length."""
    done = int(engine.state.iteration)
    return done if engine.state.epoch_length is None else (done - 1) % engine.state.epoch_length + 1


class StopOnNonFiniteLoss:
    """Ignite handler: ends training before a loss that is NaN or infinite reaches the weights.

    Raises:
        InputError: at the first such loss, with epoch and step.
    """

    def attach(self, engine: SupervisedTrainer) -> None:
        """Look at every loss of `engine`, a MONAI trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Check the loss of this iteration."""
        loss = engine.state.output["loss"]
        if not torch.isfinite(loss).all():
            raise InputError(
                f"the training loss is {loss.item()} at epoch {engine.state.epoch}, step "
                f"{engine.state.iteration}: lower `learning_rate` or set `amp` to false; `--resume true` "
                "goes on from the last checkpoint."
            )
