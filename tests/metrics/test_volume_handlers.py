"""Handlers for whole volumes and probabilities, in one process and in two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from boltzformer.errors import InputError
from boltzformer.metrics.calibration import Calibration
from boltzformer.metrics.lesions import lesion_rows
from boltzformer.metrics.volume_handlers import CalibrationHandler, VolumeMetricsHandler
from boltzformer.metrics.volume_metrics import volume_row
from monai.data import DataLoader, Dataset
from monai.data.meta_tensor import MetaTensor
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


def test_numbers_equal_the_functions(tmp_path):
    handler = VolumeMetricsHandler(str(tmp_path), probability_key="probability")
    metrics = evaluate({"val_volume_dice": handler}, items()).state.metrics
    rows, lesions = [], []
    for item in items():
        pred, label = (item["image"][0] >= 0.5).numpy(), item["label"][0].numpy() > 0
        rows.append(volume_row(pred, label, SPACING))
        lesions += lesion_rows(pred, label, SPACING)
    positive = [row for row in rows if row["positive"]]
    assert metrics["val_volume_dice"] == pytest.approx(np.mean([row["dice"] for row in positive]))
    assert metrics["val_volume_dice_surface_2mm"] == pytest.approx(
        np.mean([row["surface_dice_2mm"] for row in positive])
    )
    assert metrics["val_volume_dice_hd95_mm"] == pytest.approx(np.mean([row["hd95_mm"] for row in positive]))
    kinds = [row["kind"] for row in lesions]
    assert metrics["val_volume_dice_lesion_precision"] == pytest.approx(
        kinds.count("matched") / (kinds.count("matched") + kinds.count("false positive"))
    )
    assert metrics["val_volume_dice_false_positives_per_scan"] == 1 / 5
    assert [row["score"] for row in handler.lesions if row["kind"] == "false positive"] == pytest.approx([0.7])
    assert json.loads((tmp_path / "volumes.json").read_text())["volumes"]["overall"]["negatives"]["n"] == 1
    assert len((tmp_path / "volumes.csv").read_text().splitlines()) == 6
    assert len((tmp_path / "lesions.csv").read_text().splitlines()) == 1 + len(lesions)


def test_spacing_comes_from_the_metadata_of_the_label():
    data = items(2)
    for item in data:
        item["label"] = MetaTensor(item["label"], affine=torch.diag(torch.tensor([-2.0, 1, 4, 1])))
        del item["spacing"]
    handler = VolumeMetricsHandler()
    evaluate({"val_volume_dice": handler}, data)
    assert handler.rows[0]["label_mm3"] == pytest.approx(3 * 4 * 4 * 8.0)
    without = [{key: value for key, value in item.items() if key != "spacing"} for item in items(2)]
    with pytest.raises(InputError, match="voxel size is not known"):
        evaluate({"val_volume_dice": VolumeMetricsHandler()}, without)


def test_calibration_error_equals_the_collector():
    metrics = evaluate({"val_ece": CalibrationHandler()}, items()).state.metrics
    collected = Calibration()
    for item in items():
        collected.add(item["image"].numpy(), item["label"].numpy() > 0, "p")
    assert metrics["val_ece"] == pytest.approx(collected.summary()["before"]["ece"], abs=2e-3)


def test_bad_items_are_named():
    soft = items(2)
    soft[1]["label"] = soft[1]["label"] * 0.5
    with pytest.raises(InputError, match="case c1: the label has values other than 0 and 1"):
        evaluate({"val_volume_dice": VolumeMetricsHandler()}, soft)
    flat = [{**item, "image": item["image"][..., 0], "label": item["label"][..., 0]} for item in items(2)]
    with pytest.raises(InputError, match="X, Y, Z"):
        evaluate({"val_volume_dice": VolumeMetricsHandler()}, flat)
    outside = [{**item, "image": item["image"] * 2} for item in items(2)]
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        evaluate({"val_ece": CalibrationHandler()}, outside)


def test_only_negatives():
    metrics = evaluate({"val_volume_dice": VolumeMetricsHandler()}, items()[3:4]).state.metrics
    assert math.isnan(metrics["val_volume_dice"])
    assert metrics["val_volume_dice_false_positives_per_scan"] == 0


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = items()
    sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False)
    two = {"val_volume_dice": VolumeMetricsHandler(f"{folder}/two")}
    evaluator = evaluate(two, data, sampler=sampler)
    numbers = dict(evaluator.state.metrics)
    numbers.update(evaluate({"val_ece": CalibrationHandler()}, data, sampler=sampler).state.metrics)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(numbers))
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    expected = dict(evaluate({"val_volume_dice": VolumeMetricsHandler(str(tmp_path / "one"))}, items()).state.metrics)
    expected.update(evaluate({"val_ece": CalibrationHandler()}, items()).state.metrics)
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == expected
    for name in ("volumes.csv", "lesions.csv", "volumes.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
