"""The handler for probabilities, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from boltzformer.errors import InputError
from boltzformer.metrics.handlers import CalibrationHandler
from boltzformer.metrics.measures.calibration import Calibration
from boltzformer.metrics.summary.calibration import summarise_calibration
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose, CopyItemsd
from torch.utils.data.distributed import DistributedSampler

SPACING = (1.0, 2.0, 3.0)


def items(count: int = 5) -> list[dict]:
    """The 'network output' is the image: a label box moved by one voxel, with a false positive in case 2."""
    made = []
    for i in range(count):
        label = torch.zeros(1, 16, 14, 10)
        if i != 3:  # case 3 is a negative
            label[:, 2 : 5 + i, 3:7, 2:6] = 1
        image = torch.roll(label, 1, dims=1) * 0.8 + 0.1
        if i == 2:
            image[:, 14:, 12:, 8:] = 0.7
        made.append(
            {
                **{"image": image, "label": label, "text": "o", "dataset": "d", "case": f"c{i}", "slice": 0},
                **{"object": "o", "spacing": torch.tensor(SPACING)},
            }
        )
    return made


def evaluate(handlers: dict, data: list[dict], sampler=None) -> SupervisedEvaluator:
    post = Compose([CopyItemsd(keys="pred", names="probability"), AsDiscreted(keys="pred", threshold=0.5)])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2, sampler=sampler),
        network=torch.nn.Identity(),
        postprocessing=post,
        key_val_metric=handlers,
    )
    evaluator.run(1)
    return evaluator


def test_calibration_error_equals_the_collector():
    metrics = evaluate({"val_ece": CalibrationHandler()}, items()).state.metrics
    collected = Calibration()
    for item in items():
        collected.add(item["image"].numpy(), item["label"].numpy() > 0, "p")
    assert metrics["val_ece"] == pytest.approx(summarise_calibration(collected)["before"]["ece"], abs=2e-3)


def test_probabilities_outside_are_named():
    outside = [{**item, "image": item["image"] * 2} for item in items(2)]
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        evaluate({"val_ece": CalibrationHandler()}, outside)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = items()
    sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False)
    numbers = dict(evaluate({"val_ece": CalibrationHandler()}, data, sampler=sampler).state.metrics)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(numbers))
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    expected = dict(evaluate({"val_ece": CalibrationHandler()}, items()).state.metrics)
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == expected
