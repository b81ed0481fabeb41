"""The paper's means: within a dataset, then over datasets; intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest
from boltzformer.metrics.summary.protocol import difference_values, found_nothing, table_values


def _row(dataset: str, patient: str, number: int, dice: float | str, area: float = 0.5) -> dict[str, object]:
    return {
        "dataset": dataset,
        "case": f"{patient}_scan",
        "patient": patient,
        "object": "nodule",
        "slice": number,
        "text": "nodule",
        "dice": dice,
        "area_percent": area,
    }


def test_datasets_count_alike_whatever_their_size():
    rows = [_row("a", f"p{i}", i, 0.2) for i in range(9)] + [_row("b", "q", 0, 0.8)]
    cells = table_values([rows])
    assert cells["a"]["value"] == pytest.approx(0.2)
    assert cells["b"]["value"] == pytest.approx(0.8)
    assert cells["mean"]["value"] == pytest.approx(0.5)  # the mean over slices would be 0.26
    assert (cells["mean"]["n"], cells["mean"]["patients"], cells["mean"]["datasets"]) == (10, 10, 2)
    assert cells["mean"]["low"] is None  # one patient in b: nothing to draw from
    assert cells["a"]["low"] == pytest.approx(0.2)


def test_sizes_and_misses_follow_the_same_rule():
    rows = [_row("a", "p", 0, 0.4, 0.99), _row("a", "p", 1, 0.6, 1.0), _row("a", "p", 2, 0.009, 0.1)]
    rows += [_row("b", "q", 0, 0.9, 5.0), _row("b", "q", 1, "", 0.0)]  # the last is a negative
    cells = table_values([rows])
    assert cells["small"]["value"] == pytest.approx((0.4 + 0.009) / 2)
    assert cells["small"]["datasets"] == 1
    assert cells["large"]["value"] == pytest.approx((0.6 + 0.9) / 2)
    assert cells["missed"]["value"] == pytest.approx((1 / 3 + 0) / 2)
    assert cells["b"]["n"] == 1


def test_seeds_are_averaged_and_their_spread_is_given():
    first = [_row("a", f"p{i}", 0, 0.5) for i in range(4)]
    second = [_row("a", f"p{i}", 0, 0.7) for i in range(4)]
    cell = table_values([first, second])["mean"]
    assert cell["value"] == pytest.approx(0.6)
    assert cell["sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert cell["n"] == 4
    assert table_values([first])["mean"]["sd"] is None


def test_the_interval_draws_patients_not_slices():
    draw = np.random.default_rng(0)
    truth = draw.uniform(0.2, 0.9, 30)
    rows = [_row("a", f"p{i}", k, float(truth[i])) for i in range(30) for k in range(40)]
    cell = table_values([rows])["mean"]
    expected = 1.96 * truth.std(ddof=1) / np.sqrt(30)
    assert (cell["high"] - cell["low"]) / 2 == pytest.approx(expected, rel=0.15)
    assert cell["low"] < truth.mean() < cell["high"]
    assert table_values([rows])["mean"] == cell


def test_nothing_scored_has_no_cell():
    assert table_values([[_row("a", "p", 0, "")]]) == {}


def test_a_difference_is_of_the_slices_that_both_have():
    ours = [_row("a", "p", 0, 0.5), _row("a", "q", 1, 0.7, 2.0), _row("b", "r", 0, 0.9), _row("b", "s", 0, 0.6)]
    theirs = [_row("a", "p", 0, 0.4), _row("a", "q", 1, 0.4, 2.0), _row("b", "r", 0, 0.8), _row("b", "t", 0, 0.0)]
    theirs += [_row("b", "s", 0, "")]  # no object there for them: not compared
    cells = difference_values([ours], [[{**row, "text": "another wording"} for row in theirs]])
    assert cells["mean"]["value"] == pytest.approx(((0.1 + 0.3) / 2 + 0.1) / 2)
    assert cells["small"]["value"] == pytest.approx(0.1)
    assert cells["large"]["value"] == pytest.approx(0.3)
    assert cells["mean"]["n"] == 3
    assert difference_values([ours], [[_row("c", "p", 0, 0.4)]]) == {}


def test_the_interval_of_a_difference_is_narrow_where_both_fail_together():
    draw = np.random.default_rng(1)
    level = draw.uniform(0.1, 0.8, 40)
    theirs = [_row("a", f"p{i}", 0, float(level[i])) for i in range(40)]
    ours = [_row("a", f"p{i}", 0, float(level[i] + 0.05 + 0.01 * draw.standard_normal())) for i in range(40)]
    cell = difference_values([ours], [theirs])["mean"]
    assert 0.04 < cell["low"] < 0.05 < cell["high"] < 0.06
    alone = table_values([ours])["mean"]
    assert alone["high"] - alone["low"] > 5 * (cell["high"] - cell["low"])


def test_a_row_that_missed_every_object_found_nothing():
    missed = [_row("a", "p", 0, 0.0), _row("a", "p", 1, 0.009), _row("a", "p", 2, "", 0.0)]  # the last is a negative
    assert found_nothing([missed])
    assert not found_nothing([missed, [_row("a", "p", 0, 0.01)]])
    assert not found_nothing([missed[2:]])
    assert not found_nothing([])
