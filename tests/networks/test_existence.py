"""The existence head's attention against the module whose weights it has."""

import pytest
import torch
from boltzformer.networks.existence import attend_once
from torch import nn


@pytest.mark.parametrize("padded", [False, True])
def test_attention_of_one_query_is_the_modules(padded):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(module.in_proj_bias)  # zero at the start, where a forgotten bias would not show
    nn.init.normal_(module.out_proj.bias)
    query, tokens = torch.randn(3, 1, 32), torch.randn(3, 20, 32)
    ignored = torch.zeros(3, 20, dtype=torch.bool)
    ignored[1, 4:9], ignored[2, 10:] = padded, padded
    given = ignored if padded else None

    found = attend_once(module, query, tokens, given)
    expected, _ = module(query, tokens, tokens, key_padding_mask=given, need_weights=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    ours, theirs = (torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
