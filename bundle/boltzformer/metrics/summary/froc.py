"""FROC: sensitivity against false positives per scan, as the least score of a predicted lesion varies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.metrics.froc import compute_froc_curve_data
from scipy.stats import mannwhitneyu

from boltzformer.metrics.measures.lesions import FALSE_POSITIVE, MATCHED, MISSED

FALSE_POSITIVES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def froc(
    rows: Iterable[Mapping[str, Any]],
    scans: int,
    at: Sequence[float] = FALSE_POSITIVES_PER_SCAN,
) -> dict[str, Any]:
    """FROC curve of lesion rows that carry a score.

    The matching is done once, on all predicted lesions; a threshold then drops those with a lower score. The
    sensitivity at x false positives per scan is the best one that any threshold reaches with at most x: a
    step, with no interpolation between operating points, 0 where none is that clean.

    Args:
        rows: rows of `lesion_rows`, all with a score on predicted lesions.
        scans: number of scans, at least 1.
        at: false positives per scan to read the sensitivity at; their mean is the FROC score.

    Returns:
        `{"false_positives_per_scan", "sensitivity", "at", "score"}`: the curve from the strictest threshold
        (none
        left: 0, 0) to the laxest (all), the values at `at`, and their mean. None in each where the label
        has no lesion; `{}` where a predicted lesion has no score.
    """
    rows = list(rows)
    predicted = [row for row in rows if row["kind"] != MISSED]
    if any(row["score"] is None for row in predicted):
        return {}
    lesions = sum(row["kind"] != FALSE_POSITIVE for row in rows)
    if lesions == 0 or scans < 1:
        return {"false_positives_per_scan": None, "sensitivity": None, "at": None, "score": None}
    true = np.array([row["score"] for row in predicted if row["kind"] == MATCHED], dtype=np.float64)
    false = np.array([row["score"] for row in predicted if row["kind"] == FALSE_POSITIVE], dtype=np.float64)
    # MONAI leaves out the lowest score as a threshold; a hit with score -1, which no threshold keeps, is that
    # lowest.
    per_scan, sensitivity = compute_froc_curve_data(false, np.append(true, -1.0), lesions, scans)
    per_scan, sensitivity = per_scan[::-1], sensitivity[::-1]
    reached = {}
    for limit in at:
        reached[f"{limit:g}"] = float(sensitivity[per_scan <= limit].max(initial=0.0))
    return {
        "false_positives_per_scan": per_scan.tolist(),
        "sensitivity": sensitivity.tolist(),
        "at": reached,
        "score": float(np.mean(list(reached.values()))),
    }


def auroc(scores: Sequence[float], is_true: Sequence[bool]) -> float | None:
    """Probability that a true one scores above a false one, ties counting half (Mann-Whitney U / (n1 n0)).

    None where either kind is absent.
    """
    truth = np.asarray(is_true, dtype=bool)
    positive, negative = int(truth.sum()), int((~truth).sum())
    if positive == 0 or negative == 0:
        return None
    values = np.asarray(scores, dtype=np.float64)
    return float(mannwhitneyu(values[truth], values[~truth], method="asymptotic").statistic / (positive * negative))


def lesion_auroc(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the score of predicted lesions ranks true ones above false positives.

    Returns:
        `{"true", "false", "auroc"}`; auroc is None where there are no scores, or only one kind.
    """
    predicted = [row for row in rows if row["kind"] != MISSED and row["score"] is not None]
    truth = [row["kind"] == MATCHED for row in predicted]
    return {
        "true": sum(truth),
        "false": len(truth) - sum(truth),
        "auroc": auroc([row["score"] for row in predicted], truth),
    }
