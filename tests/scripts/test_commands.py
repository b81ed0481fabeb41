"""The command-line tools that stand around the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from boltzformer.apps.bundle_config import read_bundle
from boltzformer.networks.attention.patches import Patches
from typer.testing import CliRunner

from scripts import benchmark, measuring
from scripts.decoder_case import DecoderCase

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"


def command(function) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(function)
    return app


def run(function, *arguments):
    return CliRunner().invoke(command(function), [str(argument) for argument in arguments])


SMALL = {
    "network_def#image_encoder#name": "tiny_vit_5m_224",
    "network_def#text_encoder": {
        "_target_": "boltzformer.networks.text_encoder.ClipTextEncoder", "layers": 1, "width": 32, "heads": 2
    },
    "network_def#dim": 32,
    "network_def#num_queries": 3,
}  # fmt: skip


def test_multiply_adds_are_counted():
    linear = torch.nn.Linear(20, 30, bias=False)
    assert measuring.multiply_adds(lambda: linear(torch.randn(5, 20))) == 5 * 20 * 30
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    query, key = torch.randn(1, 3, 16), torch.randn(1, 50, 16)
    mask = torch.zeros(2, 3, 50, dtype=torch.bool)
    with torch.no_grad():
        counted = measuring.multiply_adds(lambda: attention(query, key, key, attn_mask=mask, need_weights=False))
    assert counted == 16 * 16 * (3 + 50 + 50 + 3) + 2 * 3 * 50 * 16


@torch.no_grad()
def test_benchmark_compares_equal_functions():
    case = DecoderCase(dim=16, queries=2, with_projection=True)
    case.decoder.requires_grad_(False)
    benchmark.check_equal(case.fast(), case.plain())
    row = measuring.compare("small", case.fast, case.plain, repeats=1)
    assert row.ours_s > 0
    assert row.faster > 0
    assert row.ours_gmac < row.peer_gmac
    assert row.ours_mib > 0


def test_benchmark_of_a_whole_volume(tmp_path, monkeypatch):
    pytest.importorskip("einops", reason="MONAI's SwinUNETR needs einops")
    overlay = tmp_path / "small.json"
    overlay.write_text(json.dumps({**SMALL, "network_def#image_size": 64}))
    network = read_bundle(BUNDLE, [str(overlay)], {"checkpoint": None}).get_parsed_content("network_def").eval()
    network.requires_grad_(False)
    monkeypatch.setattr(benchmark, "paper_network", lambda: network)
    result = run(benchmark.volume, "--slices", 3, "--size", 64, "--output", tmp_path / "volume.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "volume.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["64x64x3, 4 prompts, SwinUNETR", "64x64x3, 4 prompts, DynUNet"]
    assert all(row[key] > 0 for row in rows for key in row if key not in ("name", "must", "aim"))


@torch.no_grad()
def test_gathered_attention_is_counted_in_full():
    """Scores and weighted sums of each set, 2 * H * d per kept patch, beside the queries' own projections."""
    case = DecoderCase(dim=16, queries=2)
    case.decoder.requires_grad_(False)
    attention = case.decoder.blocks[0].cross_attention
    attention.form = "kernel"
    kept = torch.zeros(1, 1, 2, 1024, dtype=torch.bool)
    kept[..., :10] = True
    patches = Patches.of(case.features[0])
    arguments = (
        case.decoder.query_features[None],
        case.decoder.query_position,
        patches,
        case.decoder.level_embedding[0],
    )

    def counted():
        return measuring.multiply_adds(lambda: attention(*arguments, kept))

    few = counted()
    kept[..., :110] = True
    assert counted() - few == 2 * 2 * 100 * 8 * 16  # scores and sums, queries, patches, heads, features
    assert measuring.multiply_adds(case.cross_attention("plain")) > measuring.multiply_adds(
        case.cross_attention("auto")
    )
