"""Ignite handlers: the room's numbers while an evaluator runs, right under torch.distributed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from rich.console import Console

from boltzformer.errors import InputError
from boltzformer.metrics.row_handler import Row, RowHandler, as_mask, item_names
from boltzformer.metrics.size_buckets import (
    DIAMETER_EDGES_MM,
    MISSED_BELOW_DICE,
    PERCENT_EDGES,
    SMALL_BELOW_PERCENT,
    Buckets,
    SizeBucketDice,
)
from boltzformer.metrics.slice_report import KEY_COLUMNS, summarise_slices
from boltzformer.metrics.tables import print_slice_summary, write_csv, write_json

logger = logging.getLogger(__name__)

CSV_COLUMNS = (
    *("dataset", "case", "patient", "object", "slice", "text", "dice", "missed"),
    *("area_percent", "diameter_mm", "bucket_percent", "bucket_mm"),
    *("false_positive_percent", "false_positive_mm2", "pixel_specificity"),
)


class SizeBucketDiceHandler(RowHandler):
    """Dice per (slice, prompt) in size buckets, from a MONAI evaluator with decollated output.

    Attach it as the evaluator's ``key_val_metric`` (``{"val_dice": handler}``, then the best checkpoint follows it)
    or as one of its ``val_handlers``. After each run ``engine.state.metrics`` holds, in Dice of positive slices:
    ``val_dice`` (mean), ``val_dice_small``, ``val_dice_large``, ``val_dice_dataset_mean`` (unweighted over datasets),
    ``val_dice_missed`` (share) and ``val_specificity`` (share of negatives left empty); those for which there is no
    example are left out, but for ``val_dice``, which is NaN then, with a warning.

    Args:
        output_dir: folder for the CSV of every row, the JSON summary and the report; None writes nothing.
        name: key of the main metric and prefix of the others.
        pred_key, label_key: items of an output dict, binary masks of shape (1, H, W).
        csv_name, json_name: file names in ``output_dir``.
        html_name: file name of an HTML report with figures and intervals; None writes none.
        print_table: print the tables at the end of a run.
        percent_edges, diameter_edges_mm, small_below_percent, missed_below: see ``SizeBucketDice``.

    An item has ``dataset``, ``case``, ``object``, ``slice``, ``text`` and, where known, ``patient`` (else the case)
    and ``spacing`` ((2,) in mm).
    """

    def __init__(
        self,
        output_dir: str | None = None,
        name: str = "val_dice",
        pred_key: str = "pred",
        label_key: str = "label",
        csv_name: str = "slices.csv",
        json_name: str = "summary.json",
        html_name: str | None = None,
        print_table: bool = True,
        percent_edges: Sequence[float] = PERCENT_EDGES,
        diameter_edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
        small_below_percent: float = SMALL_BELOW_PERCENT,
        missed_below: float = MISSED_BELOW_DICE,
    ) -> None:
        super().__init__(output_dir, name, (pred_key, label_key, *KEY_COLUMNS), KEY_COLUMNS)
        self.metric = SizeBucketDice(percent_edges, diameter_edges_mm, small_below_percent, missed_below)
        self.pred_key, self.label_key = pred_key, label_key
        self.csv_name, self.json_name, self.html_name = csv_name, json_name, html_name
        self.print_table = print_table
        self.summary: dict[str, Any] = {}

    def item_rows(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row of one slice and prompt."""
        row: dict[str, Any] = item_names(item, ("dataset", "case", "object", "text"))
        row["slice"] = int(item["slice"])
        spacing = item.get("spacing")
        pred, label = as_mask(item[self.pred_key]), as_mask(item[self.label_key])
        try:
            values = self.metric.rows(pred[None], label[None], spacing)[0].tolist()
        except ValueError as error:
            raise InputError(f"case {row['case']}, slice {row['slice']}, '{row['text']}': {error}") from error
        known = (None if math.isnan(value) else value for value in values)
        value = dict(zip(self.metric.columns, known, strict=True))
        for key in ("dice", "area_percent", "diameter_mm", "false_positive_percent"):
            row[key] = value[key]
        row["missed"] = None if row["dice"] is None else int(row["dice"] < self.metric.missed_below)
        row["bucket_percent"] = _name(self.metric.percent, row["area_percent"])
        row["bucket_mm"] = _name(self.metric.diameter, row["diameter_mm"])
        row["pixel_specificity"] = value["specificity"]
        row["false_positive_mm2"] = None
        if spacing is not None and row["false_positive_percent"] is not None:
            slice_mm2 = math.prod(float(s) for s in spacing) * label.numel()
            row["false_positive_mm2"] = row["false_positive_percent"] / 100 * slice_mm2
        return [row]

    def summarise(self, engine: Engine) -> dict[str, float]:
        """The metrics of the class's docstring; the whole summary stays in ``self.summary``."""
        self.summary = summarise_slices(
            self.rows,
            self.metric.percent.edges,
            self.metric.diameter.edges,
            self.metric.border.edges[0],
            self.metric.missed_below,
        )
        details = getattr(engine.state, "metric_details", None)
        if details is not None:
            dice = [math.nan if row["dice"] is None else row["dice"] for row in self.rows]
            details[self.name] = torch.tensor(dice, dtype=torch.float64)[:, None]
        overall = self.summary["overall"]
        found = {
            f"{self.name}_small": overall["small"]["mean_dice"],
            f"{self.name}_large": overall["large"]["mean_dice"],
            f"{self.name}_dataset_mean": self.summary["mean_over_datasets"]["mean_dice"],
            f"{self.name}_missed": overall["missed_share"],
            f"{self.name.removesuffix('_dice')}_specificity": overall["negatives"]["specificity"],
        }
        if overall["n"] == 0:
            logger.warning("No evaluated slice holds its object: %s is not a number.", self.name)
        main = math.nan if overall["n"] == 0 else overall["mean_dice"]
        return {self.name: main, **{key: value for key, value in found.items() if value is not None}}

    def publish(self) -> None:
        """Write the files and print the tables."""
        console = Console()
        if self.print_table:
            print_slice_summary(self.summary, console)
        if self.output_dir is None:
            return
        write_csv(self.output_dir / self.csv_name, self.rows, CSV_COLUMNS)
        write_json(self.output_dir / self.json_name, self.summary)
        names = [self.csv_name, self.json_name]
        if self.html_name is not None:
            _slice_report(self.rows, self.metric, self.output_dir / self.html_name)
            names.append(self.html_name)
        if self.print_table:
            console.print(f"Written to {self.output_dir}: {', '.join(names)}", soft_wrap=True)


def _slice_report(rows: Sequence[Row], metric: SizeBucketDice, path: Any) -> None:
    """The report of slices alone: no volumes, no lesions, no pictures."""
    # Imported here: a training run that writes no report need not load matplotlib and the template engine.
    from boltzformer.metrics.case_evaluation import EvaluationSettings
    from boltzformer.metrics.folder_evaluation import Evaluation, summarise
    from boltzformer.metrics.report import write_report

    evaluation = Evaluation(
        EvaluationSettings(missed_below=metric.missed_below),
        len({(row["dataset"], row["case"]) for row in rows}),
        slices=[dict(row) for row in rows],
    )
    evaluation.summary = summarise(evaluation)
    write_report(path, evaluation)


def _name(buckets: Buckets, size: float | None) -> str | None:
    index = None if size is None else buckets.index(size)
    return None if index is None else buckets.names[index]
