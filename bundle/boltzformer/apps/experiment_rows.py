"""Scored slices behind a table's rows, of finished runs and of other programs; datasets are named as the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer.apps.experiment_definition import Table, TableRow
from boltzformer.apps.experiment_plan import Run, column_of, datalist_of, dataset_path
from boltzformer.apps.experiment_runs import ROWS, is_finished
from boltzformer.json_file import read_json
from boltzformer.metrics.files import read_csv
from boltzformer.metrics.measures.rows import Row
from boltzformer.metrics.summary.slice_scores import read_slice_scores


def finished_rows(runs: Sequence[Run], runs_dir: Path) -> dict[int, list[Row]]:
    """Scored slices of a row's finished runs.

    Args:
        runs: from `plan_runs`.
        runs_dir: folder of the runs.

    Returns:
        seed to slices.
    """
    found: dict[int, list[Row]] = {}
    for run in runs:
        if is_finished(run, runs_dir):
            columns = {dataset_name(path): column_of(path) for path in run.datasets}
            rows = read_csv(runs_dir / run.key / ROWS)
            found[run.seed] = [{**row, "dataset": columns.get(row["dataset"], row["dataset"])} for row in rows]
    return found


def missing_scores(row: TableRow, data: Path) -> list[Path]:
    """Files of another program's scores that are not there."""
    return [file for file in _score_files(row, data) if not file.is_file()]


def foreign_rows(row: TableRow, table: Table, data: Path) -> list[Row]:
    """Slices of the table's datasets that another program scored.

    Args:
        row: with `scores`, of which no file is missing.
        table: the row's.
        data: folder of the datasets, and of the files.

    Raises:
        InputError: a file that cannot be read.
    """
    settings: dict[str, Any] = {key: value for key, value in (row.scores or {}).items() if key != "files"}
    # by default the names that the datasets call themselves by, and of others nothing
    own = {dataset_name(dataset_path(data, name)): name for name in table.datasets}
    chosen: Mapping[str, str] = settings.pop("datasets", None) or {**own, **{name: name for name in table.datasets}}
    chosen = {name: wanted for name, wanted in chosen.items() if wanted in table.datasets}
    return [line for file in _score_files(row, data) for line in read_slice_scores(file, datasets=chosen, **settings)]


def dataset_name(dataset: Path) -> str:
    """The name by which the cases of a folder or datalist call their dataset."""
    return str(read_json(datalist_of(dataset), "datalist").get("name") or column_of(dataset))


def _score_files(row: TableRow, data: Path) -> list[Path]:
    return [data / file for file in (row.scores or {}).get("files", ())]
