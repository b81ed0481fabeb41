"""The order of training examples: a function of seed and epoch alone, and able to start inside an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch.utils.data import Dataset, DistributedSampler


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch), over the processes of the run where there are several.

    MONAI's engines call `set_epoch` on a `DistributedSampler` at the start of every epoch; a resumed run
    therefore sees the order it would have seen.

    Args:
        dataset: what is sampled.
        shuffle: False keeps the dataset's order.
        seed: of the shuffling.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int = 0) -> None:
        super().__init__(
            cast(Dataset, dataset),
            num_replicas=idist.get_world_size(),
            rank=idist.get_rank(),
            shuffle=shuffle,
            seed=seed,
        )
        self._skip = 0

    def skip_first(self, examples: int) -> None:
        """Leave out the first examples of the next pass: those an interrupted epoch has already seen.

        Args:
            examples: how many of this process's examples, at least 0.
        """
        self._skip = examples

    def __iter__(self) -> Iterator[int]:
        """The indices of one pass."""
        skip, self._skip = self._skip, 0
        indices = super().__iter__()
        for _ in range(skip):
            next(indices, None)
        return indices


class SetEpoch:
    """Ignite handler: tells datasets which epoch begins, so that their draws depend on (seed, epoch, index).

    Args:
        datasets: one object or several with `set_epoch(epoch)`.
    """

    def __init__(self, datasets: Any) -> None:
        self.datasets: Sequence[Any] = datasets if isinstance(datasets, list | tuple) else [datasets]
        lacking = [type(item).__name__ for item in self.datasets if not hasattr(item, "set_epoch")]
        if lacking:
            raise TypeError(f"{', '.join(lacking)} has no set_epoch(epoch)")

    def attach(self, engine: Engine) -> None:
        """Act at every epoch's start of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Pass the epoch on."""
        for dataset in self.datasets:
            dataset.set_epoch(engine.state.epoch)
