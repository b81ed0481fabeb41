"""What a table of the paper asks to be run: rows x seeds, each with a key of its own.

A run's key is a hash of everything that decides its result: the merged configs, the datasets' `dataset.json`, the seed
and the kind of device. Two rows that come to the same configs, in one table or in several, are one run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.summary.protocol import GROUPS

_TABLE_KEYS = {"title", "note", "datasets", "section", "columns", "overlays", "settings", "rows", "figure"}
_ROW_KEYS = {"label", "overlays", "settings", "paper", "note", "scores"}
_SCORE_KEYS = {"files", "columns", "datasets", "slice_pixels"}
FIGURES = ("sampled_patches", "comparison", "failures")
_MULTI = {"train": "configs/multi_gpu_train.json", "evaluate": "configs/multi_gpu_evaluate.json"}


@dataclass(frozen=True)
class TableRow:
    """One line of a table.

    Attributes:
        label: as printed.
        overlays: files on top of the table's, relative to the bundle; None: published numbers only, nothing to run.
        settings: config keys and values on top of the overlays.
        paper: published numbers in %, by column.
        note: printed below the table.
        scores: of another program, slice by slice, in place of a run: `files` below the data folder, and the other
            arguments of `boltzformer.metrics.summary.slice_scores.read_slice_scores`.
    """

    label: str
    overlays: tuple[str, ...] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scores: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: the file's name, for the output.
        title, note: printed above and below.
        datasets: folders' names below the data folder.
        section: the list that is evaluated.
        columns: any of the datasets, `mean`, `small`, `large` and `missed`.
        overlays, settings: below those of every row.
        rows: in order.
        figure: in place of a table, a figure of the finished runs: its `kind`, one of `FIGURES`, and the `count` of
            slices; None for a table.
    """

    name: str
    title: str
    note: str
    datasets: tuple[str, ...]
    section: str
    columns: tuple[str, ...]
    overlays: tuple[str, ...]
    settings: Mapping[str, Any]
    rows: tuple[TableRow, ...]
    figure: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        key: hash of what decides the result.
        label: the first row that asks for it.
        overlays: all files, in order, relative to the bundle.
        settings: all config values on top.
        datasets: folders.
        section: the list that is evaluated.
        seed: of everything.
    """

    key: str
    label: str
    overlays: tuple[str, ...]
    settings: Mapping[str, Any]
    datasets: tuple[Path, ...]
    section: str
    seed: int


def read_table(path: str | Path, datasets: Sequence[str] = (), section: str | None = None) -> Table:
    """Read a table's JSON.

    Args:
        path: such as `configs/tables/table3.json`.
        datasets: in place of the table's own.
        section: in place of the table's own.

    Returns:
        the table; its dataset columns follow `datasets`.

    Raises:
        InputError: the file is missing or malformed, a key is not known, or a label stands twice.
    """
    content = read_json(path, "table")
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or not content["rows"]:
        raise InputError(f"{path}: expected an object with `rows`, a list of rows with a `label` each.")
    _check_keys(content, _TABLE_KEYS, str(path))
    names = tuple(datasets) or tuple(content.get("datasets", ()))
    if not names:
        raise InputError(f"{path}: names no datasets; list them in `datasets`, or give --dataset.")
    known = {*names, *content.get("datasets", ()), *GROUPS}
    columns: list[str] = []
    for column in content.get("columns", ["mean"]):
        if column != "datasets" and column not in known:
            raise InputError(f"{path}: column {column!r} is none of {', '.join(['datasets', *names, *GROUPS])}.")
        columns.extend(names if column == "datasets" else [column])
    rows = tuple(_row(row, f"{path}, row {i}") for i, row in enumerate(content["rows"], start=1))
    labels = [row.label for row in rows]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"{path}: two rows are labelled {repeated[0]!r}.")
    return Table(
        Path(path).stem,
        str(content.get("title", Path(path).stem)),
        str(content.get("note", "")),
        names,
        section or content.get("section", "test"),
        tuple(columns),
        tuple(content.get("overlays", ())),
        dict(content.get("settings", {})),
        rows,
        _figure(content.get("figure"), str(path)),
    )


def plan_runs(
    table: Table,
    data: Path,
    bundle: Path,
    overlays: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    processes: int = 1,
) -> dict[str, list[Run]]:
    """The runs of each row.

    Args:
        table: what to run.
        data: folder of the datasets.
        bundle: the bundle's root.
        overlays: the user's own, between the table's and the row's (a small network, a small budget).
        seeds: each row is run once for each.
        device: "cpu" or "cuda"; the kind decides the result (batch size, mixed precision).
        processes: above 1, the multi-GPU overlays come first.

    Returns:
        row label to its runs, one a seed; empty for rows with published numbers alone.

    Raises:
        InputError: a dataset or one of its lists, or an overlay, is missing.
    """
    folders = tuple(_dataset(data, name, table.section) for name in table.datasets)
    stamps = [hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest() for folder in folders]
    planned: dict[str, list[Run]] = {}
    for row in table.rows:
        planned[row.label] = []
        if row.overlays is None:
            continue
        files = (*table.overlays, *overlays, *row.overlays)
        settings = {**table.settings, **row.settings}
        recipe = {
            "configs": {kind: _merged(bundle, kind, files, settings, processes) for kind in ("train", "evaluate")},
            "datasets": stamps,
            "section": table.section,
            "device": device.split(":")[0],
            "processes": processes,
        }
        for seed in seeds:
            text = json.dumps({**recipe, "seed": seed}, sort_keys=True, default=str)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            planned[row.label].append(Run(key, row.label, files, settings, folders, table.section, seed))
    return planned


def config_files(bundle: Path, kind: str, overlays: Sequence[str], processes: int = 1) -> list[Path]:
    """The config files of a run in the order in which they are merged.

    Args:
        bundle: the bundle's root.
        kind: "train" or "evaluate".
        overlays: relative to the bundle, or absolute.
        processes: above 1, the multi-GPU overlay comes right after the base.

    Raises:
        InputError: an overlay does not exist.
    """
    names = [f"configs/{kind}.json", *([_MULTI[kind]] if processes > 1 else []), *overlays]
    files = [bundle / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"{missing[0]}: no such overlay; name them relative to {bundle}, or absolute.")
    return files


def evaluation_settings(bundle: Path, overlays: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What overlays and settings say about evaluation: keys of evaluate.json but the network.

    The checkpoint brings the network, and what belongs to training alone has no place in evaluate.json.

    Args:
        bundle: the bundle's root.
        overlays: relative to the bundle, or absolute; a later one wins.
        settings: on top of them.

    Returns:
        config keys and values.
    """
    found: dict[str, Any] = {}
    for name in overlays:
        found.update(read_json(bundle / name, "overlay"))
    found.update(settings)
    known = set(read_json(bundle / "configs" / "evaluate.json", "config")) - {"network_def"}
    return {key: value for key, value in found.items() if key.lstrip("+").split("#")[0] in known}


