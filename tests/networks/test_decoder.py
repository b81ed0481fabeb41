"""The fast decoder must equal its plain form in tests/networks/reference.py: outputs, sets and gradients."""

from __future__ import annotations

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.networks import gathered_attention
from boltzformer.networks.boltzmann_attention import PatchFeatures
from boltzformer.networks.decoder import BoltzFormerDecoder
from boltzformer.networks.noise import fresh_noise
from boltzformer.networks.semantic_map import ExplicitSemanticMap, FoldedSemanticMap, foldable, folding_pays

from tests.networks.reference import reference_decode

GRIDS = [(4, 6), (8, 12), (16, 24)]
SQUARE = [(8, 8), (16, 16), (32, 32)]
ODD = [(3, 5), (7, 9), (15, 17)]  # no scale is a multiple of another, so that maps are resized by interpolation


def make(m=4, heads=4, batch=2, seed=0, grids=GRIDS, **settings):
    torch.manual_seed(seed)
    decoder = BoltzFormerDecoder(dim=32, num_queries=m, num_heads=heads, feedforward_dim=64, **settings)
    features = [torch.randn(batch, 32, *grid) for grid in grids]
    semantic_map = torch.randn(batch, 32, 2 * grids[-1][0], 2 * grids[-1][1])
    text = torch.randn(batch, 5, 32)
    noise = fresh_noise(batch, decoder.sets_per_query, m, decoder.patches_per_layer(grids), torch.device("cpu"))
    return decoder, features, semantic_map, text, noise


def fast(decoder, features, semantic_map, text, noise, mask=None, trace=None):
    semantic = ExplicitSemanticMap(semantic_map)
    mu = decoder([PatchFeatures(v) for v in features], semantic, text, mask, noise, trace)
    return semantic.mask_logits(mu)


def set_gather(decoder, density):
    for block in decoder.blocks:
        block.cross_attention.gather_density = density


@pytest.mark.parametrize("way", ["dense", "gather", "kernel"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"heads": 1},
        {"heads": 8},
        {"m": 1},
        {"m": 10},
        {"m": 101},
        {"batch": 3},
        {"batch": 1, "grids": SQUARE},
        {"grids": ODD},
        {"sample_ratio": 0.01},
        {"sample_ratio": 0.5},
        {"heads_share_set": False},
        {"heads_share_set": False, "m": 10, "sample_ratio": 0.02},
        {"attention_set": "threshold"},
        {"attention_set": "threshold", "threshold": 0.999},  # mostly empty sets
        {"attention_set": "full"},
        {"text_conditioned_prior": False},
        {"base_temperature": 0.25},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_reference(settings, way, monkeypatch):
    if way == "gather":
        monkeypatch.setattr(gathered_attention, "_kernel", lambda: None)
    decoder, features, semantic_map, text, noise = make(**settings)
    set_gather(decoder, 0.0 if way == "dense" else 1.1)
    sets, expected_sets = [], []
    expected = reference_decode(decoder, features, semantic_map, text, None, noise, expected_sets)
    masks = fast(decoder, features, semantic_map, text, noise, trace=sets)
    for kept, expected_kept in zip(sets, expected_sets, strict=True):
        assert (kept is None) == (expected_kept is None)
        assert kept is None or torch.equal(kept, expected_kept)
    assert (masks - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("gather", [0.0, 1.1], ids=["dense", "gather"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"m": 1},
        {"m": 10, "grids": SQUARE},
        {"m": 101},
        {"grids": ODD},
        {"heads": 1, "batch": 1},
        {"heads": 8},
        {"sample_ratio": 0.01},
        {"sample_ratio": 0.5},
        {"heads_share_set": False},
        {"heads_share_set": False, "m": 10, "sample_ratio": 0.02},
        {"attention_set": "threshold", "threshold": 0.999},  # mostly empty sets
        {"attention_set": "full"},
    ],
    ids=str,
)
def test_gradients_equal_reference(settings, gather):
    decoder, features, semantic_map, text, noise = make(**settings)
    set_gather(decoder, gather)
    leaves = [*features, semantic_map, text]
    for leaf in leaves:
        leaf.requires_grad_()
    weight = torch.randn(len(text), decoder.num_queries, *semantic_map.shape[-2:])
    gradients = []
    for run in (fast, lambda *a: reference_decode(*a[:4], None, a[4])):
        loss = (run(decoder, features, semantic_map, text, noise) * weight).sum()
        gradients.append(torch.autograd.grad(loss, [*decoder.parameters(), *leaves], allow_unused=True))
    names = [name for name, _ in decoder.named_parameters()] + ["scale 0", "scale 1", "scale 2", "map", "text"]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            largest = max(float(theirs.abs().max()), 1e-2)  # the key bias has a gradient of rounding errors alone
            assert (ours - theirs).abs().max() < 1e-3 * largest, name


def test_text_padding_and_company_change_nothing():
    decoder, features, semantic_map, text, noise = make()
    padded = torch.cat((text, torch.randn(2, 7, 32)), 1)
    mask = torch.arange(12)[None].expand(2, -1) < 5
    with torch.no_grad():
        plain = fast(decoder, features, semantic_map, text, noise)
        with_padding = fast(decoder, features, semantic_map, padded, noise, mask)
    assert torch.allclose(plain, with_padding, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (8, 12), (4, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_semantic_map_equals_explicit(size, bias):
    torch.manual_seed(0)
    projection = torch.nn.Conv2d(16, 16, 3, padding=1, bias=bias)
    finest, mu = torch.randn(2, 16, 32, 48), torch.randn(2, 3, 16)
    explicit, folded = ExplicitSemanticMap(projection(finest)), FoldedSemanticMap(finest, projection)
    assert torch.allclose(explicit.mask_logits(mu), folded.mask_logits(mu), atol=1e-4)
    plain = torch.nn.functional.interpolate(explicit.mask_logits(mu), size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(explicit.patch_logits(mu, size), plain, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(explicit.patch_logits(mu, size), plain, atol=1e-4)
    assert torch.allclose(folded.patch_logits(mu, size), plain, atol=1e-4)


def test_folding_is_chosen_from_the_sizes():
    assert foldable((32, 48), (16, 24))
    assert not foldable((32, 48), (10, 24))
    sizes = {"map_pixels": 256**2, "patches_of_layers": 3 * 21504}
    assert folding_pays(queries=10, dim=256, **sizes)
    assert not folding_pays(queries=101, dim=64, **sizes)
    assert folding_pays(queries=10, dim=512, **sizes, prompts=4)
    assert not folding_pays(queries=10, dim=256, **sizes, prompts=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_ratio": 0}, "sample_ratio"),
        ({"base_temperature": 0}, "base_temperature"),
        ({"attention_set": "sparse"}, "attention_set"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        BoltzFormerDecoder(dim=32, **settings)
