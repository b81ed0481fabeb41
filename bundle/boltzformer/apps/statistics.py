"""`boltzformer statistics`: how large a dataset's objects are, and how many, as in the paper's table 9."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from boltzformer.apps.console import OUTPUT_DIR, one_line_errors, print_error
from boltzformer.data.cases import ALL, load_cases
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.files import write_csv, write_json
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.show.terminal import statistics_table
from boltzformer.metrics.summary.dataset_statistics import COLUMNS, dataset_statistics
from boltzformer.volumes.checks import read_volume


def main(
    dataset_dir: Annotated[Path, typer.Argument(help="Folder with dataset.json, or a datalist JSON.")],
    section: Annotated[str, typer.Option(help="training, validation, test, or all that are labelled.")] = ALL,
    output_dir: Annotated[
        Path | None, typer.Option(*OUTPUT_DIR, help="Folder for statistics.csv and statistics.json.")
    ] = None,
    axis: Annotated[int, typer.Option(min=0, max=2, help="Slices along this axis in RAS; 2 is axial.")] = 2,
    published: Annotated[
        Path | None, typer.Option(help='Figures to put beside: {"dataset": {"object": {"mean_percent": 0.5}}}.')
    ] = None,
) -> None:
    """Mean, median, least and largest area in % of the slice for each object, with the support."""
    console = Console()
    with one_line_errors():
        figures = {} if published is None else read_published(published)
        sections = _labelled(dataset_dir) if section == ALL else (section,)
        cases = [LabelledCase.from_dict(case) for name in sections for case in load_cases(dataset_dir, name)]
        with console.status("reading") as status:
            found = dataset_statistics(cases, read_volume, axis, progress=lambda name: status.update(f"reading {name}"))
        add_published(found["objects"], figures)
        console.print(statistics_table(found))
        if empty := found["without_object"]:
            console.print(f"{len(empty)} of {len(cases)} label maps are empty: {', '.join(empty)}", markup=False)
        if output_dir is not None:
            added = [f"published_{column}" for column in COLUMNS] if figures else []
            columns = [*COLUMNS, *(name for name in added if any(name in row for row in found["objects"]))]
            write_csv(output_dir / "statistics.csv", found["objects"], columns)
            write_json(output_dir / "statistics.json", found)
    for failure in found["failures"]:
        print_error(failure["error"])
    if found["failures"]:
        raise typer.Exit(1)


def read_published(path: Path) -> dict[str, Any]:
    """Read figures that a user typed: dataset, object, then columns of the statistics and their values.

    Raises:
        InputError: the file is missing or malformed, or a column is not one of the statistics'.
    """
    content = read_json(path, "file of published figures")
    entries = content.values() if isinstance(content, dict) else [content]
    for objects in entries:
        for row in objects.values() if isinstance(objects, dict) else [objects]:
            if not isinstance(row, dict) or not all(isinstance(value, int | float) for value in row.values()):
                raise InputError(
                    f'{path}: expected numbers as in {{"LIDC_IDRI": {{"nodule": {{"mean_percent": 0.5}}}}}}.'
                )
            if unknown := sorted(set(row) - set(COLUMNS[2:])):
                raise InputError(f"{path}: {unknown[0]!r} is none of {', '.join(COLUMNS[2:])}.")
    return dict(content)


def add_published(rows: Iterable[dict[str, Any]], figures: Mapping[str, Any]) -> None:
    """Put `published_<column>` into each row for which there are figures.

    Raises:
        InputError: a figure belongs to no row.
    """
    places = {(row["dataset"], row["object"]): row for row in rows}
    for dataset, objects in figures.items():
        for name, values in objects.items():
            if (dataset, name) in places:
                places[dataset, name].update({f"published_{column}": value for column, value in values.items()})
            elif any(known == dataset for known, _ in places):
                raise InputError(f"published figures: {dataset} has no object '{name}'.")


def _labelled(dataset: Path) -> list[str]:
    """The sections of a dataset whose items have labels."""
    file = dataset / "dataset.json" if dataset.is_dir() else dataset
    content = read_json(file, "dataset.json")
    test = content.get("test") if isinstance(content, dict) else None
    with_labels = isinstance(test, list) and test and all(isinstance(i, dict) and i.get("label") for i in test)
    trained = not isinstance(content, dict) or content.get("training") or content.get("validation") or not with_labels
    return [*([ALL] if trained else []), *(["test"] if with_labels else [])]


if __name__ == "__main__":
    typer.run(main)
