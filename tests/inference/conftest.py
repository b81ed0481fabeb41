"""A segmenter with a small network, and its weights in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from boltzformer.inference.api import Segmenter

from tests.support import BUNDLE, SMALL_NETWORK, small_network, write_json


@pytest.fixture(scope="session")
def network() -> torch.nn.Module:
    return small_network()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("overlay") / "small.json", SMALL_NETWORK)


@pytest.fixture(scope="session")
def segmenter(weights: Path, overlay: Path) -> Segmenter:
    return Segmenter.from_bundle(BUNDLE, weights, [overlay], device="cpu", window="soft_tissue")
