"""Going on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader


class SkippingLoader:
    """A loader whose first pass leaves out the batches that an interrupted epoch has already seen.

    The batches left out are not loaded either. The order must depend on the epoch alone, as `EpochSampler`'s does.

    Args:
        loader: the run's loader.
        num_batches: how many batches the first pass leaves out.
    """

    def __init__(self, loader: DataLoader[Any], num_batches: int) -> None:
        self.loader = loader
        self.num_batches = num_batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        skip, self.num_batches = self.num_batches, 0
        if not skip:
            return iter(self.loader)
        assert self.loader.batch_sampler is not None
        rest = DataLoader(
            self.loader.dataset,
            batch_sampler=list(islice(self.loader.batch_sampler, skip, None)),
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            pin_memory=self.loader.pin_memory,
            worker_init_fn=self.loader.worker_init_fn,
            multiprocessing_context=self.loader.multiprocessing_context,
            generator=self.loader.generator,
        )
        return iter(rest)
