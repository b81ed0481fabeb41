"""Batches of slices that each come with several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate


def collate_prompts(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate items of a `SliceDataset` with K prompts a slice into S slices and S·K (slice, prompt) pairs.

    Args:
        items: S items with `label` (K, H, W) and tuples `text` and `object`; items of one prompt serve too.

    Returns:
        a batch in which `image` is (S, C, H, W), `label` (S·K, 1, H, W), and `text` and `object` are lists of
        S·K strings, a slice's pairs side by side; the other entries are collated as PyTorch does. Tensors are plain: a
        MetaTensor, which MONAI's transforms may leave, would take its way through Python at every operation of the
        network.
    """
    items = [{key: _plain(value) for key, value in item.items()} for item in items]
    batch: dict[str, Any] = {"label": torch.cat([item["label"] for item in items]).unsqueeze(1)}
    for key in ("text", "object"):
        values = [item[key] for item in items]
        batch[key] = [one for value in values for one in ([value] if isinstance(value, str) else value)]
    rest = [{key: value for key, value in item.items() if key not in batch} for item in items]
    return {**default_collate(rest), **batch}


def _plain(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) else value
