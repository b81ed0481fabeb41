"""One case: a label map and the predicted masks of its objects -> rows per slice, per volume and per lesion.

Files are read through a reader that the caller gives (`boltzformer.volumes.checks.read_volume` in the
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
from boltzformer.metrics.grids import Reader, Volume, check_grid, to_ras, whole_values
from boltzformer.metrics.measures.calibration import Calibration
from boltzformer.metrics.measures.catalogue import EXISTENCE_THRESHOLD, TOLERANCES_MM, Catalogue
from boltzformer.metrics.measures.lesions import LesionRule, lesion_rows
from boltzformer.metrics.measures.prediction_files import Prediction, PredictionFolder, lookup_key
from boltzformer.metrics.measures.rows import LesionRow, Place, SliceRow, VolumeRow, object_name
from boltzformer.metrics.measures.size_buckets import MISSED_BELOW_DICE
from boltzformer.metrics.measures.slices import count_volume, slice_row
from boltzformer.metrics.measures.surfaces import bounding_box
from boltzformer.metrics.measures.volumes import VolumeMasks, other_side_of, volume_row
from boltzformer.volumes.names import case_name
from boltzformer.volumes.spacing import has_spacing

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
        spacing_known: whether the voxel size in the files means something; else nothing is measured in mm.
        name: for the rows; the image file's name without extension by default, or the label's without an image.
        others: names of the other cases. A prediction of that name is theirs, also where this one's label file is
            called so: several sequences may share a label map that is named after one of them.
    """

    label: Path
    objects: Mapping[int, str]
    dataset: str
    patient: str
    image: Path | None = None
    annotated: frozenset[int] = frozenset()
    name: str = ""
    spacing_known: bool = True
    others: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # after the image, as `SliceDataset` names a case, so that rows of training and of files share their key
        object.__setattr__(self, "name", self.name or self.names[-1])

    @classmethod
    def from_dict(cls, case: Mapping[str, Any]) -> LabelledCase:
        """From a case of a datalist: `label`, `objects`, `dataset`, `patient`; `image` and more where they are known.

        Raises:
            InputError: it has no label.
        """
        if "label" not in case:
            raise InputError(
                f"{case['image']}: is listed without a label, so nothing can be scored; add `label` to its item, or "
                "choose another list with --section."
            )
        return cls(
            label=Path(case["label"]),
            objects=dict(case["objects"]),
            dataset=str(case["dataset"]),
            patient=str(case["patient"]),
            image=Path(case["image"]) if case.get("image") else None,
            annotated=frozenset(case.get("annotated", ())),
            spacing_known=has_spacing(case),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """After the label file, and after the image file."""
        files = (self.label,) if self.image is None else (self.label, self.image)
        return tuple(dict.fromkeys(case_name(file) for file in files))

    @property
    def prediction_names(self) -> tuple[str, ...]:
        """What predictions of this case may be called: one of `names` that is no other case's."""
        taken = {lookup_key(name) for name in self.others} - {lookup_key(self.name)}
        return tuple(name for name in self.names if lookup_key(name) not in taken) or (self.name,)


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
        existence_threshold: gating empties a slice whose existence score is below this.
    """

    tolerances_mm: tuple[float, ...] = TOLERANCES_MM
    lesions: LesionRule = field(default_factory=LesionRule)
    axis: int = 2
    absent_is_negative: bool = False
    missed_below: float = MISSED_BELOW_DICE
    existence_threshold: float = EXISTENCE_THRESHOLD

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"axis must be 0, 1 or 2, got {self.axis}")
        _ = self.catalogue  # refuses settings that no measure can use

    @property
    def catalogue(self) -> Catalogue:
        """The measures under these settings."""
        return Catalogue(self.tolerances_mm, self.missed_below, self.existence_threshold)


@dataclass
class CaseResult:
    """Rows of one case, and what went wrong in it."""

    case: str
    slices: list[SliceRow] = field(default_factory=list)
    volumes: list[VolumeRow] = field(default_factory=list)
    lesions: list[LesionRow] = field(default_factory=list)
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
            prediction = predictions.find(case.prediction_names, name, value)
            pred = read_prediction(prediction, case, label, read, loaded)
            probability = _read_probability(prediction, case, label, read)
            existence = predictions.existence(case.prediction_names, name, settings.axis)
            _score(result, case, name, (pred, truth), label, settings, probability, existence)
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

    `loaded` keeps the last label map, so that its objects share one reading.

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


def _score(
    result: CaseResult,
    case: LabelledCase,
    name: str,
    masks: tuple[np.ndarray, np.ndarray],
    label: Volume,
    settings: EvaluationSettings,
    probability: np.ndarray | None,
    existence: list[float] | None,
) -> None:
    pred, truth = masks
    if existence is not None and len(existence) != truth.shape[settings.axis]:
        raise InputError(f"{case.name}: its sidecar scores {len(existence)} slices of {truth.shape[settings.axis]}")
    catalogue, rule = settings.catalogue, settings.catalogue.slice_rule
    place = Place(dataset=case.dataset, case=case.name, patient=case.patient, object=name)
    spacing = label.spacing if case.spacing_known else None
    for index, counts in enumerate(count_volume(pred, truth, spacing, settings.axis, existence)):
        result.slices.append(slice_row(place, index, name, counts, rule))
    other = other_side_of(name, case.objects)
    both = VolumeMasks(pred, truth, spacing, None if other is None else label.array == other)
    result.volumes.append(volume_row(place, both, catalogue.volumes))
    result.lesions += lesion_rows(place, pred, truth, spacing, settings.lesions, probability)
    box = bounding_box(pred, truth)
    if probability is not None and box is not None:
        box = _grow(box, spacing or (1.0, 1.0, 1.0), pred.shape)
        collected = result.calibration.setdefault(object_name(place), Calibration())
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
