"""Segment a labelled dataset with a trained bundle and write the whole evaluation: one command, one report."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))
sys.path.insert(0, str(ROOT / "scripts"))

from boltzformer.data.cases import load_cases
from boltzformer.data.phantom import dataset_or_phantoms
from boltzformer.data.prompts import Prompt
from boltzformer.data.wordings import WordingBook
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.ensemble import EnsembleSliceInferer, SaveEntropy
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.catalogue import TOLERANCES_MM
from boltzformer.metrics.measures.lesions import LesionRule
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.volumes.write import Grid
from evaluate_predictions import end, score


def main(
    output_dir: Annotated[Path, typer.Option(help="Folder for predictions, report.html, summary.json and CSV files.")],
    dataset_dir: Annotated[
        Path | None, typer.Option(help="Folder with dataset.json; without one, phantom volumes are made.")
    ] = None,
    section: Annotated[str, typer.Option(help="training, validation or test.")] = "validation",
    overlay: Annotated[
        list[str] | None, typer.Option(help="Config on top of inference.json, such as configs/demo.json.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; models/model.pt of the bundle by default.")] = None,
    wording_book: Annotated[Path | None, typer.Option(help="Wordings that extend the built-in ones (JSON).")] = None,
    decodings: Annotated[
        int, typer.Option(min=1, help="Seeded decodings of each slice: above 1, mean probability and entropy maps.")
    ] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first cases.")] = None,
    absent_is_negative: Annotated[
        bool, typer.Option(help="An object absent from a label map counts as a negative, not as left undrawn.")
    ] = False,
    compare_to: Annotated[Path | None, typer.Option(help="Output folder of an earlier evaluation.")] = None,
    min_iou: Annotated[float, typer.Option(help="Least IoU of a matched lesion.")] = 0.1,
    workers: Annotated[int, typer.Option(min=1, help="Processes for scoring.")] = 1,
    pictures: Annotated[int, typer.Option(min=0, help="Worst cases shown with pictures in the report.")] = 6,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Small-object evaluation",
) -> None:
    """Segment every object of every case and evaluate.

    Each object that a case annotates is asked for by its first wording. Ends with code 1, after all the rest, if a case
    could not be segmented or scored.
    """
    try:
        rule = LesionRule(min_iou=min_iou)
        data = dataset_or_phantoms(
            None if dataset_dir is None else str(dataset_dir), str(ROOT / "bundle/runs/phantoms")
        )
        found_cases = load_cases(data, section)[:limit]
        names = file_names(name for case in found_cases for name in case["objects"].values())
        book = WordingBook(file=wording_book)
        segmenter = Segmenter.from_bundle(ROOT / "bundle", checkpoint, overlay or [])
        use_decodings(segmenter, decodings)
        settings = EvaluationSettings(TOLERANCES_MM, rule, segmenter.inferer.spatial_dim, absent_is_negative)
        folder = output_dir / "predictions"
        failures = predict(segmenter, found_cases, book, names, folder, entropy=decodings > 1)
        done = [case for case in found_cases if case["image"] not in failures]
        if not done:
            raise InputError(f"no case could be segmented; the first: {next(iter(failures.values()))}")
        cases = [LabelledCase.from_dict(case) for case in done]
        scored = PredictionFolder(folder, names)
        lost = [{"case": Path(image).name, "object": "", "error": text} for image, text in failures.items()]
        found = score(cases, scored, settings, workers, output_dir, compare_to, pictures, title, lost)
    except (InputError, ValueError) as error:
        Console(stderr=True).print(f"[red]Error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    end(found.failures)


def use_decodings(segmenter: Segmenter, decodings: int) -> None:
    """Give the segmenter an inferer that decodes each slice several times."""
    if decodings == 1:
        return
    plain = segmenter.inferer
    segmenter.inferer = EnsembleSliceInferer(
        plain.prompt,
        plain.spatial_dim,
        plain.num_adjacent,
        plain.memory_gb,
        plain.seed,
        plain.autocast,
        decodings=decodings,
    )


def predict(
    segmenter: Segmenter,
    cases: list[dict[str, Any]],
    book: WordingBook,
    names: dict[str, str],
    folder: Path,
    entropy: bool,
) -> dict[str, str]:
    """Segment all cases; returns what went wrong, by image."""
    failures = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("segmenting", total=len(cases))
        for case in cases:
            wanted = [
                Prompt(book.for_case(case, value)[0], names[name]) for value, name in sorted(case["objects"].items())
            ]
            try:
                result = segmenter.segment(
                    case["image"], wanted, modality=case["modality"], body_part=case["body_part"]
                )
                result.save(folder, probability=True)
                if entropy:
                    SaveEntropy(folder, wanted).save(result.item, Grid.of_volume(result.source), result.case)
            except InputError as error:
                failures[case["image"]] = str(error)
            progress.advance(task)
    return failures


def file_names(objects: Any) -> dict[str, str]:
    """Object names to names fit for files; two objects never share one.

    Raises:
        InputError: two objects differ only in characters that file names lose.
    """
    names: dict[str, str] = {}
    for name in dict.fromkeys(objects):
        short = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:48] or "object"
        if short in names.values():
            raise InputError(f"the objects named like '{name}' cannot be told apart in file names; rename one")
        names[name] = short
    return names


if __name__ == "__main__":
    typer.run(main)
