"""The decoder: text-conditioned prior, then L blocks of Boltzmann attention and inter-query attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from boltzformer.errors import InputError

from .attention.layer import BoltzmannAttention, Form
from .attention.patches import Patches
from .attention.rules import AttentionRule, Boltzmann
from .noise import Noise
from .semantic_map import SemanticMap
from .transformer import FeedForward, QueryTextAttention


@dataclass(frozen=True)
class TokenContext:
    """What self-attention among queries and text needs besides the tokens, the same in every block.

    Attributes:
        position: of queries and text, (B, m + N_T, d); the text's is its own first value.
        ignored: True at padding, (B, m + N_T); None if there is none.
    """

    position: Tensor
    ignored: Tensor | None


@dataclass(frozen=True)
class DecoderResult:
    """What the layers leave for B prompts.

    Attributes:
        queries: after the last layer and the decoder's norm, (B, m, d).
        mu: mask embeddings MLP(q) of those, (B, m, d).
        layer_masks: each layer's mask logits at its patch grid, before the layer, (B, m, h, w); None unless asked for.
        layer_sets: each layer's attention sets, bool (1 or B, sets a query, m, patches), or None in their place where
            every patch is attended to; None unless asked for.
    """

    queries: Tensor
    mu: Tensor
    layer_masks: tuple[Tensor, ...] | None
    layer_sets: tuple[Tensor | None, ...] | None


class DecoderBlock(nn.Module):
    """One block (eq. 6)."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, form: Form = "auto") -> None:
        super().__init__()
        self.cross_attention = BoltzmannAttention(dim, num_heads, form)
        self.self_attention = QueryTextAttention(dim, num_heads)
        self.feedforward = FeedForward(dim, feedforward_dim)

    def forward(
        self,
        queries: Tensor,
        text: Tensor,
        context: TokenContext,
        patches: Patches,
        level: Tensor,
        query_position: Tensor,
        kept: Tensor | None,
    ) -> tuple[Tensor, Tensor, Patches]:
        """Queries attend to their sets, then Q = FFN(LayerNorm([Q, T] + SelfAttn[Q, T])); the text goes on as [.]_T.

        Args:
            queries: (B, m, d).
            text: (B, N_T, d).
            context: positions and padding of both.
            patches: V of the layer's scale.
            level: the scale's embedding, (d,).
            query_position: (m, d).
            kept: the sets, see `BoltzmannAttention`.

        Returns:
            Queries, text, and the patches for the next layer of the scale.
        """
        queries, patches = self.cross_attention(queries, query_position, patches, level, kept)
        queries, text = self.self_attention.mix(queries, text, context.position, context.ignored)
        return self.feedforward(queries), text, patches


