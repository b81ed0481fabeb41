"""The report's charts, each as an SVG text that needs no other file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

BLUE, ORANGE, GREY, GREEN = "#1f6fb4", "#d1622b", "#8a8f98", "#3a8a4d"


def size_scatter(rows: Sequence[Mapping[str, Any]], buckets: Mapping[str, Any], edges: Sequence[float]) -> str:
    """Dice of every positive slice against the object's share of the slice, with the mean of each bucket.

    Args:
        rows: rows with `dice` and `area_percent`.
        buckets: `describe_dice` per bucket of `edges`, smallest first.
        edges: bucket edges in %.
    """
    figure, axes = _axes(8.4, 3.6)
    points = np.array([(r["area_percent"], r["dice"]) for r in rows if r["dice"] is not None], dtype=np.float64)
    points = points.reshape(-1, 2)
    alpha = float(np.clip(60 / np.sqrt(len(points) + 1), 0.06, 0.6))
    axes.scatter(
        points[:, 0], points[:, 1], s=6, color=GREY, alpha=alpha, linewidths=0, rasterized=True, label="a slice"
    )
    low = min(points[:, 0].min(initial=edges[0]), edges[0] / 2)
    high = max(points[:, 0].max(initial=edges[-1]), edges[-1] * 2)
    borders = [low, *edges, high]
    axes.plot([], [], color=BLUE, linewidth=2.5, label="bucket mean")
    for i, entry in enumerate(buckets.values()):
        if entry["n"]:
            axes.hlines(entry["mean_dice"], borders[i], borders[i + 1], color=BLUE, linewidth=2.5)
        middle = float(np.sqrt(borders[i] * borders[i + 1]))
        axes.text(middle, 1.05, f"n = {entry['n']}", ha="center", fontsize=8, color="#444444")
    for edge in edges:
        axes.axvline(edge, color="#dddddd", linewidth=0.8, zorder=0)
    axes.set(xscale="log", ylim=(-0.03, 1.12), xlabel="area of the object, % of the slice", ylabel="Dice")
    axes.set_xticks(list(edges), [f"{edge:g}" for edge in edges])
    axes.minorticks_off()
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return _svg(figure)


def missed_bars(buckets: Mapping[str, Any], intervals: Mapping[str, Any], missed_below: float) -> str:
    """Share of missed objects per size bucket, with its interval and n."""
    figure, axes = _axes(8.4, 2.9)
    top = 0.05
    for i, (name, entry) in enumerate(buckets.items()):
        if not entry["n"]:
            axes.text(i, 0.01, "n = 0", ha="center", fontsize=8, color="#777777")
            continue
        share, interval = entry["missed_share"], intervals[name]["missed_share"]
        axes.bar(i, share, width=0.6, color=ORANGE)
        high = share
        if interval["low"] is not None:
            high = max(share, interval["high"])
            axes.vlines(i, interval["low"], interval["high"], color="#333333", linewidth=1.2)
        axes.text(i, high + 0.015, f"{100 * share:.1f} %\nn = {entry['n']}", ha="center", va="bottom", fontsize=8)
        top = max(top, high)
    _bucket_ticks(axes, buckets)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(ylim=(0, top * 1.35 + 0.03), xlabel="area of the object", ylabel=f"Dice < {missed_below:g}")
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 1.0])
    return _svg(figure)


def interval_plot(lines: Mapping[str, Mapping[str, Any]], xlabel: str, zero: bool = False) -> str:
    """A point with its interval for each line (`value`, `low`, `high`); lines without a value are left out."""
    shown = {name: line for name, line in lines.items() if line["value"] is not None}
    figure, axes = _axes(8.4, 0.9 + 0.3 * max(len(shown), 1))
    for y, line in enumerate(reversed(shown.values())):
        if line["low"] is not None:
            axes.hlines(y, line["low"], line["high"], color=BLUE, linewidth=2)
        axes.plot(line["value"], y, "o", color=BLUE, markersize=6)
    # a name is no formula: one with two dollar signs may be none that can be drawn
    axes.set_yticks(range(len(shown)), [name.replace("$", r"\$") for name in reversed(shown)])
    axes.set(ylim=(-0.6, len(shown) - 0.4), xlabel=xlabel)
    if zero:
        axes.axvline(0, color="#555555", linewidth=0.8)
    else:
        axes.set_xlim(0, 1)
    axes.grid(axis="x", color="#eeeeee")
    return _svg(figure)


def froc_curve(curve: Mapping[str, Any]) -> str:
    """Sensitivity against false positives per scan, as a step."""
    figure, axes = _axes(5.4, 3.4)
    x, y = curve["false_positives_per_scan"], curve["sensitivity"]
    # Further right nothing changes: the last threshold keeps every predicted lesion.
    axes.step([*x, max(8.0, x[-1])], [*y, y[-1]], where="post", color=BLUE, linewidth=2)
    axes.plot([float(limit) for limit in curve["at"]], list(curve["at"].values()), "o", color=ORANGE, markersize=4)
    axes.set(ylim=(0, 1.02), xlabel="false positives per scan and object", ylabel="lesion sensitivity")
    axes.set_xscale("symlog", linthresh=0.125, base=2)
    axes.set_xticks([0, *(float(limit) for limit in curve["at"])])
    axes.set_xlim(0, 8.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#eeeeee")
    return _svg(figure)


def reliability(calibration: Mapping[str, Any]) -> str:
    """Share of object voxels against predicted probability, before and after temperature scaling."""
    figure, axes = _axes(5.4, 3.4)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    before, after = calibration["before"], calibration["after"]
    for name, entry, color, style in (
        ("as predicted", before, ORANGE, "o-"),
        (f"temperature {calibration['temperature']:.2f}", after, GREEN, "s--"),
    ):
        filled = [b for b in entry["bins"] if b["n"]]
        axes.plot(
            [b["mean_probability"] for b in filled],
            [b["object_share"] for b in filled],
            style,
            color=color,
            markersize=4,
            label=f"{name}: ECE {entry['ece']:.4f}",
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="share of object voxels")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _svg(figure)


def lesion_bars(buckets: Mapping[str, Mapping[str, Any]]) -> str:
    """Sensitivity per bucket of lesion diameter, with the number of lesions and of false positives."""
    figure, axes = _axes(8.4, 2.9)
    for i, entry in enumerate(buckets.values()):
        value = entry["sensitivity"]
        if value is not None:
            axes.bar(i, value, width=0.6, color=BLUE)
        text = f"n = {entry['lesions']}\nFP {entry['false_positives']}"
        axes.text(i, (value or 0) + 0.02, text, ha="center", va="bottom", fontsize=8)
    _bucket_ticks(axes, buckets)
    axes.set(ylim=(0, 1.25), xlabel="equivalent diameter of the lesion", ylabel="sensitivity")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    return _svg(figure)


def share_bars(buckets: Mapping[str, Mapping[str, Any]]) -> str:
    """Share of the difference between two models that each size bucket brings."""
    figure, axes = _axes(8.4, 2.6)
    for i, entry in enumerate(buckets.values()):
        share = entry["share_of_difference"]
        if share is None:
            continue
        axes.bar(i, share, width=0.6, color=BLUE if share >= 0 else ORANGE)
        axes.text(i, max(share, 0) + 0.02, f"{100 * share:.0f} %", ha="center", va="bottom", fontsize=8)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.margins(y=0.18)
    _bucket_ticks(axes, buckets)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="area of the object", ylabel="share of the difference")
    return _svg(figure)


def _bucket_ticks(axes: Axes, buckets: Mapping[str, Any]) -> None:
    axes.set_xticks(range(len(buckets)), list(buckets))
    axes.set_xlim(-0.6, len(buckets) - 0.4)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    # A figure of its own, not pyplot's: no global state, no window, safe in a server.
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # The same data gives the same text: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "boltzformer"}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return buffer.getvalue()
