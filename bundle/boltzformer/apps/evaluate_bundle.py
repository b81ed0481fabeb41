"""`boltzformer evaluate-bundle`: segment a labelled dataset with a trained bundle and write the whole evaluation."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.apps.console import OUTPUT_DIR, one_line_errors
from boltzformer.apps.scoring import check_comparison, end, score, settings_as_input
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.cases import load_cases
from boltzformer.data.phantom import dataset_or_phantoms
from boltzformer.data.prompts import Prompt
from boltzformer.data.wordings import WordingBook
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.ensemble import SaveEntropy
from boltzformer.inference.existence import ExistenceGate
from boltzformer.metrics.evaluation import told_apart
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.catalogue import EXISTENCE_THRESHOLD, TOLERANCES_MM
from boltzformer.metrics.measures.lesions import LesionRule
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.recipe import Recipe, recipe_for, wording_book_of
from boltzformer.volumes.spacing import has_spacing
from boltzformer.volumes.write import Grid

UNCERTAINTY = "configs/uncertainty.json"


def main(
    output_dir: Annotated[
        Path, typer.Option(*OUTPUT_DIR, help="Folder for predictions, report.html, summary.json and CSV files.")
    ],
    dataset_dir: Annotated[
        Path | None, typer.Option(help="Folder with dataset.json; without one, phantom volumes are made.")
    ] = None,
    section: Annotated[
        str, typer.Option(help="training, validation, test, or all (training and validation).")
    ] = "validation",
    overlay: Annotated[
        list[str] | None, typer.Option(help="Config on top of inference.json, such as configs/demo.json.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; models/model.pt of the bundle by default.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key of inference.json: --set window=lung --set memory_gb=8; may be repeated."),
    ] = None,
    wording_book: Annotated[
        Path | None, typer.Option(help="Wordings (JSON) in place of those that the checkpoint was trained with.")
    ] = None,
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
    with one_line_errors():
        bundle = bundle_folder()
        with settings_as_input():
            rule = LesionRule(min_iou=min_iou)
        check_comparison(compare_to, output_dir)
        overlays = [*(overlay or []), *([UNCERTAINTY] if decodings > 1 else [])]
        values = read_values(setting or [], bundle, overlays)
        values |= {"decodings": decodings} if decodings > 1 else {}
        data = dataset_or_phantoms(None if dataset_dir is None else str(dataset_dir), str(bundle / "runs" / "phantoms"))
        found_cases = load_cases(data, section)[:limit]
        labelled = told_apart([LabelledCase.from_dict(case) for case in found_cases])
        names = file_names(name for case in found_cases for name in case["objects"].values())
        segmenter = Segmenter.from_bundle(bundle, checkpoint, overlays, **values)
        weights = checkpoint or bundle / "models" / "model.pt"
        recipe = recipe_for(weights, bundle)
        book = wording_book_of(recipe, wording_book)
        settings = EvaluationSettings(
            TOLERANCES_MM,
            rule,
            segmenter.inferer.spatial_dim,
            absent_is_negative,
            existence_threshold=gate_of(segmenter.inferer.existence, recipe),
        )
        folder = output_dir / "predictions"
        failures = predict(segmenter, found_cases, labelled, book, names, folder, entropy=decodings > 1)
        # the masks are called after the cases alone; those of an earlier run with more cases may lie there too
        cases = [
            replace(one, others=one.others | set(one.names))
            for one, case in zip(labelled, found_cases, strict=True)
            if case["image"] not in failures
        ]
        if not cases:
            raise InputError(f"no case could be segmented; the first: {next(iter(failures.values()))}")
        scored = PredictionFolder(folder, names, [case.name for case in cases])
        made_with = {f"existence_{name}": value for name, value in vars(segmenter.inferer.existence).items()}
        made_with["network_sha256"] = recipe.sha256
        agreement = segmenter.inferer.agreement
        # None where it is the checkpoint's own, for some prompts
        made_with["agreement_mm"] = agreement.sigma_mm if agreement.terms is None else None
        found = score(
            cases, scored, settings, workers, output_dir, compare_to, pictures, title, failures, weights, made_with
        )
    end(found.failures)


def gate_of(gate: ExistenceGate, recipe: Recipe) -> float:
    """Threshold of the report's gated numbers: the masks' own, the checkpoint's where the masks went through none."""
    return gate.threshold or recipe.threshold("existence") or EXISTENCE_THRESHOLD


def read_values(settings: Sequence[str], bundle: Path, overlays: list[str]) -> dict[str, Any]:
    """Values of config keys from `key=value`, the value in JSON or as plain text.

    Raises:
        InputError: a setting without `=`, or a key that `inference.json` does not have; the nearest is named.
    """
    known = list(read_bundle(bundle, overlays, {}, "inference").get() or {}) if settings else []
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as key=value, for example --set window=lung")
        if re.split("#|::", key)[0] not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"--set {setting}: inference.json has no key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
            )
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def predict(
    segmenter: Segmenter,
    cases: list[dict[str, Any]],
    labelled: Sequence[LabelledCase],
    book: WordingBook,
    names: dict[str, str],
    folder: Path,
    entropy: bool,
) -> dict[str, str]:
    """Segment all cases; returns what went wrong, by image."""
    failures = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("segmenting", total=len(cases))
        for case, named in zip(cases, labelled, strict=True):
            wanted = [
                Prompt(book.for_case(case, value)[0], names[name]) for value, name in sorted(case["objects"].items())
            ]
            try:
                result = segmenter.segment(
                    case["image"],
                    wanted,
                    modality=case["modality"],
                    body_part=case["body_part"],
                    window=case.get("window"),
                    spacing_known=has_spacing(case),
                )
                result.save(folder, probability=True, case=named.name)
                if entropy:
                    SaveEntropy(folder, wanted).save(result.item, Grid.of_volume(result.source), named.name)
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
