"""Self-attention of queries and text, written out for training on a CPU, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from boltzformer.networks.transformer import QueryTextAttention


@pytest.mark.parametrize("padded", [False, True])
def test_equals_multihead_attention_with_gradients(padded):
    torch.manual_seed(0)
    ours = QueryTextAttention(32, 4)
    tokens, position = torch.randn(2, 3, 9, 32).unbind()
    ignored = torch.arange(9)[None] >= torch.tensor([[9], [5], [7]]) if padded else None
    weight = torch.randn(3, 9, 32)

    def fused(tokens, position, ignored):
        at = tokens + position
        update, _ = ours.attention(at, at, tokens, key_padding_mask=ignored, need_weights=False)
        return ours.norm(tokens + update)

    results = []
    for attend in (ours, fused):
        leaves = [tokens.clone().requires_grad_(), position.clone().requires_grad_()]
        out = attend(*leaves, ignored)
        gradients = torch.autograd.grad((out * weight).sum(), [*leaves, *ours.parameters()])
        results.append([out, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # here the fused kernel computes
        torch.testing.assert_close(ours(tokens, position, ignored), results[0][0], rtol=1e-4, atol=1e-5)
