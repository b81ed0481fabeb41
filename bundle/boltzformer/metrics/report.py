"""One self-contained HTML page of an evaluation: tables, figures and pictures inside, no network needed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from boltzformer.errors import InputError
from boltzformer.metrics import figures
from boltzformer.metrics.case_evaluation import LabelledCase, read_label, read_prediction
from boltzformer.metrics.folder_evaluation import Evaluation
from boltzformer.metrics.grids import Reader, check_grid, to_ras
from boltzformer.metrics.pictures import case_picture, worst_volumes
from boltzformer.metrics.prediction_files import PredictionFolder
from boltzformer.metrics.tables import number, p_value, percent, short_names, write_text
from boltzformer.metrics.volume_metrics import surface_column

TEMPLATE = "report.html.j2"
MAX_FAILURES = 50


def write_report(
    path: str | Path,
    evaluation: Evaluation,
    cases: Sequence[LabelledCase] = (),
    predictions: PredictionFolder | None = None,
    read: Reader | None = None,
    comparison: Mapping[str, Any] | None = None,
    pictures: int = 6,
    title: str = "Small-object evaluation",
) -> Path:
    """Write the report of an evaluation.

    Parts for which there are no rows (volumes, lesions, calibration, comparison) are left out.

    Args:
        path: HTML file to write.
        evaluation: rows and summary.
        cases, predictions, read: what was evaluated, for pictures of the worst cases; without them there are none.
        comparison: of :func:`boltzformer.metrics.comparison.compare_with`, or None.
        pictures: how many of the worst cases are shown.
        title: heading of the page.

    Raises:
        InputError: where the file cannot be written.
    """
    shown = []
    if predictions is not None and read is not None:
        shown = _worst_cases(evaluation, cases, predictions, read, pictures)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    short = short_names(evaluation.summary["intervals"]["objects"])
    environment.filters.update(
        number=number, percent=percent, p_value=p_value, interval=_interval, brief=_brief, column=_column_name
    )
    environment.filters["last"] = lambda name: short.get(name, name)
    page = environment.get_template(TEMPLATE).render(
        title=title,
        summary=evaluation.summary,
        key_numbers=_key_numbers(evaluation.summary),
        charts=_charts(evaluation, comparison),
        comparison=comparison,
        worst=shown,
        surface_column=surface_column,
        max_failures=MAX_FAILURES,
    )
    return write_text(path, page)


def _charts(evaluation: Evaluation, comparison: Mapping[str, Any] | None) -> dict[str, Markup]:
    summary = evaluation.summary
    slices, intervals = summary["slices"], summary["intervals"]
    settings = slices["settings"]
    short = short_names(intervals["objects"])
    by_object = {short[name]: entry["slice_dice"] for name, entry in intervals["objects"].items()}
    charts = {
        "scatter": figures.size_scatter(evaluation.slices, slices["buckets_percent"], settings["percent_edges"]),
        "missed": figures.missed_bars(
            slices["buckets_percent"], intervals["buckets_percent"], settings["missed_below_dice"]
        ),
        "objects": figures.interval_plot(by_object, "mean Dice of positive slices, 95 % interval by patient"),
    }
    if evaluation.lesions:
        charts["lesions"] = figures.lesion_bars(summary["lesions"]["buckets_mm"])
        curve = summary["lesions"]["froc"]
        if curve and curve["at"] is not None:
            charts["froc"] = figures.froc_curve(curve)
    if summary["calibration"] and summary["calibration"]["overall"]["before"]:
        charts["reliability"] = figures.reliability(summary["calibration"]["overall"])
    if comparison is not None:
        lines = {"all": comparison["overall"], **comparison["objects"]}
        shown = {short.get(name, name): {**line, "value": line["difference"]} for name, line in lines.items()}
        charts["differences"] = figures.interval_plot(shown, "difference in Dice, 95 % interval by patient", True)
        charts["shares"] = figures.share_bars(comparison["buckets_percent"])
    return {name: _image(svg.encode(), "image/svg+xml") for name, svg in charts.items()}


def _key_numbers(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(name, value with interval, how to write it) of the numbers at the top of the page."""
    found = summary["intervals"]["overall"]
    rows = [
        ("Dice per slice, object present", found["slice_dice"], "number"),
        ("missed objects, slices with Dice below " + f"{summary['slices']['settings']['missed_below_dice']:g}",
         found["missed_share"], "percent"),
        ("slices without the object left empty", found["slice_specificity"], "percent"),
    ]  # fmt: skip
    if summary["volumes"]["objects"]:
        rows.append(("Dice per volume", found["volume_dice"], "number"))
        for limit in summary["volumes"]["tolerances_mm"]:
            rows.append((f"surface Dice at {limit:g} mm", found[f"volume_{surface_column(limit)}"], "number"))
        rows.append(("HD95 in mm, where something was predicted", found["hd95_mm"], "number"))
        rows += [
            ("lesion sensitivity", found["lesion_sensitivity"], "percent"),
            ("lesion precision", found["lesion_precision"], "percent"),
            ("lesion F1", found["lesion_f1"], "number"),
            ("false-positive lesions per scan and object", found["false_positives_per_scan"], "number"),
        ]
    return [row for row in rows if row[1]["value"] is not None]


def _worst_cases(
    evaluation: Evaluation,
    cases: Sequence[LabelledCase],
    predictions: PredictionFolder,
    read: Reader,
    count: int,
) -> list[dict[str, Any]]:
    by_name = {case.name: case for case in cases}
    shown = []
    for row in worst_volumes(evaluation.volumes, count):
        case = by_name[row["case"]]
        value = next(v for v, name in case.objects.items() if name == row["object"])
        label = read_label(case, read)
        pred = read_prediction(predictions.find(case.names, row["object"], value), case, label, read)
        image, note = None, ""
        if case.image is not None:
            try:
                volume = to_ras(*read(case.image))
                check_grid(volume, case.image, label, case.label)
                image = volume.array
            except InputError as error:
                note = f"without the image: {error}"
        png, index = case_picture(label.array == value, pred, label.spacing, image, evaluation.settings.axis)
        shown.append({**row, "slice": index, "note": note, "picture": _image(png, "image/png")})
    return shown


def _image(data: bytes, kind: str) -> Markup:
    """A data URI: as an image of its own, so that names inside several SVGs cannot meet."""
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode()}")


def _interval(entry: Mapping[str, Any], how: str = "number") -> str:
    """A value with its interval, such as ``0.712 (0.690 to 0.731)``."""
    write = percent if how == "percent" else number
    if entry["low"] is None:
        return write(entry["value"])
    return f"{write(entry['value'])} ({write(entry['low'])} to {write(entry['high'])})"


def _brief(value: float | None) -> str:
    """Three significant digits, for numbers of any size; whole numbers from 1000 on."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _column_name(column: str) -> str:
    """A column's name for readers: ``surface_dice_2mm`` is "surface Dice at 2 mm"."""
    if column.startswith("surface_dice_"):
        return f"surface Dice at {column.removeprefix('surface_dice_').removesuffix('mm')} mm"
    return {"dice": "Dice", "hd95_mm": "HD95 in mm"}.get(column, column)
