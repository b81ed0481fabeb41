"""One self-contained HTML page of an evaluation: tables, figures and pictures inside, no network needed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from boltzformer.errors import InputError
from boltzformer.metrics.files import write_text
from boltzformer.metrics.grids import Reader, check_grid, to_ras
from boltzformer.metrics.measures.cases import LabelledCase, read_label, read_prediction
from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.measure import Measure
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.show import figures
from boltzformer.metrics.show.pictures import case_picture, worst_volumes
from boltzformer.metrics.show.text import better, brief, number, p_value, percent, short_names, shown, unpaired, written

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
        cases: what was evaluated, for pictures of the worst cases.
        predictions: of these cases; without them there are no pictures.
        read: reads a volume; likewise.
        comparison: of `boltzformer.metrics.summary.comparison.compare_with`, or None.
        pictures: how many of the worst cases are shown.
        title: heading of the page.

    Raises:
        InputError: where the file cannot be written.
    """
    worst = []
    if predictions is not None and read is not None:
        worst = _worst_cases(evaluation, cases, predictions, read, pictures)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    catalogue = evaluation.settings.catalogue
    titles = _column_titles(catalogue)
    short = short_names(evaluation.summary["intervals"]["objects"])
    environment.filters.update(
        number=number,
        percent=percent,
        p_value=p_value,
        interval=_interval,
        brief=brief,
        written=written,
        better=better,
        shown=shown,
        unpaired=unpaired,
    )
    environment.filters["column"] = lambda column: titles.get(column, column)
    environment.filters["last"] = lambda name: short.get(name, name)
    page = environment.get_template(TEMPLATE).render(
        title=title,
        summary=evaluation.summary,
        catalogue=catalogue,
        key_numbers=_key_numbers(evaluation.summary, catalogue),
        charts=_charts(evaluation, comparison),
        comparison=comparison,
        worst=worst,
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


def _key_numbers(summary: Mapping[str, Any], catalogue: Catalogue) -> list[tuple[Measure, Mapping[str, Any]]]:
    """The numbers at the top of the page, with their intervals."""
    found = summary["intervals"]["overall"]
    measures = (*catalogue.slices, *catalogue.volumes, *catalogue.lesions)
    rows = [(measure, found[measure.key]) for measure in measures if measure.headline]
    return [(measure, entry) for measure, entry in rows if entry["value"] is not None]


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
        pred = read_prediction(predictions.find(case.prediction_names, row["object"], value), case, label, read)
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


def _interval(entry: Mapping[str, Any], measure: Measure | None = None) -> str:
    """A value with its interval, such as `0.712 (0.690 to 0.731)`."""

    def write(value: float | None) -> str:
        return number(value) if measure is None else written(measure, value)

    if entry["low"] is None:
        return write(entry["value"])
    return f"{write(entry['value'])} ({write(entry['low'])} to {write(entry['high'])})"


def _column_titles(catalogue: Catalogue) -> dict[str, str]:
    """CSV column -> title for readers, with its unit."""
    units = {True: lambda m: m.title, False: lambda m: f"{m.title}, {m.unit}"}
    return {
        measure.column: units[not measure.unit or measure.unit in measure.title](measure)
        for measure in (*catalogue.slices, *catalogue.volumes)
        if measure.column
    }
