"""The decoder of a benchmark: one set of weights and inputs, run by the network's modules and in the plain form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.networks.attention.layer import BoltzmannAttention, Form
from boltzformer.networks.attention.patches import Patches
from boltzformer.networks.attention.rules import AttentionRule
from boltzformer.networks.decoder import BoltzFormerDecoder, DecoderBlock
from boltzformer.networks.noise import fresh_noise
from boltzformer.networks.semantic_map import MapForm, SemanticMap, semantic_map_of

GRIDS = ((32, 32), (64, 64), (128, 128))  # of a 1024 px slice
MAP_SIZE = 256


class DecoderCase:
    """A decoder at the paper's sizes with random features, runnable in its fast and its plain form.

    Args:
        dim: d.
        queries: m.
        batch: slices.
        rule: of the attention sets; None is the paper's.
        with_projection: start from the pixel decoder's finest level, so that the semantic map is part of the work.
    """

    def __init__(
        self, dim: int, queries: int, batch: int = 1, rule: AttentionRule | None = None, with_projection: bool = False
    ) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.decoder = BoltzFormerDecoder(dim, queries, attention=rule).to(device)
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
        self.nothing = cast(torch.nn.Conv2d, torch.nn.Identity())  # where S itself is given

    def fast(self) -> Tensor:
        """Masks (B, m, 256, 256) by the network's own modules."""
        folds = self.with_projection and self.finest.device.type == "cpu"
        return self._decode("auto", "folded" if folds else "explicit", self.finest)

    def plain(self) -> Tensor:
        """The same masks by the plain form."""
        return self._decode("plain", "plain", self.plain_finest)

    def _decode(self, form: Form, map_form: MapForm, finest: Tensor) -> Tensor:
        for attention in self._attentions():
            attention.form = form
        semantic_map = self._semantic_map(map_form, finest)
        patches = [Patches.of(v) for v in self.features]
        return semantic_map.mask_logits(self.decoder(patches, semantic_map, self.text, None, self.noise).mu)

    def _semantic_map(self, form: MapForm, finest: Tensor) -> SemanticMap:
        return semantic_map_of(finest, self.projection if self.with_projection else self.nothing, GRIDS, form)

    def _attentions(self) -> list[BoltzmannAttention]:
        return [cast(DecoderBlock, block).cross_attention for block in self.decoder.blocks]

    def cross_attention(self, form: Form) -> Callable[[], None]:
        """The cross-attention of every layer over the sets that the network draws, in one form, and nothing else."""
        patches = [Patches.of(v) for v in self.features]
        semantic_map = self._semantic_map("explicit", self.finest)
        sets = self.decoder(patches, semantic_map, self.text, None, self.noise, keep_sets=True).layer_sets
        queries = self.decoder.query_features[None]

        def run() -> None:
            for layer, (attention, kept) in enumerate(zip(self._attentions(), sets or (), strict=True)):
                scale = layer % len(patches)
                attention.form = form
                attention(
                    queries, self.decoder.query_position, patches[scale], self.decoder.level_embedding[scale], kept
                )

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
