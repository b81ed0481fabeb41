"""Intervals and comparisons that respect that slices of one patient are not independent.

Every number that gets an interval is a ratio of sums over patients (mean Dice: sum of Dice over number of
slices; sensitivity: true positives over lesions; ...), so that resampling patients needs two numbers for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, rankdata, wilcoxon

from boltzformer.errors import InputError
from boltzformer.metrics.measures.measure import Measure
from boltzformer.metrics.measures.rows import SLICE_KEY, Row, by_object, key_of, patient_name
from boltzformer.metrics.measures.size_buckets import PERCENT_EDGES, Buckets, as_number

RESAMPLES = 5000
CONFIDENCE = 0.95
EXACT_CLUSTERS = 200


def clustered_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str],
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Percentile bootstrap interval of sum(numerators) / sum(denominators), drawing whole clusters.

    Args:
        numerators: one number for each row.
        denominators: likewise; a mean has denominators 1.
        clusters: the patient of each row.
        confidence: coverage, such as 0.95.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        `{"value", "low", "high", "clusters"}`. `low` and `high` are None with fewer than two patients
        (there is nothing to resample); all are None where the denominators sum to 0.
    """
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    top = np.bincount(index, weights=np.asarray(numerators, dtype=np.float64), minlength=len(names))
    bottom = np.bincount(index, weights=np.asarray(denominators, dtype=np.float64), minlength=len(names))
    used = bottom > 0
    top, bottom = top[used], bottom[used]
    if bottom.sum() == 0:
        return {"value": None, "low": None, "high": None, "clusters": 0}
    value = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return {"value": value, "low": None, "high": None, "clusters": len(top)}
    interval = bootstrap(
        (top, bottom),
        lambda t, b, axis: t.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // len(top)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"value": value, "low": float(interval.low), "high": float(interval.high), "clusters": len(top)}


def measure_interval(measure: Measure, rows: Iterable[Row], **settings: Any) -> dict[str, Any]:
    """`clustered_interval` of a measure over rows, by patient."""
    parts = measure.parts(rows)
    patients = [patient_name(row) for row, _, _ in parts]
    return clustered_interval([top for _, top, _ in parts], [bottom for _, _, bottom in parts], patients, **settings)


def intervals(measures: Iterable[Measure], rows: Sequence[Row]) -> dict[str, Any]:
    """The interval of every measure that has a key for one."""
    return {measure.key: measure_interval(measure, rows) for measure in measures if measure.key}


def mean_interval(values: Sequence[float], clusters: Sequence[str], **settings: Any) -> dict[str, Any]:
    """`clustered_interval` of a mean over rows."""
    return clustered_interval(values, np.ones(len(values)).tolist(), clusters, **settings)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(p) for p in adjusted]


def paired_rows(
    first: Iterable[Row],
    second: Iterable[Row],
    value: str = "dice",
    keys: Sequence[str] = SLICE_KEY,
    label_size: str = "area_percent",
) -> list[dict[str, Any]]:
    """Join two models' rows on `keys`; only rows where both have `value`.

    Args:
        first: rows of one model, as computed or as read from a CSV.
        second: rows of the other.
        value: the column to compare.
        keys: what names a row.
        label_size: column that follows from the label alone, and so must agree.

    Returns:
        The second model's rows with `first`, `second` and `difference` (second - first) added.

    Raises:
        InputError: where the two share no row, or judge one row against different labels.
    """
    others = {key_of(row, keys): row for row in first}
    joined = []
    for row in second:
        other = others.get(key_of(row, keys))
        a = None if other is None else as_number(other.get(value))
        b = as_number(row.get(value))
        if other is None or a is None or b is None:
            continue
        sizes = as_number(row.get(label_size)), as_number(other.get(label_size))
        # a slice without the object has no size; two such agree
        if sizes != (None, None) and (None in sizes or not math.isclose(*sizes, rel_tol=1e-6)):  # type: ignore[arg-type]
            where = ", ".join(str(row[k]) for k in keys)
            raise InputError(f"the two results judge ({where}) against different labels: {label_size} differs")
        joined.append({**row, "first": a, "second": b, "difference": b - a})
    if not joined:
        raise InputError("the two results have no scored row in common: compare runs on the same cases and prompts")
    return joined


