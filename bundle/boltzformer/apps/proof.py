"""`boltzformer proof`: what a checkpoint claims beside its Dice, each by one command on a labelled dataset.

Each command derives datasets where it has to, lets the existing evaluation score them, and writes
`OUTPUT/proof.json` with the table that it prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from boltzformer.apps import evaluate_bundle, runs
from boltzformer.apps.console import OUTPUT_DIR, one_line_errors
from boltzformer.apps.release import shipped_weights, weights_checksum
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.cases import load_cases
from boltzformer.data.derived import (
    Change,
    back_on_grid,
    field_of_view,
    mirrored,
    read_scan,
    resampled,
    shifted,
    softened,
    twin_of,
    unchanged,
    write_datalist,
    write_derived,
)
from boltzformer.data.wordings import read_wording_book
from boltzformer.errors import InputError
from boltzformer.inference.known_terms import THRESHOLD
from boltzformer.inference.prompt_distances import measure_distances
from boltzformer.json_file import read_json
from boltzformer.metrics.files import write_json
from boltzformer.metrics.measures.cases import LabelledCase
from boltzformer.metrics.measures.volumes import overlap_dice
from boltzformer.recipe import recipe_for, update_recipe
from boltzformer.recipe_network import build_network
from boltzformer.volumes.checks import read_volume
from boltzformer.volumes.names import case_name
from boltzformer.weights import load_weights

app = typer.Typer(
    name="proof",
    help="Wordings, sides, fields of view, shifted crops and far prompts: what a checkpoint claims beside its Dice.",
    no_args_is_help=True,
    add_completion=False,
)

Dataset = Annotated[Path, typer.Argument(help="Folder in Decathlon layout, or a datalist JSON.")]
Output = Annotated[Path, typer.Option(*OUTPUT_DIR, help="Folder of derived data, evaluations and proof.json.")]
Weights = Annotated[Path | None, typer.Option(help="Checkpoint; the bundle's by default.")]
Section = Annotated[str, typer.Option(help="training, validation or test.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first cases.")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="key=value of the config; repeatable.")]
Overlay = Annotated[list[str] | None, typer.Option(help="Config on top of inference.json; repeatable.")]
Row = dict[str, Any]


@app.command()
def wordings(
    dataset: Dataset,
    output: Output,
    wordings: Annotated[
        Path | None, typer.Option(help="Wording book; configs/wordings_unseen.json by default.")
    ] = None,
    weights: Weights = None,
    section: Section = "validation",
    limit: Limit = None,
    setting: Setting = None,
) -> None:
    """Slice Dice with wordings that training never used, against the first one that it used."""
    with one_line_errors():
        file = _weights(weights)
        book = read_wording_book(wordings or bundle_folder() / "configs" / "wordings_unseen.json")
        data = write_datalist(_cases(dataset, section, limit), output / "cases.json")
        rounds = {"trained": None} | {f"unseen {i + 1}": i for i in range(max(len(texts) for texts in book.values()))}
        found = {}
        for name, index in rounds.items():
            given = {"output_dir": str(output / name.replace(" ", "_")), "checkpoint": runs.plain_path(file)}
            if index is not None:
                one = {key: [texts[min(index, len(texts) - 1)]] for key, texts in book.items()}
                path = write_json(output / f"wordings_{index + 1}.json", one)
                given |= {"wording_book": runs.plain_path(path), "wording_book_mode": "extend"}
            runs.start("evaluating", ["evaluate.json"], data, None, setting, given)
            found[name] = _read(Path(given["output_dir"]) / "summary.json")
        rows = _rows_of_slices(found)
        _finish("Slice Dice by wording", rows, output, file)


@app.command()
def sides(
    dataset: Dataset,
    output: Output,
    weights: Weights = None,
    section: Section = "validation",
    limit: Limit = None,
    setting: Setting = None,
    overlay: Overlay = None,
) -> None:
    """Wrong-side voxels of lateral organs, on the scans and on their mirror images with swapped labels."""
    with one_line_errors():
        file = _weights(weights)
        cases = _cases(dataset, section, limit)
        if not any(twin_of(value, case["objects"]) is not None for case in cases for value in case["objects"]):
            raise InputError(
                f"{dataset}: names no lateral organ (left or right) with its twin, so there is no side to mistake."
            )
        rows = []
        for name, change in (("as they are", unchanged), ("mirrored", mirrored)):
            folder = output / name.replace(" ", "_")
            data, summary = _derive_and_evaluate(cases, change, folder, file, setting, overlay)
            rows += [
                {"scans": name, "object": key, **shares, "volume_dice": summary["objects"][key]["mean_dice"]}
                for key, shares in opposite_shares(data, folder / "report" / "predictions").items()
            ]
        if not rows:
            raise InputError(f"{dataset}: no label map holds a lateral organ and its twin, so nothing was counted.")
        _finish("Predicted voxels of lateral organs on the wrong side", rows, output, file)


@app.command()
def spacing(
    dataset: Dataset,
    output: Output,
    weights: Weights = None,
    section: Section = "validation",
    limit: Limit = None,
    pixel_mm: Annotated[float, typer.Option(min=0.1, help="Pixel size of the resampled scans.")] = 1.0,
    field_mm: Annotated[float, typer.Option(min=16.0, help="Field of view of the cut scans.")] = 256.0,
    setting: Setting = None,
    overlay: Overlay = None,
) -> None:
    """Volume Dice of the same scans on other pixels and in a smaller field of view (on pixels of half the size).

    It is taken on those pixels, where the labels have the steps of the scan's own, and on the scan's own pixels.
    Resampling softens a scan, which costs something by itself: one row has that alone, on the scan's own pixels.
    """
    with one_line_errors():
        file = _weights(weights)
        cases = _cases(dataset, section, limit)
        variants: dict[str, Change] = {
            "as they are": unchanged,
            f"pixels of {pixel_mm:g} mm": resampled(pixel_mm),
            "as they are, as soft as these": softened(pixel_mm),
            f"field of view of {field_mm:g} mm": field_of_view(field_mm, pixel_mm / 2),
        }
        found, own = {}, {}
        for number, (name, change) in enumerate(variants.items()):
            folder = output / f"{number}"
            _, found[name] = _derive_and_evaluate(cases, change, folder, file, setting, overlay)
            own[name] = dice_on_own_pixels(cases, folder / "report" / "predictions")
        rows = []
        base = found["as they are"]
        for name, summary in found.items():
            for key, entry in {"all": summary["overall"], **summary["objects"]}.items():
                first = base["overall"] if key == "all" else base["objects"][key]
                row = {"scans": name, "object": key, "n": entry["n"], **_against(entry, first, "volume_dice")}
                rows.append({**row, "on_own_pixels": own[name].get(key)})
        _finish("Volume Dice by field of view", rows, output, file)


@app.command()
def crops(
    dataset: Dataset,
    output: Output,
    weights: Weights = None,
    section: Section = "validation",
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shifts.")] = 0,
    setting: Setting = None,
    overlay: Overlay = None,
) -> None:
    """Lesions of crops that were shifted at random up to the border: slice Dice, sensitivity, FROC."""
    with one_line_errors():
        file = _weights(weights)
        cases = _cases(dataset, section, limit)
        rows = []
        for name, change in (("as they are", unchanged), ("shifted", shifted(seed))):
            folder = output / name.replace(" ", "_")
            _derive_and_evaluate(cases, change, folder, file, setting, overlay)
            summary = _read(folder / "report" / "summary.json")
            overall, lesions = summary["slices"]["overall"], summary["lesions"]
            at = (lesions["froc"] or {}).get("at") or {}
            rows.append(
                {
                    "crops": name,
                    "n": summary["cases"],
                    "slice_dice": overall["mean_dice"],
                    "missed_share": overall["missed_share"],
                    "specificity": overall["negatives"]["specificity"],
                    "sensitivity": lesions["overall"]["sensitivity"],
                    "sensitivity_at_1_fp": at.get("1"),
                    "froc_score": (lesions["froc"] or {}).get("score"),
                }
            )
        _finish("Lesions of shifted crops", rows, output, file)


@app.command()
def prompts(
    output: Output,
    weights: Weights = None,
    unseen: Annotated[Path | None, typer.Option(help="Wording book; configs/wordings_unseen.json by default.")] = None,
    others: Annotated[Path | None, typer.Option(help="Other terms; configs/other_terms.json by default.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the threshold into the checkpoint.")] = False,
) -> None:
    """How far unseen wordings and other organs and findings are from the known terms, and the threshold between."""
    with one_line_errors():
        file, configs = _weights(weights), bundle_folder() / "configs"
        recipe = recipe_for(file, bundle_folder())
        if not recipe.objects:
            raise InputError(f"{file}: its recipe names no objects, so no term is known; train it with this bundle.")
        network: Any = build_network(recipe).eval()
        load_weights(network, file)
        book = read_wording_book(unseen or configs / "wordings_unseen.json")
        known = {name.lower() for name in recipe.objects}
        found = measure_distances(
            recipe.objects,
            [text for name, texts in book.items() if name in known for text in texts],
            other_terms(others or configs / "other_terms.json"),
            network.text_encoder.together,
        )
        if write:
            update_recipe(file, thresholds={THRESHOLD: found.threshold})
        _finish(f"Distance to the nearest known term (threshold {found.threshold:.2f})", found.rows, output, file)


def other_terms(path: Path) -> list[str]:
    """Terms of a JSON file: an object from a heading to a list of terms.

    Raises:
        InputError: it is no such file.
    """
    content = read_json(path, "list of terms")
    lists = list(content.values()) if isinstance(content, dict) else [content]
    if not lists or not all(isinstance(part, list) and part for part in lists):
        raise InputError(f'{path}: expected an object such as {{"organs": ["liver", "spleen"]}}.')
    return [str(term) for part in lists for term in part]


def dice_on_own_pixels(cases: Sequence[Mapping[str, Any]], predictions: Path) -> dict[str, float]:
    """Mean volume Dice of masks of changed scans, brought back onto the scans' own pixels; and of all together, "all".

    Args:
        cases: before the change.
        predictions: masks named after cases and objects.
    """
    found: dict[str, list[float]] = {}
    for case in cases:
        scan, names = read_scan(case), evaluate_bundle.file_names(case["objects"].values())
        for value, name in case["objects"].items():
            label = scan.label == value
            if not label.any():
                continue
            voxels, header = read_volume(_mask_file(predictions, case, names[name]))
            dice = overlap_dice(back_on_grid(voxels, header.affine, scan), label)
            for key in ("all", f"{case['dataset']} / {name}"):
                found.setdefault(key, []).append(dice)
    return {key: sum(values) / len(values) for key, values in found.items()}


def opposite_shares(dataset: Path, predictions: Path) -> dict[str, Row]:
    """For each lateral organ the share of its predicted voxels that lie in its twin's label.

    Args:
        dataset: with labels; both organs must be in a case's label map for it to count.
        predictions: masks named after cases and objects.
    """
    counts: dict[str, list[int]] = {}
    for case in load_cases(dataset, "validation"):
        names = evaluate_bundle.file_names(case["objects"].values())
        label = read_scan(case).label
        for value, name in case["objects"].items():
            twin = twin_of(value, case["objects"])
            if twin is None or not ((label == value).any() and (label == twin).any()):
                continue
            mask = _mask_file(predictions, case, names[name])
            predicted = read_scan({**case, "label": str(mask)}).label > 0
            total = counts.setdefault(f"{case['dataset']} / {name}", [0, 0, 0])
            for place, number in enumerate((predicted.sum(), (predicted & (label == twin)).sum(), 1)):
                total[place] += int(number)
    return {
        name: {"n": cases, "predicted_voxels": voxels, "in_opposite_organ": wrong / voxels if voxels else None}
        for name, (voxels, wrong, cases) in counts.items()
    }


def _mask_file(predictions: Path, case: Mapping[str, Any], name: str) -> Path:
    return predictions / case_name(case["image"]) / f"{name}.nii.gz"


def _derive_and_evaluate(
    cases: Sequence[Mapping[str, Any]],
    change: Change,
    folder: Path,
    weights: Path,
    settings: list[str] | None,
    overlays: list[str] | None,
) -> tuple[Path, dict[str, Any]]:
    """Write the changed scans, segment and score them; the dataset and the summary of its volumes."""
    data = write_derived(cases, change, folder / "data")
    evaluate_bundle.main(
        output_dir=folder / "report",
        dataset_dir=data,
        checkpoint=weights,
        setting=settings,
        overlay=overlays,
        pictures=0,
        title=folder.name.replace("_", " "),
    )
    return data, _read(folder / "report" / "summary.json")["volumes"]


def _cases(dataset: Path, section: str, limit: int | None) -> list[dict[str, Any]]:
    cases = load_cases(dataset, section)[:limit]
    for case in cases:
        LabelledCase.from_dict(case)  # refuses one without a label
    return cases


def _weights(weights: Path | None) -> Path:
    file = weights or shipped_weights()
    weights_checksum(file)  # says what to do where there is none
    return file


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows_of_slices(found: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Slice Dice of each round, all together and for each object, beside that of the first round."""
    rows = []
    first = next(iter(found.values()))
    for name, summary in found.items():
        rows.append({"wording": name, "object": "all", **_against(summary["overall"], first["overall"], "slice_dice")})
        for dataset, part in summary["datasets"].items():
            for key, entry in part["objects"].items():
                base = first["datasets"][dataset]["objects"][key]
                rows.append({"wording": name, "object": key, **_against(entry, base, "slice_dice")})
    return rows


def _against(entry: Mapping[str, Any], base: Mapping[str, Any], name: str) -> Row:
    value, first = entry["mean_dice"], base["mean_dice"]
    return {name: value, "difference": None if value is None or first is None else value - first}


def _finish(title: str, rows: list[Row], output: Path, weights: Path) -> None:
    """Write `proof.json` and print the table."""
    content = {"title": title, "weights": weights.name, "sha256": weights_checksum(weights), "rows": rows}
    path = write_json(output / "proof.json", content)
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*("–" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    console = Console()
    console.print(table)
    console.print(f"Written: {path}", soft_wrap=True)
