"""Dice by object size, against hand-counted masks and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from boltzformer.metrics.size_buckets import Buckets, SizeBucketDice, describe_dice


def square(side: int, size: int = 100, at: int = 10) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., at : at + side, at : at + side] = 1
    return mask


def column(metric: SizeBucketDice, name: str) -> int:
    return metric.columns.index(name)


def test_bucket_names_and_edges_are_half_open():
    buckets = Buckets((0.01, 1.0, 5.0))
    assert buckets.names == ["< 0.01 %", "0.01-1 %", "1-5 %", ">= 5 %"]
    assert [buckets.index(s) for s in (0.0099, 0.01, 0.99, 1.0, 4.999, 5.0, 80)] == [0, 1, 1, 2, 2, 3, 3]
    assert buckets.index(math.nan) is None


@pytest.mark.parametrize("edges", [(), (0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, math.inf)])
def test_bad_edges_are_refused(edges):
    with pytest.raises(ValueError, match="increasing"):
        Buckets(edges)


@pytest.mark.parametrize("edge", [0.01, 0.05, 0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("size", [200, 1000])
def test_share_exactly_on_an_edge_goes_up(edge, size):
    count = round(size * size * edge / 100)
    assert count * 100 == pytest.approx(edge * size * size)
    label = torch.zeros(1, 1, size * size)
    label[..., :count] = 1
    label = label.view(1, 1, size, size)
    metric = SizeBucketDice(percent_edges=(edge,))
    row = metric.rows(label, label)[0]
    assert row[column(metric, f">= {edge:g} %")] == 1
    label.view(-1)[0] = 0  # one pixel less: below, or empty where the edge is one pixel
    row = metric.rows(label, label)[0]
    assert row[column(metric, f">= {edge:g} %")].isnan()
    if count > 1:
        assert row[column(metric, f"< {edge:g} %")] == 1


def test_row_of_a_known_case():
    # 5 x 5 label (0.25 % of 100 x 100), prediction shifted by 2: overlap 15, Dice 2 * 15 / 50 = 0.6.
    label, pred = square(5), torch.roll(square(5), 2, dims=-1)
    metric = SizeBucketDice()
    row = metric.rows(pred, label, spacing=[0.5, 2.0])[0]
    assert row[column(metric, "dice")] == pytest.approx(0.6)
    assert row[column(metric, "small")] == pytest.approx(0.6)
    assert row[column(metric, "large")].isnan()
    assert row[column(metric, "area_percent")] == 0.25
    assert row[column(metric, "diameter_mm")] == pytest.approx(2 * math.sqrt(25 * 1.0 / math.pi))  # 5.64 mm
    assert row[column(metric, "3-6 mm")] == pytest.approx(0.6)
    filled = [metric.columns[i] for i in (~row.isnan()).nonzero()[:, 0].tolist()]
    assert filled == ["dice", "small", "0.1-0.5 %", "3-6 mm", "area_percent", "diameter_mm"]


def test_negative_has_area_but_no_dice():
    metric = SizeBucketDice()
    row = metric.rows(square(10), torch.zeros(1, 1, 100, 100))[0]
    assert row[: len(metric.dice_columns)].isnan().all()
    assert row[column(metric, "false_positive_percent")] == 1.0
    assert row[column(metric, "specificity")] == pytest.approx(0.99)
    row = metric.rows(square(10), square(10))[0]
    assert row[column(metric, "false_positive_percent")].isnan()


def test_empty_bucket_is_n_0_and_none():
    metric = SizeBucketDice()
    metric(square(3), square(3))  # 0.09 %
    metric(torch.zeros(1, 1, 100, 100), square(3))  # missed
    summary = metric.summary()
    assert summary["0.05-0.1 %"] == {
        "n": 2,
        "mean_dice": 0.5,
        "median_dice": 0.5,
        "missed": 1,
        "missed_share": 0.5,
    }
    empty = {"n": 0, "mean_dice": None, "median_dice": None, "missed": 0, "missed_share": None}
    assert summary["large"] == summary["< 0.01 %"] == empty
    assert all(summary[name] == empty for name in metric.diameter.names)  # no spacing was given
    assert metric.aggregate().item() == 0.5


def test_no_update_at_all():
    metric = SizeBucketDice()
    assert metric.summary()["dice"]["n"] == 0
    assert metric.aggregate().isnan()


def test_batch_and_list_agree_with_numpy():
    generator = torch.Generator().manual_seed(0)
    pred = (torch.rand(6, 1, 40, 30, generator=generator) > 0.5).float()
    label = (torch.rand(6, 1, 40, 30, generator=generator) > torch.linspace(0, 1, 6)[:, None, None, None]).float()
    spacing = torch.rand(6, 2, generator=generator) + 0.5
    label[5] = 0
    batch, listed = SizeBucketDice(), SizeBucketDice()
    batch(pred, label, spacing=spacing)
    listed(list(pred), list(label), spacing=list(spacing))
    assert torch.equal(batch.get_buffer().nan_to_num(-1), listed.get_buffer().nan_to_num(-1))
    p, t = pred.numpy()[:5] > 0, label.numpy()[:5] > 0
    expected = 2 * (p & t).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)))
    np.testing.assert_allclose(batch.get_buffer()[:5, 0], expected, rtol=1e-6)
    assert batch.get_buffer()[5, 0].isnan()


def test_describe_dice_matches_numpy():
    values = np.array([0.0, 0.009, 0.01, 0.5, 0.9, math.nan])
    found = describe_dice(values)
    assert found["n"] == 5
    assert found["missed"] == 2
    assert found["missed_share"] == pytest.approx(0.4)
    assert found["mean_dice"] == pytest.approx(np.nanmean(values))
    assert found["median_dice"] == pytest.approx(np.nanmedian(values))


def test_bad_input():
    metric = SizeBucketDice()
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        metric(square(3) * 0.5, square(3))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        metric(square(3)[0], square(3)[0])
    with pytest.raises(ValueError, match="spacing"):
        metric(square(3), square(3), spacing=[1.0, 0.0])
