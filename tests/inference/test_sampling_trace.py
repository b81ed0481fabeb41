"""The sampling trace: its numbers against the sets, its picture on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.inference.sampling_trace import save_figure, trace_figure, trace_slice
from boltzformer.networks.attention.rules import Full
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.image_encoder import ImageEncoder
from boltzformer.networks.text_encoder import ClipTextEncoder


def make_network(**settings) -> BoltzFormer:
    torch.manual_seed(0)
    text = ClipTextEncoder(layers=1, width=32, heads=2)
    small = {"image_size": 64, "dim": 32, "num_heads": 4, "feedforward_dim": 64, "encoder_layers": 1, "num_queries": 3}
    return BoltzFormer(ImageEncoder("tiny_vit_5m_224"), text, **{**small, **settings}).eval()


@pytest.fixture(scope="module")
def traced():
    network = make_network()
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 64, 64)
    label[0, 20, 30] = 1
    return network, image, label, trace_slice(network, image, "lung nodule", label)


def test_numbers_come_from_the_sets(traced):
    network, image, _, trace = traced
    assert [row["temperature"] for row in trace.numbers()] == pytest.approx([1 / (1 + i) for i in range(9)])
    assert [one.kept.shape for one in trace.layers] == [(1, 3, 2, 2), (1, 3, 4, 4), (1, 3, 8, 8)] * 3
    finest = trace.layers[2]
    assert finest.share_kept == pytest.approx(finest.kept.mean())
    assert finest.object_share == pytest.approx(finest.kept[0, :, 20 // 8, 30 // 8].mean())
    assert np.allclose(finest.frequency, finest.kept[0].mean(0))
    with torch.no_grad():
        expected = network(image[None], ["lung nodule"]).sigmoid()[0, 0].numpy()
    assert np.array_equal(trace.probability, expected)


def test_without_an_object_there_is_no_share_of_it(traced):
    network, image, label, _ = traced
    assert trace_slice(network, image, "lung nodule").layers[0].object_share is None
    assert trace_slice(network, image, "lung nodule", label * 0).layers[0].object_share is None


def test_full_attention_keeps_everything(traced):
    _, image, label, _ = traced
    trace = trace_slice(make_network(attention=Full()), image, "lung nodule", label)
    assert all(one.share_kept == 1 and one.object_share == 1 for one in trace.layers)


def test_figure(traced, tmp_path):
    figure = trace_figure([traced[3]], layers=(0, 4, 8, 20))
    assert len(figure.axes) == 6  # slice, truth, prediction and the three layers that exist
    save_figure(figure, tmp_path / "new" / "trace.png")
    assert (tmp_path / "new" / "trace.png").stat().st_size > 10_000
