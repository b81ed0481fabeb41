"""Figures of finished runs: the patches that queries drew, networks side by side, and what was missed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzformer.apps.bundle_config import network_and_slices, read_bundle
from boltzformer.apps.experiment_definition import Table
from boltzformer.apps.experiment_plan import Run
from boltzformer.apps.experiment_runs import ROWS, is_finished
from boltzformer.apps.mask_figure import ComparedSlice, mask_figure
from boltzformer.data.case_prompts import case_name
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.errors import InputError
from boltzformer.inference.sampling_trace import save_figure, trace_figure, trace_slice
from boltzformer.metrics.files import read_csv, write_text
from boltzformer.metrics.measures.rows import Row, key_of, object_name
from boltzformer.metrics.measures.size_buckets import MISSED_BELOW_DICE
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.volumes.names import free_name


def draw_figure(
    table: Table,
    planned: Mapping[str, Sequence[Run]],
    runs_dir: Path,
    bundle: Path,
    out_dir: Path,
    device: str,
    budget: Sequence[str],
) -> dict[str, Path]:
    """Draw a figure from the first finished seed of each row.

    * `sampled_patches`: a picture for each row: slice, truth, mask, and the patches that queries attended to at three
      layers.
    * `comparison`: the rows' masks of the same slices side by side.
    * `failures`: of each row, the slices of which it missed the object (Dice below 0.01), largest objects first, one of
      each case before others; where it missed fewer, those of lowest Dice follow.

    Args:
        table: with a `figure`.
        planned: row label to its runs.
        runs_dir: folder of all runs.
        bundle: the bundle's root.
        out_dir: gets `NAME.png`, or `NAME_ROW.png` where each row has its own, and `NAME.md` with captions.
        device: where the networks are run.
        budget: lines that say what the runs were given.

    Returns:
        the files, by name.

    Raises:
        InputError: no run is finished, or a row draws no patches.
    """
    assert table.figure is not None
    finished = {
        label: next((run for run in runs if is_finished(run, runs_dir)), None) for label, runs in planned.items()
    }
    chosen = {label: run for label, run in finished.items() if run is not None}
    if not chosen:
        raise InputError(f"{table.name}: no run is finished, so there is nothing to draw.")
    kind, count = table.figure["kind"], table.figure["count"]
    files: dict[str, Path] = {}
    captions: list[str] = []
    scored = {label: read_csv(runs_dir / run.key / ROWS) for label, run in chosen.items()}
    if kind == "comparison":
        rows = typical_rows(next(iter(scored.values())), count)
        path = out_dir / f"{table.name}.png"
        save_figure(mask_figure(_compare(chosen, rows, runs_dir, bundle, device)), path)
        files[table.name] = path
        captions.append(
            "Truth in green, masks in orange, above each its Dice. Of each object the slices of median area."
        )
    else:
        slugs = _slugs(chosen)
        for label, run in chosen.items():
            path = out_dir / f"{table.name}_{slugs[label]}.png"
            if kind == "sampled_patches":
                figure = _patches(run, typical_rows(scored[label], count), runs_dir, bundle, device)
                captions.append(f"{label}: brighter patches were drawn by more queries.")
            else:
                rows, caption = missed_rows(scored[label], count)
                figure = mask_figure(_compare({label: run}, rows, runs_dir, bundle, device))
                captions.append(f"{label}: {caption}")
            save_figure(figure, path)
            files[path.stem] = path
    pictures = "\n\n".join(f"![{name}]({path.name})" for name, path in files.items())
    notes = "\n".join(f"- {line}" for line in [*captions, *budget, *([table.note] if table.note else [])])
    files["captions"] = write_text(out_dir / f"{table.name}.md", f"### {table.title}\n\n{pictures}\n\n{notes}\n")
    return files


def typical_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Slices with an object, the objects in turn: of each the slice of median area first, then those nearest to it.

    Args:
        rows: of `slices.csv`.
        count: how many; fewer where there are no more.
    """
    groups: dict[str, list[Row]] = {}
    for row in sorted(_positive(rows), key=lambda row: (float(row["area_percent"]), key_of(row))):
        groups.setdefault(object_name(row), []).append(row)
    ranked = [sorted(group, key=lambda row: abs(group.index(row) - len(group) // 2)) for group in groups.values()]
    return [row for ranks in zip_longest(*ranked) for row in ranks if row is not None][:count]


def missed_rows(rows: Sequence[Row], count: int) -> tuple[list[Row], str]:
    """Slices whose object was missed, the largest first, then those of lowest Dice; and a caption with the share.

    Of a case and object the largest comes before the other slices of all: they would look alike.

    Args:
        rows: of `slices.csv`.
        count: how many; fewer where there are no more.
    """
    positive = _positive(rows)
    missed = [row for row in positive if float(row["dice"]) < MISSED_BELOW_DICE]
    missed.sort(key=lambda row: (-float(row["area_percent"]), key_of(row)))
    missed = _one_of_each_case_first(missed)
    known = {id(row) for row in missed}
    others = sorted(
        (row for row in positive if id(row) not in known), key=lambda row: (float(row["dice"]), key_of(row))
    )
    share = 100 * len(missed) / max(len(positive), 1)
    caption = f"{len(missed)} of {len(positive)} slices missed ({share:.1f} %)"
    shown = (missed + others)[:count]
    return shown, caption + ("." if len(missed) >= len(shown) else ", shown first; then those of lowest Dice.")


def _one_of_each_case_first(rows: Sequence[Row]) -> list[Row]:
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((str(row["case"]), object_name(row)), row)
    chosen = {id(row) for row in first.values()}
    return sorted(rows, key=lambda row: id(row) not in chosen)


def _positive(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["dice"] not in (None, "")]


def _compare(
    runs: Mapping[str, Run], rows: Sequence[Row], runs_dir: Path, bundle: Path, device: str
) -> list[ComparedSlice]:
    masks: list[dict[str, np.ndarray]] = [{} for _ in rows]
    items: list[dict[str, Any]] = []
    for label, run in runs.items():
        network, dataset = open_run(run, runs_dir, bundle, device)
        items = [_item(dataset, row) for row in rows]
        for item, found in zip(items, masks, strict=True):
            with torch.no_grad():
                logits = network(item["image"][None].to(device), [item["text"]])
            found[label] = (logits[0, 0] > 0).cpu().numpy()
    return [
        ComparedSlice(
            item["image"][item["image"].shape[0] // 2].numpy(),
            item["label"][0].numpy() > 0,
            found,
            item["text"],
            f"{item['dataset']},\n{item['case']}, slice {item['slice']}",
        )
        for item, found in zip(items, masks, strict=True)
    ]


def _patches(run: Run, rows: Sequence[Row], runs_dir: Path, bundle: Path, device: str) -> Any:
    network, dataset = open_run(run, runs_dir, bundle, device)
    if not isinstance(network, BoltzFormer):
        raise InputError(f"{run.label}: a {type(network).__name__} draws no patches; leave the row out of this figure.")
    items = [_item(dataset, row) for row in rows]
    last = len(network.decoder.blocks) - 1
    layers = sorted({0, last // 2, last})
    return trace_figure([trace_slice(network, one["image"], one["text"], one["label"]) for one in items], layers)


def open_run(run: Run, runs_dir: Path, bundle: Path, device: str) -> tuple[Any, SliceDataset]:
    """A finished run's network with its weights, in evaluation mode, and the slices that it was scored on."""
    place = {"device": torch.device(device)}
    return network_and_slices(read_bundle(bundle, [str(runs_dir / run.key / "evaluate.json")], place))


def _item(dataset: SliceDataset, row: Row) -> dict[str, Any]:
    """The example that a row of `slices.csv` is about."""
    for index in range(len(dataset.examples)):
        number, position, value = dataset.locate(index)
        case = dataset.data[number]
        place = {"dataset": case["dataset"], "case": case_name(case), "object": case["objects"][value]}
        if key_of({**place, "slice": position}) == key_of(row):
            return dataset[index]
    raise InputError(f"{row['case']}, slice {row['slice']}: scored once, and now not in the dataset; was it changed?")


def _slugs(labels: Iterable[str]) -> dict[str, str]:
    """Labels as parts of file names; those that come to the same are numbered, in whatever script they are."""
    slugs: dict[str, str] = {}
    for label in labels:
        stem = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or "row"
        slugs[label] = free_name(stem, slugs.values())
    return slugs
