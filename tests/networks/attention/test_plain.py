"""The plain form is `torch.nn.MultiheadAttention` itself, with a mask of what is left out."""

from __future__ import annotations

import pytest
import torch
from boltzformer.networks.attention.layer import BoltzmannAttention
from boltzformer.networks.attention.patches import Patches, by_prompt, by_slice
from boltzformer.networks.positions import sine_embedding


@pytest.mark.parametrize("sets", [None, 1, 4])
@pytest.mark.parametrize("prompts", [1, 3])
@torch.no_grad()
def test_equals_multihead_attention(sets, prompts):
    torch.manual_seed(0)
    layer = BoltzmannAttention(32, 4, form="plain")
    maps = torch.randn(2, 32, 5, 7)
    queries, position, level = torch.randn(2 * prompts, 6, 32), torch.randn(6, 32), torch.randn(32)
    kept = None if sets is None else torch.rand(2 * prompts, sets, 6, 35) < 0.4
    updated, _ = layer(queries, position, Patches.of(maps), level, kept)

    values = (maps + level[:, None, None]).flatten(2).transpose(1, 2)
    keys = values + sine_embedding(5, 7, 32, maps.device).flatten(1).T
    for b in range(2 * prompts):
        one = slice(b // prompts, b // prompts + 1)
        hidden = None if kept is None else ~kept[b].expand(4, -1, -1)
        query = queries[b : b + 1]
        attended = layer.attention(query + position, keys[one], values[one], attn_mask=hidden, need_weights=False)[0]
        assert torch.allclose(updated[b], layer.norm(query + attended)[0], atol=1e-5)


def test_prompts_of_a_slice_lie_side_by_side():
    x = torch.arange(6)[:, None, None].expand(6, 10, 4)
    sorted_ = by_slice(x, 2)
    assert sorted_.shape == (2, 30, 4)
    assert sorted_[1, 15, 0] == 4
    assert torch.equal(by_prompt(sorted_, 6), x)
