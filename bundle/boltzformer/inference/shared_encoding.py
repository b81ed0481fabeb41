"""Evaluation of many prompts on the same slices without encoding a slice twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor


class SharedEncodingInferer(Inferer):
    """MONAI inferer for batches of (slice, prompt) pairs in which neighbours often have the same slice.

    A slice that equals its predecessor voxel by voxel is not encoded again. The result is that of
    `network(image, text)`.
    """

    def __call__(
        self, inputs: Tensor, network: Any, *args: Any, text: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Segment a batch.

        Args:
            inputs: (B, C, H, W) in [0, 1].
            network: a BoltzFormer.
            args: ignored, for MONAI's engines.
            text: B prompts; None takes the network's default.
            kwargs: ignored, for MONAI's engines.

        Returns:
            Logits (B, 1, H, W), float32.
        """
        if text is None:
            text = [network.default_prompt] * len(inputs)
        starts = [0] + [i for i in range(1, len(inputs)) if not torch.equal(inputs[i], inputs[i - 1])]
        ends = [*starts[1:], len(inputs)]
        features = network.encode_image(inputs[starts])
        parts = []
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            prompts = network.encode_text(list(text[start:end]))
            parts.append(network.decode(features[index : index + 1], prompts).logits)
        return torch.cat(parts)
