"""The one list of measures. Summary, intervals, comparison, CSV, terminal and page read it: a new metric is one entry.

An entry's `name` is its place in `summary.json`, its `key` that of its interval, its `column` that in the CSV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from boltzformer.metrics.measures.lesions import FALSE_POSITIVE, MATCHED, MISSED, PANOPTIC_IOU, SCAN
from boltzformer.metrics.measures.measure import Measure, Part, mean_of, share_where
from boltzformer.metrics.measures.rows import Row
from boltzformer.metrics.measures.size_buckets import MISSED_BELOW_DICE
from boltzformer.metrics.measures.slices import SliceCounts, SliceRule
from boltzformer.metrics.measures.volumes import VolumeMasks

TOLERANCES_MM = (1.0, 2.0, 3.0)
EXISTENCE_THRESHOLD = 0.5


@dataclass(frozen=True)
class Catalogue:
    """The measures of slices, volumes and lesions under given settings.

    Args:
        tolerances_mm: of the surface Dice.
        missed_below: an object counts as missed where its Dice is below this.
        existence_threshold: gating empties a slice whose existence score is below this.
    """

    tolerances_mm: tuple[float, ...] = TOLERANCES_MM
    missed_below: float = MISSED_BELOW_DICE
    existence_threshold: float = EXISTENCE_THRESHOLD
    slices: tuple[Measure, ...] = field(init=False, repr=False)
    volumes: tuple[Measure, ...] = field(init=False, repr=False)
    lesions: tuple[Measure, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.tolerances_mm or not all(math.isfinite(t) and t > 0 for t in self.tolerances_mm):
            raise ValueError(f"tolerances must be positive numbers in mm, got {list(self.tolerances_mm)}")
        if not 0 <= self.existence_threshold <= 1:
            raise ValueError(f"existence_threshold must lie in [0, 1], got {self.existence_threshold}")
        object.__setattr__(self, "slices", slice_measures(self.missed_below, self.existence_threshold))
        object.__setattr__(self, "volumes", volume_measures(self.tolerances_mm, self.missed_below))
        object.__setattr__(self, "lesions", lesion_measures())

    @property
    def slice_rule(self) -> SliceRule:
        """For the producer of slice rows, with the usual buckets."""
        return SliceRule(self.slices)


def slice_measures(missed_below: float, threshold: float) -> tuple[Measure, ...]:
    """Measures of one (slice, prompt); facts are `SliceCounts`."""
    missed = share_where("dice", lambda dice: dice < missed_below)
    below = f"slices with Dice below {missed_below:g}"
    return (
        Measure("n", "n", total=partial(_count, "dice"), style="count", better="neither"),
        Measure(
            "mean_dice", "mean Dice", "dice", _slice_dice, mean_of("dice"), key="slice_dice",
            headline="Dice per slice, object present",
        ),
        Measure("median_dice", "median Dice", total=partial(_median, "dice")),
        Measure(
            "missed", "missed slices", "missed", lambda c: _missed(c, missed_below), compared=False, in_tables=False,
            total=partial(_how_many, missed), style="count", better="lower",
        ),
        Measure(
            "missed_share", "missed", part=missed, key="missed_share", style="percent", better="lower",
            headline=f"missed objects, {below}",
        ),
        Measure(
            "gated.mean_dice", "mean Dice, gated", part=partial(_gated_dice, threshold), key="slice_dice_gated",
            headline=f"Dice per slice, emptied where existence is below {threshold:g}",
        ),
        Measure(
            "gated.missed_share", "missed, gated", key="missed_share_gated", style="percent", better="lower",
            part=lambda row: _gated_missed(threshold, missed_below, row), in_tables=False,
        ),
        Measure(
            "negatives.n", "n without the object", total=partial(_count, "false_positive_percent"), style="count",
            better="neither", in_tables=False,
        ),
        Measure(
            "negatives.with_false_positives", "not left empty", style="count", better="lower", in_tables=False,
            total=lambda rows: sum(1 for row in rows if (row.get("false_positive_percent") or 0) > 0),
        ),
        Measure(
            "negatives.specificity", "left empty", part=share_where("false_positive_percent", lambda area: area == 0),
            key="slice_specificity", style="percent", in_tables=False,
            headline="slices without the object left empty",
        ),
        Measure(
            "negatives.specificity_gated", "left empty, gated", part=partial(_gated_empty, threshold),
            key="slice_specificity_gated", style="percent", in_tables=False,
            headline=f"slices without the object left empty, with existence of at least {threshold:g}",
        ),
        Measure(
            "negatives.pixel_specificity", "pixels left empty", "pixel_specificity",
            lambda c: None if c.present else 1 - c.predicted / c.pixels, mean_of("pixel_specificity"), in_tables=False,
        ),
        Measure(
            "negatives.mean_false_positive_percent", "false-positive area", "false_positive_percent",
            lambda c: None if c.present else 100 * c.predicted / c.pixels, mean_of("false_positive_percent"),
            style="brief", unit="% of the slice", better="lower", in_tables=False,
        ),
        Measure(
            "negatives.mean_false_positive_mm2", "false-positive area", "false_positive_mm2", _false_mm2,
            mean_of("false_positive_mm2"), style="brief", unit="mm²", better="lower", in_tables=False,
        ),
    )  # fmt: skip


def volume_measures(tolerances_mm: Sequence[float], missed_below: float) -> tuple[Measure, ...]:
    """Measures of one object in one volume; facts are `VolumeMasks`."""
    missed = share_where("dice", lambda dice: dice < missed_below)
    surfaces = [
        Measure(
            surface_column(t), f"surface Dice at {t:g} mm", surface_column(t), _surface_dice(t),
            mean_of(surface_column(t)), key=f"volume_{surface_column(t)}", headline=f"surface Dice at {t:g} mm",
        )
        for t in tolerances_mm
    ]  # fmt: skip
    return (
        Measure("n", "n", total=partial(_count, "dice"), style="count", better="neither"),
        Measure(
            "mean_dice", "Dice", "dice", lambda v: v.dice, mean_of("dice"), key="volume_dice",
            headline="Dice per volume",
        ),
        Measure("median_dice", "median Dice", total=partial(_median, "dice"), in_tables=False),
        Measure(
            "missed", "missed volumes", style="count", better="lower", in_tables=False,
            total=partial(_how_many, missed),
        ),
        Measure("missed_share", "missed", part=missed, style="percent", better="lower", in_tables=False),
        *surfaces,
        Measure(
            "hd95_mm.n", "n with HD95", total=partial(_count, "hd95_mm"), style="count", better="neither",
            in_tables=False,
        ),
        Measure(
            "hd95_mm.mean", "HD95 mean, mm", "hd95_mm", lambda v: v.hd95_mm, mean_of("hd95_mm"), key="hd95_mm",
            style="mm", unit="mm", better="lower", headline="HD95 in mm, where something was predicted",
        ),
        Measure("hd95_mm.median", "HD95 median, mm", total=_hd95_median, style="mm", unit="mm", better="lower"),
        Measure(
            "hd95_mm.undefined", "nothing predicted", style="count", better="lower",
            total=lambda rows: sum(row["dice"] is not None and row["predicted_mm3"] == 0 for row in rows),
        ),
        Measure(
            "wrong_side_share", "wrong side", "wrong_side_percent", lambda v: v.wrong_side_percent, _wrong_side,
            key="wrong_side_share", style="percent", unit="%", better="lower", compared=False,
            headline="predicted voxels of lateral organs on the wrong side",
        ),
        Measure(
            "negatives.n", "n without the object", total=lambda rows: sum(not row["positive"] for row in rows),
            style="count", better="neither", in_tables=False,
        ),
        Measure(
            "negatives.with_false_positives", "not left empty", style="count", better="lower", in_tables=False,
            total=lambda rows: sum(not row["positive"] and row["predicted_mm3"] != 0 for row in rows),
        ),
        Measure(
            "negatives.specificity", "left empty", style="percent", in_tables=False,
            part=lambda row: None if row["positive"] else (float(row["predicted_mm3"] == 0), 1.0),
        ),
        Measure(
            "negatives.mean_false_positive_mm3", "false-positive volume", "false_positive_mm3",
            _false_mm3, mean_of("false_positive_mm3"), style="brief", unit="mm³", better="lower", in_tables=False,
            compared=False,
        ),
    )  # fmt: skip


def lesion_measures() -> tuple[Measure, ...]:
    """Measures of lesion rows, with one row of kind `SCAN` for each searched pair of volume and object."""
    return (
        Measure("lesions", "lesions", total=_kinds(MATCHED, MISSED), style="count", better="neither"),
        Measure("true_positives", "found", total=_kinds(MATCHED), style="count", in_tables=False),
        Measure("missed", "missed", total=_kinds(MISSED), style="count", better="lower", in_tables=False),
        Measure(
            "false_positives", "false positives", total=_kinds(FALSE_POSITIVE), style="count", better="lower",
            in_tables=False,
        ),
        Measure("scans", "scans", total=_kinds(SCAN), style="count", better="neither", in_tables=False),
        Measure(
            "sensitivity", "sensitivity", part=_by_kind({MATCHED: (1, 1), MISSED: (0, 1)}), key="lesion_sensitivity",
            headline="lesion sensitivity",
        ),
        Measure(
            "precision", "precision", part=_by_kind({MATCHED: (1, 1), FALSE_POSITIVE: (0, 1)}),
            key="lesion_precision", headline="lesion precision",
        ),
        Measure(
            "f1", "F1", part=_by_kind({MATCHED: (2, 2), MISSED: (0, 1), FALSE_POSITIVE: (0, 1)}), key="lesion_f1",
            headline="lesion F1",
        ),
        Measure(
            "false_positives_per_scan", "false positives / scan", part=_by_kind({FALSE_POSITIVE: (1, 0), SCAN: (0, 1)}),
            key="false_positives_per_scan", style="brief", better="lower",
            headline="false-positive lesions per scan and object",
        ),
        Measure("segmentation_quality", "SQ", part=_segmentation_quality, in_tables=False),
        Measure("recognition_quality", "RQ", part=partial(_panoptic, False), in_tables=False),
        Measure("panoptic_quality", "PQ", part=partial(_panoptic, True)),
    )  # fmt: skip


def surface_column(tolerance_mm: float) -> str:
    """Name of the column of a tolerance, such as `surface_dice_2mm`."""
    return f"surface_dice_{tolerance_mm:g}mm"


def _slice_dice(counts: SliceCounts) -> float | None:
    return 2 * counts.overlap / (counts.label + counts.predicted) if counts.present else None


def _missed(counts: SliceCounts, below: float) -> int | None:
    dice = _slice_dice(counts)
    return None if dice is None else int(dice < below)


def _false_mm2(counts: SliceCounts) -> float | None:
    return None if counts.present or counts.pixel_mm2 is None else counts.predicted * counts.pixel_mm2


def _false_mm3(masks: VolumeMasks) -> float | None:
    # not even 0 where the voxel size is not known: a mean in mm³ over such volumes would be one over the empty alone
    return None if masks.positive or masks.spacing is None else masks.predicted_mm3


def _gated_dice(threshold: float, row: Row) -> tuple[float, float] | None:
    """Dice of a slice that is emptied where its existence score is below the threshold."""
    if row.get("dice") is None or row.get("existence") is None:
        return None
    return (row["dice"] if row["existence"] >= threshold else 0.0), 1.0


def _gated_missed(threshold: float, missed_below: float, row: Row) -> tuple[float, float] | None:
    gated = _gated_dice(threshold, row)
    return None if gated is None else (float(gated[0] < missed_below), 1.0)


def _gated_empty(threshold: float, row: Row) -> tuple[float, float] | None:
    if row.get("false_positive_percent") is None or row.get("existence") is None:
        return None
    return float(row["false_positive_percent"] == 0 or row["existence"] < threshold), 1.0


def _surface_dice(tolerance_mm: float) -> Callable[[VolumeMasks], float | None]:
    return lambda masks: masks.surface_dice(tolerance_mm)


def _hd95_median(rows: Sequence[Row]) -> float | None:
    """Median distance; a positive volume without prediction is infinitely far, so missing never improves it.

    Volumes whose voxel size is not known have no distance and no part in it.
    """
    measured = [row for row in rows if row["dice"] is not None and row["label_mm3"] is not None]
    distances = [math.inf if row["hd95_mm"] is None else row["hd95_mm"] for row in measured]
    median = float(np.median(distances)) if distances else math.inf
    return median if math.isfinite(median) else None


def _wrong_side(row: Row) -> tuple[float, float] | None:
    """Share of all predicted voxels, so that one stray voxel of a nearly empty mask does not count as a whole."""
    share, size = row.get("wrong_side_percent"), row["predicted_mm3"]
    return None if share is None or size is None else (share / 100 * size, size)


def _by_kind(parts: dict[str, tuple[float, float]]) -> Callable[[Row], tuple[float, float] | None]:
    return lambda row: parts.get(row["kind"])


def _panoptic(with_iou: bool, row: Row) -> tuple[float, float] | None:
    """Matches above IoU 1/2 over TP + FP / 2 + FN / 2, which is half of all components under any matching rule."""
    if row["kind"] == SCAN:
        return None
    sure = row["kind"] == MATCHED and row["iou"] > PANOPTIC_IOU
    top = (row["iou"] if with_iou else 1.0) if sure else 0.0
    return top, 1.0 if row["kind"] == MATCHED else 0.5


def _segmentation_quality(row: Row) -> tuple[float, float] | None:
    return (row["iou"], 1.0) if row["kind"] == MATCHED and row["iou"] > PANOPTIC_IOU else None


def _kinds(*kinds: str) -> Callable[[Sequence[Row]], int]:
    return lambda rows: sum(row["kind"] in kinds for row in rows)


def _count(column: str, rows: Sequence[Row]) -> int:
    return sum(row.get(column) is not None for row in rows)


def _median(column: str, rows: Sequence[Row]) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return float(np.median(values)) if values else None


def _how_many(share: Part, rows: Sequence[Row]) -> int:
    """Rows that a share counts."""
    return round(sum(part[0] for part in map(share, rows) if part is not None))
