"""The plain form of attention over sets: what the paper's footnote 2 describes, and the other forms are measured by.

Every key and value is projected and a boolean mask hides what a query has not drawn. The saving that the sampling
allows is not realised here; read this to understand the function, and `dense`, `gathered` and `kernel` for the speed.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..positions import sine_embedding
from .patches import Patches
from .projections import Projections


def attend_plain(
    weights: Projections, queries: Tensor, patches: Patches, level: Tensor, kept: Tensor | None
) -> tuple[Tensor, Patches]:
    """Attend to the kept patches. All forms have this signature.

    Args:
        weights: the layer's projections, H heads.
        queries: with their position, (B, m, d).
        patches: V of S slices; B / S prompts for each, a slice's side by side.
        level: embedding of the scale, part of every key and value, (d,).
        kept: the attention sets, (1 or B, 1 or H, m, patches); None for all patches.

    Returns:
        Each head's sum of values, (B, H, m, d / H), and the patches for the next layer of the scale.
    """
    prompts_per_slice = queries.shape[0] // patches.rows.shape[0]
    values = (patches.rows + level).repeat_interleave(prompts_per_slice, 0)  # (B, patches, d)
    position = sine_embedding(*patches.size, level.shape[0], level.device).flatten(1).T
    query = _heads(F.linear(queries, weights.w_q, weights.b_q), weights.num_heads)
    key = _heads(F.linear(values + position.to(values.dtype), weights.w_k, weights.b_k), weights.num_heads)
    value = _heads(F.linear(values, weights.w_v, weights.b_v), weights.num_heads)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=kept), patches


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, d) -> (B, H, n, d / H)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
