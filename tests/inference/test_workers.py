"""Groups of slices side by side: order, modes, threads, and bits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.inference.workers import MOST_WORKERS, Workers, number_of_workers

from tests.support import small_network

PROMPTS = ["liver in abdominal CT", "a small nodule", "aorta"]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    def later_is_faster(item: int) -> int:
        time.sleep(0.02 * (5 - item))
        return item

    with Workers.of(3) as workers:
        assert list(workers.results(later_is_faster, range(5))) == list(range(5))


def test_no_more_results_wait_than_there_are_workers() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    with Workers.of(2) as workers:
        results = workers.results(lambda item: item, items())
        next(results)
        assert len(taken) == 3  # two at work and the one that was given back


def test_no_more_are_at_work_than_are_allowed() -> None:
    at_work, seen = [], []

    def work(item: int) -> int:
        at_work.append(item)
        time.sleep(0.01)
        seen.append(len(at_work))
        at_work.remove(item)
        return item

    with Workers.of(3) as workers:
        assert list(workers.results(work, range(6), most=1)) == list(range(6))
    assert seen == [1] * 6


def test_the_memory_decides_how_many_groups_are_computed_at_once(two_threads: None) -> None:
    allowed = []

    class Spy(Workers):
        def results(self, function, items, most=None):
            allowed.append(most)
            return super().results(function, items, most)

    volume = torch.rand(1, 1, 40, 40, 37, generator=torch.Generator().manual_seed(0))
    network = small_network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boltzformer.inference.slice_inferer.Workers", Spy)
        large = PromptedSliceInferer(PROMPTS, progress=False, memory_gb=4)(volume, network)
        small = PromptedSliceInferer(PROMPTS, progress=False, memory_gb=1e-9)(volume, network)
    first, rest, again, one = allowed
    assert (first, again, one) == (None, None, 1)  # the first group is measured
    assert rest > 2
    assert torch.equal(large, small)


def test_a_thread_that_begins_meanwhile_has_all_threads(two_threads: None) -> None:
    found = []
    with Workers.of(2) as workers:
        list(workers.results(lambda item: item, range(3)))
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [2]


def test_several_items_are_at_work_at_once() -> None:
    together = threading.Barrier(2, timeout=20)
    with Workers.of(2) as workers:
        list(workers.results(lambda _: together.wait(), range(4)))  # one alone would wait until the timeout


def test_threads_are_shared_out_and_given_back(two_threads: None) -> None:
    with Workers.of(2) as workers:
        assert set(workers.results(lambda _: torch.get_num_threads(), range(4))) == {1}
    assert torch.get_num_threads() == 2


def test_a_failure_reaches_the_caller_and_gives_the_threads_back(two_threads: None) -> None:
    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"), Workers.of(2) as workers:
        list(workers.results(fail, range(3)))
    assert torch.get_num_threads() == 2


def test_as_many_as_threads_on_a_cpu_and_one_on_a_gpu(two_threads: None) -> None:
    assert number_of_workers(torch.device("cpu")) == 2
    assert number_of_workers(torch.device("cuda")) == 1
    torch.set_num_threads(64)
    assert number_of_workers(torch.device("cpu")) == MOST_WORKERS


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_two_workers_give_the_bits_of_one(two_threads: None, autocast: torch.dtype | None) -> None:
    network = small_network()
    volume = torch.rand(1, 1, 40, 40, 37, generator=torch.Generator().manual_seed(0))
    inferer = PromptedSliceInferer(PROMPTS, progress=False, autocast=autocast)
    together = inferer(volume, network)
    again = inferer(volume, network)  # now that the memory of a group is known, no group is computed first
    torch.set_num_threads(1)
    alone = inferer(volume, network)
    assert not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    torch.testing.assert_close(again, alone, rtol=0, atol=0)


def test_a_nifti_file_does_without_simpleitk_and_open_clip() -> None:
    lines = "import sys, boltzformer.inference.api; print([n for n in ('SimpleITK', 'open_clip') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
