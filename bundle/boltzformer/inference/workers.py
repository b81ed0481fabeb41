"""Groups of slices side by side on a CPU.

The decoder's operations are too small to be shared among cores. So each core takes a group of its own, and nothing
waits for another core within an operation.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 4
"""A group's tensors take some hundred MB, so more cores than these share operations as well."""


def number_of_workers(device: torch.device) -> int:
    """How many groups are computed at once: as many as PyTorch has threads, up to `MOST_WORKERS`; one on a GPU."""
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def _take_threads(number: int) -> None:
    """Let this thread's operations have some threads, whatever is set elsewhere afterwards."""
    torch.set_num_threads(number)
    torch.get_num_threads()  # when it is first asked, a thread takes the number that was set last anywhere


class Workers:
    """Threads that compute in PyTorch, among which its threads are shared out.

    Args:
        pool: None computes in the caller's thread.
        count: number of threads.
    """

    def __init__(self, pool: ThreadPoolExecutor | None, count: int) -> None:
        self._pool = pool
        self._count = count

    @classmethod
    @contextmanager
    def of(cls, count: int) -> Iterator[Workers]:
        """Some workers, for as long as the context lasts."""
        if count == 1:
            yield cls(None, 1)
            return
        threads = torch.get_num_threads()
        share = max(1, threads // count)
        begun = threading.Barrier(count)
        with ThreadPoolExecutor(count, "slices", initializer=_take_threads, initargs=(share,)) as pool:
            try:
                list(pool.map(lambda _: begun.wait(), range(count)))
                # they keep the number they took, but any other thread that begins takes the number set last
                torch.set_num_threads(threads)
                yield cls(pool, count)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def results(
        self, function: Callable[[Item], Result], items: Iterable[Item], most: int | None = None
    ) -> Iterator[Result]:
        """`function(item)` for every item, in their order.

        Args:
            function: called in a worker, where autocast and the gradient mode are PyTorch's defaults.
            items: what to call it with.
            most: items that may be at work or wait to be taken at once, at least 1; by default one more than there are
                workers.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        limit = min(self._count + 1, most or self._count + 1)
        for item in items:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
