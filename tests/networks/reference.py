"""The decoder in its plain form, as the paper's footnote 2 describes it: what tests and benchmark measure against.

Dense ``nn.MultiheadAttention`` with a boolean mask, every key and value projected, every query's full-resolution mask
computed and resized at every layer. It runs on the very modules of :class:`BoltzFormerDecoder`, hence on its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from boltzformer.networks.decoder import BoltzFormerDecoder
from boltzformer.networks.positions import sine_embedding
from torch import Tensor


def reference_decode(
    decoder: BoltzFormerDecoder,
    features: Sequence[Tensor],
    semantic_map: Tensor,
    text: Tensor,
    text_mask: Tensor | None = None,
    noise: Sequence[Tensor] | None = None,
    trace: list[Tensor | None] | None = None,
) -> Tensor:
    """Mask logits of all queries.

    Args:
        decoder: whose weights and settings are used.
        features: V, (B, d, h, w) each, coarse to fine.
        semantic_map: S, (B, d, H, W).
        text: (B, N_T, d).
        text_mask: True at real tokens, (B, N_T).
        noise: per layer (1 or B, sets, m, patches).
        trace: collects the attention sets, as the decoder's.

    Returns:
        (B, m, H, W).
    """
    batch, m = text.shape[0], decoder.num_queries
    text_position = text.detach()
    queries = decoder.query_features.expand(batch, -1, -1)
    if decoder.prior_attention is not None and decoder.prior_feedforward is not None:
        queries, text = _mix(decoder, decoder.prior_attention, queries, text, text_position, text_mask)
        queries = decoder.prior_feedforward(queries)
    for layer in range(decoder.num_layers):
        scale = layer % decoder.num_scales
        maps = features[scale]
        height, width = maps.shape[-2:]
        masked_out = _masked_out(decoder, layer, queries, semantic_map, (height, width), noise)
        if trace is not None:
            trace.append(None if masked_out is None else ~masked_out)
        block: Any = decoder.blocks[layer]
        values = (maps + decoder.level_embedding[scale][:, None, None]).flatten(2).transpose(1, 2)
        position = sine_embedding(height, width, maps.shape[1], maps.device).flatten(1).T
        heads = block.cross_attention.num_heads
        if masked_out is not None:
            masked_out = masked_out.expand(batch, heads, m, height * width).flatten(0, 1)
        attended = block.cross_attention.attention(
            queries + decoder.query_position, values + position, values, attn_mask=masked_out, need_weights=False
        )[0]
        queries = block.cross_attention.norm(queries + attended)
        queries, text = _mix(decoder, block.self_attention, queries, text, text_position, text_mask)
        queries = block.feedforward(queries)
    return _masks(decoder, queries, semantic_map)


def _mix(
    decoder: BoltzFormerDecoder, block: Any, queries: Tensor, text: Tensor, position: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens = torch.cat((queries, text), 1)
    placed = tokens + torch.cat((decoder.query_position.expand(queries.shape[0], -1, -1), position), 1)
    ignored = None
    if mask is not None:
        ignored = torch.cat((torch.zeros(queries.shape[:2], dtype=torch.bool, device=mask.device), ~mask), 1)
    tokens = block.norm(tokens + block.attention(placed, placed, tokens, key_padding_mask=ignored)[0])
    return tokens[:, : queries.shape[1]], tokens[:, queries.shape[1] :]


def _masks(decoder: BoltzFormerDecoder, queries: Tensor, semantic_map: Tensor) -> Tensor:
    return torch.einsum("bmd,bdhw->bmhw", decoder.mask_mlp(decoder.norm(queries)), semantic_map)


def _masked_out(
    decoder: BoltzFormerDecoder,
    layer: int,
    queries: Tensor,
    semantic_map: Tensor,
    size: tuple[int, int],
    noise: Sequence[Tensor] | None,
) -> Tensor | None:
    """True where a query may not attend, (B, sets, m, patches)."""
    masks = _masks(decoder, queries, semantic_map)
    if decoder.rule == "full":
        return None
    logits = F.interpolate(masks, size=size, mode="bilinear", align_corners=False).flatten(2).detach()[:, None]
    confidence = logits.sigmoid()
    if decoder.rule == "threshold":
        masked_out = confidence < decoder.threshold
    else:
        assert noise is not None
        energy = (confidence / (decoder.base_temperature / (1 + layer))).exp()
        p = energy / energy.sum(-1, keepdim=True)
        trials = max(1, int(decoder.sample_ratio * logits.shape[-1]))
        masked_out = noise[layer] > -trials * torch.log1p(-p)
    return masked_out & ~masked_out.all(-1, keepdim=True)
