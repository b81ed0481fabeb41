"""A score for "the object is in this slice": does it rank, can it be trusted, and what does gating by it cost?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from boltzformer.metrics.measures.rows import VOLUME_KEY, Row, key_of
from boltzformer.metrics.summary.calibration import RELIABILITY_BINS
from boltzformer.metrics.summary.froc import auroc


def describe_existence(rows: Iterable[Row]) -> dict[str, Any] | None:
    """AUROC and calibration of the existence scores of slices.

    Returns:
        `n` scored slices, `positive` of them with the object, `auroc` (None with one kind only), `ece`
        (`calibration_error`) and `brier`; None where no slice has a score.
    """
    scored = [row for row in rows if row.get("existence") is not None]
    if not scored:
        return None
    scores = np.array([row["existence"] for row in scored], dtype=np.float64)
    present = np.array([row["dice"] is not None for row in scored])
    return {
        "n": len(scored),
        "positive": int(present.sum()),
        "auroc": auroc(scores.tolist(), present.tolist()),
        "ece": calibration_error(scores, present),
        "brier": float(((scores - present) ** 2).mean()),
    }


def calibration_error(probability: np.ndarray, truth: np.ndarray, bins: int = RELIABILITY_BINS) -> float:
    """Expected calibration error: sum over bins of equal width of n_b / n |mean probability - share of true|.

    Args:
        probability: in [0, 1], (n,), n > 0.
        truth: boolean, (n,).
        bins: of [0, 1]; a probability of 1 falls into the last.
    """
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    confidence = np.bincount(index, weights=probability, minlength=bins)
    positives = np.bincount(index, weights=truth.astype(np.float64), minlength=bins)
    return float(np.abs(confidence - positives).sum() / len(probability))


def volume_dice(rows: Sequence[Row], threshold: float) -> dict[str, Any]:
    """Mean over volumes that hold the object of Dice from pooled slices: what slices without the object cost.

    Args:
        rows: slice rows with pixel counts; all slices of a volume, for numbers that mean the volume.
        threshold: of the existence score.

    Returns:
        `n` volumes; `positive_slices`: over the slices that hold the object; `all_slices`: over all that were
        evaluated; `gated`: over all, a slice below the threshold emptied (None where a slice has no score).
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.get("label_pixels") is not None:
            groups.setdefault(key_of(row, VOLUME_KEY), []).append(row)
    volumes = [part for part in groups.values() if any(row["label_pixels"] for row in part)]
    scored = bool(volumes) and all(row.get("existence") is not None for part in volumes for row in part)
    return {
        "n": len(volumes),
        "positive_slices": _mean([_pooled([row for row in part if row["label_pixels"]]) for part in volumes]),
        "all_slices": _mean([_pooled(part) for part in volumes]),
        "gated": _mean([_pooled(part, threshold) for part in volumes]) if scored else None,
    }


def _pooled(rows: Sequence[Row], threshold: float | None = None) -> float:
    kept = [row for row in rows if threshold is None or row["existence"] >= threshold]
    predicted, overlap = (sum(row[f"{what}_pixels"] for row in kept) for what in ("predicted", "overlap"))
    return 2 * overlap / (sum(row["label_pixels"] for row in rows) + predicted)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