def compare(
    joined: Sequence[Row],
    percent_edges: Sequence[float] = PERCENT_EDGES,
    small_below_percent: float = 1.0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired comparison of two models on the same rows.

    Each line has the mean difference over rows (second - first) with its interval clustered by patient, and
    Wilcoxon's signed-rank test over *patients'* mean differences, since the test assumes independence. Holm's
    correction runs over all tests of a family: the objects, and the size buckets.

    Returns:
        `overall`, `objects`, `buckets_percent` and `sizes` (small and large), each line with `n`,
        `patients`, `first`, `second`, `difference`, `low`, `high`, `p` and (but for overall)
        `p_holm`; bucket lines also have `share_of_difference`.
    """

    def line(rows: Sequence[Row]) -> dict[str, Any]:
        return compare_line(rows, confidence, resamples, seed)

    overall = line(joined)
    objects = {name: line(rows) for name, rows in by_object(joined).items()}
    add_holm(objects)
    result: dict[str, Any] = {"overall": overall, "objects": objects}
    for key, edges in (("buckets_percent", tuple(percent_edges)), ("sizes", (small_below_percent,))):
        table = {name: line(rows) for name, rows in Buckets(edges, " %").split(joined, "area_percent").items()}
        add_holm(table)
        for entry, share in zip(table.values(), difference_shares(table, overall), strict=True):
            entry["share_of_difference"] = share
        result[key] = table
    return result


def difference_shares(table: Mapping[str, Row], overall: Row) -> list[float | None]:
    """Share of the mean difference that each bucket brings: n_b d_b / (n d).

    The shares sum to 1; one is negative where a bucket pulls against the whole. None where the whole
    difference is 0.
    """
    total = overall["n"] * overall["difference"]
    if abs(total) < 1e-12:
        return [None] * len(table)
    return [entry["n"] * entry["difference"] / total + 0.0 if entry["n"] else 0.0 for entry in table.values()]


def compare_line(
    rows: Sequence[Row], confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """One line of a comparison: means, their difference with its interval, and the test over patients."""
    if not rows:
        empty = ("first", "second", "difference", "low", "high", "p")
        return {"n": 0, "patients": 0, **dict.fromkeys(empty)}
    differences = [row["difference"] for row in rows]
    patients = [patient_name(row) for row in rows]
    interval = mean_interval(differences, patients, confidence=confidence, resamples=resamples, seed=seed)
    return {
        "n": len(rows),
        "patients": interval["clusters"],
        "first": _mean(row["first"] for row in rows),
        "second": _mean(row["second"] for row in rows),
        "difference": interval["value"],
        "low": interval["low"],
        "high": interval["high"],
        "p": signed_rank(differences, patients),
    }


def signed_rank(differences: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Two-sided Wilcoxon signed-rank p-value over the clusters' mean differences.

    Clusters without any difference count by Pratt's method. Exact up to `EXACT_CLUSTERS` that differ, from all flips of
    their signs: where two models agree on most patients, the normal approximation calls 4 of 20 that differ a finding.
    None with fewer than two clusters; 1 where no cluster differs.
    """
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    means = np.bincount(index, weights=differences) / np.bincount(index)
    if len(names) < 2:
        return None
    largest = np.abs(means).max()
    if largest == 0:
        return 1.0
    means = np.round(means / largest, 12)  # what is equal, or 0, up to the rounding of sums is so for the ranks
    differ = means != 0
    if np.count_nonzero(differ) > EXACT_CLUSTERS:
        return float(wilcoxon(means, zero_method="pratt").pvalue)
    return _sign_flips(rankdata(np.abs(means))[differ], means[differ] > 0)


def _sign_flips(ranks: np.ndarray, positive: np.ndarray) -> float:
    """Share of the flips of signs whose sum of positive ranks lies as far out as the one found, in either direction.

    Args:
        ranks: (n,), ties share their mean rank.
        positive: boolean, (n,).
    """
    steps = np.round(2 * ranks).astype(np.int64)  # whole numbers, since a mean rank may end in a half
    chance = np.zeros(int(steps.sum()) + 1)
    chance[0] = 1.0
    for step in steps:
        moved = np.zeros_like(chance)
        moved[step:] = chance[:-step]
        chance = (chance + moved) / 2
    found = int(steps[positive].sum())
    return float(min(1.0, 2 * min(chance[: found + 1].sum(), chance[found:].sum())))


def add_holm(table: Mapping[str, dict[str, Any]]) -> None:
    """Set `p_holm` of each line, corrected over the lines of the table that have a test."""
    tested = [entry for entry in table.values() if entry["p"] is not None]
    for entry in table.values():
        entry["p_holm"] = None
    for entry, p in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = p


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
