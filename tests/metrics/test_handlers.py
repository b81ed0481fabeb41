"""The Ignite handler inside a real MONAI evaluator, in one process and in two."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from boltzformer.errors import InputError
from boltzformer.metrics.handlers import SizeBucketDiceHandler
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose
from torch.utils.data.distributed import DistributedSampler


def items(count: int = 7) -> list[dict]:
    """Slices whose 'network output' is the image: label square grows, prediction is shifted by a pixel."""
    made = []
    for i in range(count):
        label = torch.zeros(1, 64, 64)
        side = 2 * i  # item 0 is a negative
        label[:, 5 : 5 + side, 5 : 5 + side] = 1
        image = torch.roll(label, 1, dims=-1) * 0.9
        if i == 0:
            image[:, :4, :4] = 0.9
        case = f"case{i // 2}"
        made.append(
            {
                **{"image": image, "label": label, "text": f"object {i % 2}", "dataset": f"set{i % 3}"},
                **{"case": case, "patient": case, "object": f"o{i % 2}", "slice": i},
                "spacing": torch.tensor([1.0, 2.0]),
            }
        )
    return made


def evaluate(handler: SizeBucketDiceHandler, data: list[dict], as_key: bool = True, sampler=None) -> Engine:
    loader = DataLoader(Dataset(data), batch_size=2, sampler=sampler)
    extra = {"key_val_metric": {"val_dice": handler}} if as_key else {"val_handlers": [handler]}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=torch.nn.Identity(),
        postprocessing=Compose([AsDiscreted(keys="pred", threshold=0.5)]),
        **extra,
    )
    evaluator.run(1)
    return evaluator


def expected_dice(i: int) -> float:
    side = 2 * i
    return (side - 1) / side  # a square shifted by one pixel: 2 * side (side - 1) / (2 side^2)


def test_numbers_files_and_metrics(tmp_path, capsys):
    handler = SizeBucketDiceHandler(output_dir=str(tmp_path), html_name="report.html")
    evaluator = evaluate(handler, items())
    dice = [expected_dice(i) for i in range(1, 7)]
    assert evaluator.state.metrics["val_dice"] == pytest.approx(sum(dice) / 6)
    assert evaluator.state.best_metric == evaluator.state.metrics["val_dice"]
    # 1 % of 64 x 64 is 40.96 pixels: sides 2, 4, 6 are small, 8, 10, 12 large.
    assert evaluator.state.metrics["val_dice_small"] == pytest.approx(sum(dice[:3]) / 3)
    assert evaluator.state.metrics["val_dice_large"] == pytest.approx(sum(dice[3:]) / 3)
    by_set = [[dice[2], dice[5]], [dice[0], dice[3]], [dice[1], dice[4]]]
    assert evaluator.state.metrics["val_dice_dataset_mean"] == pytest.approx(sum(sum(s) / 2 for s in by_set) / 3)
    assert evaluator.state.metrics["val_dice_missed"] == 0
    assert evaluator.state.metrics["val_specificity"] == 0

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["overall"]["n"] == 6
    negatives = summary["overall"]["negatives"]
    assert negatives["n"] == 1
    assert negatives["mean_false_positive_percent"] == pytest.approx(100 * 16 / 4096)
    assert negatives["mean_false_positive_mm2"] == pytest.approx(16 * 2.0)
    assert summary["buckets_percent"]["< 0.01 %"]["n"] == 0
    assert summary["buckets_percent"]["< 0.01 %"]["mean_dice"] is None
    assert sum(b["n"] for b in summary["buckets_percent"].values()) == 6
    assert sum(b["n"] for b in summary["buckets_mm"].values()) == 6
    assert set(summary["datasets"]) == {"set0", "set1", "set2"}
    with (tmp_path / "slices.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7
    negative = next(row for row in rows if row["slice"] == "0")
    assert negative["dice"] == ""
    side8 = next(row for row in rows if row["slice"] == "4")
    assert float(side8["diameter_mm"]) == pytest.approx(2 * math.sqrt(64 * 2 / math.pi))
    assert side8["bucket_percent"] == "1-5 %"
    assert "By size of the object" in (tmp_path / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "0.1-0.5 %" in printed
    assert "missed" in printed


def test_as_plain_handler_and_second_run_forgets_the_first():
    handler = SizeBucketDiceHandler(print_table=False)
    evaluator = evaluate(handler, items(), as_key=False)
    first = dict(evaluator.state.metrics)
    evaluator.run(2)
    assert evaluator.state.metrics == first
    assert len(handler.rows) == 7


def test_built_from_json():
    parser = ConfigParser(
        {
            "h": {
                "_target_": "boltzformer.metrics.handlers.SizeBucketDiceHandler",
                "output_dir": None,
                "percent_edges": [0.5, 2],
                "print_table": False,
            }
        }
    )
    handler = parser.get_parsed_content("h")
    evaluate(handler, items())
    assert list(handler.summary["buckets_percent"]) == ["< 0.5 %", "0.5-2 %", ">= 2 %"]


def test_the_page_has_the_buckets_of_the_summary(tmp_path):
    handler = SizeBucketDiceHandler(
        str(tmp_path), print_table=False, html_name="r.html", percent_edges=[0.5, 2], small_below_percent=2
    )
    evaluate(handler, items())
    page = (tmp_path / "r.html").read_text()
    assert "0.5-2 %" in page
    assert "small, &lt; 2 %" in page
    assert "0.01-0.05 %" not in page


def test_only_negatives_is_nan_not_zero(caplog):
    handler = SizeBucketDiceHandler(print_table=False)
    evaluator = evaluate(handler, items(1))
    assert math.isnan(evaluator.state.metrics["val_dice"])
    assert "val_dice_small" not in evaluator.state.metrics
    assert "not a number" in caplog.text


def test_missing_metadata_is_named():
    data = [{key: value for key, value in item.items() if key != "object"} for item in items()]
    with pytest.raises(InputError, match="object"):
        evaluate(SizeBucketDiceHandler(print_table=False), data)


def test_soft_label_names_the_case():
    data = items(3)
    data[2]["label"] = data[2]["label"] * 0.5
    with pytest.raises(InputError, match="case case1, slice 2"):
        evaluate(SizeBucketDiceHandler(print_table=False), data)


def test_existence_scores_reach_rows_and_metrics():
    data = [{**item, "existence": torch.tensor(0.1 if i == 0 else 0.8)} for i, item in enumerate(items())]
    handler = SizeBucketDiceHandler(print_table=False)
    metrics = evaluate(handler, data).state.metrics
    assert metrics["val_existence_auroc"] == 1
    assert sorted(row["existence"] for row in handler.rows)[:2] == pytest.approx([0.1, 0.8])
    assert handler.summary["overall"]["negatives"]["specificity_gated"] == 1
    data[1]["existence"] = torch.tensor(1.5)
    with pytest.raises(InputError, match="existence must be a probability"):
        evaluate(SizeBucketDiceHandler(print_table=False), data)


def test_a_pixel_size_that_means_nothing_gives_no_mm():
    data = items(3)
    known = torch.tensor([1.0, 2.0])
    made = [{**item, "known_spacing": torch.full((2,), math.nan) if i == 2 else known} for i, item in enumerate(data)]
    handler = SizeBucketDiceHandler(print_table=False)
    evaluate(handler, made)
    assert [row["diameter_mm"] is not None for row in sorted(handler.rows, key=lambda row: row["slice"])][1:] == [
        True,
        False,
    ]


def test_two_wordings_of_one_slice_are_refused_not_dropped():
    data = items(3)
    with pytest.raises(InputError, match="two prompts, 'object 0' and 'another wording'"):
        evaluate(SizeBucketDiceHandler(print_table=False), [*data, {**data[2], "text": "another wording"}])


@pytest.mark.parametrize("other", [{"patient": "case9"}, {"label": torch.ones(1, 64, 64)}])
def test_two_images_of_one_name_are_refused_not_dropped(other):
    data = items(3)
    with pytest.raises(InputError, match="case case1, object o0, slice 2 was scored against two labels"):
        evaluate(SizeBucketDiceHandler(print_table=False), [*data, {**data[2], **other}])
    again = SizeBucketDiceHandler(print_table=False)
    evaluate(again, [*data, {**data[2], "image": torch.zeros(1, 64, 64)}])  # a repetition, marked differently
    assert len(again.rows) == 3


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = items()  # 7 items over 2 processes: one is padded
    handler = SizeBucketDiceHandler(output_dir=f"{folder}/two", print_table=False)
    sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False)
    evaluator = evaluate(handler, data, sampler=sampler)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(evaluator.state.metrics))
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    evaluator = evaluate(SizeBucketDiceHandler(output_dir=str(tmp_path / "one"), print_table=False), items())
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == evaluator.state.metrics
    for name in ("slices.csv", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
