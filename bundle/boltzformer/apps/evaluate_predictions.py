"""`boltzformer evaluate-predictions`: score NIfTI predictions of any model against labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from boltzformer.apps.console import OUTPUT_DIR, one_line_errors
from boltzformer.apps.scoring import check_comparison, end, score, settings_as_input
from boltzformer.data.cases import load_cases
from boltzformer.data.datalist import read_item
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.catalogue import TOLERANCES_MM
from boltzformer.metrics.measures.lesions import LesionRule
from boltzformer.metrics.measures.prediction_files import PredictionFolder, strip_extension


def main(
    predictions: Annotated[
        Path,
        typer.Argument(help="Folder: CASE/OBJECT.nii.gz or CASE_OBJECT.nii.gz masks, or CASE.nii.gz label maps."),
    ],
    labels: Annotated[
        Path, typer.Argument(help="Folder with dataset.json (or a datalist JSON), or a folder of label maps.")
    ],
    output_dir: Annotated[
        Path, typer.Option(*OUTPUT_DIR, help="Folder for report.html, summary.json and the CSV files.")
    ],
    section: Annotated[
        str, typer.Option(help="training, validation, test, or all (training and validation).")
    ] = "validation",
    objects: Annotated[
        Path | None, typer.Option(help='JSON {"1": "liver lesion", ...}; needed with a plain folder of label maps.')
    ] = None,
    aliases: Annotated[
        Path | None, typer.Option(help='JSON {"left kidney": "kidney_left"}: object to the name in file names.')
    ] = None,
    compare_to: Annotated[
        Path | None, typer.Option(help="Output folder of an earlier evaluation on the same cases, to compare with.")
    ] = None,
    tolerance_mm: Annotated[list[float], typer.Option(help="Surface Dice tolerance; may be repeated.")] = list(  # noqa: B006
        TOLERANCES_MM
    ),
    connectivity: Annotated[int, typer.Option(help="Of lesions: 6, 18 or 26.")] = 26,
    min_iou: Annotated[float, typer.Option(help="Least IoU of a matched lesion.")] = 0.1,
    axis: Annotated[int, typer.Option(min=0, max=2, help="Slices along this axis in RAS; 2 is axial.")] = 2,
    absent_is_negative: Annotated[
        bool, typer.Option(help="An object absent from a label map counts as a negative, not as left undrawn.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    pictures: Annotated[int, typer.Option(min=0, help="Worst cases shown with pictures in the report.")] = 6,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Small-object evaluation",
) -> None:
    """Score predictions; write CSV, JSON and a report that opens without a network.

    Ends with code 1, after all the rest, if a file could not be scored.
    """
    with one_line_errors():
        with settings_as_input():
            rule = LesionRule(connectivity, min_iou)
            settings = EvaluationSettings(tuple(tolerance_mm), rule, axis, absent_is_negative)
        check_comparison(compare_to, output_dir)
        cases = find_cases(labels, section, read_names(objects))
        folder = PredictionFolder(predictions, {str(k): str(v) for k, v in read_names(aliases).items()})
        found = score(cases, folder, settings, workers, output_dir, compare_to, pictures, title)
    end(found.failures)


def find_cases(labels: Path, section: str, names: dict[str, Any]) -> list[LabelledCase]:
    """The labelled cases below a path.

    A dataset's list is read without looking for its files, so that a missing one fails its own case only.

    Raises:
        InputError: where there are none, or nothing says what the values mean.
    """
    content_file = labels / "dataset.json" if labels.is_dir() else labels
    if not content_file.is_file():
        return _plain_folder(labels, names)
    content = read_json(content_file, "dataset.json")
    lists = ("training", "validation") if section == "all" else (section,)
    if section == "all" and isinstance(content, list):
        content = {"training": content}
    items = _listed(content, lists, content_file) if isinstance(content, dict) else []
    if not items:  # no such list: the loader splits the training list by patient, and says so
        return [LabelledCase.from_dict(case) for case in load_cases(labels, section)]
    return [
        LabelledCase.from_dict(read_item(item, content, content_file, f"{content_file}, {section}", True, None))
        for item in items
    ]


def _listed(content: dict[str, Any], lists: tuple[str, ...], file: Path) -> list[Any]:
    items: list[Any] = []
    for name in lists:
        entries = content.get(name) or []
        if not isinstance(entries, list):
            raise InputError(f"{file}: `{name}` must be a list, found {type(entries).__name__}.")
        items += entries
    return items


def _plain_folder(labels: Path, names: dict[str, Any]) -> list[LabelledCase]:
    if not labels.is_dir():
        raise InputError(f"{labels}: no such folder; give a dataset folder or a folder of label maps")
    # names that begin with a dot are drafts or macOS's companions
    files = sorted(path for path in labels.iterdir() if strip_extension(path.name) and path.name[0] != ".")
    if not files:
        raise InputError(f"{labels}: has neither dataset.json nor a NIfTI label map")
    if not names:
        raise InputError(f"{labels}: has no dataset.json: say what the label values mean with --objects")
    try:
        objects = {int(value): str(name) for value, name in names.items() if int(value)}
    except ValueError as error:
        raise InputError(f"--objects must map label values to names: {error}") from error
    if len({name.casefold() for name in objects.values()}) < len(objects):
        raise InputError(
            "--objects: two label values have the same name, and a prediction of it would be held against each of them "
            "alone; give them one value in the label maps (lesions are told apart as connected components)."
        )
    return [LabelledCase(path, objects, labels.name, str(strip_extension(path.name))) for path in files]


def read_names(path: Path | None) -> dict[str, Any]:
    """A JSON object of names; empty where there is no file to read.

    Raises:
        InputError: where the file cannot be read or holds something else.
    """
    if path is None:
        return {}
    content = read_json(path, "file of names")
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected a JSON object of names")
    return content


if __name__ == "__main__":
    typer.run(main)
