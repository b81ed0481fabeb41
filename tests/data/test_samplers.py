from __future__ import annotations

import numpy as np
import pytest
from boltzformer.data.samplers import CaseBatchSampler, EpochSampler
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.errors import InputError
from torch.utils.data import DataLoader


@pytest.fixture
def data(make_case, tmp_path):
    cases = []
    for number, shape in enumerate([(12, 10, 6), (9, 14, 5), (8, 8, 9)]):
        label = np.zeros(shape, np.uint8)
        label[2:5, 3:6, 1:4] = 1
        label[6, 6, 2:] = 2
        cases.append(make_case(f"v{number}", label=label))
    return SliceDataset(cases, tmp_path / "cache", negative_share=0.3, progress=False, num_workers=1)


def test_epochs_differ_and_repeat(data):
    sampler, again = EpochSampler(data, seed=1), EpochSampler(data, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        again.set_epoch(epoch)
        orders.append(list(sampler))
        assert list(again) == orders[-1]
        assert sorted(orders[-1]) == list(range(len(data)))
    assert orders[0] != orders[1] != orders[2]
    assert list(EpochSampler(data, shuffle=False)) == list(range(len(data)))


def test_set_epoch_reaches_the_training_data(data):
    data.training = True
    EpochSampler(data).set_epoch(9)
    assert int(data._epoch) == 9


@pytest.mark.parametrize("num_samples", [None, 10, 11])
def test_processes_share_an_epoch(data, num_samples):
    samplers = [EpochSampler(data, num_samples, num_replicas=4, rank=rank) for rank in range(4)]
    parts = [list(sampler) for sampler in samplers]
    assert len({len(part) for part in parts}) == 1
    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]
    total = num_samples or len(data)
    together = [index for part in parts for index in part]
    assert len(set(together)) == total
    assert len(together) - total < 4


def test_at_each_step_the_processes_take_what_one_would(data):
    alone = list(EpochSampler(data, 12, seed=5))
    parts = [list(EpochSampler(data, 12, seed=5, num_replicas=4, rank=rank)) for rank in range(4)]
    assert [index for step in zip(*parts, strict=True) for index in step] == alone


def test_evaluation_batches_hold_one_case_and_every_example_once(data):
    sampler = CaseBatchSampler(data, 4)
    loader = DataLoader(data, batch_sampler=sampler)
    count = 0
    for batch in loader:
        assert len(set(batch["case"])) == 1
        assert len(batch["text"]) <= 4
        assert batch["slice"].tolist() == sorted(batch["slice"].tolist())
        count += len(batch["text"])
    assert count == len(data)
    assert len(loader) == len(sampler)


def test_evaluation_batches_are_shared_out_without_repeats(data):
    parts = [list(CaseBatchSampler(data, 4, num_replicas=2, rank=rank)) for rank in range(2)]
    together = sorted(index for part in parts for batch in part for index in batch)
    assert together == list(range(len(data)))
    assert abs(len(parts[0]) - len(parts[1])) <= 1


@pytest.mark.parametrize("replicas", [4, 7])
def test_every_process_gets_an_evaluation_batch(data, replicas):
    # three cases make three batches of 100; a process without one would be waited for without end
    parts = [CaseBatchSampler(data, 100, num_replicas=replicas, rank=rank).batches for rank in range(replicas)]
    assert all(parts)
    together = sorted(index for part in parts for batch in part for index in batch)
    assert together == list(range(len(data)))


def test_bad_arguments(data):
    with pytest.raises(InputError, match="batch_size"):
        CaseBatchSampler(data, 0)
    with pytest.raises(InputError, match="rank"):
        CaseBatchSampler(data, 1, num_replicas=2, rank=2)
    with pytest.raises(InputError, match="start fewer"):
        CaseBatchSampler(data, 1, num_replicas=len(data) + 1, rank=0)
    with pytest.raises(InputError, match="shared out"):
        EpochSampler(data, 2, num_replicas=3, rank=0)


def test_balance_draws_rare_objects_as_often(make_case, tmp_path):
    label = np.zeros((8, 8, 40), np.uint8)
    label[2, 2, :36], label[5, 5, 38] = 1, 2
    data = SliceDataset([make_case(label=label)], tmp_path / "cache", training=True, progress=False, num_workers=1)
    sampler = EpochSampler(data, num_samples=4, object_balance=1.0)
    rare = 0
    for epoch in range(60):
        sampler.set_epoch(epoch)
        chosen = list(sampler)
        assert len(set(chosen)) == 4
        rare += any(data.locate(index)[2] == 2 for index in chosen)
    assert rare > 50  # it is 1 of 37 examples: without balance 4 of 37 epochs, here all but 1 in 2^4
    with pytest.raises(InputError, match="samples_per_epoch"):
        EpochSampler(data, object_balance=1.0)
