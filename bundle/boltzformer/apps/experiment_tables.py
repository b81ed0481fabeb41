"""A table's cells as Markdown, CSV and LaTeX, the paper's figures under ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from boltzformer.apps.experiment_definition import COSTS, Table, TableRow
from boltzformer.apps.experiment_plan import Run
from boltzformer.apps.experiment_rows import missing_scores
from boltzformer.apps.experiment_runs import RESULT
from boltzformer.json_file import read_json
from boltzformer.metrics.files import write_csv, write_text
from boltzformer.metrics.measures.rows import Row
from boltzformer.metrics.summary.protocol import table_values

_CSV = ("row", "source", "column", "value", "low", "high", "sd", "n", "patients", "datasets", "seeds")
_HEADINGS = {
    "mean": "mean",
    "small": "small (< 1 %)",
    "large": "large (>= 1 %)",
    "missed": "missed",
    "pairs": "pairs trained",
    "cpu_seconds": "CPU s",
}
_NOTE = (
    "Dice in % of (slice, prompt) pairs whose slice holds the object: mean within a dataset, plain mean over datasets; "
    "in brackets the 95 % interval over patients, after ± the standard deviation over seeds. "
    "Lines marked (published) are printed figures, not measured here."
)


@dataclass(frozen=True)
class Line:
    """One row of the table as it stands: cells by column, and how many of its runs are finished."""

    label: str
    cells: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, float]
    finished: int
    planned: int
    note: str


def collect(
    table: Table,
    planned: Mapping[str, Sequence[Run]],
    scored: Mapping[str, Mapping[int | None, list[Row]]],
    runs_dir: Path,
    data: Path,
) -> list[Line]:
    """The table's lines from the slices of all finished runs, and of other programs.

    Args:
        table: the table.
        planned: row label to its runs, from `plan_runs`.
        scored: slices by row and seed, from `rows_by_seed`.
        runs_dir: folder of the runs.
        data: folder of other programs' scores.

    Returns:
        a line for each row; without cells where no run is finished.
    """
    lines = []
    for row in table.rows:
        if row.scores is not None:
            lines.append(_scored_elsewhere(row, table, list(scored[row.label].values()), data))
            continue
        runs, done = planned[row.label], scored[row.label]
        cells = table_values(list(done.values())) if done else {}
        costs = _costs([runs_dir / run.key for run in runs if run.seed in done])
        lines.append(Line(row.label, {**cells, **costs}, row.paper, len(done), len(runs), row.note))
    return lines


def write_table(
    table: Table, lines: Sequence[Line], out_dir: Path, budget: Sequence[str], claims: Sequence[str] = ()
) -> dict[str, Path]:
    """Write `NAME.md`, `NAME.csv` and `NAME.tex`.

    Args:
        table: the table.
        lines: from `collect`.
        out_dir: folder of the files.
        budget: lines that say what these runs were given, so that nobody takes them for the paper's.
        claims: lines that say whether what the table is said to show was measured here.

    Returns:
        the files by ending.
    """
    columns = list(table.columns)
    header = ["", *(_HEADINGS.get(column, column) for column in columns)]
    body = [row for line in lines for row in _printed(line, columns)]
    notes = [
        *claims,
        _NOTE,
        *budget,
        *_unfinished(lines),
        *(f"{line.label}: {line.note}" for line in lines if line.note),
    ]
    if table.note:
        notes.append(table.note)
    rule = ["---", *("---:" for _ in columns)]
    grid = "\n".join("| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in [header, rule, *body])
    text = f"### {table.title}\n\n{grid}\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    return {
        "md": write_text(out_dir / f"{table.name}.md", text),
        "csv": write_csv(out_dir / f"{table.name}.csv", _records(lines, columns), _CSV),
        "tex": write_text(out_dir / f"{table.name}.tex", _latex(table, header, body, notes)),
    }


def describe_budget(table: Table, overlays: Sequence[str], settings: Mapping[str, Any], device: str) -> list[str]:
    """What these runs were given, for the notes of a table.

    Args:
        table: the table.
        overlays: the user's own overlays.
        settings: what these overlays set, flattened.
        device: as given.
    """
    lines = [f"Trained and scored on {', '.join(table.datasets)} (list `{table.section}`), on {device}."]
    if overlays:
        plain = {key: value for key, value in settings.items() if not isinstance(value, dict | list)}
        # of a path the name is enough, and says nothing of the machine
        named = {key: Path(value).name if isinstance(value, str) else value for key, value in plain.items()}
        changed = ", ".join(f"{key} = {value}" for key, value in named.items())
        lines.append(f"Not the paper's budget: {', '.join(Path(one).name for one in overlays)} ({changed}).")
    return lines


def _scored_elsewhere(row: TableRow, table: Table, scored: Sequence[list[Row]], data: Path) -> Line:
    if missing := missing_scores(row, data):
        note = f"its scores are not there: {', '.join(str(file) for file in missing)}. {row.note}".strip()
        return Line(row.label, {}, row.paper, 0, 0, note)
    cells = table_values(scored)
    note = row.note
    if "mean" in cells and cells["mean"]["datasets"] < len(table.datasets):
        note = f"mean over {cells['mean']['datasets']} of {len(table.datasets)} datasets. {note}".strip()
    return Line(row.label, cells, row.paper, 1, 1, note)


def _costs(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What the training of a row cost, mean over its seeds; nothing where a result does not say it."""
    efforts = [read_json(folder / RESULT, "result").get("effort", {}) for folder in folders]
    return {
        name: {"cost": fmean(e[name] for e in efforts)} for name in COSTS if efforts and all(name in e for e in efforts)
    }


