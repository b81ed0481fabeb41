"""Summaries on the terminal. Which columns a table has, the list of measures says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boltzformer.metrics.measures.catalogue import Catalogue, lesion_measures
from boltzformer.metrics.measures.measure import Measure
from boltzformer.metrics.show.text import number, p_value, percent, short_names, shown, unpaired, written


def measure_table(
    title: str, first_column: str, entries: Mapping[str, Mapping[str, Any]], measures: Sequence[Measure]
) -> Table:
    """A rich table of summary entries, a line for each and a column for each measure with a value.

    Of a name with a newline only what follows it is shown: it stands under a line of its own.
    """
    table = _table(title)
    table.add_column(first_column)
    columns = shown(measures, list(entries.values()))
    for measure in columns:
        table.add_column(measure.title, justify="right")
    for name, entry in entries.items():
        table.add_row(escape(name.split("\n")[-1]), *(written(m, m.of(entry)) for m in columns))
    return table


def catalogue_of(summary: Mapping[str, Any], tolerances_mm: Sequence[float] | None = None) -> Catalogue:
    """The measures that a slice summary was made with."""
    settings = summary["settings"]
    extra = {} if tolerances_mm is None else {"tolerances_mm": tuple(tolerances_mm)}
    return Catalogue(
        missed_below=settings["missed_below_dice"], existence_threshold=settings["existence_threshold"], **extra
    )


def print_slice_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a summary of `summarise_slices`: datasets and objects, buckets, negatives, existence."""
    console = console or Console()
    measures = catalogue_of(summary).slices
    by_object: dict[str, Mapping[str, Any]] = {}
    for dataset, entry in summary["datasets"].items():
        by_object[dataset] = entry
        by_object.update({f"{dataset}\n  {name}": part for name, part in entry["objects"].items()})
    overall = summary["overall"]
    if len(summary["datasets"]) > 1:
        by_object["all datasets, every row"] = overall
    console.print(measure_table("Dice per (slice, prompt), object present", "dataset / object", by_object, measures))
    border, tiny = (summary["settings"][f"{size}_below_percent"] for size in ("small", "tiny"))
    sizes = {
        f"small (< {border:g} %)": overall["small"],
        f"large (>= {border:g} %)": overall["large"],
        f"tiny (< {tiny:g} %)": overall["tiny"],
        **summary["buckets_percent"],
    }
    console.print(measure_table("By share of the slice", "size of the object", sizes, measures))
    if any(entry["n"] for entry in summary["buckets_mm"].values()):
        console.print(measure_table("By equivalent diameter", "diameter", summary["buckets_mm"], measures))
    mean = summary["mean_over_datasets"]
    console.print(f"Unweighted mean over {mean['datasets']} dataset(s): Dice {number(mean['mean_dice'])}")
    negatives = overall["negatives"]
    if negatives["n"]:
        console.print(
            f"Negatives (object absent): n = {negatives['n']}, "
            f"left empty {percent(negatives['specificity'])}, "
            f"mean false-positive area {number(negatives['mean_false_positive_percent'], 4)} % of the slice"
        )
    else:
        console.print("Negatives (object absent): n = 0")
    if overall["existence"] is not None:
        console.print(existence_line(overall))


def existence_line(overall: Mapping[str, Any]) -> str:
    """What the existence score is worth, in one line."""
    scores, volumes, negatives = overall["existence"], overall["volume_dice"], overall["negatives"]
    return (
        f"Existence score: AUROC {number(scores['auroc'])}, ECE {number(scores['ece'])}; gated by it, "
        f"left empty {percent(negatives['specificity_gated'])}, Dice per volume over all evaluated slices "
        f"{number(volumes['gated'])} (ungated {number(volumes['all_slices'])}, slices with the object "
        f"{number(volumes['positive_slices'])})"
    )


