"""Statistics against statsmodels, a plain loop, enumeration of all sign flips and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from boltzformer.errors import InputError
from boltzformer.metrics.summary.statistics import (
    clustered_interval,
    compare,
    holm,
    mean_interval,
    paired_rows,
    signed_rank,
)
from scipy.stats import rankdata
from statsmodels.stats.multitest import multipletests


def test_interval_equals_a_plain_loop_over_patients():
    random = np.random.default_rng(0)
    patients = np.repeat([f"p{i}" for i in range(12)], random.integers(1, 9, 12))
    values = random.random(len(patients)) + (patients == "p3")
    found = mean_interval(values.tolist(), patients.tolist(), resamples=20000, seed=1)
    groups = [values[patients == name] for name in np.unique(patients)]
    means = []
    for _ in range(20000):
        drawn = [groups[i] for i in random.integers(0, len(groups), len(groups))]
        means.append(np.concatenate(drawn).mean())
    assert found["value"] == pytest.approx(values.mean())
    assert found["clusters"] == 12
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(means, [2.5, 97.5]), atol=0.01)


def test_repeating_slices_does_not_narrow_the_interval():
    """Ten copies of each patient's slice say no more than one; an interval over rows would shrink by sqrt(10)."""
    values = np.random.default_rng(0).random(20)
    names = [f"p{i}" for i in range(20)]
    once = mean_interval(values.tolist(), names)
    copied = mean_interval(np.repeat(values, 10).tolist(), np.repeat(names, 10).tolist())
    assert copied["low"] == pytest.approx(once["low"])
    assert copied["high"] == pytest.approx(once["high"])
    normal = 1.96 * values.std(ddof=0) / np.sqrt(20)
    assert (once["high"] - once["low"]) / 2 == pytest.approx(normal, rel=0.1)


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        centres = random.normal(0.5, 0.2, 40)
        values = np.repeat(centres, 5) + random.normal(0, 0.05, 200)
        found = mean_interval(values.tolist(), np.repeat(np.arange(40), 5).astype(str).tolist(), resamples=400)
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.88 <= covered / 200 <= 0.99


def test_ratio_interval_and_degenerate_cases():
    found = clustered_interval([1, 0, 2], [2, 0, 2], ["a", "b", "c"])
    assert found["value"] == 0.75
    assert found["clusters"] == 2  # b has no lesion
    assert clustered_interval([1], [2], ["a"]) == {"value": 0.5, "low": None, "high": None, "clusters": 1}
    assert clustered_interval([], [], [])["value"] is None
    assert clustered_interval([0, 0], [0, 0], ["a", "b"])["value"] is None


