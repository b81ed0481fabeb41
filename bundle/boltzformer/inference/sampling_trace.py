"""Which patches the queries attended to, layer by layer, for one slice and prompt (the paper's figures 4 to 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from boltzformer.networks.attention.rules import Boltzmann
from boltzformer.networks.boltzformer import BoltzFormer


@dataclass
class LayerTrace:
    """The attention sets of one layer.

    Attributes:
        layer: l, from 0.
        temperature: tau_l; None where the rule has none.
        kept: True where a query's set holds a patch, (sets, m, h, w).
        share_kept: share of all (query, patch) pairs that are kept.
        object_share: share of the object's (query, patch) pairs that are kept; None without a label or object. Above
            `share_kept` the sampling has found the object.
    """

    layer: int
    temperature: float | None
    kept: np.ndarray
    share_kept: float
    object_share: float | None

    @property
    def frequency(self) -> np.ndarray:
        """Share of the queries that attend to each patch, (h, w)."""
        return self.kept.mean(axis=(0, 1))


@dataclass
class SliceTrace:
    """A slice, its mask and the way there.

    Attributes:
        image: (H, W) in [0, 1].
        label: (H, W) bool, or None.
        probability: (H, W).
        prompt: what was looked for.
        layers: one for each layer of the decoder.
    """

    image: np.ndarray
    label: np.ndarray | None
    probability: np.ndarray
    prompt: str
    layers: list[LayerTrace]

    def numbers(self) -> list[dict[str, float | int | None]]:
        """One row a layer: temperature, grid, share kept, share of the object's patches kept."""
        return [
            {
                "layer": one.layer + 1,
                "temperature": one.temperature,
                "grid_height": one.kept.shape[-2],
                "grid_width": one.kept.shape[-1],
                "share_kept": one.share_kept,
                "object_share_kept": one.object_share,
            }
            for one in self.layers
        ]


@torch.no_grad()
def trace_slice(network: BoltzFormer, image: Tensor, prompt: str, label: Tensor | None = None) -> SliceTrace:
    """Segment one slice and keep the attention sets.

    Args:
        network: in evaluation mode, on its device.
        image: (C, H, W) in [0, 1], C = 1 or 3.
        prompt: what to look for.
        label: (1, H, W) of 0 and 1, to tell how many of the object's patches were attended to.

    Returns:
        The probability and every layer's sets. With the rule "full" every patch counts as kept.
    """
    device = next(network.parameters()).device
    features, text = network.encode_image(image[None].to(device)), network.encode_text([prompt])
    decoded = network.decode(features, text, keep_sets=True)
    assert decoded.layer_sets is not None
    grids, decoder = network.attention_grids(), network.decoder
    layers = []
    for layer, kept in enumerate(decoded.layer_sets):
        grid = grids[layer % decoder.num_scales]
        sets = (
            torch.ones(1, decoder.num_queries, *grid, dtype=torch.bool) if kept is None else kept[0].unflatten(-1, grid)
        )
        sets = sets.cpu()
        tau = decoder.rule.temperature_of(layer) if isinstance(decoder.rule, Boltzmann) else None
        layers.append(LayerTrace(layer, tau, sets.numpy(), float(sets.float().mean()), _object_share(sets, label)))
    return SliceTrace(
        image[image.shape[0] // 2].cpu().numpy(),
        None if label is None else label[0].cpu().numpy() > 0,
        decoded.logits.sigmoid()[0, 0].cpu().numpy(),
        prompt,
        layers,
    )


def _object_share(kept: Tensor, label: Tensor | None) -> float | None:
    """Share of the object's patches in the sets, meaned over the queries; a patch counts if any pixel of it does."""
    if label is None or not label.any():
        return None
    patches = F.adaptive_max_pool2d(label[None].float().cpu(), tuple(kept.shape[-2:]))[0, 0] > 0
    return float(kept[..., patches].float().mean())


def trace_figure(traces: Sequence[SliceTrace], layers: Sequence[int] = (0, 4, 8)) -> Figure:
    """Slice, truth, prediction and the sampled patches at some layers: one row for each trace.

    Args:
        traces: what to draw.
        layers: from 0; those the network does not have are left out.
    """
    shown = [layer for layer in layers if layer < len(traces[0].layers)]
    columns = 3 + len(shown)
    figure = Figure(figsize=(2.6 * columns, 2.9 * len(traces)), layout="constrained")
    grid = figure.subplots(len(traces), columns, squeeze=False)
    for axes, trace in zip(grid, traces, strict=True):
        for axis in axes:
            axis.imshow(upright(trace.image), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        axes[0].set_title(trace.prompt, fontsize=9)
        axes[1].set_title("truth", fontsize=9)
        if trace.label is not None:
            outline(axes[1], trace.label, "lime")
        axes[2].set_title("prediction", fontsize=9)
        outline(axes[2], trace.probability > 0.5, "orange")
        for axis, layer in zip(axes[3:], shown, strict=True):
            one = trace.layers[layer]
            height, width = trace.image.shape
            extent = (-0.5, height - 0.5, width - 0.5, -0.5)
            axis.imshow(
                upright(one.frequency),
                cmap="inferno",
                alpha=0.65,
                vmin=0,
                vmax=0.5,  # brightest where half of the queries attend
                extent=extent,
                interpolation="nearest",
            )
            found = "" if one.object_share is None else f", of the object {one.object_share:.0%}"
            axis.set_title(f"layer {layer + 1}: {one.share_kept:.1%} of patches{found}", fontsize=8)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def upright(plane: np.ndarray) -> np.ndarray:
    """A slice in RAS, first axis to the right and second to the front, as radiologists look at it."""
    return np.flip(plane.T, axis=0)[:, ::-1]


def outline(axis: object, mask: np.ndarray, colour: str) -> None:
    """Draw a mask's edge into a picture that shows an `upright` slice; nothing for an empty mask."""
    if mask.any():
        axis.contour(upright(mask).astype(float), levels=[0.5], colors=colour, linewidths=1.2)  # type: ignore[attr-defined]