def print_evaluation(summary: Mapping[str, Any], console: Console) -> None:
    """Print the summary of `folder_evaluation.summarise`: slices, volumes, lesions, what was left out."""
    print_slice_summary(summary["slices"], console)
    console.print(_volume_table(summary))
    console.print(_lesion_table(summary["lesions"]))
    negatives = summary["volumes"]["overall"]["negatives"]
    if negatives["n"]:
        console.print(
            f"Volumes without the object: n = {negatives['n']}, left empty {percent(negatives['specificity'])}, mean "
            f"false-positive volume {number(negatives['mean_false_positive_mm3'], 1)} mm3"
        )
    ranking = summary["lesions"]["score_auroc"]
    if ranking["auroc"] is not None:
        console.print(f"Score ranks true above false lesions with AUROC {number(ranking['auroc'])}")
    if summary["calibration"]:
        overall = summary["calibration"]["overall"]
        before, after = overall["before"], overall["after"]
        if before:
            console.print(
                f"Calibration error {number(before['ece'], 4)}, with temperature {number(overall['temperature'], 2)} "
                f"{number(after['ece'], 4)} ({overall['after_is']})"
            )
    if empty := summary["without_rows"]:
        console.print(
            f"{len(empty)} of {summary['cases']} cases are in no number, for their label map is empty and nothing says "
            f"that its objects were annotated (--absent-is-negative counts them): {escape(', '.join(empty))}"
        )
    if summary["left_out"]:
        left = ", ".join(f"{name} ({count})" for name, count in summary["left_out"].items())
        console.print(f"Left out, absent from the label map and not known to be annotated: {escape(left)}")


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print a comparison: Dice overall, per object, per size bucket with its share of the difference; other columns."""
    table = _table(f"This evaluation minus {escape(comparison['first'])}")
    table.add_column("rows")
    for heading in ("n", "first", "this", "difference [95 %]", "p (Holm)", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    lines = {"Dice per slice": comparison["overall"], **comparison["objects"], **comparison["buckets_percent"]}
    lines |= {f"slices: {column}": line for column, line in comparison["slices"].items()}
    lines |= {f"volumes: {column}": line for column, line in comparison["volumes"].items()}
    short = short_names(comparison["objects"])
    for name, line in lines.items():
        interval = "-" if line["low"] is None else f"[{line['low']:+.3f}, {line['high']:+.3f}]"
        difference = "-" if line["difference"] is None else f"{line['difference']:+.3f}"
        table.add_row(
            escape(short.get(name, name)),
            str(line["n"]),
            number(line["first"]),
            number(line["second"]),
            escape(f"{difference} {interval}"),
            p_value(line.get("p_holm", line["p"])),
            percent(line.get("share_of_difference"), 0),
        )
    console.print(table)
    if lacking := unpaired(comparison):
        console.print(lacking)


def _volume_table(summary: Mapping[str, Any]) -> Table:
    volumes = summary["volumes"]
    short = short_names(volumes["objects"])
    entries = {**{short[name]: entry for name, entry in volumes["objects"].items()}, "all": volumes["overall"]}
    measures = catalogue_of(summary["slices"], volumes["tolerances_mm"]).volumes
    return measure_table("Per volume, object present", "object", entries, measures)


def _lesion_table(lesions: Mapping[str, Any]) -> Table:
    rule = lesions["rule"]
    short = short_names(lesions["objects"])
    entries = {**{short[name]: entry for name, entry in lesions["objects"].items()}, "all": lesions["overall"]}
    title = f"Per lesion: {rule['connectivity']}-connected, one-to-one, IoU >= {rule['min_iou']:g}"
    return measure_table(title, "object", entries, lesion_measures())


def statistics_table(statistics: Mapping[str, Any]) -> Table:
    """A rich table of `boltzformer.metrics.summary.dataset_statistics.dataset_statistics`.

    Where a row has `published_<column>`, that figure follows in brackets.
    """
    table = _table("Area in % of the slice, on slices that hold the object")
    table.add_column("object")
    for heading in ("mean", "median", "min", "max", "slices", "volumes"):
        table.add_column(heading, justify="right", no_wrap=True)
    dataset = None
    for row in statistics["objects"]:
        if row["dataset"] != dataset:
            dataset = row["dataset"]
            table.add_row(f"[bold]{escape(dataset)}[/bold]")
        table.add_row(
            f"  {escape(row['object'])}",
            *(
                number(row[f"{what}_percent"], 4) + _published(row, f"{what}_percent")
                for what in ("mean", "median", "min", "max")
            ),
            *(str(row[what]) + _published(row, what) for what in ("slices", "volumes")),
        )
    return table


def _published(row: Mapping[str, Any], column: str) -> str:
    value = row.get(f"published_{column}")
    return "" if value is None else f" ({value:g})"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
