"""The end of torch.distributed in a run that torchrun started."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def end_process_group(network: nn.Module | None = None) -> None:
    """Wait for the other processes, then leave the group with all that holds it.

    Gloo's threads end with the last reference to their group, not with `destroy_process_group`. One that is still
    letting go of a tensor while the interpreter ends kills the process ("terminate called without an active
    exception"), and a finished training would end with an error.

    Two things hold the group: `DistributedDataParallel`, and the functions of `torch.distributed.nn`, which keep
    the group of the moment of their import as a default argument. DDP imports them when it is built, so a config
    imports them before it joins the group, while there is none to keep.

    Args:
        network: a `DistributedDataParallel`, of no use as such afterwards (its `module` is untouched); any other
            network needs nothing.
    """
    dist.barrier()
    if isinstance(network, DistributedDataParallel):
        del network.reducer, network.logger, network.process_group
    dist.destroy_process_group()
