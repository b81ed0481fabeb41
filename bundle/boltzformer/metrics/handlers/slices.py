"""Ignite handler: Dice by object size while an evaluator runs, right under torch.distributed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from ignite.engine import Engine
from rich.console import Console

from boltzformer.errors import InputError
from boltzformer.metrics.files import write_csv, write_json
from boltzformer.metrics.handlers.rows import RowHandler, as_mask, as_text, place_of
from boltzformer.metrics.measures.cases import EvaluationSettings
from boltzformer.metrics.measures.catalogue import EXISTENCE_THRESHOLD
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.rows import SLICE_KEY, Row, SliceRow
from boltzformer.metrics.measures.size_buckets import (
    DIAMETER_EDGES_MM,
    MISSED_BELOW_DICE,
    PERCENT_EDGES,
    SMALL_BELOW_PERCENT,
    Buckets,
)
from boltzformer.metrics.measures.slices import SliceRule, count_item, slice_row
from boltzformer.metrics.show.terminal import print_slice_summary
from boltzformer.metrics.summary.slices import summarise_slices
from boltzformer.volumes.spacing import is_known

logger = logging.getLogger(__name__)


class SizeBucketDiceHandler(RowHandler):
    """Dice per (slice, prompt) in size buckets, from a MONAI evaluator with decollated output.

    Attach it as the evaluator's `key_val_metric` (`{"val_dice": handler}`, then the best checkpoint follows it)
    or as one of its `val_handlers`. After each run `engine.state.metrics` holds, in Dice of positive slices:
    `val_dice` (mean), `val_dice_small`, `val_dice_large`, `val_dice_dataset_mean` (unweighted over datasets),
    `val_dice_missed` (share) and `val_specificity` (share of negatives left empty), and `val_existence_auroc`;
    those for which there is no example are left out, but for `val_dice`, which is NaN then, with a warning.

    Args:
        output_dir: folder for the CSV of every row, the JSON summary and the report; None writes nothing.
        name: key of the main metric and prefix of the others.
        pred_key, label_key: items of an output dict, binary masks of shape (1, H, W).
        csv_name, json_name: file names in `output_dir`.
        html_name: file name of an HTML report with figures and intervals; None writes none.
        print_table: print the tables at the end of a run.
        percent_edges: bucket edges in % of the slice area.
        diameter_edges_mm: bucket edges of the equivalent diameter in mm, where the spacing is known.
        small_below_percent: the paper's border between small and large objects (table 2).
        missed_below: an object counts as missed where its Dice is below this.
        existence_key: item with the probability that the object is in the slice; rows have none where it is absent.
        existence_threshold: gating empties a slice that scores below this.

    An item has `dataset`, `case`, `object`, `slice`, `text` and, where known, `patient` (else the case)
    and `spacing` ((2,) in mm), which counts unless `known_spacing` (likewise) is NaN.
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
        existence_key: str = "existence",
        existence_threshold: float = EXISTENCE_THRESHOLD,
    ) -> None:
        super().__init__(output_dir, name, (pred_key, label_key, "text", *SLICE_KEY), SLICE_KEY)
        self.settings = EvaluationSettings(missed_below=missed_below, existence_threshold=existence_threshold)
        percent, diameter = Buckets(tuple(percent_edges), " %"), Buckets(tuple(diameter_edges_mm), " mm")
        self.rule = SliceRule(self.settings.catalogue.slices, percent, diameter)
        self.small_below_percent = Buckets((small_below_percent,)).edges[0]
        self.pred_key, self.label_key, self.existence_key = pred_key, label_key, existence_key
        self.csv_name, self.json_name, self.html_name = csv_name, json_name, html_name
        self.print_table = print_table
        self.summary: dict[str, Any] = {}

    def item_rows(self, item: Mapping[str, Any]) -> Sequence[Row]:
        """The row of one slice and prompt."""
        place, index, text = place_of(item), int(item["slice"]), as_text(item["text"])
        existence = item.get(self.existence_key)
        try:
            counts = count_item(
                as_mask(item[self.pred_key]),
                as_mask(item[self.label_key]),
                item.get("spacing") if _knows_spacing(item) else None,
                None if existence is None else float(existence),
            )
        except ValueError as error:
            raise InputError(f"case {place['case']}, slice {index}, '{text}': {error}") from error
        return [slice_row(place, index, text, counts, self.rule)]

    def summarise(self, engine: Engine) -> dict[str, float]:
        """The metrics of the class's docstring; the whole summary stays in `self.summary`."""
        self.summary = summarise_slices(
            self.rows,
            self.rule.percent.edges,
            self.rule.diameter.edges,
            self.small_below_percent,
            self.settings.catalogue,
        )
        details = getattr(engine.state, "metric_details", None)
        if details is not None:
            dice = [math.nan if row["dice"] is None else row["dice"] for row in self.rows]
            details[self.name] = torch.tensor(dice, dtype=torch.float64)[:, None]
        overall = self.summary["overall"]
        stem = self.name.removesuffix("_dice")
        found = {
            f"{self.name}_small": overall["small"]["mean_dice"],
            f"{self.name}_large": overall["large"]["mean_dice"],
            f"{self.name}_dataset_mean": self.summary["mean_over_datasets"]["mean_dice"],
            f"{self.name}_missed": overall["missed_share"],
            f"{stem}_specificity": overall["negatives"]["specificity"],
            f"{stem}_existence_auroc": (overall["existence"] or {}).get("auroc"),
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
        write_csv(self.output_dir / self.csv_name, self.rows)
        write_json(self.output_dir / self.json_name, self.summary)
        names = [self.csv_name, self.json_name]
        if self.html_name is not None:
            self._write_report(self.html_name)
            names.append(self.html_name)
        if self.print_table:
            console.print(f"Written to {self.output_dir}: {', '.join(names)}", soft_wrap=True)

    def _write_report(self, name: str) -> None:
        """The report of slices alone: no volumes, no lesions, no pictures."""
        # Imported here: a training run that writes no report need not load matplotlib and the template engine.
        from boltzformer.metrics.show.report import write_report
        from boltzformer.metrics.summary.evaluation import summarise

        assert self.output_dir is not None
        cases = len({(row["dataset"], row["case"]) for row in self.rows})
        evaluation = Evaluation(self.settings, cases, slices=[cast(SliceRow, row) for row in self.rows])
        evaluation.summary = summarise(
            evaluation, self.rule.percent.edges, self.rule.diameter.edges, self.small_below_percent
        )
        write_report(self.output_dir / name, evaluation)


def _knows_spacing(item: Mapping[str, Any]) -> bool:
    """Whether an item's `spacing` means something, see `SliceDataset`."""
    known = item.get("known_spacing")
    return known is None or is_known(*torch.as_tensor(known).tolist())
