"""Ignite handlers: this room's numbers while a MONAI evaluator runs, right under torch.distributed."""

from boltzformer.metrics.handlers.slices import SizeBucketDiceHandler

__all__ = ["SizeBucketDiceHandler"]
