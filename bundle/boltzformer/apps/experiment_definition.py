"""The JSON of a table or figure of the paper: its rows, columns and datasets, read with care."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.summary.protocol import GROUPS

_TABLE_KEYS = {"title", "note", "datasets", "section", "columns", "overlays", "settings", "rows", "figure", "claims"}
_ROW_KEYS = {"label", "overlays", "settings", "paper", "note", "scores"}
_SCORE_KEYS = {"files", "columns", "datasets", "slice_pixels"}
FIGURES = ("sampled_patches", "comparison", "failures")
COSTS = ("pairs", "cpu_seconds")
"""Columns that say what the training of a row cost, see `boltzformer.training.effort`."""


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
        columns: any of the datasets, `mean`, `small`, `large` and `missed`, and of the costs `pairs` and
            `cpu_seconds`.
        overlays, settings: below those of every row.
        rows: in order.
        claims: pairs of labels: the first row's Dice is said to be above the second's.
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
    claims: tuple[tuple[str, str], ...] = ()


def read_table(
    path: str | Path, datasets: Sequence[str] = (), section: str | None = None, columns: Sequence[str] = ()
) -> Table:
    """Read a table's JSON.

    Args:
        path: such as `configs/tables/table3.json`.
        datasets: in place of the table's own.
        section: in place of the table's own.
        columns: behind the table's own, where it lacks them.

    Returns:
        the table; its dataset columns follow `datasets`.

    Raises:
        InputError: the file is missing or malformed, a key is not known, a label stands twice, or a claim names none.
    """
    content = read_json(path, "table")
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or not content["rows"]:
        raise InputError(f"{path}: expected an object with `rows`, a list of rows with a `label` each.")
    _check_keys(content, _TABLE_KEYS, str(path))
    names = tuple(datasets) or tuple(content.get("datasets", ()))
    if not names:
        raise InputError(f"{path}: names no datasets; list them in `datasets`, or give --dataset.")
    known = {*names, *content.get("datasets", ()), *GROUPS, *COSTS}
    listed: list[str] = []
    for column in [*content.get("columns", ["mean"]), *columns]:
        if column != "datasets" and column not in known:
            allowed = ", ".join(["datasets", *names, *GROUPS, *COSTS])
            raise InputError(f"{path}: column {column!r} is none of {allowed}.")
        listed.extend(names if column == "datasets" else [column])
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
        tuple(dict.fromkeys(listed)),
        tuple(content.get("overlays", ())),
        dict(content.get("settings", {})),
        rows,
        _figure(content.get("figure"), str(path)),
        _claims(content.get("claims", []), labels, str(path)),
    )


def _claims(claims: Any, labels: Sequence[str], where: str) -> tuple[tuple[str, str], ...]:
    for claim in claims if isinstance(claims, list) else [claims]:
        if not isinstance(claim, list) or len(claim) != 2 or not set(claim) <= set(labels):
            raise InputError(f"{where}: a claim must be the labels of two rows, the better one first, not {claim!r}.")
    return tuple((better, worse) for better, worse in claims)


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
