from __future__ import annotations

import pytest
import torch
from boltzformer.networks.pigma import PiGMA, mean_mask


def plain(pigma, query_masks, image):
    """Figure 3 of the paper, one step after the other."""
    prompts, (height, width) = len(query_masks) // len(image), query_masks.shape[-2:]
    image_at_map, image_at_double = (
        torch.nn.functional.interpolate(image, size=size, mode="bilinear").repeat_interleave(prompts, 0)
        for size in ((height, width), (2 * height, 2 * width))
    )
    upsampled = pigma.upsample(torch.cat((image_at_map, query_masks), 1))
    correction = pigma.combine(torch.cat((image_at_double, upsampled), 1))
    return (correction + mean_mask(query_masks, image_at_double.shape[-2:])) / 2


@pytest.mark.parametrize("num_queries", [1, 10])
@pytest.mark.parametrize("channels", [1, 10])
@pytest.mark.parametrize("prompts", [1, 3])
def test_equals_the_two_convolutions(num_queries, channels, prompts):
    torch.manual_seed(0)
    pigma = PiGMA(num_queries, channels)
    query_masks = torch.randn(2 * prompts, num_queries, 12, 20).requires_grad_()
    image = torch.randn(2, 3, 48, 80).requires_grad_()
    ours = pigma(query_masks, pigma.image_share(image, (12, 20)))
    expected = plain(pigma, query_masks, image)
    assert ours.shape == expected.shape == (2 * prompts, 1, 24, 40)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    weight = torch.randn_like(expected)
    leaves = [*pigma.parameters(), query_masks, image]
    gradients = [torch.autograd.grad((masks * weight).sum(), leaves) for masks in (ours, expected)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1)
