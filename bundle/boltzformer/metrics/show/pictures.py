"""Pictures of single cases: the slice, and a closer look at the object with both outlines."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from boltzformer.metrics.measures.rows import Row

LABEL_COLOR, PRED_COLOR = "#35d04b", "#ff8a2b"
MARGIN_MM = 15.0


def worst_volumes(rows: Iterable[Row], count: int) -> list[Row]:
    """`count` positive volume rows with the lowest Dice, larger objects first where it is equal.

    At most half of them are volumes with nothing predicted (as long as there are others): one of those looks like
    the next.
    """
    positive = sorted((r for r in rows if r["positive"]), key=lambda row: (row["dice"], -(row["label_mm3"] or 0)))
    missed = [row for row in positive if row["predicted_mm3"] == 0]
    found = [row for row in positive if row["predicted_mm3"] != 0]
    shown = found[: max(count - len(missed), count - count // 2)]
    return missed[: count - len(shown)] + shown


def case_picture(
    label: np.ndarray, pred: np.ndarray, spacing: Sequence[float], image: np.ndarray | None = None, axis: int = 2
) -> tuple[bytes, int]:
    """PNG of the slice with the most wrong voxels, whole and a closer look; with the largest label if none is wrong.

    Args:
        label: boolean, 3D, in RAS orientation.
        pred: likewise, of the same shape; at least one of the two is not empty.
        spacing: voxel size in mm.
        image: intensities of the same shape, shown between the 2nd and 98th percentile around the object; None shows
            the masks on black.
        axis: slices are taken along this axis.

    Returns:
        the PNG file's bytes, and the index of the slice.
    """
    others = tuple(a for a in range(3) if a != axis)
    wrong = label != pred
    index = int((wrong if wrong.any() else label).sum(axis=others).argmax())
    planes = [np.take(mask, index, axis=axis) for mask in (label, pred)]
    background = np.zeros(planes[0].shape) if image is None else np.take(image, index, axis=axis).astype(np.float64)
    size = [float(spacing[a]) for a in others]
    box = _box(planes[0] | planes[1], size)
    figure = Figure(figsize=(6.4, 3.3), layout="constrained", facecolor="black")
    whole, close = figure.subplots(1, 2)
    levels = np.percentile(background[_pixels(box, size, background.shape)], (2, 98))
    for axes in (whole, close):
        # Across sagittal slices (axis 0) runs the anterior axis, which has no right side.
        _draw(axes, background, levels, planes, size, side=axis != 0)
    (left, right), (bottom, top) = box
    whole.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, color="white", linewidth=0.8))
    close.set(xlim=box[0], ylim=box[1])
    handles = [Line2D([], [], color=c, label=n) for c, n in ((LABEL_COLOR, "label"), (PRED_COLOR, "prediction"))]
    close.legend(handles=handles, loc="lower right", fontsize=7, framealpha=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue(), index


def _draw(
    axes: Axes,
    background: np.ndarray,
    levels: np.ndarray,
    planes: Sequence[np.ndarray],
    size: Sequence[float],
    side: bool,
) -> None:
    width, height = (n * s for n, s in zip(background.shape, size, strict=True))
    # Arrays run (right, anterior): transposed and with the origin below, anterior points up.
    axes.imshow(
        background.T,
        **{"cmap": "gray", "vmin": levels[0], "vmax": max(levels[1], levels[0] + 1e-6), "origin": "lower"},
        extent=(0, width, 0, height),
        interpolation="nearest",
    )
    for plane, color, style in zip(planes, (LABEL_COLOR, PRED_COLOR), ("solid", "dashed"), strict=True):
        if not plane.any():
            continue
        # Twice nearest-neighbour finer, so that the outline follows pixel borders; a ring of zeros closes it.
        fine = np.pad(np.kron(plane, np.ones((4, 4))), 1)
        x, y = (np.arange(-1, 4 * n + 1) * s / 4 + s / 8 for n, s in zip(plane.shape, size, strict=True))
        axes.contour(x, y, fine.T, levels=[0.5], colors=color, linewidths=1.2, linestyles=style)
    axes.text(0.02, 0.97, "R" if side else "", transform=axes.transAxes, color="white", fontsize=8, va="top")
    # Radiologists look from the feet: the patient's right is on the left, and RAS index 0 is the left-most.
    axes.set(xlim=(width, 0), ylim=(0, height), xticks=[], yticks=[], aspect="equal")


def _box(mask: np.ndarray, size: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Window in mm around the mask, square, (right to left, bottom to top)."""
    found = np.argwhere(mask)
    low = found.min(axis=0) * np.asarray(size)
    high = (found.max(axis=0) + 1) * np.asarray(size)
    middle, half = (low + high) / 2, (high - low).max() / 2 + MARGIN_MM
    return (float(middle[0] + half), float(middle[0] - half)), (float(middle[1] - half), float(middle[1] + half))


def _pixels(
    box: tuple[tuple[float, float], tuple[float, float]], size: Sequence[float], shape: Sequence[int]
) -> tuple[slice, ...]:
    """The pixels inside a window in mm."""
    return tuple(
        slice(max(int(min(ends) / s), 0), min(int(max(ends) / s) + 1, n))
        for ends, s, n in zip(box, size, shape, strict=True)
    )
