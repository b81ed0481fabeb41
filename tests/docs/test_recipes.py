"""CONTRIBUTING's recipes, followed."""

from __future__ import annotations

import json
import sys
import types

import torch
from boltzformer.metrics.measures.measure import columns, describe
from boltzformer.metrics.measures.slices import SliceCounts
from boltzformer.networks.attention import rules
from boltzformer.networks.definition import DEFINED_CLASSES
from boltzformer.recipe import recipe_for
from boltzformer.recipe_network import build_network, record_definition
from boltzformer.weights import load_weights, save_atomically

from tests.docs.blocks import ROOT, blocks
from tests.support import BUNDLE, SMALL_NETWORK

INPUT = {"window": "auto", "axis": 2, "num_adjacent": 0, "pixel_size_mm": None}
PAGE = ROOT / "CONTRIBUTING.md"


def _text(language: str, about: str) -> str:
    (block,) = blocks(PAGE, language, about)
    return block.text


def _network(overlay: dict) -> torch.nn.Module:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.update({**SMALL_NETWORK, **overlay})
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def").eval()


def test_backbone():
    network = _network(json.loads(_text("json", "backbone")))
    assert network.image_encoder.name == "test_resnet"
    assert network(torch.rand(1, 1, 64, 64), ["nodule"]).shape == (1, 1, 64, 64)


def test_attention_rule(monkeypatch, tmp_path):
    module = types.ModuleType("boltzformer.networks.attention.rules.top_k")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(rules, "top_k", module, raising=False)
    monkeypatch.setitem(DEFINED_CLASSES, "TopK", None)
    monkeypatch.delitem(DEFINED_CLASSES, "TopK")  # and so after the test too
    exec(compile(_text("python", "attention rule"), "top_k.py", "exec"), module.__dict__)
    kept = module.TopK(k=3).keep(torch.randn(1, 1, 4, 50), 0, None)
    assert (kept.sum(-1) == 3).all()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        network = _network(json.loads(_text("json", "attention overlay")))
        ours = network(image, ["nodule"])
        everything = _network({"network_def#attention": {**_overlay(), "k": 10**6}})(image, ["nodule"])
        full = {"_target_": "boltzformer.networks.attention.rules.Full"}
        full_attention = _network({"network_def#attention": full})(image, ["nodule"])
    torch.testing.assert_close(everything, full_attention, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, full_attention, atol=1e-4)
    # a checkpoint that was trained with the rule is built again from its recipe
    recipe = {"network": record_definition(network, BUNDLE / "models"), "input": INPUT}
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    again = build_network(recipe_for(tmp_path / "model.pt", BUNDLE)).eval()
    load_weights(again, tmp_path / "model.pt")
    assert again.decoder.rule == module.TopK(k=8)
    with torch.no_grad():
        assert torch.equal(again(image, ["nodule"]), ours)


def _overlay() -> dict:
    return json.loads(_text("json", "attention overlay"))["network_def#attention"]


def test_metric():
    found: dict = {}
    exec(_text("python", "metric"), found)
    counts = [SliceCounts(10, 10, 5, 100), SliceCounts(4, 4, 4, 100), SliceCounts(0, 3, 0, 100)]
    rows = [columns([found["iou"]], count) for count in counts]
    assert [row["iou"] for row in rows] == [1 / 3, 1, None]
    assert describe(rows, [found["iou"]]) == {"mean_iou": 2 / 3}


def test_axis_is_a_key_of_training():
    axis = json.loads(_text("json", "axis"))
    assert axis.keys() <= json.loads((BUNDLE / "configs" / "train.json").read_text()).keys()
    assert axis["axis"] in (0, 1, 2)
