"""A training that MONAI Label starts: it replaces the data and the number of epochs and says nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from boltzformer.data.phantom import write_phantoms
from boltzformer.recipe import read_recipe
from boltzformer.recipe_network import record_definition
from boltzformer.weights import read_checkpoint, save_atomically

from tests.support import BUNDLE, SMALL_NETWORK, small_network, write_json

HANDLER_THAT_LABEL_ADDS = {
    "_target_": "CheckpointLoader",
    "load_dict": {"model": "$@network"},
    "strict": False,
}


def _handlers() -> list[Any]:
    return json.loads((BUNDLE / "configs" / "train.json").read_text())["train"]["handlers"]


def test_every_handler_is_an_object_as_label_expects():
    assert all(isinstance(handler, dict) for handler in _handlers())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle's configs, with a small network and its weights."""
    network = small_network()
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "auto", "axis": 2, "num_adjacent": 0},
        "trained_on": {"modalities": ["CT"], "body_parts": ["chest"], "objects": {"spleen": ["spleen in chest CT"]}},
    }
    folder = tmp_path / "bundle"
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    write_json(folder / "configs" / "small.json", {**SMALL_NETWORK, "initial_weights": "$@checkpoint"})
    save_atomically(network.state_dict(), folder / "models" / "model.pt", recipe)
    return folder


def test_bare_pairs_fine_tune_the_served_weights(bundle, tmp_path):
    write_phantoms(tmp_path / "set", num_training=2, num_validation=1, size=(64, 64, 8))
    dataset = json.loads((tmp_path / "set" / "dataset.json").read_text())
    pairs = [
        [{key: str(tmp_path / "set" / item[key]) for key in ("image", "label")} for item in dataset[section]]
        for section in ("training", "validation")
    ]
    weights = bundle / "models" / "model.pt"
    before = read_checkpoint(weights)
    monai.bundle.run(
        run_id="run",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=[str(bundle / "configs" / "train.json"), str(bundle / "configs" / "small.json")],
        logging_file=str(bundle / "configs" / "logging.conf"),
        bundle_root=str(bundle),
        device="cpu",
        **{
            "train#trainer#max_epochs": 1,
            "train#dataset#data": pairs[0],
            "validate#dataset#data": pairs[1],
            "train#handlers": [{**HANDLER_THAT_LABEL_ADDS, "load_path": str(weights)}, *_handlers()],
        },
    )
    after, recipe = read_checkpoint(weights), read_recipe(weights)
    assert set(after) == set(before)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    prompts = [entry["prompt"] for entry in json.loads((BUNDLE / "configs" / "prompts.json").read_text())]
    objects = recipe["trained_on"]["objects"]
    assert objects.pop("spleen") == ["spleen in chest CT"]
    assert sorted(wordings[0] for wordings in objects.values()) == sorted(prompts)
    assert recipe["trained_on"]["modalities"] == ["CT"]
