"""Scored slices behind a table's rows, of finished runs and of other programs; datasets are named as the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer.apps.experiment_definition import Table, TableRow
from boltzformer.apps.experiment_plan import Run, dataset_path, own_name
from boltzformer.apps.experiment_runs import ROWS, is_finished
from boltzformer.metrics.files import read_csv
from boltzformer.metrics.measures.rows import Row
from boltzformer.metrics.summary.slice_scores import read_slice_scores


def rows_by_seed(
    table: Table, planned: Mapping[str, Sequence[Run]], runs_dir: Path, data: Path
) -> dict[str, dict[int | None, list[Row]]]:
    """Read what was scored for each row of a table.

    Args:
        table: the table.
        planned: row label to its runs, from `plan_runs`.
        runs_dir: folder of the runs.
        data: folder of the datasets, and of other programs' scores.

    Returns:
        row label to seed to slices: of finished runs, or of another program, which has no seed, under None; empty where
        nothing was measured, or a file of scores is missing.

    Raises:
        InputError: a file of scores that cannot be read.
    """
    columns = {own_name(dataset_path(data, name)): name for name in table.datasets}
    found: dict[str, dict[int | None, list[Row]]] = {}
    for row in table.rows:
        found[row.label] = {}
        if row.scores is not None and not missing_scores(row, data):
            found[row.label][None] = _foreign_rows(row, table, columns, data)
        for run in planned[row.label]:
            if is_finished(run, runs_dir):
                rows = read_csv(runs_dir / run.key / ROWS)
                found[row.label][run.seed] = [
                    {**line, "dataset": columns.get(line["dataset"], line["dataset"])} for line in rows
                ]
    return found


def missing_scores(row: TableRow, data: Path) -> list[Path]:
    """Files of another program's scores that are not there."""
    return [file for file in _score_files(row, data) if not file.is_file()]


def _score_files(row: TableRow, data: Path) -> list[Path]:
    return [data / file for file in (row.scores or {}).get("files", ())]


def _foreign_rows(row: TableRow, table: Table, columns: Mapping[str, str], data: Path) -> list[Row]:
    """Slices of the table's datasets that another program scored."""
    settings: dict[str, Any] = {key: value for key, value in (row.scores or {}).items() if key != "files"}
    # by default the names that the datasets call themselves by, and of others nothing
    chosen: Mapping[str, str] = settings.pop("datasets", None) or {**columns, **{name: name for name in table.datasets}}
    chosen = {name: wanted for name, wanted in chosen.items() if wanted in table.datasets}
    return [line for file in _score_files(row, data) for line in read_slice_scores(file, datasets=chosen, **settings)]
