"""One case: a label map and the predicted masks of its objects -> rows per slice, per volume and per lesion.

Files are read through a reader that the caller gives (``boltzformer.volumes.checks.read_volume`` in the
scripts), which raises one clear error for what cannot be read. What is wrong with one object or one case
becomes a line in the list of failures, and the rest goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer.errors import InputError
from boltzformer.metrics.calibration import Calibration
from boltzformer.metrics.grids import Reader, Volume, check_grid, to_ras, whole_values
from boltzformer.metrics.lesions import LesionRule, lesion_rows
from boltzformer.metrics.prediction_files import Prediction, PredictionFolder, strip_extension
from boltzformer.metrics.size_buckets import MISSED_BELOW_DICE
from boltzformer.metrics.surfaces import bounding_box
from boltzformer.metrics.volume_metrics import TOLERANCES_MM, volume_row

CALIBRATION_MARGIN_MM = 10.0


@dataclass(frozen=True)
class LabelledCase:
    """A label map and what it means.

    Attributes:
        label: file of the label map.
        objects: label value to object name.
        dataset, patient: for the tables and for clustering.
        image: file of the image, for pictures; None where there is none.
        annotated: values that are annotated in this case even where absent: such an object, absent from the
            label, is a negative. Any other absent object may merely not be drawn, and is left out.
    """

    label: Path
    objects: Mapping[int, str]
    dataset: str
    patient: str
    image: Path | None = None
    annotated: frozenset[int] = frozenset()

    @classmethod
    def from_dict(cls, case: Mapping[str, Any]) -> LabelledCase:
        """From a case of a datalist: ``label``, ``objects``, ``dataset``, ``patient``, and where known ``image``,
        ``annotated``.
        """
        return cls(
            label=Path(case["label"]),
            objects=dict(case["objects"]),
            dataset=str(case["dataset"]),
            patient=str(case["patient"]),
            image=Path(case["image"]) if case.get("image") else None,
            annotated=frozenset(case.get("annotated", ())),
        )

    @property
    def name(self) -> str:
        """The label file's name without extension."""
        return strip_extension(self.label.name) or self.label.stem

    @property
    def names(self) -> tuple[str, ...]:
        """What predictions of this case may be called: after the label file, or after the image file."""
        if self.image is None:
            return (self.name,)
        return tuple(dict.fromkeys((self.name, strip_extension(self.image.name) or self.image.stem)))


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and by which rules.

    Attributes:
        tolerances_mm: of the surface Dice.
        lesions: how lesions are found and matched.
        axis: slices are taken along this axis of the volume in RAS orientation (2: axial).
        absent_is_negative: count every object that a label map does not hold as a negative, not only
            annotated ones.
        missed_below: an object counts as missed where its Dice is below this.
    """

    tolerances_mm: tuple[float, ...] = TOLERANCES_MM
    lesions: LesionRule = field(default_factory=LesionRule)
    axis: int = 2
    absent_is_negative: bool = False
    missed_below: float = MISSED_BELOW_DICE

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"axis must be 0, 1 or 2, got {self.axis}")
        if not self.tolerances_mm or not all(math.isfinite(t) and t > 0 for t in self.tolerances_mm):
            raise ValueError(f"tolerances must be positive numbers in mm, got {list(self.tolerances_mm)}")


@dataclass
class CaseResult:
    """Rows of one case, and what went wrong in it."""

    case: str
    slices: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    lesions: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)


def evaluate_case(
    case: LabelledCase, predictions: PredictionFolder, settings: EvaluationSettings, read: Reader
) -> CaseResult:
    """Score every object of a case; errors become failures of the result, never exceptions for bad files."""
    result = CaseResult(case.name)
    try:
        label = read_label(case, read)
    except InputError as error:
        result.failures.append({"case": case.name, "object": "", "error": str(error)})
        return result
    loaded: dict[Path, Volume] = {}
    for value, name in sorted(case.objects.items()):
        truth = label.array == value
        if not truth.any() and not (settings.absent_is_negative or value in case.annotated):
            result.left_out.append(name)
            continue
        try:
            prediction = predictions.find(case.names, name, value)
            pred = read_prediction(prediction, case, label, read, loaded)
            probability = _read_probability(prediction, case, label, read)
            _score(result, case, name, pred, truth, label.spacing, settings, probability)
        except InputError as error:
            result.failures.append({"case": case.name, "object": name, "error": str(error)})
    return result


def read_label(case: LabelledCase, read: Reader) -> Volume:
    """The label map in RAS orientation.

    Raises:
        InputError: where it cannot be read, or has values that are no whole numbers or have no name.
    """
    label = to_ras(*read(case.label))
    values = whole_values(label.array, case.label)
    unknown = sorted(set(values) - set(case.objects) - {0})
    if unknown:
        raise InputError(
            f"{case.label}: label values {unknown} have no name; known are {sorted(case.objects)}. Add them to the "
            "dataset's `labels`, or correct the label map"
        )
    return label


def read_prediction(
    prediction: Prediction,
    case: LabelledCase,
    label: Volume,
    read: Reader,
    loaded: dict[Path, Volume] | None = None,
) -> np.ndarray:
    """Boolean predicted mask on the label's grid, in RAS orientation.

    ``loaded`` keeps the last label map, so that its objects share one reading.

    Raises:
        InputError: where it cannot be read, lies on another grid, or has values that it should not have.
    """
    loaded = {} if loaded is None else loaded
    if prediction.path not in loaded:
        loaded.clear()
        volume = to_ras(*read(prediction.path))
        check_grid(volume, prediction.path, label, case.label)
        values = whole_values(volume.array, prediction.path)
        known = {0, 1} if prediction.value is None else {0, *case.objects}
        unknown = sorted(set(values) - known)
        if unknown and prediction.value is None:
            raise InputError(
                f"{prediction.path}: a binary mask has the values 0 and 1, but this has {unknown[:8]}: threshold it, "
                f"or name it {case.name}.nii.gz if it is a label map"
            )
        if unknown:
            raise InputError(f"{prediction.path}: values {unknown[:8]} stand for no object of the label map")
        loaded[prediction.path] = volume
    array = loaded[prediction.path].array
    return array != 0 if prediction.value is None else array == prediction.value


def slice_rows(pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], axis: int = 2) -> list[dict[str, Any]]:
    """One row for every slice along ``axis``: Dice where the object is, false-positive area where it is not."""
    others = tuple(a for a in range(3) if a != axis)
    in_label, in_pred = label.sum(axis=others), pred.sum(axis=others)
    in_both = (label & pred).sum(axis=others)
    pixels = math.prod(label.shape[a] for a in others)
    pixel_mm2 = math.prod(float(spacing[a]) for a in others)
    rows = []
    counts = np.stack([in_label, in_pred, in_both], axis=1).tolist()
    for index, (t, p, both) in enumerate(counts):
        present = t > 0
        rows.append(
            {
                "slice": index,
                "dice": 2 * both / (t + p) if present else None,
                "area_percent": 100 * t / pixels if present else None,
                "diameter_mm": 2 * math.sqrt(t * pixel_mm2 / math.pi) if present else None,
                "false_positive_percent": None if present else 100 * p / pixels,
                "false_positive_mm2": None if present else p * pixel_mm2,
                "pixel_specificity": None if present else 1 - p / pixels,
            }
        )
    return rows


def _score(
    result: CaseResult,
    case: LabelledCase,
    name: str,
    pred: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    settings: EvaluationSettings,
    probability: np.ndarray | None,
) -> None:
    where = {"dataset": case.dataset, "case": case.name, "patient": case.patient, "object": name}
    for row in slice_rows(pred, truth, spacing, settings.axis):
        result.slices.append({**where, "text": name, **row})
    result.volumes.append({**where, **volume_row(pred, truth, spacing, settings.tolerances_mm)})
    for row in lesion_rows(pred, truth, spacing, settings.lesions, probability):
        result.lesions.append({**where, **row})
    box = bounding_box(pred, truth)
    if probability is not None and box is not None:
        box = _grow(box, spacing, pred.shape)
        collected = result.calibration.setdefault(f"{case.dataset} / {name}", Calibration())
        collected.add(probability[box], truth[box], case.patient)


def _read_probability(prediction: Prediction, case: LabelledCase, label: Volume, read: Reader) -> np.ndarray | None:
    if prediction.probability is None:
        return None
    volume = to_ras(*read(prediction.probability))
    check_grid(volume, prediction.probability, label, case.label)
    low, high = float(volume.array.min()), float(volume.array.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{prediction.probability}: probabilities must lie in [0, 1], found {low:g} to {high:g}")
    return volume.array


def _grow(box: Sequence[slice], spacing: Sequence[float], shape: Sequence[int]) -> tuple[slice, ...]:
    margins = [math.ceil(CALIBRATION_MARGIN_MM / s) for s in spacing]
    return tuple(
        slice(max(part.start - margin, 0), min(part.stop + margin, n))
        for part, margin, n in zip(box, margins, shape, strict=True)
    )
