"""`boltzformer convert`."""

from __future__ import annotations

import json

import torch
import typer
from boltzformer.apps import convert
from boltzformer.apps.bundle_config import read_bundle
from boltzformer.weights import load_weights
from typer.testing import CliRunner

from tests.support import BUNDLE, SMALL_NETWORK


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(convert.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


SMALL = {**SMALL_NETWORK, "network_def#num_queries": 3}


def test_converted_checkpoint_is_one_that_the_bundle_loads(tmp_path):
    theirs = {
        "sem_seg_head.predictor.query_feat.weight": torch.full((3, 32), 2.0),
        "sem_seg_head.predictor.mask_embed.layers.1.bias": torch.full((32,), 3.0),
        "sem_seg_head.pixel_decoder.layer_1.weight": torch.full((32, 32, 3, 3), 4.0),
        "output_conv.bias": torch.full((1,), 5.0),
        "backbone.stem.weight": torch.zeros(1),
    }
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    overlay = tmp_path / "small.json"
    overlay.write_text(json.dumps(SMALL))
    files = tmp_path / "theirs.pth", tmp_path / "ours.pt"
    result = run(*files, "--overlay", overlay)
    assert result.exit_code == 0, result.output
    assert "4 tensors" in result.output
    assert "image_encoder" in result.output
    network = read_bundle(BUNDLE, [], {"checkpoint": tmp_path / "ours.pt"}).get_parsed_content("network_def")
    load_weights(network, tmp_path / "ours.pt")
    assert network.decoder.query_features.unique().tolist() == [2]
    assert network.decoder.mask_mlp[2].bias.unique().tolist() == [3]
    assert network.pixel_decoder.outputs[0].conv.weight.unique().tolist() == [4]
    assert network.pigma.combine.bias.tolist() == [5]
    overlay.write_text(json.dumps({**SMALL, "network_def#num_queries": 4}))
    result = run(*files, "--overlay", overlay)
    assert result.exit_code == 2
    assert "another network" in " ".join(result.output.split())


def test_checkpoints_that_are_none(tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    cases = {
        "empty": "none of the authors",
        "absent": "not found",
        "text": "cannot be read",
        "other": "none of the authors",
        "list": "no state dict",
    }
    for name, message in cases.items():
        result = run(tmp_path / f"{name}.pth", tmp_path / "out.pt")
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert not (tmp_path / "out.pt").exists()
