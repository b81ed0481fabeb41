"""An evaluation and a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boltzformer.metrics.tables import number, p_value, percent, print_slice_summary, short_names
from boltzformer.metrics.volume_metrics import surface_column


def print_evaluation(summary: Mapping[str, Any], console: Console) -> None:
    """Print the summary of ``folder_evaluation.summarise``: slices, volumes, lesions, what was left out."""
    print_slice_summary(summary["slices"], console)
    console.print(_volume_table(summary["volumes"]))
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
    if summary["left_out"]:
        left = ", ".join(f"{name} ({count})" for name, count in summary["left_out"].items())
        console.print(f"Left out, absent from the label map and not known to be annotated: {escape(left)}")


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print a comparison: overall, per object, per size bucket with its share of the difference."""
    table = Table(
        title=f"This evaluation minus {escape(comparison['first'])}, Dice per slice",
        **{"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False},  # type: ignore[arg-type]
    )
    table.add_column("rows")
    for heading in ("n", "first", "this", "difference [95 %]", "p (Holm)", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    lines = {"all": comparison["overall"], **comparison["objects"], **comparison["buckets_percent"]}
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


def _volume_table(volumes: Mapping[str, Any]) -> Table:
    tolerances = volumes["tolerances_mm"]
    table = Table(title="Per volume, object present", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("object")
    headings = ["n", "Dice", *(f"surface {t:g} mm" for t in tolerances), "HD95 mm", "none predicted"]
    for heading in headings:
        table.add_column(heading, justify="right")
    short = short_names(volumes["objects"])
    for name, entry in {**volumes["objects"], "all": volumes["overall"]}.items():
        table.add_row(
            escape(short.get(name, name)),
            str(entry["n"]),
            number(entry["mean_dice"]),
            *(number(entry[surface_column(t)]) for t in tolerances),
            number(entry["hd95_mm"]["mean"], 1),
            str(entry["hd95_mm"]["undefined"]),
        )
    return table


def _lesion_table(lesions: Mapping[str, Any]) -> Table:
    rule = lesions["rule"]
    table = Table(
        title=f"Per lesion: {rule['connectivity']}-connected, one-to-one, IoU >= {rule['min_iou']:g}",
        **{"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False},  # type: ignore[arg-type]
    )
    table.add_column("object")
    for heading in ("n", "sensitivity", "precision", "F1", "FP / scan", "PQ"):
        table.add_column(heading, justify="right", no_wrap=True)
    short = short_names(lesions["objects"])
    for name, entry in {**lesions["objects"], "all": lesions["overall"]}.items():
        table.add_row(
            escape(short.get(name, name)),
            str(entry["lesions"]),
            *(number(entry[key]) for key in ("sensitivity", "precision", "f1")),
            number(entry["false_positives_per_scan"], 2),
            number(entry["panoptic_quality"]),
        )
    return table
