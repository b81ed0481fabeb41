"""Small networks and decoder inputs for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.image_encoder import ImageEncoder
from boltzformer.networks.text_encoder import ClipTextEncoder

SMALL = {"image_size": 64, "dim": 32, "num_heads": 4, "feedforward_dim": 64, "encoder_layers": 1, "num_queries": 4}


@pytest.fixture(scope="session")
def make_network() -> Callable[..., BoltzFormer]:
    """Build a small network; the same weights each time."""

    def make(**settings) -> BoltzFormer:
        torch.manual_seed(0)
        text = ClipTextEncoder(layers=2, width=32, heads=2, frozen=settings.pop("frozen_text", False))
        return BoltzFormer(ImageEncoder("tiny_vit_5m_224"), text, **{**SMALL, **settings})

    return make


@pytest.fixture(scope="module")
def network(make_network) -> BoltzFormer:
    """A small network in evaluation mode, not to be changed."""
    return make_network().eval()
