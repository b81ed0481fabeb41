"""A network that sees every slice at a size in mm that it knows (`boltzformer.data.canvas`)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boltzformer.data.canvas import OUTSIDE, Canvas, body_boxes, canvas_of
from boltzformer.data.slice_transforms import resize_image
from boltzformer.networks.boltzformer import Prediction
from boltzformer.networks.hurried import Worth
from boltzformer.volumes.spacing import is_known

logger = logging.getLogger(__name__)


class BodyViews:
    """Slices that are each seen through the box of their own body, all on the network's grid.

    Args:
        images: (n, C, h, w) in [0, 1].
        spacing: mm along h and w; NaN where they are not known, which shows every slice whole.
        grid: height and width of the network's working size.
        pixel_size_mm: see `canvas_of`.
    """

    def __init__(
        self,
        images: Tensor,
        spacing: Sequence[float],
        grid: tuple[int, int],
        pixel_size_mm: tuple[float, float] | None,
    ) -> None:
        size = images.shape[-2:]
        self.canvases = [canvas_of(size, spacing, grid, pixel_size_mm, box) for box in body_boxes(images)]
        pairs = list(zip(self.canvases, images, strict=True))
        self.counts = [len(canvas.rows) * len(canvas.columns) for canvas in self.canvases]
        self.views = torch.stack([resize_image(view, grid) for canvas, image in pairs for view in canvas.views(image)])
        """(N, C, *grid): of the n slices those views that each has, one after the other; mostly N = n."""

    def joined(self, logits: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits (N, P, *grid) of the views, back on the slices: (n, P, h, w).

        Args:
            logits: of the views.
            kept: which are looked at later, bool (n, P); the others become `OUTSIDE`. None keeps all.
        """
        made = logits.new_full((len(self.canvases), logits.shape[1], *self.canvases[0].size), OUTSIDE)
        for i, (canvas, parts) in enumerate(zip(self.canvases, logits.split(self.counts), strict=True)):
            which = torch.arange(logits.shape[1]) if kept is None else kept[i].cpu().nonzero()[:, 0]
            if len(which):
                views = F.interpolate(parts[:, which], canvas.window, mode="bilinear", align_corners=False)
                made[i, which] = canvas.join(list(views))
        return made

    def surest(self, existence: Tensor) -> Tensor:
        """Existence logits (N, P) of the views, to those of the slices (n, P): the surest view counts."""
        return torch.stack([part.amax(0) for part in existence.split(self.counts)])

    def of_each(self, asked: Tensor) -> Tensor:
        """What holds of the slices (n, ...), for their views (N, ...)."""
        return asked.repeat_interleave(torch.tensor(self.counts), dim=0)


