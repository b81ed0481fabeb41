"""The estimate of a training: a forward pass that is counted, and sums that can be checked by hand."""

from __future__ import annotations

import pytest
import torch
from boltzformer.apps.cost import count_forward, estimate
from boltzformer.errors import InputError
from torch.utils.flop_counter import FlopCounterMode

from tests.support import small_network


def test_a_forward_pass_is_counted_without_a_device():
    network = small_network()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.image_encoder(torch.rand(1, 3, 64, 64))
    encoder = counter.get_total_flops() / 2e9
    counted = count_forward(network)
    assert counted > encoder
    four_times = small_network(**{"network_def#image_size": 128})
    assert 3 < count_forward(four_times) / counted < 5  # nearly all of it follows the pixels
    assert encoder / 4 < count_forward(network, prompts=4) < counted  # the slice is encoded once


def test_the_sums():
    cost = estimate(
        100.0, 10**6, pairs=1000, epochs=2, gpus=4, batch=8, tflops=1.0, utilisation=0.5, slice_pixels=10**6
    )
    assert cost.steps == 250
    assert cost.gpu_hours == pytest.approx(2000 * 600e9 / 0.5e12 / 3600)
    assert cost.hours == pytest.approx(cost.gpu_hours / 4)
    assert cost.pairs_per_second == pytest.approx(2000 / (cost.hours * 3600))
    assert cost.cache_gb == pytest.approx(3.0)
    assert cost.read_mb_per_second == pytest.approx(3 * cost.pairs_per_second)
    assert cost.reduce_gb_per_step == pytest.approx(0.006)
    for wrong in ({"utilisation": 0}, {"gpus": 0}):
        settings = {"pairs": 1, "epochs": 1, "gpus": 1, "batch": 1, "tflops": 1.0, "utilisation": 1.0, **wrong}
        with pytest.raises(InputError, match=next(iter(wrong))):
            estimate(1.0, 1, slice_pixels=1, **settings)
