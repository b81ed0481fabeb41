"""Ignite handlers for evaluators of whole volumes, and for probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data.meta_tensor import MetaTensor

from boltzformer.errors import InputError
from boltzformer.metrics.calibration import RELIABILITY_BINS
from boltzformer.metrics.lesions import LesionRule, lesion_rows, summarise_lesions
from boltzformer.metrics.row_handler import RowHandler, as_mask, item_names
from boltzformer.metrics.tables import write_csv, write_json
from boltzformer.metrics.volume_metrics import TOLERANCES_MM, summarise_volumes, surface_column, volume_row

VOLUME_KEY = ("dataset", "case", "object")


class VolumeMetricsHandler(RowHandler):
    """Volumetric Dice, surface Dice, HD95 and lesions of whole volumes, in mm with the true voxel spacing.

    For an evaluator whose items are volumes. ``engine.state.metrics`` gets ``<name>`` (mean Dice of positive
    volumes), ``<name>_surface_<t>mm``, ``<name>_hd95_mm``, ``<name>_lesion_sensitivity``, ``_lesion_precision``,
    ``_lesion_f1`` and ``_false_positives_per_scan``, where there is an example; ``<name>`` is NaN where there is
    none.

    Args:
        output_dir: folder for ``volumes.csv``, ``lesions.csv`` and ``volumes.json``; None writes nothing.
        name: key of the main metric and prefix of the others.
        pred_key, label_key: binary masks of shape (1, X, Y, Z).
        probability_key: probabilities of the same shape, for the score of a lesion; None gives no score.
        tolerances_mm: of the surface Dice.
        connectivity, min_iou: how lesions are found and matched, see ``LesionRule``.

    An item has ``dataset``, ``case``, ``object`` and, where known, ``patient``. Its voxel size in mm is ``spacing``
    ((3,)), or else that of the label's MetaTensor.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        name: str = "val_volume_dice",
        pred_key: str = "pred",
        label_key: str = "label",
        probability_key: str | None = None,
        tolerances_mm: Sequence[float] = TOLERANCES_MM,
        connectivity: int = 26,
        min_iou: float = 0.1,
    ) -> None:
        keys = [pred_key, label_key, *VOLUME_KEY]
        super().__init__(output_dir, name, keys if probability_key is None else [*keys, probability_key], VOLUME_KEY)
        self.pred_key, self.label_key, self.probability_key = pred_key, label_key, probability_key
        self.tolerances_mm = tuple(tolerances_mm)
        self.rule = LesionRule(connectivity, min_iou)
        self.summary: dict[str, Any] = {}

    def item_rows(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row of one volume and object; its lesions' rows travel with it."""
        names = item_names(item, VOLUME_KEY)
        spacing = _spacing(item, self.label_key, names["case"])
        masks = [_volume(item[key], names["case"]) for key in (self.pred_key, self.label_key)]
        for what, mask in zip(("prediction", "label"), masks, strict=True):
            if not ((mask == 0) | (mask == 1)).all():
                raise InputError(f"case {names['case']}: the {what} has values other than 0 and 1: threshold it first")
        pred, label = (mask.astype(bool) for mask in masks)
        probability = None
        if self.probability_key is not None:
            probability = _volume(item[self.probability_key], names["case"])
        try:
            row = volume_row(pred, label, spacing, self.tolerances_mm)
        except ValueError as error:
            raise InputError(f"case {names['case']}: {error}") from error
        lesions = lesion_rows(pred, label, spacing, self.rule, probability)
        return [{**names, **row, "lesions": lesions}]

    def summarise(self, engine: Engine) -> dict[str, float]:
        """The metrics of the class's docstring."""
        lesions = self.lesions
        scans = Counter(f"{row['dataset']} / {row['object']}" for row in self.rows)
        self.summary = {
            "volumes": summarise_volumes(self.rows, self.tolerances_mm),
            "lesions": summarise_lesions(lesions, scans, self.rule),
        }
        overall, detected = self.summary["volumes"]["overall"], self.summary["lesions"]["overall"]
        found = {
            **{f"{self.name}_surface_{t:g}mm": overall[surface_column(t)] for t in self.tolerances_mm},
            f"{self.name}_hd95_mm": overall["hd95_mm"]["mean"],
            f"{self.name}_lesion_sensitivity": detected["sensitivity"],
            f"{self.name}_lesion_precision": detected["precision"],
            f"{self.name}_lesion_f1": detected["f1"],
            f"{self.name}_false_positives_per_scan": detected["false_positives_per_scan"],
        }
        main = math.nan if overall["n"] == 0 else overall["mean_dice"]
        return {self.name: main, **{key: value for key, value in found.items() if value is not None}}

    @property
    def lesions(self) -> list[dict[str, Any]]:
        """Lesion rows of all volumes, with the names of their case."""
        keys = (*VOLUME_KEY, "patient")
        return [{**{key: row[key] for key in keys}, **lesion} for row in self.rows for lesion in row["lesions"]]

    def publish(self) -> None:
        """Write the files."""
        if self.output_dir is None:
            return
        volumes = [{key: value for key, value in row.items() if key != "lesions"} for row in self.rows]
        write_csv(self.output_dir / "volumes.csv", volumes)
        write_csv(self.output_dir / "lesions.csv", self.lesions)
        write_json(self.output_dir / "volumes.json", self.summary)


class CalibrationHandler(RowHandler):
    """Expected calibration error of the predicted probability, over all pixels of the evaluated slices or volumes.

    ``engine.state.metrics`` gets ``<name>``: sum over 15 bins of equal width of n_b / n |mean probability - share of
    object pixels|.

    Args:
        name: key of the metric.
        probability_key: probabilities in [0, 1]; keep them beside the thresholded mask (``CopyItemsd`` before
            ``AsDiscreted``).
        label_key: binary mask of the same shape.
        key_columns: what names an item; numbers are compared as numbers.
    """

    def __init__(
        self,
        name: str = "val_ece",
        probability_key: str = "probability",
        label_key: str = "label",
        key_columns: Sequence[str] = ("dataset", "case", "object", "slice", "text"),
    ) -> None:
        super().__init__(None, name, (probability_key, label_key, *key_columns), key_columns)
        self.probability_key, self.label_key = probability_key, label_key

    def item_rows(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Pixels, sum of probabilities and object pixels of each bin."""
        probability = as_mask(item[self.probability_key]).double().flatten().cpu()
        truth = as_mask(item[self.label_key]).double().flatten().cpu()
        if probability.shape != truth.shape or not bool(((probability >= 0) & (probability <= 1)).all()):
            raise InputError(f"{self.probability_key} must lie in [0, 1] and have the label's shape")
        index = (probability * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1)
        sums = [
            torch.bincount(index, weights=weights, minlength=RELIABILITY_BINS).tolist()
            for weights in (torch.ones_like(truth), probability, truth)
        ]
        names = {key: _plain(item[key]) for key in self.key_columns}
        return [{**names, "sums": sums}]

    def summarise(self, engine: Engine) -> dict[str, float]:
        """The calibration error; NaN without any pixel."""
        if not self.rows:
            return {self.name: math.nan}
        count, confidence, positive = np.sum([row["sums"] for row in self.rows], axis=0)
        return {self.name: float(np.abs(confidence - positive).sum() / count.sum())}

    def publish(self) -> None:
        """Nothing to write: the number is in the engine's metrics."""


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value.item() if isinstance(value, torch.Tensor) else value


def _volume(value: Any, case: str) -> np.ndarray:
    array = as_mask(value).cpu().numpy()
    if array.ndim != 4 or array.shape[0] != 1:
        raise InputError(f"case {case}: expected a volume of shape (1, X, Y, Z), got {array.shape}")
    return np.asarray(array[0])


def _spacing(item: Mapping[str, Any], label_key: str, case: str) -> list[float]:
    if item.get("spacing") is not None:
        return [float(s) for s in item["spacing"]]
    label = item[label_key]
    if isinstance(label, MetaTensor):
        return [float(s) for s in label.pixdim]
    raise InputError(f"case {case}: the voxel size is not known: give `spacing` in mm, or load with metadata")
