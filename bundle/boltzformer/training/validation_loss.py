"""The loss on validation examples, which MONAI's evaluator does not compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ignite.engine import Engine, Events
from ignite.metrics import Loss
from ignite.metrics.metric import MetricUsage
from monai.engines.utils import IterationEvents
from torch import Tensor


class ValidationLoss(Loss):
    """Ignite metric: mean loss over the examples, taken from the logits before postprocessing replaces them.

    Sums are reduced over the processes of a distributed run. Where a `DecodedLoss` trains an existence score, masks
    are not trained on slices without the object, and do not count there either: what the network marks on these would
    be the larger part of the loss, and no reason to stop.

    Args:
        loss_function: (logits (B, 1, H, W), mask (B, 1, H, W)) -> scalar mean over the batch, or over as many of it as
            its `counted` says.
    """

    def __init__(self, loss_function: Callable[[Tensor, Tensor], Tensor]) -> None:
        counted = getattr(loss_function, "counted", len)
        super().__init__(loss_function, output_transform=_pred_and_label, batch_size=counted)

    def attach(self, engine: Engine, name: str, usage: Any = None) -> None:
        """Measure every batch of `engine` right after its forward pass and report the mean as `name`."""
        super().attach(engine, name, usage or _AfterForward())


class _AfterForward(MetricUsage):
    """One value an epoch, updated before MONAI splits and postprocesses the batch."""

    usage_name = "after_forward"

    def __init__(self) -> None:
        super().__init__(
            started=Events.EPOCH_STARTED,
            completed=Events.EPOCH_COMPLETED,
            iteration_completed=IterationEvents.FORWARD_COMPLETED,
        )


def _pred_and_label(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return output["pred"].float(), output["label"]