def _printed(line: Line, columns: Sequence[str]) -> list[list[str]]:
    rows = []
    if line.planned:
        rows.append([line.label, *(_cell(line.cells.get(column)) for column in columns)])
    if line.paper:
        figures = (line.paper.get(column) for column in columns)
        rows.append([f"{line.label} (published)", *("–" if f is None else f"{f:.1f}" for f in figures)])
    return rows or [[line.label, *("–" for _ in columns)]]


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    if "cost" in cell:
        return f"{cell['cost']:.0f}"
    text = f"{100 * cell['value']:.1f}"
    if cell["low"] is not None:
        text += f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    return text if cell["sd"] is None else f"{text} ± {100 * cell['sd']:.1f}"


def _records(lines: Iterable[Line], columns: Sequence[str]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for line in lines:
        for column in columns:
            where = {"row": line.label, "source": "measured", "column": column, "seeds": line.finished}
            cell = line.cells.get(column, {})
            if "cost" in cell:
                records.append({**where, "value": cell["cost"]})
            elif cell:
                percent = {k: None if cell[k] is None else 100 * cell[k] for k in ("value", "low", "high", "sd")}
                counts = {k: cell[k] for k in ("n", "patients", "datasets")}
                records.append({**where, **percent, **counts})
            if column in line.paper:
                records.append(
                    {"row": line.label, "source": "published", "column": column, "value": line.paper[column]}
                )
    return records


def _unfinished(lines: Iterable[Line]) -> list[str]:
    return [
        f"{line.label}: {line.finished} of {line.planned} runs done." for line in lines if line.finished < line.planned
    ]


def _markdown(text: str) -> str:
    return text.replace("|", "\\|")


def _latex(table: Table, header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    rows = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in body]
    return "\n".join(
        [
            *(f"% {note}" for note in notes),
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}",
            r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
            r"\toprule",
            " & ".join(_tex(cell) for cell in header) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, escaped)
    for plain, escaped in ((">=", r"$\geq$"), ("<", "$<$"), ("±", r"$\pm$"), ("–", "--"), ("τ₀", r"$\tau_0$")):
        text = text.replace(plain, escaped)
    return text