@pytest.mark.parametrize("seed", range(4))
def test_holm_equals_statsmodels(seed):
    p = np.random.default_rng(seed).random(8) ** 3
    np.testing.assert_allclose(holm(p.tolist()), multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_signed_rank_equals_enumeration_of_all_sign_flips():
    differences = np.array([0.12, 0.30, -0.05, 0.21, 0.44, -0.02, 0.17])
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1.0
    observed = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=7)]
    expected = np.mean([min(s, ranks.sum() - s) <= observed for s in sums])
    names = [f"p{i}" for i in range(7)]
    assert signed_rank(differences.tolist(), names) == pytest.approx(expected)
    # copies of a patient's slice change nothing
    assert signed_rank(np.repeat(differences, 6).tolist(), np.repeat(names, 6).tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_signed_rank_is_exact_where_most_patients_do_not_differ(seed):
    """Of 20 patients 14 do not differ, and two differ alike; every flip of the other signs is tried."""
    differences = np.zeros(20)
    drawn = np.random.default_rng(seed).normal(0.1, 0.1, 5)
    differences[[3, 5, 7, 11, 13]], differences[17] = drawn, -drawn[0]
    ranks = rankdata(np.abs(differences))[differences != 0]
    signs = np.sign(differences[differences != 0])
    flips = np.array(list(itertools.product((-1, 1), repeat=6)))
    expected = np.mean(np.abs(flips @ ranks) >= abs(signs @ ranks))
    names = [f"p{i}" for i in range(20)]
    assert signed_rank(differences.tolist(), names) == pytest.approx(expected)
    split = [[3 * d - 0.3, 0.1, 0.2] for d in differences]  # slices, whose mean ends in the rounding of sums
    assert signed_rank(np.ravel(split).tolist(), np.repeat(names, 3).tolist()) == pytest.approx(expected)
    few = [0.1 * max(i - 15, 0) for i in range(20)]
    assert signed_rank(few, names) == 2 * 0.5**4  # 0.046 by the normal approximation


def test_many_patients_have_a_p_value_of_the_same_kind():
    differences = np.random.default_rng(0).normal(0.02, 0.2, 201)
    names = [f"p{i}" for i in range(201)]
    both = [signed_rank(differences[:n].tolist(), names[:n]) for n in (200, 201)]
    assert both[0] == pytest.approx(both[1], abs=0.02)


def test_signed_rank_degenerate_cases():
    assert signed_rank([0.1, 0.2], ["a", "a"]) is None
    assert signed_rank([0.0, 0.0], ["a", "b"]) == 1.0


def rows(dice: list[float], areas: list[float], object_name: str = "o") -> list[dict]:
    return [
        {
            **{"dataset": "d", "case": f"c{i}", "patient": f"p{i // 2}", "object": object_name, "slice": i},
            **{"text": object_name, "dice": value, "area_percent": area},
        }
        for i, (value, area) in enumerate(zip(dice, areas, strict=True))
    ]


def test_comparison_of_a_known_pair():
    """Six small rows gain 0.2, two large ones lose 0.1: gain 1.0 of which 1.2 small and -0.2 large."""
    areas = [0.02, 0.2, 0.2, 0.2, 0.7, 0.7, 2.0, 6.0]
    first = rows([0.5] * 8, areas)
    second = rows([0.7] * 6 + [0.4] * 2, areas)
    found = compare(paired_rows(first, second))
    assert found["overall"]["n"] == 8
    assert found["overall"]["patients"] == 4
    assert found["overall"]["difference"] == pytest.approx(1.0 / 8)
    small, large = found["sizes"].values()
    assert small["n"] == 6
    assert small["difference"] == pytest.approx(0.2)
    assert small["share_of_difference"] == pytest.approx(1.2)
    assert large["share_of_difference"] == pytest.approx(-0.2)
    shares = [entry["share_of_difference"] for entry in found["buckets_percent"].values()]
    assert sum(shares) == pytest.approx(1)
    empty = found["buckets_percent"]["0.05-0.1 %"]
    assert (empty["n"], empty["difference"], empty["p_holm"]) == (0, None, None)


def test_holm_runs_over_objects():
    random = np.random.default_rng(0)
    first = [row for name in "abc" for row in rows(random.random(12).tolist(), [0.2] * 12, name)]
    second = [row for name in "abc" for row in rows(random.random(12).tolist(), [0.2] * 12, name)]
    found = compare(paired_rows(first, second))["objects"]
    p, adjusted = zip(*((entry["p"], entry["p_holm"]) for entry in found.values()), strict=True)
    np.testing.assert_allclose(adjusted, multipletests(p, method="holm")[1])


def test_same_model_twice_has_no_difference_to_share():
    both = rows([0.5, 0.6, 0.7], [0.2, 0.2, 2.0])
    found = compare(paired_rows(both, both))
    assert found["overall"]["difference"] == 0
    assert found["overall"]["p"] == 1
    assert [entry["share_of_difference"] for entry in found["sizes"].values()] == [None, None]


def test_pairing_needs_common_rows_and_equal_labels():
    first = rows([0.5, 0.6, 0.7], [0.2, 0.2, 2.0])
    assert len(paired_rows(first, first[1:])) == 2
    negative = [{**row, "dice": None} for row in first]
    with pytest.raises(InputError, match="no scored row in common"):
        paired_rows(first, negative)
    with pytest.raises(InputError, match="different labels"):
        paired_rows(first, rows([0.5, 0.6, 0.7], [0.2, 0.3, 2.0]))
