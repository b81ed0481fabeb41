"""The decoder: text-conditioned prior, then L blocks of Boltzmann attention and inter-query attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from boltzformer.errors import InputError

from .boltzmann_attention import BoltzmannAttention, PatchFeatures
from .noise import Noise
from .sampling import AttentionRule, attention_set, temperature
from .semantic_map import SemanticMap
from .transformer import FeedForward, QueryTextAttention


class DecoderBlock(nn.Module):
    """One block: cross-attention over the sets, self-attention with the text, feed-forward on the queries (eq. 6)."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.cross_attention = BoltzmannAttention(dim, num_heads)
        self.self_attention = QueryTextAttention(dim, num_heads)
        self.feedforward = FeedForward(dim, feedforward_dim)


class BoltzFormerDecoder(nn.Module):
    """Queries find an object by attending to patches drawn from an ever colder Boltzmann distribution.

    Args:
        dim: d, width of queries, text and patches.
        num_queries: m.
        num_layers: L; layer l works on scale l mod ``num_scales``, coarse to fine.
        num_heads: H.
        feedforward_dim: width of the feed-forward layers.
        num_scales: scales of visual features.
        sample_ratio: N / N_v, draws over patches of the scale, in (0, 1].
        base_temperature: tau_0 > 0; tau_l = tau_0 / (1 + l).
        attention_set: "boltzmann" (the paper), "threshold" (confidence at least ``threshold``) or "full".
        threshold: confidence for the rule "threshold".
        heads_share_set: one set a query (paper); False draws for every (query, head), as the authors' code does.
        text_conditioned_prior: condition the first queries on the text (eq. 4); False keeps them as learned.
    """

    def __init__(
        self,
        dim: int = 256,
        num_queries: int = 10,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        num_scales: int = 3,
        sample_ratio: float = 0.1,
        base_temperature: float = 1.0,
        attention_set: AttentionRule = "boltzmann",
        threshold: float = 0.5,
        heads_share_set: bool = True,
        text_conditioned_prior: bool = True,
    ) -> None:
        super().__init__()
        check_settings(dim, num_heads, sample_ratio, base_temperature, attention_set)
        self.num_queries, self.num_layers, self.num_scales = num_queries, num_layers, num_scales
        self.sample_ratio, self.base_temperature = sample_ratio, base_temperature
        self.rule, self.threshold = attention_set, threshold
        self.sets_per_query = 1 if heads_share_set else num_heads
        self.query_features = nn.Parameter(torch.randn(num_queries, dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, dim))
        self.level_embedding = nn.Parameter(torch.randn(num_scales, dim))
        self.prior_attention = QueryTextAttention(dim, num_heads) if text_conditioned_prior else None
        self.prior_feedforward = FeedForward(dim, feedforward_dim) if text_conditioned_prior else None
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, feedforward_dim) for _ in range(num_layers))
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
        scales: Sequence[PatchFeatures],
        semantic_map: SemanticMap,
        text: Tensor,
        text_mask: Tensor | None,
        noise: Noise | None,
        trace: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            scales: visual features V, coarse to fine, B slices each.
            semantic_map: S of the same slices.
            text: text tokens, (B, N_T, d).
            text_mask: True at real tokens, (B, N_T); None if there is no padding.
            noise: per layer, exponential (1 or B, sets a query, m, patches); needed by the rule "boltzmann".
            trace: if given, each layer's attention sets are appended, bool (B, sets, m, patches), None for all.

        Returns:
            Mask embeddings mu = MLP(q) of the last layer, (B, m, d).
        """
        if torch.is_grad_enabled():  # layers chain their gradients through a scale's rows: one chain a pass
            scales = [PatchFeatures(scale.maps) for scale in scales]
        queries, text, position, ignored = self._prior(text, text_mask)
        for layer, module in enumerate(self.blocks):
            block = cast(DecoderBlock, module)
            patches = scales[layer % self.num_scales]
            kept = self._attention_set(layer, queries, patches, semantic_map, None if noise is None else noise[layer])
            if trace is not None:
                trace.append(kept)
            level = self.level_embedding[layer % self.num_scales]
            queries = block.cross_attention(queries, self.query_position, patches, level, kept)
            tokens = block.self_attention(torch.cat((queries, text), 1), position, ignored)
            queries, text = tokens[:, : self.num_queries], tokens[:, self.num_queries :]
            queries = block.feedforward(queries)
        return self.mask_mlp(self.norm(queries))

    def _prior(self, text: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """First queries and text (eq. 4), with what self-attention needs in every block: positions and padding."""
        batch = text.shape[0]
        queries = self.query_features.expand(batch, -1, -1)
        position = torch.cat((self.query_position.expand(batch, -1, -1), text.detach()), 1)
        ignored = None
        if text_mask is not None:
            ignored = torch.cat((text_mask.new_zeros(batch, self.num_queries), ~text_mask), 1)
        if self.prior_attention is not None and self.prior_feedforward is not None:
            tokens = self.prior_attention(torch.cat((queries, text), 1), position, ignored)
            queries, text = tokens[:, : self.num_queries], tokens[:, self.num_queries :]
            queries = self.prior_feedforward(queries)
        return queries, text, position, ignored

    def _attention_set(
        self,
        layer: int,
        queries: Tensor,
        patches: PatchFeatures,
        semantic_map: SemanticMap,
        noise: Tensor | None,
    ) -> Tensor | None:
        """Each query's patches in this layer, (B, sets, m, patches); no gradient passes through the draw."""
        if self.rule == "full":
            return None
        with torch.no_grad():
            mu = self.mask_mlp(self.norm(queries))
            logits = semantic_map.patch_logits(mu, patches.size).flatten(2)[:, None]
            tau = temperature(self.base_temperature, layer)
            return attention_set(logits, noise, tau, self.rule, self.sample_ratio, self.threshold)


def check_settings(dim: int, num_heads: int, sample_ratio: float, base_temperature: float, rule: str) -> None:
    """Raise :class:`InputError` unless the settings make a network."""
    if dim % num_heads or dim % 4:
        raise InputError(f"dim={dim} must be a multiple of 4 and of num_heads={num_heads}")
    if not 0 < sample_ratio <= 1:
        raise InputError(f"sample_ratio={sample_ratio} must be above 0 and at most 1")
    if base_temperature <= 0:
        raise InputError(f"base_temperature={base_temperature} must be above 0")
    if rule not in ("boltzmann", "threshold", "full"):
        raise InputError(f"attention_set={rule!r} must be 'boltzmann', 'threshold' or 'full'")
