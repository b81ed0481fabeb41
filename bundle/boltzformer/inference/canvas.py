"""A network that sees every slice at a size in mm that it knows (`boltzformer.data.canvas`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzformer.data.canvas import Canvas, canvas_of
from boltzformer.networks.boltzformer import Prediction

logger = logging.getLogger(__name__)

KNOWN_SPACING = "spacing_known"
"""Key of an item and of a volume's metadata; False where the voxel size in the file means nothing."""


class OnCanvas(nn.Module):
    """A network whose `predict` takes slices of one size and looks at them through a canvas.

    Args:
        network: a BoltzFormer, or one that decodes it several times.
        canvas: of the slices to come.
    """

    def __init__(self, network: Any, canvas: Canvas) -> None:
        super().__init__()
        self.network = network
        self.canvas = canvas
        self.default_prompt = getattr(network, "default_prompt", None)

    def encode_text(self, prompts: Sequence[str]) -> Any:
        """Of the network."""
        return self.network.encode_text(prompts)

    def predict(self, image: Tensor, prompts: Any, seed: int | None = None, asked: Tensor | None = None) -> Prediction:
        """As the network's; of several views the surest says whether an object is there.

        Args:
            image: (B, C, h, w) in [0, 1], of the canvas's size.
            prompts: P encoded prompts.
            seed: see the network.
            asked: see `HurriedNetwork.predict`; None for a network that does not take it.
        """
        more = {} if asked is None else {"asked": asked}
        found = [self.network.predict(view, prompts, seed, **more) for view in self.canvas.views(image)]
        existence = [one.existence for one in found if one.existence is not None]
        logits = self.canvas.join([one.logits for one in found])
        return Prediction(logits, torch.stack(existence).amax(dim=0) if existence else None)


def on_canvas(
    network: Any, volume: Any, axis: int, pixel_size_mm: tuple[float, float] | None, earlier: OnCanvas | None = None
) -> Any:
    """The network for the slices of a volume: itself where they go in whole.

    Args:
        network: a BoltzFormer, or a wrapper of one as its `network`.
        volume: (..., X, Y, Z) with an affine in mm (MONAI's MetaTensor); without one the spacing is not known.
        axis: of the slices.
        pixel_size_mm: see `canvas_of`.
        earlier: a result for another volume, given back where it fits, so that what is known of it still holds.
    """
    if pixel_size_mm is None:
        return network
    inside = [i for i in range(3) if i != axis]
    sizes = spacing_of(volume)
    canvas = canvas_of(
        [volume.shape[-3:][i] for i in inside], [sizes[i] for i in inside], _grid(network), pixel_size_mm
    )
    if canvas.is_whole:
        return network
    if earlier is not None and earlier.network is network and earlier.canvas == canvas:
        return earlier
    logger.info(
        "slices of %d x %d pixels are seen as %d view(s) of %d x %d, a field of view that the network knows",
        *(*canvas.size, len(canvas.rows) * len(canvas.columns), *canvas.window),
    )
    return OnCanvas(network, canvas)


def spacing_of(volume: Any) -> tuple[float, float, float]:
    """Voxel size in mm along X, Y and Z; NaN where it is not known."""
    known = getattr(volume, "meta", {}).get(KNOWN_SPACING, True)
    affine = getattr(volume, "affine", None)
    if affine is None or not bool(torch.as_tensor(known).all()):
        return (float("nan"),) * 3
    columns = torch.as_tensor(affine, dtype=torch.float64).reshape(-1, 4, 4)[0, :3, :3]
    x, y, z = columns.norm(dim=0).tolist()
    return x, y, z


def _grid(network: Any) -> tuple[int, int]:
    inner = network
    while not hasattr(inner, "image_size"):
        inner = inner.network
    return inner.image_size
