"""Evaluation of many prompts on the same slices without encoding a slice twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from boltzformer.data.canvas import check_pixel_sizes
from boltzformer.inference.canvas import on_canvas


class SharedEncodingInferer(Inferer):
    """MONAI inferer for batches of (slice, prompt) pairs in which neighbours often have the same slice.

    A slice that equals its predecessor voxel by voxel is not encoded again, nor is any of its views. The result is that
    of `network(image, text)`, through the views of `boltzformer.inference.canvas` where sizes are given.

    Args:
        pixel_size_mm: sizes of the network's pixels that training covered, see `boltzformer.data.canvas`; None takes
            every slice whole.
        body_view: look at each slice through the box of its body.
    """

    def __init__(self, pixel_size_mm: float | Sequence[float] | None = None, body_view: bool = False) -> None:
        super().__init__()
        self.body_view = body_view
        self.pixel_size_mm = None if pixel_size_mm is None else check_pixel_sizes(pixel_size_mm)
        self._earlier: Any = None

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
        texts = [network.default_prompt] * len(inputs) if text is None else list(text)
        parts = []
        for rows in _same_slices(inputs, known_spacing):
            # (1, P, H, W): one slice with the prompts of its rows, seen as inference sees it
            found = self._through(network, inputs, known_spacing, rows).predict(inputs[rows][:1], texts[rows])
            parts.append(found.logits.transpose(0, 1))
        return torch.cat(parts)

    def _through(self, network: Any, inputs: Tensor, known_spacing: Tensor | None, rows: slice) -> Any:
        """The network for the slice of these rows."""
        if self.pixel_size_mm is None or known_spacing is None:
            return network
        along = known_spacing[rows.start].tolist()
        size = (inputs.shape[-2], inputs.shape[-1])
        self._earlier = on_canvas(
            network, size, (along[0], along[1]), self.pixel_size_mm, self.body_view, self._earlier
        )
        return self._earlier


def _same_slices(inputs: Tensor, known_spacing: Tensor | None) -> Iterator[slice]:
    """The rows of a batch in runs that show one slice, voxel by voxel, with one spacing."""
    shown = [inputs] if known_spacing is None else [inputs, known_spacing.nan_to_num()]
    start = 0
    for end in range(1, len(inputs) + 1):
        if end == len(inputs) or not all(torch.equal(one[end], one[start]) for one in shown):
            yield slice(start, end)
            start = end