class SeenThrough(nn.Module, ABC):
    """A `network` behind something through which it looks at slices."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.default_prompt = getattr(network, "default_prompt", None)

    def encode_text(self, prompts: Sequence[str]) -> Any:
        """Of the network."""
        return self.network.encode_text(prompts)

    @abstractmethod
    def predict(
        self,
        image: Tensor,
        prompts: Any,
        seed: int | None = None,
        asked: Tensor | None = None,
        worth: Worth | None = None,
    ) -> Prediction:
        """As the network's; where a slice has several views, the surest says whether an object is there.

        Args:
            image: (B, C, h, w) in [0, 1].
            prompts: P encoded prompts.
            seed: see the network.
            asked: see `HurriedNetwork.predict`; None for a network that does not take it.
            worth: likewise.

        Returns:
            logits (B, P, h, w), `OUTSIDE` where no view looks; existence (B, P) where the network scores it.
        """


class OnBodies(SeenThrough):
    """A network whose `predict` looks at each slice through the box of its body.

    Args:
        network: a BoltzFormer, or one that decodes it several times.
        spacing: of the slices to come, mm along both axes.
        pixel_size_mm: see `canvas_of`.
    """

    def __init__(self, network: Any, spacing: tuple[float, float], pixel_size_mm: tuple[float, float]) -> None:
        super().__init__(network)
        self.spacing, self.pixel_size_mm = spacing, pixel_size_mm

    def sees_as(self, other: OnBodies) -> bool:
        """Whether another looks at the same slices in the same way, for the same network."""
        same = (self.spacing, self.pixel_size_mm) == (other.spacing, other.pixel_size_mm)
        return same and self.network is other.network

    def predict(
        self,
        image: Tensor,
        prompts: Any,
        seed: int | None = None,
        asked: Tensor | None = None,
        worth: Worth | None = None,
    ) -> Prediction:
        """See `SeenThrough`."""
        seen = BodyViews(image, self.spacing, _grid(self.network), self.pixel_size_mm)
        more = _for_views(len(seen.views) == len(image), None if asked is None else seen.of_each(asked), worth)
        found = self.network.predict(seen.views, prompts, seed, **more)
        existence = None if found.existence is None else seen.surest(found.existence)
        kept = None if existence is None or worth is None else worth(existence)
        return Prediction(seen.joined(found.logits, kept), existence)


class OnCanvas(SeenThrough):
    """A network whose `predict` takes slices of one size and looks at them through a canvas.

    Args:
        network: a BoltzFormer, or one that decodes it several times.
        canvas: of the slices to come.
    """

    def __init__(self, network: Any, canvas: Canvas) -> None:
        super().__init__(network)
        self.canvas = canvas

    def predict(
        self,
        image: Tensor,
        prompts: Any,
        seed: int | None = None,
        asked: Tensor | None = None,
        worth: Worth | None = None,
    ) -> Prediction:
        """See `SeenThrough`; slices of the canvas's size."""
        views = self.canvas.views(image)
        more = _for_views(len(views) == 1, asked, worth)
        found = [self.network.predict(view, prompts, seed, **more) for view in views]
        existence = [one.existence for one in found if one.existence is not None]
        logits = self.canvas.join([one.logits for one in found])
        return Prediction(logits, torch.stack(existence).amax(dim=0) if existence else None)


def _for_views(one_each: bool, asked: Tensor | None, worth: Worth | None) -> dict[str, Any]:
    """What to tell the network of its views; where a slice has several, one alone cannot rule an object out."""
    told = {"asked": asked, "worth": worth if one_each else None}
    return {name: value for name, value in told.items() if value is not None}


def on_canvas(
    network: Any,
    size: tuple[int, int],
    spacing: tuple[float, float],
    pixel_size_mm: tuple[float, float] | None,
    body_view: bool = False,
    earlier: SeenThrough | None = None,
) -> Any:
    """The network for the slices of a volume: itself where they go in whole.

    Args:
        network: a BoltzFormer, or a wrapper of one as its `network`.
        size: height and width of the slices.
        spacing: mm along both; NaN where they are not known.
        pixel_size_mm: see `canvas_of`.
        body_view: look at each slice through the box of its body.
        earlier: a result for another volume, given back where it fits, so that what is known of it still holds.
    """
    if pixel_size_mm is None:
        return network
    if body_view and is_known(*spacing):
        made = OnBodies(network, spacing, pixel_size_mm)
        return earlier if isinstance(earlier, OnBodies) and earlier.sees_as(made) else made
    canvas = canvas_of(size, spacing, _grid(network), pixel_size_mm)
    if canvas.is_whole:
        return network
    if isinstance(earlier, OnCanvas) and earlier.network is network and earlier.canvas == canvas:
        return earlier
    logger.info(
        "slices of %d x %d pixels are seen as %d view(s) of %d x %d, a field of view that the network knows",
        *(*canvas.size, len(canvas.rows) * len(canvas.columns), *canvas.window),
    )
    return OnCanvas(network, canvas)


def _grid(network: Any) -> tuple[int, int]:
    inner = network
    while not hasattr(inner, "image_size"):
        inner = inner.network
    return inner.image_size