def _merged(bundle: Path, kind: str, overlays: Sequence[str], settings: Mapping[str, Any], processes: int) -> Any:
    parser = ConfigParser()
    if kind == "evaluate":
        parser.read_config([str(file) for file in config_files(bundle, kind, (), processes)])
        return [parser.get(), evaluation_settings(bundle, overlays, settings)]
    parser.read_config([str(file) for file in config_files(bundle, kind, overlays, processes)])
    parser.update(dict(settings))
    return parser.get()


def _dataset(data: Path, name: str, section: str) -> Path:
    folder = data / name
    file = folder / "dataset.json"
    if not file.is_file():
        raise InputError(f"{folder}: no such dataset; `boltzformer prepare` makes it (docs/experiments.md).")
    content = read_json(file, "dataset.json")
    for needed in dict.fromkeys(("training", "validation", section)):
        if not isinstance(content, dict) or not content.get(needed):
            raise InputError(
                f"{file}: has no `{needed}` list, so a split would be drawn anew for each seed; prepare the "
                "dataset, or choose another --section."
            )
    return folder.resolve()


def _figure(figure: Any, where: str) -> dict[str, Any] | None:
    if figure is None:
        return None
    if not isinstance(figure, dict) or figure.get("kind") not in FIGURES:
        raise InputError(f"{where}: `figure` must have a `kind`, one of {', '.join(FIGURES)}.")
    _check_keys(figure, {"kind", "count"}, f"{where}, figure")
    count = figure.get("count", 6)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"{where}, figure: `count` must be a whole number, 1 or more.")
    return {"kind": figure["kind"], "count": count}


def _row(row: Any, where: str) -> TableRow:
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        raise InputError(f"{where}: expected an object with a `label`.")
    _check_keys(row, _ROW_KEYS, where)
    paper = row.get("paper", {})
    if not isinstance(paper, dict) or not all(isinstance(value, int | float) for value in paper.values()):
        raise InputError(f"{where}: `paper` must map columns to numbers in %.")
    overlays = None if "overlays" not in row else tuple(row["overlays"])
    scores = row.get("scores")
    if scores is not None:
        if not isinstance(scores, dict) or not isinstance(scores.get("files"), list) or not scores["files"]:
            raise InputError(f"{where}: `scores` must have `files`, a list of CSV files below the data folder.")
        if overlays is not None:
            raise InputError(f"{where}: has `overlays`, so it is run here, and `scores`, so it is not; drop one.")
        _check_keys(scores, _SCORE_KEYS, f"{where}, scores")
    return TableRow(row["label"], overlays, dict(row.get("settings", {})), paper, str(row.get("note", "")), scores)


def _check_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(content) - known):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}.")