class BoltzFormerDecoder(nn.Module):
    """Queries find an object by attending to patches drawn from an ever colder Boltzmann distribution.

    Args:
        dim: d, width of queries, text and patches; a multiple of 4 and of `num_heads`.
        num_queries: m.
        num_layers: L; layer l works on scale l mod `num_scales`, coarse to fine.
        num_heads: H.
        feedforward_dim: width of the feed-forward layers.
        num_scales: scales of visual features.
        attention: which patches a query keeps; None takes the paper's `Boltzmann`.
        text_conditioned_prior: condition the first queries on the text (eq. 4); False keeps them as learned.
        form: of the attention, see `BoltzmannAttention`.

    Raises:
        InputError: `dim` does not fit.
    """

    def __init__(
        self,
        dim: int = 256,
        num_queries: int = 10,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        num_scales: int = 3,
        attention: AttentionRule | None = None,
        text_conditioned_prior: bool = True,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        check_width(dim, num_heads)
        self.num_queries, self.num_layers, self.num_scales = num_queries, num_layers, num_scales
        self.rule = attention or Boltzmann()
        self.sets_per_query = self.rule.sets_per_query(num_heads)
        self.query_features = nn.Parameter(torch.randn(num_queries, dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, dim))
        self.level_embedding = nn.Parameter(torch.randn(num_scales, dim))
        self.prior_attention = QueryTextAttention(dim, num_heads) if text_conditioned_prior else None
        self.prior_feedforward = FeedForward(dim, feedforward_dim) if text_conditioned_prior else None
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, feedforward_dim, form) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.mask_mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "embedding" not in name and "query" not in name:
                nn.init.xavier_uniform_(parameter)

    def patches_per_layer(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Number of patches of each layer's grid, given the scales' sizes, coarse to fine."""
        grids = [sizes[i % self.num_scales] for i in range(self.num_layers)]
        return [height * width for height, width in grids]

    def forward(
        self,
        scales: Sequence[Patches],
        semantic_map: SemanticMap,
        text: Tensor,
        text_mask: Tensor | None,
        noise: Noise | None,
        keep_masks: bool = False,
        keep_sets: bool = False,
    ) -> DecoderResult:
        """Run all layers: prior, then for each layer the draw and the block.

        Args:
            scales: visual features V, coarse to fine, S slices each.
            semantic_map: S of the same slices.
            text: text tokens, (B, N_T, d), B / S prompts for each slice, side by side.
            text_mask: True at real tokens, (B, N_T); None if there is no padding.
            noise: per layer, standard exponential (1 or B, sets a query, m, patches), where the rule needs it.
            keep_masks: return the layers' masks, with gradients.
            keep_sets: return the attention sets.
        """
        scales = list(scales)
        queries, text, context = self._prior(text, text_mask)
        masks: list[Tensor | None] = []
        sets: list[Tensor | None] = []
        for layer, module in enumerate(self.blocks):
            block, scale = cast(DecoderBlock, module), layer % self.num_scales
            logits = self._patch_logits(queries, semantic_map, scales[scale].size, keep_masks)
            kept = self._draw(logits, layer, None if noise is None else noise[layer])
            queries, text, scales[scale] = block(
                queries, text, context, scales[scale], self.level_embedding[scale], self.query_position, kept
            )
            masks.append(logits)
            sets.append(kept)
        queries = self.norm(queries)
        found = tuple(cast(list[Tensor], masks)) if keep_masks else None
        return DecoderResult(queries, self.mask_mlp(queries), found, tuple(sets) if keep_sets else None)

    def _prior(self, text: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor, TokenContext]:
        """First queries and text: Q = FFN(LayerNorm([Q, T] + SelfAttn[Q, T])) of the learned Q (eq. 4)."""
        batch = text.shape[0]
        queries = self.query_features.expand(batch, -1, -1)
        position = torch.cat((self.query_position.expand(batch, -1, -1), text.detach()), 1)
        ignored = None
        if text_mask is not None:
            ignored = torch.cat((text_mask.new_zeros(batch, self.num_queries), ~text_mask), 1)
        if self.prior_attention is not None and self.prior_feedforward is not None:
            queries, text = self.prior_attention.mix(queries, text, position, ignored)
            queries = self.prior_feedforward(queries)
        return queries, text, TokenContext(position, ignored)

    def _patch_logits(
        self, queries: Tensor, semantic_map: SemanticMap, grid: tuple[int, int], with_gradient: bool
    ) -> Tensor | None:
        """Mask logits mu^T S at a layer's patches, (B, m, h, w); None where nobody reads them."""
        if self.rule.keeps_all and not with_gradient:
            return None
        with torch.set_grad_enabled(with_gradient and torch.is_grad_enabled()):
            return semantic_map.patch_logits(self.mask_mlp(self.norm(queries)), grid)

    @torch.no_grad()
    def _draw(self, logits: Tensor | None, layer: int, noise: Tensor | None) -> Tensor | None:
        """The layer's attention sets; no gradient passes through the draw."""
        if logits is None or self.rule.keeps_all:
            return None
        return self.rule.keep(logits.detach().flatten(2)[:, None], layer, noise)


def check_width(dim: int, num_heads: int) -> None:
    """Raise `InputError` unless heads and position embedding divide the width."""
    if dim % num_heads or dim % 4:
        raise InputError(f"dim={dim} must be a multiple of 4 and of num_heads={num_heads}")
