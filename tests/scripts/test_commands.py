"""The command-line tools that stand around the network."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from boltzformer.apps.bundle_config import read_bundle
from boltzformer.data.cases import load_cases
from boltzformer.networks.attention.patches import Patches
from typer.testing import CliRunner

from scripts import airway_labels, benchmark, measuring, network_costs, training_pairs, volume_table
from scripts.decoder_case import DecoderCase
from scripts.volume_case import PHASES, segmenter_of, write_ct
from tests.support import SMALL_NETWORK

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


def test_stages_of_training_learn_from_as_many_pairs(monkeypatch):
    seen = []
    step_of = training_pairs.training_step

    def watched(parser, slices, prompts):
        network = parser.get_parsed_content("network")
        network.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), len(inputs[1]))))
        before = network.mask_features.weight.detach().clone()
        step = step_of(parser, slices, prompts)
        step()
        assert not torch.equal(network.mask_features.weight, before)
        return step

    monkeypatch.setattr(training_pairs, "training_step", watched)
    monkeypatch.setattr(training_pairs, "STAGES", {"one": (1, SMALL_NETWORK), "four": (4, SMALL_NETWORK)})
    one, four = training_pairs.measure(1)
    assert set(seen) == {(16, 16), (4, 16)}
    assert one.faster == 1
    assert four.pairs_per_second == pytest.approx(16 / four.seconds)


def test_costs_of_a_network_are_measured_and_what_is_too_large_is_said(capsys, monkeypatch):
    timed, seconds_of = [], network_costs.seconds_of
    monkeypatch.setattr(
        network_costs, "seconds_of", lambda run, device: timed.append(run.__name__) or seconds_of(run, device)
    )
    cost = network_costs.measure_network("small", [], **SMALL_NETWORK)
    assert cost.pixels == 64
    assert cost.segment_s > 0
    assert cost.step_s > 0
    assert timed == 3 * ["segment"] + 3 * ["step"]
    assert 0 < cost.segment_gb <= cost.step_gb
    network_costs._show([cost, network_costs.NetworkCost("large", 1024, 900.0)], {"device": "any"})
    told = capsys.readouterr().out
    assert told.count("too large") == 4
    assert f"{cost.step_s:.3g}" in told


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
    overlay = tmp_path / "small.json"
    overlay.write_text(json.dumps({**SMALL, "network_def#image_size": 64, "network_def#existence": False}))
    network = read_bundle(BUNDLE, [str(overlay)], {"checkpoint": None}).get_parsed_content("network_def").eval()
    network.requires_grad_(False)
    monkeypatch.setattr(volume_table, "shipped_segmenter", lambda kind, **_: segmenter_of(network, precision=kind))
    monkeypatch.setattr(volume_table, "paper_network", lambda: network)
    arguments = ("--slices", 3, "--size", 64, "--sample", 2, "--repeats", 1, "--output", tmp_path / "volume.json")
    result = run(benchmark.volume, *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "volume.json").read_text())
    assert [each["name"] for each in found["runs"]][:3] == [f"float32, {n} prompt{'s' * (n > 1)}" for n in (1, 4, 10)]
    for each in found["runs"]:
        assert set(each["seconds"]) == set(PHASES)
        assert min(each["seconds"].values()) > 0
        assert each["resident_gb"] > 0.1
    bars = {bar["name"]: bar["value"] for bar in found["bars"]}
    assert all(value > 0 for value in bars.values())
    assert bars["least Dice of float32 with the plain path"] > 0.99
    assert "1 prompt, from file to mask" in result.output


def test_bars():
    less, more = volume_table.Bar("time", 3.0, "s", 2.0, 4.0), volume_table.Bar("faster", 3.0, "x", 2.0, 4.0, True)
    assert (less.reaches(less.must), less.reaches(less.aim)) == (False, True)
    assert (more.reaches(more.must), more.reaches(more.aim)) == (True, False)
    assert less.reaches(None)


def test_masks_that_say_nothing_are_not_compared():
    mask = torch.zeros(1, 2, 4, 4, 1, dtype=torch.bool)
    mask[0, 0, :2] = True
    other = mask.clone()
    other[0, 0, 0, 0] = False
    assert volume_table._least_dice(other, mask) == pytest.approx(14 / 15)
    for nothing in (torch.zeros_like(mask), torch.ones_like(mask)):
        with pytest.raises(ValueError, match="empty or full"):
            volume_table._least_dice(nothing, nothing)


def test_ct_of_the_benchmark_is_like_the_sample(tmp_path):
    file = write_ct(tmp_path / "ct.nii.gz", 64, 5)
    made, sample = nib.load(file), nib.load(BUNDLE / "samples" / "head_neck_ct.nii.gz")
    assert made.shape == (64, 64, 5)
    corner = np.array([128, 128, 128, 1])
    assert np.allclose(made.affine @ [64, 64, 5, 1], sample.affine @ corner)  # the same field of view
    voxels = np.asarray(made.dataobj)
    assert voxels.dtype == np.int16
    assert (voxels[0, 0] == -1024).all()  # outside the scanner's circle
    assert voxels.max() > 200
    assert write_ct(tmp_path / "again.nii.gz", 64, 5).read_bytes() == file.read_bytes()


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


def test_airway_is_air_inside_the_body_but_no_lung(tmp_path):
    image = np.full((60, 50, 8), -1000, np.int16)
    image[5:55, 5:45] = 40
    image[28:32, 20:24] = -900  # an airway of 8 x 8 mm through all slices
    image[10:30, 26:43, :2] = -850  # a lung
    image[40:42, 30:32, 5] = -900  # a bubble of gas
    image[0:8, 20:24] = -1000  # outside
    affine = np.array([[0, -2.0, 0, 50], [-2.0, 0, 0, 60], [0, 0, 5.0, 0], [0, 0, 0, 1]])  # axes P, L, S
    items = [{"image": f"scan_{n}.nii.gz", "label": f"organs_{n}.nii.gz"} for n in range(3)]
    for item in items:
        nib.save(nib.Nifti1Image(image, affine), tmp_path / item["image"])
        nib.save(nib.Nifti1Image((image > 0).astype(np.uint8), affine), tmp_path / item["label"])
    content = {"name": "set", "modality": "CT", "labels": {"1": "body"}, "training": [], "validation": items}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    result = run(airway_labels.main, tmp_path / "dataset.json", tmp_path / "made", "--train", 1, "--validate", 1)
    assert result.exit_code == 0, result.output
    label = nib.load(tmp_path / "made" / "labels" / "organs_0.nii.gz")
    assert np.allclose(label.affine, affine)
    expected = np.zeros(image.shape, bool)
    expected[28:32, 20:24] = True
    assert np.array_equal(np.asarray(label.dataobj) > 0, expected)
    for name in ("airway", "organs"):
        used = [load_cases(tmp_path / "made" / f"{name}.json", part) for part in ("training", "validation")]
        used.append(load_cases(tmp_path / "made" / f"{name}_left_out.json", "validation"))
        assert [Path(case["image"]).name for part in used for case in part] == [item["image"] for item in items]
    few = run(airway_labels.main, tmp_path / "dataset.json", tmp_path / "made", "--train", 2, "--validate", 1)
    assert few.exit_code == 2
    assert "leave none out" in few.output
    (tmp_path / "labels").mkdir()
    for item in items:
        organs = (tmp_path / item["label"]).rename(tmp_path / "labels" / item["label"])
        item["label"] = str(organs.relative_to(tmp_path))
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    before = organs.read_bytes()
    over = run(airway_labels.main, tmp_path / "dataset.json", tmp_path, "--train", 1, "--validate", 1)
    assert over.exit_code == 2
    assert "is an input" in over.output
    assert organs.read_bytes() == before
