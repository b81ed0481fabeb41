"""The numbers of the paper's tables from rows of (slice, prompt): mean within a dataset, plain mean over datasets.

Each dataset counts alike, however many slices it has (section 4 and table 1 of the paper). Small and large objects
(table 2) follow the same rule over the datasets that have some. Intervals draw patients anew within each dataset, since
the slices of a patient are not independent; seeds are averaged before, and their spread is given apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from boltzformer.metrics.measures.rows import Row, key_of
from boltzformer.metrics.measures.size_buckets import MISSED_BELOW_DICE, SMALL_BELOW_PERCENT

GROUPS = ("mean", "small", "large", "missed")


def table_values(
    runs: Sequence[Sequence[Row]], resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The cells of one row of a table.

    Args:
        runs: rows of `slices.csv` for each seed: `dataset`, `case`, `patient`, `object`, `slice`, `text`, `dice` (empty
            on a slice without the object, which does not count here) and `area_percent`.
        resamples: bootstrap draws.
        confidence: coverage of the interval.
        seed: of the draws.

    Returns:
        an entry for each dataset, and for `mean`, `small` (objects below 1 % of the slice), `large` (the others) and
        `missed` (share of slices with Dice below 0.01), each over datasets: `value` in [0, 1], `low` and `high` (None
        where a dataset has a single patient), `sd` over seeds (None for one seed), `n` slices, `patients`, `datasets`.
        Cells without any slice are left out.
    """
    datasets = sorted({str(row["dataset"]) for rows in runs for row in rows})
    cells: dict[str, dict[str, Any]] = {}
    for name in [*datasets, *GROUPS]:
        used = [name] if name in datasets else datasets
        keep, measure = _rule(name)
        chosen = [[row for row in rows if _positive(row) and row["dataset"] in used and keep(row)] for rows in runs]
        if any(chosen):
            cells[name] = _cell(chosen, measure, resamples, confidence, seed)
    return cells


def difference_values(
    first: Sequence[Sequence[Row]],
    second: Sequence[Sequence[Row]],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """By how much Dice of one row of a table is above another's on the same slices.

    Args:
        first: rows for each seed, as `table_values` takes them.
        second: the same; seeds that only one of the two has are left out.
        resamples: bootstrap draws.
        confidence: coverage of the interval.
        seed: of the draws.

    Returns:
        cells as those of `table_values` of first minus second: for `mean` and, where there are any, `small` and
        `large`; nothing where the two share no slice.
    """
    paired = []
    for ours, theirs in zip(first, second, strict=False):
        known = {key_of(row): _dice(row) for row in theirs if _positive(row)}
        shared = [row for row in ours if _positive(row) and key_of(row) in known]
        paired.append([{**row, "gain": _dice(row) - known[key_of(row)]} for row in shared])
    cells: dict[str, dict[str, Any]] = {}
    for name in ("mean", "small", "large"):
        chosen = [[row for row in rows if _rule(name)[0](row)] for rows in paired]
        if any(chosen):
            cells[name] = _cell(chosen, lambda row: float(row["gain"]), resamples, confidence, seed)
    return cells


def count_slices(runs: Sequence[Sequence[Row]]) -> int:
    """How many (slice, prompt) pairs of `table_values` count, each once whatever the number of seeds."""
    return len({key_of(row) for rows in runs for row in rows if _positive(row)})


def found_nothing(runs: Sequence[Sequence[Row]]) -> bool:
    """Whether every object was missed: a network that has not begun to learn, and to be above it shows nothing.

    Args:
        runs: rows for each seed, as `table_values` takes them.
    """
    positive = [row for rows in runs for row in rows if _positive(row)]
    return bool(positive) and all(_dice(row) < MISSED_BELOW_DICE for row in positive)


def _rule(name: str) -> tuple[Callable[[Row], bool], Callable[[Row], float]]:
    if name == "small":
        return lambda row: float(row["area_percent"]) < SMALL_BELOW_PERCENT, _dice
    if name == "large":
        return lambda row: float(row["area_percent"]) >= SMALL_BELOW_PERCENT, _dice
    if name == "missed":
        return lambda row: True, lambda row: float(_dice(row) < MISSED_BELOW_DICE)
    return lambda row: True, _dice


def _cell(
    runs: Sequence[Sequence[Row]], measure: Callable[[Row], float], resamples: int, confidence: float, seed: int
) -> dict[str, Any]:
    pooled: dict[str, dict[str, dict[tuple[str, ...], list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for rows in runs:
        for row in rows:
            pooled[row["dataset"]][str(row["patient"])].setdefault(key_of(row), []).append(measure(row))
    draw = np.random.default_rng(seed)
    means, draws, n, patients = [], [], 0, 0
    for dataset in sorted(pooled):
        sums = [(math.fsum(np.mean(v) for v in p.values()), len(p)) for _, p in sorted(pooled[dataset].items())]
        top, bottom = np.array(sums, dtype=np.float64).T
        means.append(float(top.sum() / bottom.sum()))
        weights = draw.multinomial(len(top), np.full(len(top), 1 / len(top)), size=resamples)
        draws.append(weights @ top / (weights @ bottom))
        n, patients = n + int(bottom.sum()), patients + len(top)
    certain = min(len(pooled[dataset]) for dataset in pooled) > 1
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.mean(draws, axis=0), [tail, 100 - tail]) if certain else (None, None)
    each = [_one_seed(rows, measure) for rows in runs if rows]
    return {
        "value": math.fsum(means) / len(means),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "seeds": each,
        "n": n,
        "patients": patients,
        "datasets": len(means),
    }


def _one_seed(rows: Sequence[Row], measure: Callable[[Row], float]) -> float:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        values[row["dataset"]].append(measure(row))
    return float(np.mean([np.mean(v) for v in values.values()]))


def _positive(row: Row) -> bool:
    value = row.get("dice")
    return value is not None and value != "" and not math.isnan(float(value))


def _dice(row: Row) -> float:
    return float(row["dice"])
