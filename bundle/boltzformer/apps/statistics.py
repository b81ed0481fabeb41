"""`boltzformer statistics`: how large a dataset's objects are, and how many, as in the paper's table 9."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from boltzformer.apps.console import one_line_errors, print_error
from boltzformer.data.cases import load_cases
from boltzformer.metrics.files import write_csv, write_json
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.show.terminal import statistics_table
from boltzformer.metrics.summary.dataset_statistics import COLUMNS, dataset_statistics
from boltzformer.volumes.checks import read_volume


def main(
    dataset_dir: Annotated[Path, typer.Argument(help="Folder with dataset.json, or a datalist JSON.")],
    section: Annotated[str, typer.Option(help="training, validation, or all (both).")] = "all",
    output_dir: Annotated[Path | None, typer.Option(help="Folder for statistics.csv and statistics.json.")] = None,
    axis: Annotated[int, typer.Option(min=0, max=2, help="Slices along this axis in RAS; 2 is axial.")] = 2,
) -> None:
    """Mean, median, least and largest area in % of the slice for each object, with the support."""
    console = Console()
    with one_line_errors():
        sections = ("training", "validation") if section == "all" else (section,)
        cases = [LabelledCase.from_dict(case) for name in sections for case in load_cases(dataset_dir, name)]
        with console.status("reading") as status:
            found = dataset_statistics(cases, read_volume, axis, progress=lambda name: status.update(f"reading {name}"))
        console.print(statistics_table(found))
        if output_dir is not None:
            write_csv(output_dir / "statistics.csv", found["objects"], COLUMNS)
            write_json(output_dir / "statistics.json", found)
    for failure in found["failures"]:
        print_error(failure["error"])
    if found["failures"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
