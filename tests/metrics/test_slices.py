"""Dice by object size, against hand-counted masks, MONAI, numpy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.measure import describe
from boltzformer.metrics.measures.size_buckets import Buckets
from boltzformer.metrics.measures.slices import SliceRule, count_item, count_volume, slice_row
from boltzformer.metrics.summary.slices import summarise_slices
from monai.metrics.meandice import compute_dice

PLACE = {"dataset": "d", "case": "c", "patient": "p", "object": "o"}


def square(side: int, size: int = 100, at: int = 10) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[..., at : at + side, at : at + side] = 1
    return mask


def row_of(pred, label, spacing=None, edges=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0), existence=None) -> dict:
    rule = SliceRule(Catalogue().slices, Buckets(edges, " %"))
    return slice_row(PLACE, 0, "o", count_item(pred, label, spacing, existence), rule)


def test_bucket_names_and_edges_are_half_open():
    buckets = Buckets((0.01, 1.0, 5.0))
    assert buckets.names == ["< 0.01 %", "0.01-1 %", "1-5 %", ">= 5 %"]
    assert [buckets.index(s) for s in (0.0099, 0.01, 0.99, 1.0, 4.999, 5.0, 80)] == [0, 1, 1, 2, 2, 3, 3]
    assert buckets.index(math.nan) is None
    assert buckets.name(None) is None
    assert buckets.name(1.0) == "1-5 %"


@pytest.mark.parametrize("edges", [(), (0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, math.inf)])
def test_bad_edges_are_refused(edges):
    with pytest.raises(ValueError, match="increasing"):
        Buckets(edges)


@pytest.mark.parametrize("edge", [0.01, 0.05, 0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("size", [200, 1000])
def test_share_exactly_on_an_edge_goes_up(edge, size):
    count = round(size * size * edge / 100)
    assert count * 100 == pytest.approx(edge * size * size)
    label = torch.zeros(1, size * size)
    label[..., :count] = 1
    label = label.view(1, size, size)
    assert row_of(label, label, edges=(edge,))["bucket_percent"] == f">= {edge:g} %"
    label.view(-1)[0] = 0  # one pixel less: below, or empty where the edge is one pixel
    below = row_of(label, label, edges=(edge,))["bucket_percent"]
    assert below == (f"< {edge:g} %" if count > 1 else None)


def test_row_of_a_known_case():
    # 5 x 5 label (0.25 % of 100 x 100), prediction shifted by 2: overlap 15, Dice 2 * 15 / 50 = 0.6.
    row = row_of(torch.roll(square(5), 2, dims=-1), square(5), spacing=[0.5, 2.0])
    assert row["dice"] == pytest.approx(0.6)
    assert row["missed"] == 0
    assert row["area_percent"] == 0.25
    assert row["diameter_mm"] == pytest.approx(2 * math.sqrt(25 * 1.0 / math.pi))  # 5.64 mm
    assert (row["bucket_percent"], row["bucket_mm"]) == ("0.1-0.5 %", "3-6 mm")
    assert (row["label_pixels"], row["predicted_pixels"], row["overlap_pixels"]) == (25, 25, 15)
    empty = [name for name in row if row[name] is None]
    assert empty == ["pixel_specificity", "false_positive_percent", "false_positive_mm2", "existence"]
    summary = summarise_slices([row])
    assert summary["overall"]["small"]["mean_dice"] == pytest.approx(0.6)
    assert summary["overall"]["large"]["n"] == summary["overall"]["tiny"]["n"] == 0
    assert summary["buckets_mm"]["3-6 mm"]["mean_dice"] == pytest.approx(0.6)


def test_negative_has_area_but_no_dice():
    row = row_of(square(10), torch.zeros(1, 100, 100), spacing=[0.5, 1.0])
    assert all(row[name] is None for name in ("dice", "missed", "area_percent", "diameter_mm", "bucket_percent"))
    assert row["false_positive_percent"] == 1.0
    assert row["false_positive_mm2"] == 50.0
    assert row["pixel_specificity"] == pytest.approx(0.99)
    assert row_of(square(10), square(10))["false_positive_percent"] is None


def test_empty_bucket_is_n_0_and_none():
    nine = square(3)  # 0.09 %
    summary = summarise_slices([row_of(nine, nine), row_of(torch.zeros(1, 100, 100), nine)])
    found = summary["buckets_percent"]["0.05-0.1 %"]
    expected = {"n": 2, "mean_dice": 0.5, "median_dice": 0.5, "missed": 1, "missed_share": 0.5}
    assert {key: found[key] for key in expected} == expected
    empty = {"n": 0, "mean_dice": None, "median_dice": None, "missed": 0, "missed_share": None}
    for entry in (
        summary["overall"]["large"],
        summary["buckets_percent"]["< 0.01 %"],
        *summary["buckets_mm"].values(),  # no spacing was given
    ):
        assert {key: entry[key] for key in empty} == empty


def test_no_row_at_all():
    summary = summarise_slices([])
    assert summary["overall"]["n"] == 0
    assert summary["overall"]["mean_dice"] is None
    assert summary["mean_over_datasets"] == {"datasets": 0, "mean_dice": None}


def test_tiny_objects_are_those_below_a_twentieth_of_a_percent():
    """4 pixels of 100 x 100 are 0.04 %, 5 are 0.05 %: the border itself is not tiny."""
    labels = [torch.zeros(1, 100, 100) for _ in range(3)]
    for label, count in zip(labels, (4, 5, 200), strict=True):
        label.view(-1)[:count] = 1
    summary = summarise_slices([row_of(label, label) for label in labels])
    assert [summary["overall"][size]["n"] for size in ("tiny", "small", "large")] == [1, 2, 1]


def test_volume_and_item_agree_with_numpy_and_monai():
    random = np.random.default_rng(0)
    pred, label = random.random((2, 9, 8, 7)) > 0.6
    label[:, :, 3] = False
    for axis in range(3):
        spacing = [s for a, s in enumerate((1.0, 2.0, 3.0)) if a != axis]
        stack = [np.moveaxis(mask, axis, 0) for mask in (pred, label)]
        found = list(count_volume(pred, label, (1.0, 2.0, 3.0), axis))
        for counts, p, t in zip(found, *stack, strict=True):
            items = [torch.from_numpy(mask[None].astype(np.float32)) for mask in (p, t)]
            assert counts == count_item(*items, spacing)
            row = slice_row(PLACE, 0, "o", counts, Catalogue().slice_rule)
            if not t.any():
                assert row["false_positive_percent"] == pytest.approx(100 * p.mean())
                continue
            assert row["dice"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), rel=1e-12)
            monai = compute_dice(items[0][None], items[1][None], ignore_empty=True)
            assert row["dice"] == pytest.approx(float(monai), rel=1e-6)


def test_describe_matches_numpy():
    values = np.array([0.0, 0.009, 0.01, 0.5, 0.9, math.nan])
    rows = [{"dice": None if math.isnan(v) else v} for v in values]
    found = describe(rows, Catalogue().slices)
    assert found["n"] == 5
    assert found["missed"] == 2
    assert found["missed_share"] == pytest.approx(0.4)
    assert found["mean_dice"] == pytest.approx(np.nanmean(values))
    assert found["median_dice"] == pytest.approx(np.nanmedian(values))


def test_bad_input():
    with pytest.raises(ValueError, match="prediction has values other than 0 and 1"):
        count_item(square(3) * 0.5, square(3))
    with pytest.raises(ValueError, match=r"\(1, H, W\)"):
        count_item(square(3)[None], square(3)[None])
    for spacing in ([1.0, 0.0], [1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="spacing"):
            count_item(square(3), square(3), spacing)
    with pytest.raises(ValueError, match=r"existence must be a probability in \[0, 1\]"):
        count_item(square(3), square(3), existence=1.5)
    with pytest.raises(ValueError, match="2 existence scores for 7 slices"):
        list(count_volume(*np.zeros((2, 9, 8, 7), bool), (1, 1, 1), existence=[0.5, 0.5]))
