from __future__ import annotations

import pytest
import torch
from boltzformer.networks.pigma import PiGMA, mean_mask


def plain(pigma, query_masks, image_at_map, image_at_double):
    """Figure 3 of the paper, one step after the other."""
    upsampled = pigma.upsample(torch.cat((image_at_map, query_masks), 1))
    correction = pigma.combine(torch.cat((image_at_double, upsampled), 1))
    return (correction + mean_mask(query_masks, image_at_double.shape[-2:])) / 2


@pytest.mark.parametrize("num_queries", [1, 10])
@pytest.mark.parametrize("channels", [1, 10])
def test_equals_the_two_convolutions(num_queries, channels):
    torch.manual_seed(0)
    pigma = PiGMA(num_queries, channels)
    inputs = [torch.randn(2, n, 12 * k, 20 * k).requires_grad_() for n, k in ((num_queries, 1), (3, 1), (3, 2))]
    ours, expected = pigma(*inputs), plain(pigma, *inputs)
    assert ours.shape == expected.shape == (2, 1, 24, 40)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    weight = torch.randn_like(expected)
    leaves = [*pigma.parameters(), *inputs]
    gradients = [torch.autograd.grad((masks * weight).sum(), leaves) for masks in (ours, expected)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1)
