"""The decoder of a benchmark: one set of weights and inputs, run by the network's modules and in the plain form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.networks.boltzmann_attention import BoltzmannAttention, PatchFeatures
from boltzformer.networks.decoder import BoltzFormerDecoder, DecoderBlock
from boltzformer.networks.features import semantic_map_of
from boltzformer.networks.noise import fresh_noise
from boltzformer.networks.sampling import AttentionRule
from boltzformer.networks.semantic_map import ExplicitSemanticMap, SemanticMap
from tests.networks.reference import reference_decode

GRIDS = ((32, 32), (64, 64), (128, 128))  # of a 1024 px slice
MAP_SIZE = 256


class DecoderCase:
    """A decoder at the paper's sizes with random features, runnable in its fast and its plain form.

    Args:
        dim: d.
        queries: m.
        batch: slices.
        rule: of the attention sets.
        with_projection: start from the pixel decoder's finest level, so that the semantic map is part of the work.
    """

    def __init__(
        self, dim: int, queries: int, batch: int = 1, rule: AttentionRule = "boltzmann", with_projection: bool = False
    ) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.decoder = BoltzFormerDecoder(dim, queries, attention_set=rule).to(device)
        # a patch is one row in memory, in both forms: the plain form's projections are many times slower otherwise
        self.features = [
            torch.randn(batch, dim, *grid, device=device).contiguous(memory_format=torch.channels_last)
            for grid in GRIDS
        ]
        # the plain form gets torch's default layout; ours the channels last, as our pixel decoder gives it
        self.plain_finest = torch.randn(batch, dim, MAP_SIZE, MAP_SIZE, device=device)
        self.finest = self.plain_finest.contiguous(memory_format=torch.channels_last)
        self.text = torch.randn(batch, 8, dim, device=device)
        patches = self.decoder.patches_per_layer(GRIDS)
        self.noise = fresh_noise(1, 1, queries, patches, torch.device(device))
        self.projection = torch.nn.Conv2d(dim, dim, 3, padding=1, device=device)
        self.with_projection = with_projection

    def fast(self) -> Tensor:
        """Masks (B, m, 256, 256) by the network's own modules."""
        semantic_map = self._semantic_map()
        mu = self.decoder([PatchFeatures(v) for v in self.features], semantic_map, self.text, None, self.noise)
        return semantic_map.mask_logits(mu)

    def plain(self) -> Tensor:
        """The same masks by the plain form."""
        semantic_map = self.projection(self.plain_finest) if self.with_projection else self.plain_finest
        return reference_decode(self.decoder, self.features, semantic_map, self.text, None, self.noise)

    def _semantic_map(self) -> SemanticMap:
        if not self.with_projection:
            return ExplicitSemanticMap(self.finest)
        return semantic_map_of(self.finest, self.projection, folded=self.finest.device.type == "cpu")

    def _layers(self) -> list[tuple[BoltzmannAttention, Tensor, Tensor, Tensor | None]]:
        """Of each layer: its cross-attention, V, the embedding of its scale, and the sets that the network draws."""
        sets: list[Tensor | None] = []
        patches = [PatchFeatures(v) for v in self.features]
        self.decoder(patches, ExplicitSemanticMap(self.finest), self.text, None, self.noise, sets)
        attentions = [cast(DecoderBlock, block).cross_attention for block in self.decoder.blocks]
        scales = [layer % len(self.features) for layer in range(len(sets))]
        levels = self.decoder.level_embedding
        return [(a, self.features[s], levels[s], kept) for a, s, kept in zip(attentions, scales, sets, strict=True)]

    def fast_cross_attention(self) -> Callable[[], None]:
        """The network's cross-attention of every layer over its sets, and nothing else."""
        layers, queries = self._layers(), self.decoder.query_features[None]

        def run() -> None:
            for attention, maps, level, kept in layers:
                attention(queries, self.decoder.query_position, PatchFeatures(maps), level, kept)

        return run

    def plain_cross_attention(self) -> Callable[[], None]:
        """The same by ``nn.MultiheadAttention`` with a mask."""
        layers, queries = self._layers(), self.decoder.query_features[None]

        def run() -> None:
            for module, maps, _, kept in layers:
                keys = maps.flatten(2).transpose(1, 2)
                mask = None if kept is None else ~kept.expand(-1, module.num_heads, -1, -1).flatten(0, 1)
                module.attention(queries, keys, keys, attn_mask=mask, need_weights=False)

        return run

    def step(self, run: Callable[[], Tensor]) -> Callable[[], None]:
        """A training step, forward and backward to the weights and features."""
        leaves = [*self.features, self.finest, self.plain_finest]
        weight = torch.randn(self.finest.shape[0], self.decoder.num_queries, MAP_SIZE, MAP_SIZE)
        weight = weight.to(self.finest.device)

        def both_ways() -> None:
            self.decoder.zero_grad(set_to_none=True)
            for leaf in leaves:
                leaf.requires_grad_()
                leaf.grad = None
            (run() * weight).sum().backward()

        return both_ways
