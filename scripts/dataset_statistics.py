"""Table 9 of the paper for any dataset in Decathlon layout: how large its objects are, and how many."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from boltzformer.data.cases import load_cases
from boltzformer.errors import InputError
from boltzformer.metrics.case_evaluation import LabelledCase
from boltzformer.metrics.dataset_statistics import COLUMNS, dataset_statistics, statistics_table
from boltzformer.metrics.tables import write_csv, write_json
from boltzformer.volumes.checks import read_volume


def main(
    dataset_dir: Annotated[Path, typer.Argument(help="Folder with dataset.json, or a datalist JSON.")],
    section: Annotated[str, typer.Option(help="training, validation, or all (both).")] = "all",
    output_dir: Annotated[Path | None, typer.Option(help="Folder for statistics.csv and statistics.json.")] = None,
    axis: Annotated[int, typer.Option(min=0, max=2, help="Slices along this axis in RAS; 2 is axial.")] = 2,
) -> None:
    """Mean, median, least and largest area in % of the slice for each object, with the support."""
    console = Console()
    try:
        sections = ("training", "validation") if section == "all" else (section,)
        cases = [LabelledCase.from_dict(case) for name in sections for case in load_cases(dataset_dir, name)]
        with console.status("reading") as status:
            found = dataset_statistics(cases, read_volume, axis, progress=lambda name: status.update(f"reading {name}"))
        console.print(statistics_table(found))
        if output_dir is not None:
            write_csv(output_dir / "statistics.csv", found["objects"], COLUMNS)
            write_json(output_dir / "statistics.json", found)
    except InputError as error:
        Console(stderr=True).print(f"[red]Error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    for failure in found["failures"]:
        Console(stderr=True).print(f"[red]Error:[/red] {failure['error']}", highlight=False, soft_wrap=True)
    if found["failures"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
