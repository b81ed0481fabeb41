"""Batch statistics that agree between the processes of a distributed run."""

from __future__ import annotations

from typing import cast

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor, nn


class ShareBuffers:
    """Ignite handler: before a validation every process takes the first one's buffers.

    `DistributedDataParallel` does so before each training step, so after the last one the running statistics of a
    backbone's batch normalisation differ, and each process would validate a slightly different network from the one
    that is saved.

    Args:
        network: the bare network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Share at the start of `engine`, a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Copy the buffers of process 0; does nothing in a run of one process."""
        if idist.get_world_size() == 1:
            return
        for buffer in self.network.buffers():
            buffer.copy_(cast(Tensor, idist.broadcast(buffer, src=0)))
