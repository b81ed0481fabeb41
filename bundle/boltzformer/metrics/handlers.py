"""Ignite handler: Dice by object size while an evaluator runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from rich.console import Console

from boltzformer.errors import InputError
from boltzformer.metrics.size_buckets import (
    DIAMETER_EDGES_MM,
    MISSED_BELOW_DICE,
    PERCENT_EDGES,
    SMALL_BELOW_PERCENT,
    SizeBucketDice,
)
from boltzformer.metrics.slice_report import KEY_COLUMNS, Row, summarise_slices, unique_rows
from boltzformer.metrics.tables import print_slice_summary, write_csv, write_json

logger = logging.getLogger(__name__)

CSV_COLUMNS = (
    *("dataset", "case", "patient", "object", "slice", "text", "dice", "missed"),
    *("area_percent", "diameter_mm", "bucket_percent", "bucket_mm"),
    *("false_positive_percent", "false_positive_mm2", "pixel_specificity"),
)


class SizeBucketDiceHandler:
    """Dice per (slice, prompt) in size buckets, from a MONAI evaluator with decollated output.

    Attach it as the evaluator's ``key_val_metric`` (``{"val_dice": handler}``, then the best checkpoint
    follows it) or as one of its ``handlers``. After each run ``engine.state.metrics`` holds, in Dice of
    positive slices: ``val_dice`` (mean), ``val_dice_small``, ``val_dice_large``, ``val_dice_dataset_mean``
    (unweighted over datasets), ``val_dice_missed`` (share) and ``val_specificity`` (share of negatives left
    empty); those for which there is no example are left out, but for ``val_dice``, which is NaN then, with a
    warning.

    Only the rows (some numbers and names) are kept, never the masks. Under torch.distributed the rows of all
    processes are gathered and each (dataset, case, object, slice, text) counts once, so that the padding of
    a distributed sampler changes nothing: every process ends with the same numbers, process 0 writes and
    prints.

    Args:
        output_dir: folder for the CSV of every row and the JSON summary; None writes nothing.
        name: key of the main metric and prefix of the others.
        pred_key, label_key: items of an output dict, binary masks of shape (1, H, W).
        csv_name, json_name: file names in ``output_dir``.
        print_table: print the tables at the end of a run.
        percent_edges, diameter_edges_mm, small_below_percent, missed_below: see ``SizeBucketDice``.

    An item is a dict of the evaluator's output, filled up from the batch, with ``dataset``, ``case``,
    ``object``, ``slice``, ``text`` and, where known, ``patient`` (else the case) and ``spacing`` ((2,) in
    mm).
    """

    def __init__(
        self,
        output_dir: str | None = None,
        name: str = "val_dice",
        pred_key: str = "pred",
        label_key: str = "label",
        csv_name: str = "slices.csv",
        json_name: str = "summary.json",
        print_table: bool = True,
        percent_edges: Sequence[float] = PERCENT_EDGES,
        diameter_edges_mm: Sequence[float] = DIAMETER_EDGES_MM,
        small_below_percent: float = SMALL_BELOW_PERCENT,
        missed_below: float = MISSED_BELOW_DICE,
    ) -> None:
        self.metric = SizeBucketDice(percent_edges, diameter_edges_mm, small_below_percent, missed_below)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.name = name
        self.pred_key, self.label_key = pred_key, label_key
        self.csv_name, self.json_name = csv_name, json_name
        self.print_table = print_table
        self.rows: list[Row] = []
        self.summary: dict[str, Any] = {}

    def attach(self, engine: Engine, name: str | None = None) -> None:
        """Register on an evaluator; ``name``, given by MONAI to a key metric, replaces the own one."""
        self.name = name or self.name
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def reset(self, engine: Engine | None = None) -> None:
        """Forget the rows of the last run."""
        self.rows, self.summary = [], {}

    def update(self, engine: Engine) -> None:
        """Add one row for each item of this iteration's output.

        Raises:
            InputError: where an item lacks a key or its masks cannot be scored.
        """
        outputs, batch = engine.state.output, engine.state.batch
        if not isinstance(outputs, list):
            raise InputError("SizeBucketDiceHandler reads decollated output: set decollate to true in the evaluator")
        batches = batch if isinstance(batch, list) else [{}] * len(outputs)
        for output, item in zip(outputs, batches, strict=True):
            self.rows.append(self._row({**item, **output}))

    def finish(self, engine: Engine) -> None:
        """Gather the rows of all processes, set the engine's metrics, write and print."""
        self.rows = unique_rows(_gather(self.rows))
        self.summary = summarise_slices(
            self.rows,
            self.metric.percent.edges,
            self.metric.diameter.edges,
            self.metric.border.edges[0],
            self.metric.missed_below,
        )
        engine.state.metrics.update(self._metrics())
        details = getattr(engine.state, "metric_details", None)
        if details is not None:
            dice = [math.nan if row["dice"] is None else row["dice"] for row in self.rows]
            details[self.name] = torch.tensor(dice, dtype=torch.float64)[:, None]
        if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
            return
        if self.output_dir is not None:
            write_csv(self.output_dir / self.csv_name, self.rows, CSV_COLUMNS)
            write_json(self.output_dir / self.json_name, self.summary)
        if self.print_table:
            self._print()

    def _print(self) -> None:
        console = Console()
        print_slice_summary(self.summary, console)
        if self.output_dir is not None:
            console.print(f"Rows: {self.output_dir / self.csv_name}  summary: {self.output_dir / self.json_name}")

    def _metrics(self) -> dict[str, float]:
        overall = self.summary["overall"]
        found = {
            f"{self.name}_small": overall["small"]["mean_dice"],
            f"{self.name}_large": overall["large"]["mean_dice"],
            f"{self.name}_dataset_mean": self.summary["mean_over_datasets"]["mean_dice"],
            f"{self.name}_missed": overall["missed_share"],
            f"{self.name.removesuffix('_dice')}_specificity": overall["negatives"]["specificity"],
        }
        metrics = {key: value for key, value in found.items() if value is not None}
        if overall["n"] == 0:
            logger.warning("No evaluated slice holds its object: %s is not a number.", self.name)
        return {self.name: math.nan if overall["n"] == 0 else overall["mean_dice"], **metrics}

    def _row(self, item: Mapping[str, Any]) -> Row:
        missing = [key for key in (self.pred_key, self.label_key, *KEY_COLUMNS) if key not in item]
        if missing:
            raise InputError(f"SizeBucketDiceHandler needs {missing} in each item of the batch or output")
        row: dict[str, Any] = {key: _text(item[key]) for key in ("dataset", "case", "object", "text")}
        row["slice"] = int(item["slice"])
        row["patient"] = _text(item.get("patient", row["case"]))
        spacing = item.get("spacing")
        try:
            values = self.metric.rows(_mask(item[self.pred_key])[None], _mask(item[self.label_key])[None], spacing)
        except ValueError as error:
            raise InputError(f"case {row['case']}, slice {row['slice']}, '{row['text']}': {error}") from error
        value = dict(zip(self.metric.columns, (None if math.isnan(v) else v for v in values[0].tolist()), strict=True))
        row.update({key: value[key] for key in ("dice", "area_percent", "diameter_mm", "false_positive_percent")})
        row["missed"] = None if row["dice"] is None else int(row["dice"] < self.metric.missed_below)
        row["bucket_percent"] = _name(self.metric.percent, row["area_percent"])
        row["bucket_mm"] = _name(self.metric.diameter, row["diameter_mm"])
        row["pixel_specificity"] = value["specificity"]
        row["false_positive_mm2"] = None
        if spacing is not None and row["false_positive_percent"] is not None:
            slice_mm2 = math.prod(float(s) for s in spacing) * item[self.label_key].numel()
            row["false_positive_mm2"] = row["false_positive_percent"] / 100 * slice_mm2
        return row


def _name(buckets: Any, size: float | None) -> str | None:
    index = None if size is None else buckets.index(size)
    return None if index is None else buckets.names[index]


def _mask(mask: Any) -> torch.Tensor:
    """A plain tensor: rows need no MetaTensor, whose bookkeeping is slow on many small items."""
    tensor: torch.Tensor = mask.as_tensor() if hasattr(mask, "as_tensor") else torch.as_tensor(mask)
    return tensor.detach()


def _text(value: Any) -> str:
    """Decollating may leave a string in a list of one, or a number in a 0-d tensor."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return str(value.item()) if isinstance(value, torch.Tensor) else str(value)


def _gather(rows: list[Row]) -> list[Row]:
    """Rows of all processes, on every process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
