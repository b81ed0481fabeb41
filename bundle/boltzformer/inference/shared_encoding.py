"""Evaluation of many prompts on the same slices without encoding a slice twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from boltzformer.data.canvas import canvas_of, check_pixel_sizes
from boltzformer.inference.canvas import BodyViews
from boltzformer.volumes.spacing import is_known


class SharedEncodingInferer(Inferer):
    """MONAI inferer for batches of (slice, prompt) pairs in which neighbours often have the same slice.

    A slice that equals its predecessor voxel by voxel is not encoded again. The result is that of
    `network(image, text)`.

    Args:
        pixel_size_mm: sizes of the network's pixels that training covered, see `boltzformer.data.canvas`; None takes
            every slice whole.
        body_view: look at each slice through the box of its body.
    """

    def __init__(self, pixel_size_mm: float | Sequence[float] | None = None, body_view: bool = False) -> None:
        super().__init__()
        self.body_view = body_view
        self.pixel_size_mm = None if pixel_size_mm is None else check_pixel_sizes(pixel_size_mm)

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        *args: Any,
        text: Sequence[str] | None = None,
        known_spacing: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Segment a batch.

        Args:
            inputs: (B, C, H, W) in [0, 1].
            network: a BoltzFormer.
            args: ignored, for MONAI's engines.
            text: B prompts; None takes the network's default.
            known_spacing: (B, 2) mm along H and W, NaN where it is not known; None where it is not known at all.
            kwargs: ignored, for MONAI's engines.

        Returns:
            Logits (B, 1, H, W), float32.
        """
        if text is None:
            text = [network.default_prompt] * len(inputs)
        if self.pixel_size_mm is None or known_spacing is None:
            return self._whole(inputs, network, text)
        parts = []
        for start, spacing in _runs(known_spacing):  # a batch comes from one case: one run
            rows = slice(start, start + len(spacing))
            if self.body_view and is_known(*spacing[0].tolist()):
                seen = BodyViews(inputs[rows], spacing[0].tolist(), network.image_size, self.pixel_size_mm)
                texts = [one for one, count in zip(text[rows], seen.counts, strict=True) for _ in range(count)]
                parts.append(seen.joined(self._whole(seen.views, network, texts)))
                continue
            canvas = canvas_of(inputs.shape[-2:], spacing[0].tolist(), network.image_size, self.pixel_size_mm)
            views = [self._whole(view, network, text[rows]) for view in canvas.views(inputs[rows])]
            parts.append(canvas.join(views))
        return torch.cat(parts)

    def _whole(self, inputs: Tensor, network: Any, text: Sequence[str]) -> Tensor:
        """Logits of slices that go in as they are."""
        starts = [0] + [i for i in range(1, len(inputs)) if not torch.equal(inputs[i], inputs[i - 1])]
        ends = [*starts[1:], len(inputs)]
        features = network.encode_image(inputs[starts])
        parts = []
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            prompts = network.encode_text(list(text[start:end]))
            parts.append(network.decode(features[index : index + 1], prompts).logits)
        return torch.cat(parts)


def _runs(spacing: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where each run of equal rows begins, with its rows."""
    start = 0
    for end in range(1, len(spacing) + 1):
        if end == len(spacing) or not torch.equal(torch.nan_to_num(spacing[end]), torch.nan_to_num(spacing[start])):
            yield start, spacing[start:end]
            start = end
