"""Which examples a process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler

from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.errors import InputError


class EpochSampler(DistributedSampler):
    """Shuffled order of training examples as a function of (seed, epoch), shared out among the processes.

    It is a `DistributedSampler`, so that MONAI's trainer calls `set_epoch` at the start of each epoch, also
    with a single process; the call reaches the dataset's draws too.

    Args:
        dataset: the training examples.
        num_samples: examples in an epoch, over all processes; each epoch takes others. None takes all of
            them.
        shuffle: draw a new order in each epoch.
        seed: of the order.
        object_balance: 0 takes every example as often as any other; with b above 0 an epoch is drawn by weight, the
            sum of n^-b over the objects of an example, n being an object's examples: at 1 an object of few slices
            is seen nearly as often as one of many, as long as an epoch takes few of its slices. No example comes twice
            in an epoch, so an object of n slices is seen n times at most and the others fill its share: for more of
            it take shorter epochs, and more of them. Needs `num_samples`.
        num_replicas: number of processes; None asks torch.distributed, and is 1 without it.
        rank: of this process; None asks torch.distributed.

    Raises:
        InputError: `num_samples` is below the number of processes, or more than there are.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        num_samples: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        object_balance: float = 0.0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        replicas, own = _world(num_replicas, rank)
        if object_balance < 0 or (object_balance and num_samples is None):
            raise InputError("object_balance: expected 0 or more, and above 0 a number of samples_per_epoch too.")
        super().__init__(dataset, num_replicas=replicas, rank=own, shuffle=shuffle, seed=seed)
        self.examples = dataset
        total = len(dataset) if num_samples is None else min(int(num_samples), len(dataset))
        if total < replicas:
            raise InputError(f"num_samples: {total} examples cannot be shared out among {replicas} processes.")
        self.num_samples = -(-total // replicas)
        self._total = total
        self._weights = dataset.object_weights(object_balance) if object_balance else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the dataset's draws of an epoch."""
        super().set_epoch(epoch)
        self.examples.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.arange(len(self.examples))
        rng = np.random.default_rng([self.seed, self.epoch])
        if self._weights is not None:
            order = rng.choice(len(order), self._total, replace=False, p=self._weights)
        elif self.shuffle:
            rng.shuffle(order)
        order = order[: self._total]
        # every process needs as many batches as the others; the first examples fill the gap
        order = np.resize(order, self.num_samples * self.num_replicas)
        return iter(order[self.rank :: self.num_replicas].tolist())


class CaseBatchSampler(Sampler[list[int]]):
    """Batches of examples of one case only, whose slices have one shape: evaluation on the native grid.

    The batches are shared out among the processes without repeating any, so the numbers of a metric stay
    right; one process may get a batch more than another. None may be left without: MONAI's evaluator skips a run
    that has no batch, and the others would wait for it for ever. So few examples make smaller batches.

    Args:
        dataset: the examples.
        batch_size: examples in a batch at most; a case's last batch may be smaller.
        num_replicas: number of processes; None asks torch.distributed, and is 1 without it.
        rank: of this process; None asks torch.distributed.

    Raises:
        InputError: a batch size below 1, or fewer examples than processes.
    """

    def __init__(
        self, dataset: SliceDataset, batch_size: int, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: expected 1 or more, found {batch_size}.")
        replicas, own = _world(num_replicas, rank)
        if len(dataset) < replicas:
            raise InputError(f"{len(dataset)} examples cannot be shared out among {replicas} processes: start fewer.")
        by_case: dict[int, list[tuple[int, int, int]]] = {}
        for index in range(len(dataset)):
            case, position, value = dataset.locate(index)
            by_case.setdefault(case, []).append((position, value, index))
        cases = [[index for _, _, index in sorted(by_case[case])] for case in sorted(by_case)]
        while len(batches := _batches(cases, batch_size)) < replicas:
            batch_size -= 1
        self.batches = batches[own::replicas]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _batches(cases: list[list[int]], size: int) -> list[list[int]]:
    return [indices[i : i + size] for indices in cases for i in range(0, len(indices), size)]


def _world(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    started = dist.is_available() and dist.is_initialized()
    replicas = num_replicas if num_replicas is not None else (dist.get_world_size() if started else 1)
    own = rank if rank is not None else (dist.get_rank() if started else 0)
    if not 0 <= own < replicas:
        raise InputError(f"rank: {own} is not among {replicas} processes.")
    return replicas, own
