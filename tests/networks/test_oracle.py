"""The authors' own modules, weights and noise must give the authors' own outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from boltzformer.networks.attention.patches import Patches
from boltzformer.networks.attention.rules import Boltzmann
from boltzformer.networks.authors_checkpoint import (
    convert_checkpoint,
    convert_decoder,
    convert_pigma,
    convert_pixel_decoder,
)
from boltzformer.networks.decoder import BoltzFormerDecoder
from boltzformer.networks.pigma import PiGMA
from boltzformer.networks.pixel_decoder import PixelDecoder
from boltzformer.networks.semantic_map import ExplicitSemanticMap, PlainSemanticMap
from safetensors.torch import load_file


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


ORACLE = Path(__file__).resolve().parents[1] / "data" / "oracle"


def below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def decoder_tensors():
    return load_file(ORACLE / "decoder.safetensors")


@pytest.mark.parametrize("form", ["plain", "dense", "gathered", "kernel"])
@torch.no_grad()
def test_decoder_gives_the_authors_sets_and_masks(decoder_tensors, form):
    rule = Boltzmann(heads_share_set=False)
    decoder = BoltzFormerDecoder(dim=32, num_queries=5, num_heads=4, feedforward_dim=64, attention=rule, form=form)
    decoder = decoder.eval()
    decoder.load_state_dict(convert_decoder(below(decoder_tensors, "weight.")))
    scales = [Patches.of(decoder_tensors[f"input.feature_{i}"]) for i in range(3)]
    maps = decoder_tensors["input.semantic_map"]
    if form == "plain":
        semantic_map = PlainSemanticMap(maps, {})
    else:
        resize = torch.nn.functional.interpolate
        at_grid = {s.size: resize(maps, size=s.size, mode="bilinear", align_corners=False) for s in scales}
        semantic_map = ExplicitSemanticMap(maps, at_grid)
    text = decoder_tensors["input.text_tokens"].transpose(0, 1)
    noise = [-decoder_tensors[f"noise.{i}"].unflatten(0, (2, 4)).log() for i in range(9)]
    result = decoder(scales, semantic_map, text, None, noise, keep_sets=True)
    for layer, kept in enumerate(result.layer_sets):
        expected = ~decoder_tensors[f"expected.masked_out.{layer}"].unflatten(0, (2, 4)).bool()
        empty = ~expected.any(-1)  # recorded before the rule that an empty set means every patch
        assert torch.equal(kept[~empty], expected[~empty]), f"layer {layer}"
        assert kept[empty].all()
        assert 0 < expected.float().mean() < 1
    assert relative_error(semantic_map.mask_logits(result.mu), decoder_tensors["expected.query_masks"]) < 1e-4


@torch.no_grad()
def test_pixel_decoder_gives_the_authors_features():
    tensors = load_file(ORACLE / "pixel_decoder.safetensors")
    weights = convert_pixel_decoder(below(tensors, "weight."))
    pixel_decoder = PixelDecoder([16, 24, 32, 48], dim=32, num_heads=4, feedforward_dim=64, encoder_layers=2)
    pixel_decoder.load_state_dict(below(weights, "pixel_decoder."))
    mask_features = torch.nn.Conv2d(32, 32, 3, padding=1)
    mask_features.load_state_dict(below(weights, "mask_features."))
    scales, finest = pixel_decoder([tensors[f"input.res{i}"] for i in (2, 3, 4, 5)])
    for i, scale in enumerate(scales):
        assert relative_error(scale, tensors[f"expected.feature_{i}"]) < 1e-4
    assert relative_error(mask_features(finest), tensors["expected.semantic_map"]) < 1e-4


@torch.no_grad()
def test_pigma_gives_the_authors_mask():
    tensors = load_file(ORACLE / "pigma.safetensors")
    pigma = PiGMA(num_queries=3)
    pigma.load_state_dict(below(convert_pigma(below(tensors, "weight.")), "pigma."))
    logits = pigma(tensors["input.query_masks"], pigma.image_share(tensors["input.image"], (256, 256)))
    assert relative_error(logits[:, :, ::8, ::8], tensors["expected.logits_every_8th"]) < 1e-4
    mean_std = torch.stack((logits.mean(), logits.std()))
    assert torch.allclose(mean_std, tensors["expected.logits_mean_std"], atol=1e-4)


def test_whole_checkpoint_is_converted_and_the_rest_is_named():
    tensors = {}
    for file, prefix in (
        ("decoder", "sem_seg_head.predictor."),
        ("pixel_decoder", "sem_seg_head.pixel_decoder."),
        ("pigma", ""),
    ):
        weights = below(load_file(ORACLE / f"{file}.safetensors"), "weight.")
        tensors.update({f"model.{prefix}{key}": value for key, value in weights.items()})
    count = len(tensors)
    tensors["model.backbone.patch_embed.proj.weight"] = torch.zeros(1)
    converted, left = convert_checkpoint(tensors)
    assert left == ["model.backbone.patch_embed.proj.weight"]
    assert len(converted) == count - 1  # class_embed is unused
    assert "decoder.blocks.8.feedforward.linear1.weight" in converted
    assert "pixel_decoder.adapters.0.conv.weight" in converted
